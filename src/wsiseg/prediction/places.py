"""Where on a slide to look: its tissue, within the parts that a user outlined and without those that are excluded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Places:
    """Where to look on each slide of a run; made by `Places.of`."""

    tissue: TissueChoice  # how its tissue is found
    roi: dict[str, Path] | None  # outlines of the only parts to look at, where any are given
    exclude: dict[str, Path]  # outlines of parts not to look at
    features: Path | None = None  # folder of stored features, where all their tiles are looked at, and no pixels

    @classmethod
    def of(
        cls, tissue: str, roi: str | None, exclude: str | None, slides: Sequence[str], features: Path | None = None
    ) -> Self:
        """Match what the user drew with slides before anything is started.

        Raises:
            UsageError: There is no such file or folder, or a file in it belongs to none of the slides.
        """
        only, without = (
            None if setting is None else named_after(option, setting, slides)
            for option, setting in (("--roi", roi), ("--exclude", exclude))
        )
        return cls(TissueChoice.of(tissue, slides), only, without or {}, features)

    def stored(self, slide: str) -> Path | None:
        """Return the file of a slide's stored features, where such are looked at; a UsageError says there is none."""
        return None if self.features is None else features_file(self.features, (slide,))

    def settings(self, slide: str) -> dict[str, str | None]:
        """Return what the cells that are looked at depend on; a file that changes gives another text."""
        drawn = {"roi": (self.roi or {}).get(slide), "exclude": self.exclude.get(slide)}
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
        if self.roi is not None and name not in self.roi:
            raise SlideError(
                f"{slide.path.name}: no outlines for it among those of --roi", f"add {name}.geojson, or leave out --roi"
            )
        if self.features is None:
            tissue, thumbnail = self.tissue.find(name, slide, most_unreadable=most_unreadable)
        else:
            tissue, thumbnail = _everywhere(slide)
        warnings = tissue.warnings
        for option, files in (("--roi", self.roi or {}), ("--exclude", self.exclude)):
            if name in files:
                tissue, notes = _within(tissue, slide, files[name], option)
                warnings += notes
        return tissue, thumbnail, warnings


def _everywhere(slide: Slide) -> tuple[TissueMask, NDArray[np.uint8]]:
    """Return the whole slide as tissue, and a white picture of it."""
    width, height = (max(1, round(size * mpp / MASK_MPP)) for size, mpp in zip(slide.size_px, slide.mpp, strict=True))
    pixel = (slide.size_px[0] / width, slide.size_px[1] / height)
    mpp = (pixel[0] * slide.mpp[0], pixel[1] * slide.mpp[1])
    tissue = TissueMask(np.ones((height, width), np.bool_), mpp, pixel, "none")
    return tissue, np.full((height, width, 3), 255, np.uint8)


def _within(tissue: TissueMask, slide: Slide, path: Path, option: str) -> tuple[TissueMask, tuple[str, ...]]:
    """Return the tissue inside of what was drawn for --roi, else outside of it, and what a person should know."""
    is_kept = option == "--roi"
    region = open_region(path, slide.facts, cuts=is_kept)
    count, missed = len(region.pieces), missing(region.pieces, slide.size_px, tissue.mask)
    notes = region.notes
    if missed or not count:
        text = f"{missed} of {count} parts touch no tissue" if count else "nothing is drawn in it"
        notes += (f"{option} {path.name}: {text}",)
    inside = filled(region.area, slide.size_px, tissue.mask.shape)
    return replace(tissue, mask=tissue.mask & (inside == is_kept)), notes
