"use strict";
const byId = id => document.getElementById(id);
const [opacity, threshold, outline, truth, over] = ["opacity", "threshold", "outline", "truth", "over"].map(byId);
const viewer = OpenSeadragon({
  element: byId("slide"), showNavigationControl: false, drawer: "canvas", animationTime: 0.3, maxZoomPixelRatio: 4,
  visibilityRatio: 0.3, gestureSettingsMouse: {clickToZoom: false, dblClickToZoom: true},
});
const context = over.getContext("2d"), map = document.createElement("canvas");
const hatch = document.createElement("canvas");
let all, shown = -1, facts = null, values = null, lines = null, unknown = null, truthPath = null;

hatch.width = hatch.height = 8;  // grey, with dark lines that join from copy to copy
const stripes = hatch.getContext("2d");
stripes.fillStyle = "#d6d6d6";
stripes.fillRect(0, 0, 8, 8);
stripes.strokeStyle = "#404040";
stripes.lineWidth = 2;
for (const at of [-8, 0, 8]) { stripes.moveTo(at - 2, -2); stripes.lineTo(at + 10, 10); }
stripes.stroke();

// The same law as in the pictures: 128 colours on each side of the threshold.
const shade = (p, from) => p >= from ? 128 + Math.round((p - from) / Math.max(1 - from, 1e-6) * 127)
  : Math.round(p / Math.max(from, 1e-6) * 127);

const recolor = () => {
  const from = Math.fround(threshold.value), [rows, columns] = facts.cells;
  const pixels = new ImageData(columns, rows);
  let judged = 0, tumor = 0, tissue = 0;
  values.forEach((p, k) => {
    if (Number.isNaN(p)) return;
    tissue += 1;
    if (p < 0) return;
    judged += 1;
    tumor += p >= from;
    const [r, g, b] = all.palette[shade(p, from)];
    pixels.data.set([r, g, b, 255], 4 * k);
  });
  map.width = columns;
  map.height = rows;
  map.getContext("2d").putImageData(pixels, 0, 0);
  lines = border((row, column) => values[row * columns + column] >= from);
  byId("threshold-value").textContent = Number(threshold.value).toFixed(3);
  byId("share").textContent = tissue
    ? `${all.word} ${(100 * tumor / tissue).toFixed(1)} %, unknown ${(100 * (tissue - judged) / tissue).toFixed(1)} %` : "no tissue";
  const mark = `${100 * threshold.value}%`, {palette} = all;
  const stop = (k, at) => `rgb(${palette[k]}) ${at}%`;
  const side = (first, low, high) => [0, 32, 64, 96, 127].map((k, n) => stop(first + k, low + (high - low) * n / 4));
  const middle = 100 * threshold.value;
  document.documentElement.style.setProperty("--scale",
    `linear-gradient(to right, ${[...side(0, 0, middle), ...side(128, middle, 100)].join(", ")})`);
  over.dataset.tumor = tumor;  // for whoever wants to know how many cells are called tumour
  draw();
};

// The border of the cells that a test picks, as straight pieces from cell corner to cell corner.
const border = isIn => {
  const [rows, columns] = facts.cells, path = new Path2D();
  const at = (row, column) => row >= 0 && column >= 0 && row < rows && column < columns && isIn(row, column);
  const pieces = (across, down, differs, move) => {
    for (let k = 0; k <= across; k += 1) {
      for (let begin = -1, l = 0; l <= down; l += 1) {
        const is = l < down && differs(k, l);
        if (is && begin < 0) begin = l;
        if (!is && begin >= 0) { move(k, begin, l); begin = -1; }
      }
    }
  };
  pieces(rows, columns, (row, column) => at(row, column) !== at(row - 1, column),
    (row, begin, end) => { path.moveTo(begin, row); path.lineTo(end, row); });
  pieces(columns, rows, (column, row) => at(row, column) !== at(row, column - 1),
    (column, begin, end) => { path.moveTo(column, begin); path.lineTo(column, end); });
  return path;
};

const draw = () => {
  const ratio = devicePixelRatio, {clientWidth, clientHeight} = over;
  over.width = clientWidth * ratio;
  over.height = clientHeight * ratio;
  if (!facts || !viewer.world.getItemCount()) return;
  const [width, height] = facts.size, corner = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
  const scale = (viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true).x - corner.x) / width;
  const [left, top, wide, high] = facts.box, [rows, columns] = facts.cells;
  const toCells = () => {
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * corner.x, ratio * corner.y);
    context.transform(wide * width / columns, 0, 0, high * height / rows, left * width, top * height);
  };
  context.imageSmoothingEnabled = false;
  toCells();
  context.globalAlpha = opacity.value / 100;
  context.drawImage(map, 0, 0);
  if (unknown && opacity.value > 0) {
    const pattern = context.createPattern(hatch, "repeat");
    pattern.setTransform(context.getTransform().inverse().scale(ratio));
    context.globalAlpha = Math.max(0.5, opacity.value / 100);
    context.fillStyle = pattern;
    context.fill(unknown);
  }
  context.globalAlpha = 1;
  const stroke = (path, color, size) => {
    context.lineWidth = 2.5 / size;
    context.strokeStyle = color;
    context.stroke(path);
  };
  if (outline.checked) stroke(lines, "#222222", scale * wide * width / columns);
  context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * corner.x, ratio * corner.y);
  if (truthPath && truth.checked) stroke(truthPath, "#00be73", scale);
  measure(scale);
};

