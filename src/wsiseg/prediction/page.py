"""The page of a run of `predict`: a table of slides, and each slide with its tumour map over it."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from wsiseg.pages.page import cell, page, sortable_table
from wsiseg.prediction.viewer import SCRIPT, STYLE, Results, viewed, viewer_bar
from wsiseg.run.errors import counted
from wsiseg.run.record import Run, SlideRecord, totals

_MOST_SECTIONS = 1000
_MOST_PICTURE_BYTES = 22_000_000  # of all pictures as text, so that a page of hundreds of slides stays below 25 MB
_COLUMNS = {
    "tissue mm2": ("tissue_mm2", "{:.2f}"),
    "tumour mm2": ("tumor_mm2", "{:.2f}"),
    "share": ("tumor_share", "{:.1%}"),
    "unknown": ("unknown_share", "{:.1%}"),
    "mean p": ("mean_probability", "{:.3f}"),
    "max p": ("max_probability", "{:.3f}"),
    "cells": ("tiles", "{:,}"),
    "bad": ("bad_tiles", "{:,}"),
    "seconds": ("seconds", "{:.1f}"),
}  # by their heads: fields of a record, and how they are written
_STYLE = """
table.sortable { font-size: .9rem; }
table.sortable th, table.sortable td { padding: .25rem .45rem; }
table.sortable th:last-child { text-align: left; }
table.sortable td:last-child { min-width: 18rem; }
"""


def predict_page(run: Run, title: str, results: Callable[[str], Results | None]) -> str:
    """Return the page of a run; `results` is asked once for every slide that is shown, by its id."""
    records = sorted(
        run.slides, key=lambda record: (record.status not in ("failed", "suspect"), _natural(record.slide))
    )
    mapped = [record for record in records if record.status not in ("failed", "skipped")]
    shown, left = mapped[:_MOST_SECTIONS], len(mapped[_MOST_SECTIONS:])
    numbers = {record.slide: number for number, record in enumerate(shown)}
    sections = list(_sections(run, shown, results))
    more = f"<p>{counted(left, 'further slide')} {'is' if left == 1 else 'are'} in the table only.</p>" if left else ""
    parts = [
        f"<h1>Tumour maps: {_name(title)}</h1>",
        *_about(run),
        "<h2>Slides</h2>",
        sortable_table(
            ["slide", "status", *_COLUMNS, "notes"], [_row(record, numbers.get(record.slide)) for record in records]
        ),
        *(("<h2>Maps</h2>", viewer_bar(), *sections, more) if sections else ()),
    ]
    return page(f"Tumour maps: {title}", "\n".join(parts), SCRIPT if sections else "", STYLE + _STYLE)


def _natural(name: str) -> str:
    """Return what sorts names as people do: slide-2 before slide-10."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), name.lower())


def _name(text: str) -> str:
    """Return a name of unknown origin as HTML that cannot turn the direction of the text around it."""
    return f"<bdi>{escape(text)}</bdi>"


def _about(run: Run) -> Iterator[str]:
    """Say what made the maps, when and how, and what came of it."""
    for model in _models(run.model or {}):
        facts = [
            f"model <b>{escape(str(model.get('name', 'unknown')))} {escape(str(model.get('version', '')))}</b>",
            escape(str(model.get("intended_use", ""))),
            f"licence: {escape(str(model.get('licence', 'unknown')))}",
            f"sha256 {escape(str(model.get('sha256', ''))[:12])}",
        ]
        yield f"<p>{' · '.join(fact for fact in facts if fact)}</p>"
    provider = (run.device or {}).get("provider", "unknown")
    yield f"<p>{escape(_sums(run.slides))}</p>"
    yield (
        f'<p class="small">wsiseg {escape(run.version)} on {escape(str(provider))}, '
        f"{escape(run.started)} to {escape(run.finished or 'unfinished')}</p>"
    )
    settings = "".join(
        f"<li>{escape(name)}: {escape('by default' if value is None else str(value))}</li>"
        for name, value in run.settings.items()
    )
    yield f'<details class="small"><summary>Settings</summary><ul>{settings}</ul></details>'


