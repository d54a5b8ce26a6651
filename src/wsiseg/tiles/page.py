"""The page of a run of `tile`: what was kept of every slide, in a table that is sorted and filtered."""

import contextlib
import io
import os
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from wsiseg.pages.page import (
    FILTER,
    FROM_FILES,
    MOST_HELD,
    NAME,
    TEXT,
    cell,
    of_cohort,
    page,
    picture_address,
    sortable_table,
)
from wsiseg.run.errors import counted
from wsiseg.run.record import SlideRecord, totals
from wsiseg.slides.cohort import CohortSlide

_PICTURE_PX, _QUALITY = 200, 75
_HEADS = ("slide", "status", "tissue mm2", "tiles", "bad", "cohort", "notes")


def tile_page(title: str, records: Iterable[SlideRecord], rows: Mapping[str, CohortSlide]) -> str:
    """Return the page; `rows` are those of the cohort that was written, which has the splits, by the ids of slides."""
    known = [one.model_copy(update=rows[one.slide].known) if one.slide in rows else one for one in records]
    tissue, tiles = sum(one.tissue_mm2 or 0 for one in known), sum(one.tiles for one in known)
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in totals(known).items())
    about = f"{counted(len(known), 'slide')}: {counts}; {tissue:.2f} mm2 of tissue, {counted(tiles, 'tile')}."
    are_held = sum("picture" in one.outputs for one in known) <= MOST_HELD
    body = sortable_table(_HEADS, [_row(one, is_held=are_held) for one in known], "run.json")
    head = f"Tiles: {escape(title)}"
    told = "What is inside the green line is kept; a click on a picture shows it large."
    script = "" if are_held else FROM_FILES
    return page(f"Tiles: {title}", f"<h1>{head}</h1><p>{about}</p><p>{told}</p>{FILTER}{body}", script)


def _row(record: SlideRecord, *, is_held: bool) -> str:
    said = [record.error.message, record.error.hint] if record.error else record.warnings
    status = record.status.replace("_", " ")
    shown, picture = f"<bdi>{escape(record.slide)}</bdi>", record.outputs.get("picture")
    image = _image(Path(picture)) if picture and is_held else ""
    if picture and (image or not is_held):
        shown = f'<a href="./{quote(os.fsencode(Path(picture).name))}">{image}{shown}</a>'
    return "".join([
        cell(shown, TEXT),
        cell(f'<span class="bad">{status}</span>' if record.status == "failed" else status, NAME),
        cell("" if record.tissue_mm2 is None else f"{record.tissue_mm2:.2f}"),
        cell(f"{record.tiles:,}"),
        cell(f"{record.bad_tiles:,}"),
        cell(of_cohort(record), TEXT),
        cell(escape("; ".join(filter(None, said))), TEXT),
    ])  # fmt: skip


def _image(path: Path) -> str:
    """Return the picture of what was kept, small; nothing where it is gone."""
    with contextlib.suppress(OSError, Image.DecompressionBombError), Image.open(path, formats=["PNG"]) as image:
        image.thumbnail((_PICTURE_PX, _PICTURE_PX))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY)
        return f'<img decoding="async" src="{picture_address("jpeg", buffer.getvalue())}" alt="">'
    return ""
