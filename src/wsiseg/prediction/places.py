"""Where on a slide to look: its tissue, within the parts that a user outlined and without those that are excluded."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.truth import open_region
from wsiseg.run.errors import SlideError
from wsiseg.slides.slide import Slide
from wsiseg.tiles.stored_features import features_file
from wsiseg.tiles.tissue import MASK_MPP, TissueMask
from wsiseg.tiles.tissue_choice import TissueChoice, content_of, filled, missing, named_after

_WHITE_PX = 1024


@dataclass(frozen=True)
class Drawings:
    """Mask images or outlines that a user gave for slides."""

    option: str  # what they were given with
    setting: str | None = None  # where they lie; None where none were given
    files: dict[str, Path] = field(default_factory=dict)  # the file of each slide that has one
    cuts: bool = True  # cut out outlines of classes that say what is not meant

    def filled(self, name: str, slide: Slide, tissue: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
        """Fill the drawing of a slide: a mask like its tissue (bool[rows, columns]), and what a person should know."""
        path = self.files[name]
        region = open_region(path, slide.facts, cuts=self.cuts)
        count = len(region.pieces)
        missed = missing(region.pieces, slide.size_px, tissue)
        notes = region.notes
        if missed or not count:
            text = f"{missed} of {count} parts touch no tissue" if count else "nothing is drawn in it"
            notes += (f"{self.option} {path.name}: {text}",)
        return filled(region.area, slide.size_px, tissue.shape), notes


@dataclass(frozen=True)
class Places:
    """Where to look on each slide of a run; made by `Places.of`."""

    tissue: TissueChoice  # how its tissue is found
    roi: Drawings  # the only parts to look at, where any are given
    exclude: Drawings  # parts not to look at
    features: Path | None = None  # folder of stored features, where all their tiles are looked at, and no pixels

    @classmethod
    def of(
        cls, tissue: str, roi: str | None, exclude: str | None, slides: Sequence[str], features: Path | None = None
    ) -> Self:
        """Match what the user drew with slides before anything is started.

        Raises:
            UsageError: There is no such file or folder, or a file in it belongs to none of the slides.
        """
        roi_drawn, exclude_drawn = (
            Drawings(option, setting, {} if setting is None else named_after(option, setting, slides), cuts)
            for option, setting, cuts in (("--roi", roi, True), ("--exclude", exclude, False))
        )
        return cls(TissueChoice.of(tissue, slides), roi_drawn, exclude_drawn, features)

    def stored(self, slide: str) -> Path | None:
        """Return the file of a slide's stored features, where such are looked at; a UsageError says there is none."""
        return None if self.features is None else features_file(self.features, (slide,))

    def settings(self, slide: str) -> dict[str, str | None]:
        """Return what the cells that are looked at depend on; a file that changes gives another text."""
        drawn = {"roi": self.roi.files.get(slide), "exclude": self.exclude.files.get(slide)}
        contents = {name: None if path is None else content_of(path) for name, path in drawn.items()}
        stored = self.stored(slide)
        contents |= {} if stored is None else {"features": content_of(stored)}
        return {"tissue": self.tissue.settings(slide), **contents}

    def find(
        self, name: str, slide: Slide, most_unreadable: float
    ) -> tuple[TissueMask, NDArray[np.uint8], tuple[str, ...]]:
        """Find out where to look on a slide, of which at most a share may be unreadable.

        Returns:
            The tissue that is looked at, the whole slide as uint8[rows, columns, 3], and what a person should know
            before trusting it.

        Raises:
            SlideError: The slide or what was drawn on it cannot be used, or nothing was drawn on it to look at.
            AnnotationError: What was drawn cannot be read.
        """
        if self.roi.setting is not None and name not in self.roi.files:
            text = f"{slide.path.name}: no outlines for it in {self.roi.setting}"
            raise SlideError(text, f"add {name}.geojson, or leave out --roi")
        if self.features is None:
            tissue, thumbnail = self.tissue.find(name, slide, most_unreadable=most_unreadable)
        else:
            tissue, thumbnail = _everywhere(slide)
        warnings = tissue.warnings
        for drawing, is_kept in ((self.roi, True), (self.exclude, False)):
            if name in drawing.files:
                tissue = _no_coarser(tissue, slide)
                mask, notes = drawing.filled(name, slide, tissue.mask)
                tissue = replace(tissue, mask=tissue.mask & (mask == is_kept))
                warnings += notes
        return tissue, thumbnail, warnings


def _everywhere(slide: Slide) -> tuple[TissueMask, NDArray[np.uint8]]:
    """Return the whole slide as tissue, and a white picture of it."""
    width, height = slide.size_px
    scale = _WHITE_PX / max(slide.size_px)
    white = np.full((max(1, round(height * scale)), max(1, round(width * scale)), 3), 255, np.uint8)
    mpp = (width * slide.mpp[0], height * slide.mpp[1])
    return TissueMask(np.ones((1, 1), np.bool_), mpp, (float(width), float(height)), "none"), white


def _no_coarser(tissue: TissueMask, slide: Slide) -> TissueMask:
    """Return a mask with pixels of at most `MASK_MPP`, so that what is drawn on it keeps its shape."""
    finest = [round(size * mpp / MASK_MPP) for size, mpp in zip(slide.size_px, slide.mpp, strict=True)]
    shape = (max(finest[1], tissue.mask.shape[0]), max(finest[0], tissue.mask.shape[1]))
    if shape == tissue.mask.shape:
        return tissue
    pixel = (slide.size_px[0] / shape[1], slide.size_px[1] / shape[0])
    mpp = (pixel[0] * slide.mpp[0], pixel[1] * slide.mpp[1])
    # Each pixel takes the value at its centre.
    places = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, tissue.mask.shape, strict=True)]
    return replace(tissue, mask=tissue.mask[np.ix_(*places)], mpp=mpp, pixel_level0=pixel)
