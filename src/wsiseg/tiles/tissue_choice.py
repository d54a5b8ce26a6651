"""The tissue that the user chose: found by colour, everything, or from masks and outlines named after the slides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.geojson import read_json
from wsiseg.run.errors import SlideError
from wsiseg.slides.blocks import MOST_UNREADABLE
from wsiseg.slides.slide import Slide
from wsiseg.tiles.drawn_masks import content_of, drawn, is_outlines, named_after, read_mask
from wsiseg.tiles.tissue import MASK_MPP, TissueMask, find_tissue, mask_over


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
        return cls(setting, named_after("--tissue", setting, slides))

    def settings(self, slide: str) -> str:
        """Give what the tissue of a slide depends on; a mask that changes gives another text."""
        path = self.files.get(slide)
        return self.setting if path is None else content_of(path)

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
        shape = overview.unreadable.shape
        mask = drawn(read_json(path), slide, shape) if is_outlines(path) else read_mask(path, slide)
        return mask_over(slide, mask, path.name, overview), overview.image
