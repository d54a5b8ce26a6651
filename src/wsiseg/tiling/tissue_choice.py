"""The tissue that the user chose: found by colour, everything, or from masks and outlines named after the slides."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import SlideError, UsageError
from wsiseg.outlines.classes import Outline
from wsiseg.outlines.geojson import read_json
from wsiseg.outlines.raster import image_values
from wsiseg.reading.blocks import MOST_UNREADABLE
from wsiseg.slide import Slide
from wsiseg.tissue import MASK_MPP, TissueMask, find_tissue, mask_over

_OUTLINE_SUFFIXES = (".geojson", ".geojson.gz", ".json")
_SUFFIXES = (*_OUTLINE_SUFFIXES, ".png", ".tif", ".tiff")
_LEFT_OUT = frozenset(["artefact", "artifact", "exclude", "exclusion", "hole", "ignore*", "pen"])
_SAME_SHAPE = 1.5  # a mask may miss the slide's proportions by so many of its own pixels
_SHOWN = 5


@dataclass(frozen=True)
class TissueChoice:
    """How the tissue of each slide is found.

    Made by `TissueChoice.of`.

    Attributes:
        setting: `auto`, `none`, or where masks and outlines lie.
        files: The mask image or GeoJSON file of each slide, where the setting names any.
    """

    setting: str
    files: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, setting: str, slides: Sequence[str]) -> Self:
        """Match masks with slides before anything is started, so that none is passed over in silence.

        Args:
            setting: `auto`, `none`, a mask image, a GeoJSON file, or a folder of either named after the slides.
            slides: The ids of all slides.

        Raises:
            UsageError: There is no such file or folder, or a mask in it belongs to none of the slides.
        """
        if setting in {"auto", "none"}:
            return cls(setting)
        path = Path(setting)
        if not path.exists():
            raise UsageError(f"--tissue {setting}: no such file or folder", "give auto, none, a mask or a folder")
        if path.is_file() and len(slides) == 1:
            return cls(setting, {slides[0]: path})
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        files = {name: one for one in found if (name := _slide_name(one))}
        unused = sorted(one.name for name, one in files.items() if name not in set(slides))
        if unused or not files:
            names = ", ".join(unused[:_SHOWN]) + (", ..." if len(unused) > _SHOWN else "")
            what = f"{names} would not be used: no slide has that name" if unused else "no masks and no GeoJSON in it"
            raise UsageError(f"--tissue {setting}: {what}", f"name them after the slides, as {slides[0]}.png")
        return cls(setting, files)

    def settings(self, slide: str) -> str:
        """Give what the tissue of a slide depends on; a mask that changes gives another text."""
        path = self.files.get(slide)
        if path is None:
            return self.setting
        with path.open("rb") as file:
            return f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}"

    def find(
        self, name: str, slide: Slide, *, threads: int = 1, most_unreadable: float = MOST_UNREADABLE
    ) -> tuple[TissueMask, NDArray[np.uint8]]:
        """Find the tissue of a slide.

        Args:
            name: The slide's id.
            slide: The slide.
            threads: How many read at the same time.
            most_unreadable: Largest share of the slide that may be unreadable.

        Returns:
            The mask, and a thumbnail of the slide (uint8[rows, columns, 3]).

        Raises:
            SlideError: The slide cannot be read, or has no mask though masks were given, or one of another shape.
            AnnotationError: Its mask or its outlines cannot be read.
        """
        if self.setting == "auto":
            return find_tissue(slide, threads=threads, most_unreadable=most_unreadable)
        if self.setting != "none" and name not in self.files:
            text = f"{slide.path.name}: no tissue mask for it in {self.setting}"
            raise SlideError(text, f"add {name}.png or {name}.geojson, or leave out --tissue")
        overview = slide.overview(MASK_MPP, threads=threads, most_unreadable=most_unreadable)
        if self.setting == "none":
            return mask_over(slide, np.ones_like(overview.unreadable), "none", overview), overview.image
        path = self.files[name]
        is_outlines = path.name.lower().endswith(_OUTLINE_SUFFIXES)
        mask = _drawn(read_json(path), slide, overview.unreadable.shape) if is_outlines else _mask(path, slide)
        return mask_over(slide, mask, path.name, overview), overview.image


def _slide_name(path: Path) -> str:
    """Give the id of the slide that a file is named after; empty for files of other kinds."""
    suffix = max((end for end in _SUFFIXES if path.name.lower().endswith(end)), key=len, default="")
    return path.name[: -len(suffix)] if suffix and path.is_file() else ""


def _mask(path: Path, slide: Slide) -> NDArray[np.bool_]:
    """Read a mask image that covers the whole slide: 0 is background, anything else tissue."""
    values = image_values(path, slide.facts)
    if values.ndim > 2:  # noqa: PLR2004  channels
        raise SlideError(f"{path.name}: a tissue mask has one channel, this has colours", "save it in grey levels")
    rows, columns = values.shape
    across, down = slide.size_px[0] / columns, slide.size_px[1] / rows
    if abs(across - down) > _SAME_SHAPE * max(across / columns, down / rows):
        text = f"{path.name}: its {columns}x{rows} pixels have other proportions than {slide.path.name}"
        raise SlideError(f"{text} with {slide.size_px[0]}x{slide.size_px[1]}", "give a mask of the whole slide")
    return values > 0


def _drawn(outlines: Sequence[Outline], slide: Slide, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Fill outlines; like QuPath's they count from the corner of the scan, where the slide states its bounds."""
    import shapely  # noqa: PLC0415  heavy: only where outlines are drawn

    left_out = [one.is_negative or one.class_name.strip().casefold() in _LEFT_OUT for one in outlines]
    shapes = [shapely.make_valid(one.polygon) for one in outlines]
    kept = shapely.union_all([one for one, out in zip(shapes, left_out, strict=True) if not out])
    tissue = kept.difference(shapely.union_all([one for one, out in zip(shapes, left_out, strict=True) if out]))
    offset = np.asarray((slide.bounds_px or (0, 0))[:2], float)
    scale = np.asarray([shape[1] / slide.size_px[0], shape[0] / slide.size_px[1]])
    areas = [part for part in shapely.get_parts(tissue) if part.geom_type == "Polygon"]
    rings = [(shapely.get_coordinates(ring) + offset) * scale for ring in shapely.get_rings(areas)]
    return _filled(rings, shape)


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
