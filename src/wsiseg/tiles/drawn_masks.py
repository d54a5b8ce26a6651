"""Parts of slides that people drew, as mask images or GeoJSON outlines named after the slides."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.classes import AnnotationError, Outline
from wsiseg.annotations.raster import image_values
from wsiseg.run.errors import SlideError, UsageError
from wsiseg.slides.slide import Slide

LEFT_OUT = frozenset(["artefact", "artifact", "exclude", "exclusion", "hole", "ignore*", "pen"])
"""Classes of outlines that say what is not meant."""

_OUTLINE_SUFFIXES = (".geojson", ".geojson.gz", ".json")
_SUFFIXES = (*_OUTLINE_SUFFIXES, ".png", ".tif", ".tiff")
_SAME_SHAPE = 1.5  # a mask may miss the slide's proportions by so many of its own pixels
_SHOWN = 5


def named_after(option: str, setting: str, slides: Sequence[str]) -> dict[str, Path]:
    """Match files with slides before anything is started, so that none is passed over in silence.

    Args:
        option: What the user gave them with, as `--tissue`.
        setting: A mask image, a GeoJSON file, or a folder of either named after the slides.
        slides: The ids of all slides.

    Returns:
        The file of each slide that has one.

    Raises:
        UsageError: There is no such file or folder, or a file in it belongs to none of the slides.
    """
    path = Path(setting)
    if not path.exists():
        raise UsageError(f"{option} {setting}: no such file or folder", "give a mask, a GeoJSON file or a folder")
    if path.is_file() and len(slides) == 1:
        return {slides[0]: path}
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    files = {name: one for one in found if (name := _slide_name(one))}
    unused = sorted(one.name for name, one in files.items() if name not in set(slides))
    if unused or not files:
        names = ", ".join(unused[:_SHOWN]) + (", ..." if len(unused) > _SHOWN else "")
        what = f"{names} would not be used: no slide has that name" if unused else "no masks and no GeoJSON in it"
        raise UsageError(f"{option} {setting}: {what}", f"name them after the slides, as {slides[0]}.png")
    return files


def content_of(path: Path) -> str:
    """Give name and SHA-256 of a file: what depends on it is done again where either changes.

    Raises:
        AnnotationError: It is not there any more, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise AnnotationError(f"{path.name}: cannot be read: {error.strerror or error}", "put it back") from error


def is_outlines(path: Path) -> bool:
    """Tell whether a file holds outlines rather than a mask."""
    return path.name.lower().endswith(_OUTLINE_SUFFIXES)


def _slide_name(path: Path) -> str:
    """Give the id of the slide that a file is named after; empty for files of other kinds."""
    suffix = max((end for end in _SUFFIXES if path.name.lower().endswith(end)), key=len, default="")
    return path.name[: -len(suffix)] if suffix and path.is_file() else ""


def read_mask(path: Path, slide: Slide) -> NDArray[np.bool_]:
    """Read a mask image that covers the whole slide: 0 is background, anything else is meant.

    Raises:
        SlideError: It has colours, or other proportions than the slide.
        AnnotationError: It is no image.
    """
    values = image_values(path, slide.facts)
    if values.ndim > 2:  # noqa: PLR2004  channels
        raise SlideError(f"{path.name}: a mask has one channel, this has colours", "save it in grey levels")
    rows, columns = values.shape
    across, down = slide.size_px[0] / columns, slide.size_px[1] / rows
    if abs(across - down) > _SAME_SHAPE * max(across / columns, down / rows):
        text = f"{path.name}: its {columns}x{rows} pixels have other proportions than {slide.path.name}"
        raise SlideError(f"{text} with {slide.size_px[0]}x{slide.size_px[1]}", "give a mask of the whole slide")
    return values > 0


def drawn(
    outlines: Sequence[Outline], slide: Slide, shape: tuple[int, ...], left_out: frozenset[str] = LEFT_OUT
) -> NDArray[np.bool_]:
    """Fill outlines; like QuPath's they count from the corner of the scan, where the slide states its bounds.

    Outlines of the classes that are left out, and those that are holes by themselves, are cut from the others.

    Args:
        outlines: What was drawn.
        slide: On what.
        shape: Rows and columns of the result, which covers the whole slide.
        left_out: Names of classes, in small letters.
    """
    import shapely  # noqa: PLC0415  heavy: only where outlines are drawn

    is_cut = [one.is_negative or one.class_name.strip().casefold() in left_out for one in outlines]
    shapes = [shapely.make_valid(one.polygon) for one in outlines]
    kept = shapely.union_all([one for one, out in zip(shapes, is_cut, strict=True) if not out])
    area = kept.difference(shapely.union_all([one for one, out in zip(shapes, is_cut, strict=True) if out]))
    return _filled(_rings(area, slide, shape), shape)


def touches(outline: Outline, slide: Slide, mask: NDArray[np.bool_]) -> bool:
    """Tell whether an outline holds the centre of any set pixel of a mask (bool[rows, columns]) over the slide."""
    import shapely  # noqa: PLC0415  heavy: only where outlines are drawn

    rings = _rings(shapely.make_valid(outline.polygon), slide, mask.shape)
    if not rings:
        return False
    points = np.concatenate(rings)
    left, top = (max(0, int(value)) for value in points.min(0))
    right, below = (max(0, int(value) + 1) for value in points.max(0))
    part = mask[top:below, left:right]
    return bool(part.any()) and bool((part & _filled([ring - (left, top) for ring in rings], part.shape)).any())


def _rings(area: Any, slide: Slide, shape: tuple[int, ...]) -> list[NDArray[np.float64]]:  # noqa: ANN401  shapely
    """Give the rings of an area as float64[n, 2], x and y in pixels of a mask of this shape over the slide."""
    import shapely  # noqa: PLC0415  heavy: only where outlines are drawn

    offset = np.asarray((slide.bounds_px or (0, 0))[:2], float)
    scale = np.asarray([shape[1] / slide.size_px[0], shape[0] / slide.size_px[1]])
    areas = [part for part in shapely.get_parts(area) if part.geom_type == "Polygon"]
    return [(shapely.get_coordinates(ring) + offset) * scale for ring in shapely.get_rings(areas)]


def _filled(rings: Sequence[NDArray[np.float64]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Set the pixels whose centre lies within an odd number of closed rings (float64[n, 2], x and y in pixels)."""
    begins = np.concatenate([np.empty((0, 2)), *(ring[:-1] for ring in rings)])
    ends = np.concatenate([np.empty((0, 2)), *(ring[1:] for ring in rings)])
    top = np.clip(np.ceil(np.minimum(begins[:, 1], ends[:, 1]) - 0.5), 0, shape[0]).astype(int)
    below = np.clip(np.ceil(np.maximum(begins[:, 1], ends[:, 1]) - 0.5), 0, shape[0]).astype(int)
    count = below - top
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count) + top[edge]
    along = (row + 0.5 - begins[edge, 1]) / (ends[edge, 1] - begins[edge, 1])
    x = begins[edge, 0] + along * (ends[edge, 0] - begins[edge, 0])
    crossings = np.zeros((shape[0], shape[1] + 1), np.bool_)
    np.logical_xor.at(crossings, (row, np.clip(np.ceil(x - 0.5), 0, shape[1]).astype(int)), True)  # noqa: FBT003  a value
    return np.logical_xor.accumulate(crossings[:, :-1], axis=1)
