"""The tissue that the user chose: found by colour, everything, or from masks and outlines named after the slides."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.coverage import Area, Mask, outlines
from wsiseg.annotations.outlines import AnnotationError
from wsiseg.annotations.truth import open_region, suffix_of
from wsiseg.run.errors import SlideError, UsageError, shortened
from wsiseg.slides.pyramid import MOST_UNREADABLE
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import MASK_MPP, TissueMask, find_tissue, mask_over

_MOST_PIXELS = 2**26  # of a mask that is kept at its own size
_ROWS_AT_A_TIME = 512  # measured, as numbers
_BUT_ROUNDING = 1 - 1e-9
_SHOWN = 5


def named_after(option: str, setting: str, slides: Sequence[str]) -> dict[str, Path]:
    """Match files with slides by their ids before anything is started, so that none is passed over in silence.

    The `setting`, given with an `option` as `--tissue`, is a mask image, a file of outlines, or a folder of either
    named after the slides.

    Raises:
        UsageError: There is no such file or folder, or a file in it belongs to none of the slides.
    """
    path = Path(setting)
    if not path.exists():
        raise UsageError(f"{option} {setting}: no such file or folder", "give a mask, a GeoJSON file or a folder")
    if path.is_file() and len(slides) == 1:
        return {slides[0]: path}
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    files = {one.name[: -len(suffix)]: one for one in found if (suffix := suffix_of(one)) and one.is_file()}
    unused = sorted(one.name for name, one in files.items() if name not in set(slides))
    if unused or not files:
        names = ", ".join(shortened(unused, _SHOWN))
        what = f"{names} would not be used: no slide has that name" if unused else "no masks and no GeoJSON in it"
        raise UsageError(f"{option} {setting}: {what}", f"name them after the slides, as {slides[0]}.png")
    return files


def content_of(path: Path) -> str:
    """Return name and SHA-256 of a file: what depends on it is done again where either changes.

    Raises:
        AnnotationError: It is not there any more, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise AnnotationError(f"{path.name}: cannot be read: {error.strerror or error}", "put it back") from error


def filled(area: Area, size_px: tuple[int, int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Set the pixels that lie in an area by half or more; the result covers the whole slide, of so many pixels."""
    x, y = (np.linspace(0, size, count + 1) for size, count in zip(size_px, shape[::-1], strict=True))
    half = x[1] * y[1] / 2 * _BUT_ROUNDING
    strips = [y[row : row + _ROWS_AT_A_TIME + 1] for row in range(0, shape[0], _ROWS_AT_A_TIME)]
    return np.concatenate([area.covered(x, strip) >= half for strip in strips])


def missing(pieces: Sequence[Area], size_px: tuple[int, int], mask: NDArray[np.bool_]) -> int:
    """Count the pieces that touch no set pixel of a mask (bool[rows, columns]) over a slide of so many pixels."""
    import shapely  # noqa: PLC0415  heavy: only where outlines are drawn

    tissue = shapely.MultiPolygon(outlines(mask, (size_px[0] / mask.shape[1], size_px[1] / mask.shape[0])))
    shapely.prepare(tissue)
    return sum(not tissue.intersects(piece.geometry) for piece in pieces)


@dataclass(frozen=True)
class TissueChoice:
    """How the tissue of each slide is found; made by `TissueChoice.of`."""

    setting: str  # `auto`, `none`, or where masks and outlines lie
    files: dict[str, Path] = field(default_factory=dict)  # the mask or outlines of each slide, where there are any

    @classmethod
    def of(cls, setting: str, slides: Sequence[str]) -> Self:
        """Match masks with slides before anything is started; arguments and errors as those of `named_after`."""
        return cls(setting, {} if setting in {"auto", "none"} else named_after("--tissue", setting, slides))

    def settings(self, slide: str) -> str:
        """Return what the tissue of a slide depends on; a mask that changes gives another text."""
        path = self.files.get(slide)
        return self.setting if path is None else content_of(path)

    def find(
        self, name: str, slide: Slide, *, threads: int = 1, most_unreadable: float = MOST_UNREADABLE
    ) -> tuple[TissueMask, NDArray[np.uint8]]:
        """Find the tissue of a slide of this id; arguments and result otherwise as those of `find_tissue`.

        Raises:
            SlideError: The slide cannot be read, or has no mask though masks were given.
            AnnotationError: Its mask or its outlines cannot be read, or the mask has another shape.
        """
        if self.setting == "auto":
            return find_tissue(slide, threads=threads, most_unreadable=most_unreadable)
        if self.setting != "none" and name not in self.files:
            text = f"{slide.path.name}: no tissue mask for it in {self.setting}"
            raise SlideError(text, f"add {name}.png or {name}.geojson, or leave out --tissue")
        overview = slide.overview(MASK_MPP, threads=threads, most_unreadable=most_unreadable)
        shape = overview.unreadable.shape
        if self.setting == "none":
            return mask_over(slide, np.ones(shape, np.bool_), "none", overview), overview.image
        region = open_region(self.files[name], slide.facts)
        if isinstance(region.area, Mask):  # as fine as it is, but for what nobody needs
            own = region.area.pixels.shape
            every = math.ceil(math.sqrt(own[0] * own[1] / _MOST_PIXELS))
            shape = max(shape[0], own[0] // every), max(shape[1], own[1] // every)
        mask = filled(region.area, slide.size_px, shape)
        return mask_over(slide, mask, self.files[name].name, overview, region.notes), overview.image
