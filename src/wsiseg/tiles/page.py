"""The page of a run of `tile`: what was kept of every slide, in a table that is sorted and filtered."""

import contextlib
import io
import os
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from wsiseg.pages.page import FILTER, cell, of_cohort, page, picture_address, sortable_table
from wsiseg.run.errors import counted
from wsiseg.run.record import SlideRecord, totals
from wsiseg.slides.cohort import CohortSlide

_MOST_PICTURES, _PICTURE_PX = 1000, 200
_STYLE = "td img { display: block; max-width: 9rem; max-height: 9rem; }\n"
_HEADS = ("slide", "status", "tissue mm2", "tiles", "bad", "cohort", "notes")


def tile_page(title: str, records: Iterable[SlideRecord], rows: Mapping[str, CohortSlide]) -> str:
    """Return the page; `rows` are those of the cohort that was written, which has the splits, by the ids of slides."""
    known = [one.model_copy(update=rows[one.slide].known) if one.slide in rows else one for one in records]
    tissue, tiles = sum(one.tissue_mm2 or 0 for one in known), sum(one.tiles for one in known)
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in totals(known).items())
    about = f"{counted(len(known), 'slide')}: {counts}; {tissue:.2f} mm2 of tissue, {counted(tiles, 'tile')}."
    body = sortable_table(_HEADS, [_row(one, has_picture=n < _MOST_PICTURES) for n, one in enumerate(known)])
    head = f"Tiles: {escape(title)}"
    told = "What is inside the green line is kept; a click on a picture shows it large."
    return page(f"Tiles: {title}", f"<h1>{head}</h1><p>{about}</p><p>{told}</p>{FILTER}{body}", style=_STYLE)


def _row(record: SlideRecord, *, has_picture: bool) -> str:
    said = [record.error.message, record.error.hint] if record.error else record.warnings
    status = record.status.replace("_", " ")
    name, picture = f"<bdi>{escape(record.slide)}</bdi>", Path(record.outputs.get("picture", ""))
    image = _image(picture) if has_picture else ""
    shown = f'<a href="./{quote(os.fsencode(picture.name))}">{image}{name}</a>' if image else name
    return "".join([
        cell(shown, record.slide, is_text=True),
        cell(f'<span class="bad">{status}</span>' if record.status == "failed" else status, record.status),
        cell("" if record.tissue_mm2 is None else f"{record.tissue_mm2:.2f}", record.tissue_mm2),
        cell(f"{record.tiles:,}", record.tiles),
        cell(f"{record.bad_tiles:,}", record.bad_tiles),
        cell(of_cohort(record), is_text=True),
        cell(escape("; ".join(filter(None, said))), is_text=True),
    ])  # fmt: skip


def _image(path: Path) -> str:
    """Return the picture of what was kept, small; nothing where it is gone."""
    with contextlib.suppress(OSError, Image.DecompressionBombError), Image.open(path, formats=["PNG"]) as image:
        image.thumbnail((_PICTURE_PX, _PICTURE_PX))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=75)
        return f'<img decoding="async" src="{picture_address("jpeg", buffer.getvalue())}" alt="">'
    return ""
