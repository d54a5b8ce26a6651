"""Where on a slide to look: its tissue, within the parts that a user outlined and without those that are excluded."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.truth import open_region
from wsiseg.run.errors import SlideError
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import MASK_MPP, TissueMask
from wsiseg.tiles.tissue_choice import TissueChoice, content_of, filled, named_after, touches


class FoundPlaces(NamedTuple):
    """Where to look on a slide.

    Attributes:
        tissue: The tissue that is looked at.
        thumbnail: uint8[rows, columns, 3], the whole slide.
        warnings: What a person should know before trusting it.
    """

    tissue: TissueMask
    thumbnail: NDArray[np.uint8]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Drawings:
    """Mask images or outlines that a user gave for slides.

    Attributes:
        option: What they were given with.
        setting: Where they lie; None where none were given.
        files: The file of each slide that has one.
        cuts: Cut out outlines of classes that say what is not meant.
    """

    option: str
    setting: str | None = None
    files: dict[str, Path] = field(default_factory=dict)
    cuts: bool = True

    def content(self, slide: str) -> str | None:
        """Return what the drawing of a slide depends on; None where there is none."""
        return content_of(self.files[slide]) if slide in self.files else None

    def filled(self, name: str, slide: Slide, tissue: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
        """Fill the drawing of a slide.

        Args:
            name: The slide's id.
            slide: The slide.
            tissue: bool[rows, columns], over the whole slide.

        Returns:
            A mask of the same shape, and what a person should know.

        Raises:
            AnnotationError: The file cannot be read, or a mask has other proportions than the slide.
        """
        path = self.files[name]
        region = open_region(path, slide.facts, cuts=self.cuts)
        count = len(region.pieces)
        missed = sum(not touches(one, slide.size_px, tissue) for one in region.pieces)
        notes = region.notes
        if missed or not count:
            text = f"{missed} of {count} parts touch no tissue" if count else "nothing is drawn in it"
            notes += (f"{self.option} {path.name}: {text}",)
        return filled(region.area, slide.size_px, tissue.shape), notes


@dataclass(frozen=True)
class Places:
    """Where to look on each slide of a run.

    Made by `Places.of`.

    Attributes:
        tissue: How its tissue is found.
        roi: The only parts to look at, where any are given.
        exclude: Parts not to look at.
    """

    tissue: TissueChoice
    roi: Drawings
    exclude: Drawings

    @classmethod
    def of(cls, tissue: str, roi: str | None, exclude: str | None, slides: Sequence[str]) -> Self:
        """Match what the user drew with slides before anything is started.

        Raises:
            UsageError: There is no such file or folder, or a file in it belongs to none of the slides.
        """
        drawings = [
            Drawings(option, setting, {} if setting is None else named_after(option, setting, slides), cuts)
            for option, setting, cuts in (("--roi", roi, True), ("--exclude", exclude, False))
        ]
        return cls(TissueChoice.of(tissue, slides), *drawings)

    def settings(self, slide: str) -> dict[str, str | None]:
        """Return what the cells that are looked at depend on; a file that changes gives another text."""
        return {
            "tissue": self.tissue.settings(slide),
            "roi": self.roi.content(slide),
            "exclude": self.exclude.content(slide),
        }

    def find(self, name: str, slide: Slide, most_unreadable: float) -> FoundPlaces:
        """Find out where to look on a slide.

        Args:
            name: The slide's id.
            slide: The slide.
            most_unreadable: Largest share of the slide that may be unreadable.

        Raises:
            SlideError: The slide or what was drawn on it cannot be used, or nothing was drawn on it to look at.
            AnnotationError: What was drawn cannot be read.
        """
        if self.roi.setting is not None and name not in self.roi.files:
            text = f"{slide.path.name}: no outlines for it in {self.roi.setting}"
            raise SlideError(text, f"add {name}.geojson, or leave out --roi")
        tissue, thumbnail = self.tissue.find(name, slide, most_unreadable=most_unreadable)
        warnings = tissue.warnings
        for drawing, is_kept in ((self.roi, True), (self.exclude, False)):
            if name in drawing.files:
                tissue = _no_coarser(tissue, slide)
                mask, notes = drawing.filled(name, slide, tissue.mask)
                tissue = replace(tissue, mask=tissue.mask & (mask == is_kept))
                warnings += notes
        return FoundPlaces(tissue, thumbnail, warnings)


def _no_coarser(tissue: TissueMask, slide: Slide) -> TissueMask:
    """Return a mask with pixels of at most `MASK_MPP`, so that what is drawn on it keeps its shape."""
    finest = [round(size * mpp / MASK_MPP) for size, mpp in zip(slide.size_px, slide.mpp, strict=True)]
    shape = (max(finest[1], tissue.mask.shape[0]), max(finest[0], tissue.mask.shape[1]))
    if shape == tissue.mask.shape:
        return tissue
    pixel = (slide.size_px[0] / shape[1], slide.size_px[1] / shape[0])
    mpp = (pixel[0] * slide.mpp[0], pixel[1] * slide.mpp[1])
    return replace(tissue, mask=_resized(tissue.mask, shape), mpp=mpp, pixel_level0=pixel)


def _resized(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a mask of another shape; each pixel takes the value at its centre."""
    places = [
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1) for n, m in zip(shape, mask.shape, strict=True)
    ]
    return mask[np.ix_(*places)]
