const rows = [...document.querySelector("table.sortable").tBodies[0].rows];
for (const row of rows) {  // a small copy of each map, which the page need not carry twice
  const link = row.cells[0].querySelector("a");
  const stack = link && document.querySelector(`${link.getAttribute("href")} .stack`);
  if (!stack) continue;
  const copy = stack.cloneNode(true);
  copy.querySelector(".ruler")?.remove();
  copy.setAttribute("aria-hidden", true);
  link.prepend(copy);
}
const slider = document.getElementById("opacity");
const bar = document.querySelector(".bar");
const sections = [...document.querySelectorAll("section.slide")];
const show = () => {
  document.documentElement.style.setProperty("--opacity", slider.value / 100);
  document.getElementById("opacity-value").textContent = slider.value + " %";
};
const change = step => { slider.value = Number(slider.value) + step; show(); };
const go = step => {
  const edge = bar.offsetHeight + 10;
  const tops = sections.map(section => section.getBoundingClientRect().top);
  let next = sections.indexOf(document.activeElement.closest("section.slide"));
  const isSeen = next >= 0 && tops[next] < innerHeight && sections[next].getBoundingClientRect().bottom > edge;
  if (isSeen) next += step;
  else if (step > 0) next = tops.findIndex(top => top > edge);
  else next = tops.findLastIndex(top => top < edge - 4);
  if (!sections[next]) return;
  sections[next].focus({preventScroll: true});
  sections[next].scrollIntoView();
};
const steps = {"+": 5, "=": 5, "-": -5, ArrowRight: 5, ArrowLeft: -5};
slider.addEventListener("input", show);
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.type === "search") return;
  if (event.key.startsWith("Arrow") && event.target.closest(".wide")) return;  // there they scroll the table
  if (event.key in steps) change(steps[event.key]);
  else if (event.key === "n") go(1);
  else if (event.key === "p") go(-1);
  else return;
  event.preventDefault();
});
new ResizeObserver(() => {
  document.documentElement.style.scrollPaddingTop = bar.offsetHeight + 8 + "px";
}).observe(bar);
show();