def _models(model: dict[str, Any]) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = model.get("models") or ([model] if model else [])
    return models


def _sums(records: Sequence[SlideRecord]) -> str:
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in totals(records).items())
    names = ("tissue_mm2", "tumor_mm2", "unknown_mm2")
    tissue, tumor, unknown = (sum(getattr(one, name) or 0 for one in records) for name in names)
    share, unjudged = (f" ({area / tissue:.1%})" if tissue else "" for area in (tumor, unknown))
    cells, unreadable = (sum(getattr(one, name) for one in records) for name in ("tiles", "bad_tiles"))
    parts = [
        f"{counted(len(records), 'slide')}: {counts}",
        f"{tissue:.2f} mm2 of tissue, {tumor:.2f} mm2{share} of it tumour"
        + f", {unknown:.2f} mm2{unjudged} unknown and not judged" * bool(unknown),
        f"{counted(cells, 'cell')}, {unreadable} of them unreadable",
    ]
    return "; ".join(parts)


def _row(record: SlideRecord, number: int | None) -> str:
    name = _name(record.slide)
    link = name if number is None else f'<a href="#slide-{number}">{name}</a>'
    fields = record.model_dump()
    values = [(fields.get(field), form) for field, form in _COLUMNS.values()]
    cells = [cell(form.format(one), one) if isinstance(one, int | float) else cell("") for one, form in values]
    said = "; ".join(record.warnings)
    if record.error is not None:
        said = f"{record.error.message}; {record.error.hint}" if record.error.hint else record.error.message
    ends = [cell(link, record.slide, is_text=True), cell(_status(record), record.status)]
    return "".join([*ends, *cells, cell(escape(said), is_text=True)])


def _status(record: SlideRecord) -> str:
    text = record.status.replace("_", " ")
    return f'<span class="bad">{text}</span>' if record.status in ("failed", "suspect") else text


def _sections(run: Run, records: Sequence[SlideRecord], results: Callable[[str], Results | None]) -> Iterator[str]:
    for number, record in enumerate(records):
        found = results(record.slide)
        pictures = "<p>Its results are not there any more.</p>"
        if found is not None:
            pictures = viewed(found, record.slide, _MOST_PICTURE_BYTES // len(records))
        yield (
            f'<section class="slide" id="slide-{number}" tabindex="-1" aria-labelledby="name-{number}">'
            f'<h3 id="name-{number}">{_name(record.slide)}</h3>{_facts(run, record, found)}{pictures}</section>'
        )


def _facts(run: Run, record: SlideRecord, found: Results | None) -> str:
    """Say in words what was found on a slide, and what a person should know of it."""
    facts = [_status(record)]
    if record.tissue_mm2 is not None:
        facts.append(f"{record.tissue_mm2:.2f} mm2 of tissue")
    if record.tumor_share is not None:
        facts.append(f"{record.tumor_mm2 or 0:.2f} mm2 ({record.tumor_share:.1%}) of it tumour")
    if record.unknown_share:
        facts.append(f"{record.unknown_mm2 or 0:.2f} mm2 ({record.unknown_share:.1%}) unknown and not judged")
    if found is not None:
        facts.append(f"cells of {found.heatmap.cell_um:g} um")
        facts.append(f"slide of {found.heatmap.slide.mpp[0]:g} um/px ({escape(found.heatmap.slide.mpp_source)})")
        facts += [
            f"made with {escape(str(model.get('name')))} {escape(str(model.get('version', '')))}"
            for model in _models(found.heatmap.model)
            if model.get("sha256") not in {one.get("sha256") for one in _models(run.model or {})}
        ]
    for kind, label in (("png", "larger picture"), ("geojson", "outlines")):
        if kind in record.outputs:
            file = re.split(r"[/\\]", record.outputs[kind])[-1]
            facts.append(f'<a href="./{quote(os.fsencode(file))}">{label}</a>')
    warnings = "".join(f'<p class="bad">{escape(warning)}</p>' for warning in record.warnings)
    return f'<p class="small">{" · ".join(facts)}</p>{warnings}'
