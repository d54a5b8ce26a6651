"""The page of a run of `predict`: a table of slides, and each slide with its tumour map over it."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib import resources
from typing import Any
from urllib.parse import quote

from wsiseg.pages.page import FILTER, FROM_FILES, MOST_HELD, NAME, TEXT, cell, of_cohort, page, sortable_table
from wsiseg.prediction.viewer import Results, colors, viewed
from wsiseg.run.errors import counted
from wsiseg.run.record import Run, SlideRecord, in_words, totals

_MOST_PICTURE_BYTES = 4_000_000  # of all pictures as text
_COLUMNS = {
    "unknown": ("unknown_share", ".1%"),
    "mean p": ("mean_probability", ".3f"),
    "max p": ("max_probability", ".3f"),
    "cells": ("tiles", ","),
    "bad": ("bad_tiles", ","),
    "seconds": ("seconds", ".1f"),
}  # by their heads: fields of a record, and how they are written


def predict_page(run: Run, title: str, results: Callable[[str], Results | None]) -> str:
    """Return the page of a run; `results` is asked once for every slide that is shown, by its id."""
    records = sorted(run.slides, key=lambda record: (not _is_doubtful(record), _natural(record.slide)))
    mapped = [record for record in records if record.status not in ("failed", "skipped")]
    shown = mapped if len(mapped) <= MOST_HELD else []
    numbers = {record.slide: number for number, record in enumerate(shown)}
    classes = list(dict.fromkeys(name for record in records for name in record.by_class)) or ["tumor"]
    told = ["cohort"] if any(map(of_cohort, records)) else []
    rows = [_row(record, numbers.get(record.slide), classes, told) for record in records]
    bar, script, style = (
        resources.files("wsiseg.prediction").joinpath(f"page.{kind}").read_text("utf-8")
        for kind in ("html", "js", "css")
    )
    words = " and ".join(escape(in_words(name)) for name in classes)
    head = f"{words[:1].upper()}{words[1:]} maps"
    parts = [f"<h1>{head}: {_name(title)}</h1>", *_about(run), "<h2>Slides</h2>"]
    parts.append(FILTER + sortable_table(["slide", "status", *_heads(classes), *told, "notes"], rows, "slides.csv"))
    if shown:
        parts += ["<h2>Maps</h2>", bar.replace("tumour", words), *_sections(run, shown, results)]
    return page(f"{head}: {title}", "\n".join(parts), script if shown else FROM_FILES, colors() + style)


def _heads(classes: Sequence[str]) -> Iterator[str]:
    yield "tissue mm2"
    for name in classes:
        word = escape(in_words(name))
        yield from (f"{word} mm2", "share" if len(classes) == 1 else f"share of {word}")
    yield from _COLUMNS


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
        yield f"<p>{' · '.join(filter(None, facts))}</p>"
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in totals(run.slides).items())
    tiles, bad = (sum(getattr(record, kind) for record in run.slides) for kind in ("tiles", "bad_tiles"))
    cells = f"{counted(tiles, 'cell')}, {bad} of them unreadable"
    yield f"<p>{counted(len(run.slides), 'slide')}: {counts}; {_areas(run.slides)}; {cells}</p>"
    made = f"wsiseg {run.version} on {(run.device or {}).get('provider', 'unknown')}"
    when = f"{run.started} to {run.finished or 'unfinished'}"
    yield f'<p class="small">{escape(made)}, {escape(when)}</p>'
    told = (f"{name}: {'by default' if value is None else value}" for name, value in run.settings.items())
    settings = "".join(f"<li>{escape(one)}</li>" for one in told)
    yield f'<details class="small"><summary>Settings</summary><ul>{settings}</ul></details>'


def _models(model: dict[str, Any]) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = model.get("models") or ([model] if model else [])
    return models


def _areas(records: Sequence[SlideRecord]) -> str:
    """Say how much tissue there is, and how much of it is tumour and unknown."""
    tissue, unknown = (sum(getattr(one, name) or 0 for one in records) for name in ("tissue_mm2", "unknown_mm2"))
    found: dict[str, float] = {}
    for name, area in ((name, area) for record in records for name, area in record.by_class.items()):
        found[name] = found.get(name, 0.0) + (area["mm2"] or 0.0)

    def of_tissue(area: float) -> str:
        return f"{area:.2f} mm2" + (f" ({area / tissue:.1%})" if tissue else "")

    classes = "".join(f", {of_tissue(area)} of it {escape(in_words(name))}" for name, area in found.items())
    return f"{tissue:.2f} mm2 of tissue{classes}" + f", {of_tissue(unknown)} unknown and not judged" * bool(unknown)


def _row(record: SlideRecord, number: int | None, classes: Sequence[str], told: Sequence[str]) -> str:
    name = _name(record.slide)
    to = _file(record, "png") if number is None else f"#slide-{number}"
    areas = [record.by_class.get(name, {}) for name in classes]
    values = [(record.tissue_mm2, ".2f")]
    values += [(one.get(kind), form) for one in areas for kind, form in (("mm2", ".2f"), ("share", ".1%"))]
    values += [(getattr(record, field, None), form) for field, form in _COLUMNS.values()]
    cells = [cell(format(one, form) if isinstance(one, int | float) else "") for one, form in values]
    said = "; ".join(record.warnings)
    if record.error is not None:
        said = "; ".join(filter(None, (record.error.message, record.error.hint)))
    ends = [cell(f'<a href="{to}">{name}</a>' if to else name, TEXT), cell(_status(record), NAME)]
    texts = [*(of_cohort(record) for _ in told), escape(said)]
    return "".join([*ends, *cells, *(cell(text, TEXT) for text in texts)])


def _file(record: SlideRecord, kind: str) -> str:
    """Return the address of a file of a slide beside the page; empty where there is none."""
    name = re.split(r"[/\\]", record.outputs.get(kind, ""))[-1]
    return name and f"./{quote(os.fsencode(name))}"


def _status(record: SlideRecord) -> str:
    text = record.status.replace("_", " ")
    if record.status == "up_to_date" and _is_doubtful(record):
        text += ", suspect"
    return f'<span class="bad">{text}</span>' if _is_doubtful(record) else text


def _is_doubtful(record: SlideRecord) -> bool:
    return record.status in ("failed", "suspect") or getattr(record, "suspect", False)


def _sections(run: Run, records: Sequence[SlideRecord], results: Callable[[str], Results | None]) -> Iterator[str]:
    for number, record in enumerate(records):
        found = results(record.slide)
        pictures = "<p>Its results no longer exist.</p>"
        if found is not None:
            pictures = viewed(found, record.slide, _MOST_PICTURE_BYTES // len(records))
        yield (
            f'<section class="slide" id="slide-{number}" tabindex="-1" aria-labelledby="name-{number}">'
            f'<h3 id="name-{number}">{_name(record.slide)}</h3>{_facts(run, record, found)}{pictures}</section>'
        )


def _facts(run: Run, record: SlideRecord, found: Results | None) -> str:
    """Say in words what was found on a slide, and what a person should know of it."""
    facts = [_status(record), _areas([record])]
    if found is not None:
        heatmap, told = found.heatmap, {one.get("sha256") for one in _models(run.model or {})}
        facts.append(f"cells of {heatmap.cell_um:g} um")
        facts.append(f"slide of {heatmap.slide.mpp[0]:g} um/px ({escape(heatmap.slide.mpp_source)})")
        facts += [
            escape(f"made with {model.get('name')} {model.get('version', '')}")
            for model in _models(heatmap.model)
            if model.get("sha256") not in told
        ]
    for kind, label in (("png", "larger picture"), ("geojson", "outlines")):
        if file := _file(record, kind):
            facts.append(f'<a href="{file}">{label}</a>')
    warnings = "".join(f'<p class="bad">{escape(warning)}</p>' for warning in record.warnings)
    return f'<p class="small">{" · ".join(facts)}</p>{warnings}'
