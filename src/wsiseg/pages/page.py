"""The frame of the HTML pages: one file, nothing from outside, readable in light and dark."""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import accumulate, zip_longest
from typing import Any

from wsiseg.run.errors import counted
from wsiseg.run.record import SlideRecord

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #f2f4f6; --line: #d0d5da; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181a; --soft: #22262a; --line: #3c434a; --link: #7db7f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere; }
a { color: var(--link); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .text, .name { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
th { background: var(--soft); white-space: normal; vertical-align: bottom; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible, input:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.sortable { font-size: .9rem; } .sortable th, .sortable td { padding: .25rem .45rem; }
#filter { padding: .25rem .5rem; width: 16rem; max-width: 100%; font: inherit; }
.wide, pre { overflow-x: auto; }
td:has(.interval), td:has(.interval) ~ td { white-space: normal; }
.interval { display: inline-block; white-space: nowrap; }
td > a > img { display: block; width: 10rem; height: 5rem; object-fit: contain; object-position: left; }
@media (max-width: 32rem) { table { font-size: .85rem; } th, td { padding: .2rem .3rem; white-space: normal; } }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
.row > figure, .tiles > figure { margin: 0; }
.row > figure:has(svg) { flex: 1 1 18rem; max-width: 27rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 1rem; }
.tiles img { width: 100%; height: auto; }
figcaption, .small { font-size: .85rem; opacity: .85; }
figure svg { max-width: 100%; height: auto; border-radius: 4px; }
.cells { image-rendering: pixelated; width: 20rem; max-width: 100%; border: 1px solid var(--line); background: #fff; }
.bad { color: #b3261e; font-weight: 600; } .good { color: #1c7c3c; }
@media (prefers-color-scheme: dark) { .bad { color: #ff8a80; } .good { color: #7fd69b; } }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .8em; border-radius: 2px; }
input[type=range] { width: min(30rem, 100%); vertical-align: middle; }
"""

NAME, TEXT = "name", "text"
"""Of cells and heads: a short text, to the left, and a long one."""
_MOST_BYTES = 4_500_000  # of the rows of a table of slides
_POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_SORTING = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const rising = button.getAttribute("aria-pressed") !== "true";
    table.querySelectorAll("th button").forEach(one => one.removeAttribute("aria-pressed"));
    button.setAttribute("aria-pressed", rising);
    const value = row => row.cells[column].textContent.replace(/[,%]|^-$/g, "");
    const order = (a, b) => a === "" ? 1 : b === "" ? -1
      : (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b) * (rising ? 1 : -1);
    [...body.rows].sort((a, b) => order(value(a), value(b))).forEach(row => body.append(row));
  }));
}
"""

FILTER = '<p><input type="search" id="filter" placeholder="filter slides" aria-label="filter slides"></p>'
"""A field whose words every row of the sortable table below must have, or it is hidden."""
_FILTERING = """
document.getElementById("filter")?.addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\\s+/);
  for (const row of document.querySelector("table.sortable").tBodies[0].rows) {
    row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  }
});
"""

FROM_FILES = """
for (const link of document.querySelectorAll("table.sortable td a")) {
  const image = new Image();
  Object.assign(image, {loading: "lazy", alt: "", src: link.href, onerror: () => image.remove()});
  link.prepend(image);
}
"""
"""A script that shows the picture files that rows link to when they come into sight, where a page cannot hold them."""
MOST_HELD = 200
"""So many slides at most have their pictures in the page itself, in 4 MB together; so no page grows beyond 5 MB."""


def page(title: str, body: str, script: str = "", style: str = "") -> str:
    """Return a whole page of a plain title and HTML, with a script that runs when it stands, and CSS of its own."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}{style}</style></head>\n<body>\n{body}\n<script>{_SORTING}{_FILTERING}{script}</script>\n</body></html>\n"
    )


def embedded(name: str, value: Any) -> str:  # noqa: ANN401  any JSON value
    """Return an element that carries a JSON value for the page's script under an id."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def picture_address(kind: str, content: bytes) -> str:
    """Return an image file of a kind (`png`, `jpeg`) as a `data:` address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; heads are text, cells are HTML. Columns of figures stand to the right, others to the left."""
    known = [*rows]
    kinds = [NAME if any(map(_is_word, column)) else "" for column in zip(*known, strict=True)]
    return _table("", map(escape, heads), ("".join(map(cell, row, kinds)) for row in known))


def _is_word(html: str) -> bool:
    """Return True for a cell that begins like a word; intervals and signs are of figures."""
    return re.match(r"\s*[^\W\d_]", re.sub(r"<[^>]*>", "", html)) is not None


def sortable_table(heads: Sequence[str], rows: Sequence[str], elsewhere: str) -> str:
    """Return a table of slides that a click on a head sorts; heads are text, rows are joined results of `cell`.

    What does not fit is `elsewhere`, in the file of that name.
    """
    sizes = accumulate(len(row.encode(errors="surrogateescape")) for row in rows)
    fitting = [row for row, size in zip(rows, sizes, strict=True) if size <= _MOST_BYTES]
    table = _table(' class="sortable"', (f"<button>{escape(one)}</button>" for one in heads), fitting)
    left = len(rows) - len(fitting)
    is_or_are = "is" if left == 1 else "are"
    return table + f"<p>{counted(left, 'further slide')} {is_or_are} in {escape(elsewhere)} only.</p>" * bool(left)


def _table(kind: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    known = [*rows]
    kinds = re.findall(r"<td(?: class=\"(\w+)\")?", known[0]) if known else []
    head = "".join(f'<th class="{one}">{text}</th>' for text, one in zip_longest(heads, kinds, fillvalue=""))
    body = "".join(f"<tr>{row}</tr>" for row in known)
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(html: str, kind: str = "") -> str:
    """Return a cell of a table: a figure, or of the kind `NAME` or `TEXT`."""
    marked = f' class="{kind}"' if kind else ""
    return f"<td{marked}>{html}</td>"


def of_cohort(record: SlideRecord) -> str:
    """Return what the cohort says of a slide, as HTML: its label, split and site."""
    label = getattr(record, "label", None)
    word = label if [*record.by_class] != ["tumor"] else "tumour" if label else "normal"
    told = (None if label is None else f"label {word}", getattr(record, "split", None), getattr(record, "site", None))
    return ", ".join(escape(str(one)) for one in told if one)