// A round length between 60 and 150 pixels.
const measure = scale => {
  const ruler = byId("ruler"), um = facts.um;
  ruler.hidden = um === null;
  if (um === null) return;
  const most = 150 * um / scale, power = 10 ** Math.floor(Math.log10(most));
  const length = power * (most / power >= 5 ? 5 : most / power >= 2 ? 2 : 1);
  ruler.style.width = `${length / um * scale}px`;
  ruler.textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} um`;
};

const fetched = async address => {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
};

const show = async number => {
  if (!all.slides[number]) return;
  shown = number;
  facts = truthPath = null;
  viewer.close();  // nothing of the slide before under the name of this one
  draw();
  document.querySelectorAll("ol button").forEach((button, k) => button.setAttribute("aria-current", k === number));
  document.querySelectorAll("ol button")[number].scrollIntoView({block: "nearest"});
  const warning = byId("warning"), {slide} = all.slides[number];
  byId("name").textContent = document.title = slide;
  warning.textContent = "";
  try {
    const [told, cells] = await Promise.all([fetched(`${number}/facts.json`), fetched(`${number}/cells`)]);
    const [found, buffer] = [await told.json(), await cells.arrayBuffer()];
    if (shown !== number) return;  // somebody is faster
    [facts, values] = [found, new Float32Array(buffer)];
  } catch (error) {
    warning.textContent = error.message;
    return;
  }
  const [rows, columns] = facts.cells;
  unknown = new Path2D();
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      if (values[row * columns + column] < 0) unknown.rect(column, row, 1, 1);
    }
  }
  truthPath = facts.truth ? new Path2D(facts.truth) : null;
  byId("truth-label").hidden = !facts.truth;
  warning.textContent = [...facts.warnings, ...(facts.truth_error ? [facts.truth_error] : [])].join("; ");
  threshold.value = facts.threshold;
  byId("mark").style.left = `${100 * facts.threshold}%`;
  viewer.open(!facts.is_there ? {type: "image", url: `${number}/thumbnail.jpg`} : {
    width: facts.size[0], height: facts.size[1], tileSize: facts.tile, minLevel: 0, maxLevel: facts.layers,
    getTileUrl: (layer, x, y) => `${number}/tile/${layer}/${x}/${y}`,
  });
  recolor();
};

const press = (id, change) => () => { byId(id)[change ? "value" : "checked"] = change ? Number(byId(id).value) + change
  : !byId(id).checked; byId(id).dispatchEvent(new Event("input")); };
let before = 50;
const keys = {
  n: () => show(shown + 1), p: () => show(shown - 1), o: press("outline"), t: press("truth"),
  "[": press("threshold", -0.01), "]": press("threshold", 0.01), 0: () => viewer.viewport.goHome(),
  m: () => { [before, opacity.value] = Number(opacity.value) ? [opacity.value, 0] : [0, before]; draw(); },
};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.type === "search" || !(event.key in keys)) return;
  keys[event.key]();
  event.preventDefault();
  event.stopPropagation();
}, true);
[opacity, outline, truth].forEach(one => one.addEventListener("input", draw));
threshold.addEventListener("input", () => facts && recolor());
byId("reset").addEventListener("click", () => { if (facts) { threshold.value = facts.threshold; recolor(); } });
["update-viewport", "open", "resize"].forEach(name => viewer.addHandler(name, draw));
new ResizeObserver(draw).observe(over);

fetched("slides.json").then(answer => answer.json()).then(found => {
  all = found;
  byId("word").textContent = all.word;
  const percent = share => share === null ? "" : `${(100 * share).toFixed(share % 1 && Math.abs(share - 0.5) > 0.49 ? 1 : 0)} %`;
  all.slides.forEach((one, number) => {
    const button = document.createElement("button"), image = new Image(), text = document.createElement("span");
    const said = [one.status.replaceAll("_", " "), `${percent(one.tumor_share)} ${all.word}`, one.split, one.site,
      one.label === null ? "" : all.word !== "tumour" ? `label ${one.label}` : one.label ? "label tumour" : "label normal"];
    const small = document.createElement("small");
    [image.loading, image.alt, image.src] = ["lazy", "", `${number}/thumbnail.jpg`];
    small.textContent = said.filter(part => part && !part.startsWith(" ")).join(", ");
    text.append(one.slide, small);
    button.type = "button";
    button.append(image, text);
    button.addEventListener("click", () => show(number));
    const item = document.createElement("li");
    item.append(button);
    byId("slides").append(item);
  });
  show(0);
}).catch(error => { byId("warning").textContent = error.message; });
byId("filter").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  document.querySelectorAll("ol li").forEach(item => {
    item.hidden = !words.every(word => item.textContent.toLowerCase().includes(word));
  });
});
