"""Truth: where the tumour of a slide is, whoever drew it and in whichever format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotation_json import read_json
from wsiseg.coverage import polygon_area
from wsiseg.outline_classes import AnnotationError, Classes, Outline, tumor_area
from wsiseg.slide import SlideFacts

TRUTH_SUFFIXES = (".geojson", ".geojson.gz", ".json")
"""What the files of a truth folder end in, after the name of the slide."""

Origin = Literal["auto", "slide", "bounds"]


@dataclass(frozen=True)
class Truth:
    """The tumour of one slide, as an area in level-0 pixels.

    Attributes:
        tumor: A valid shapely geometry.
        notes: What a person should know of it.
    """

    tumor: Any
    notes: tuple[str, ...] = ()

    def area(self, x_edges: NDArray[np.float64], y_edges: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the tumour area in every cell between these edges: float64[rows, columns], level-0 pixels."""
        return polygon_area(self.tumor, x_edges, y_edges)


def truth_files(folder: Path) -> dict[str, Path]:
    """List the truth of a folder by the name of the slide that each file is for."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = max((end for end in TRUTH_SUFFIXES if path.name.lower().endswith(end)), key=len, default="")
        if suffix:
            found[path.name[: -len(suffix)]] = path
    return found


def open_truth(path: Path, slide: SlideFacts, classes: Classes, origin: Origin = "auto") -> Truth:
    """Read the truth of a slide.

    Args:
        path: A file of outlines.
        slide: The slide, whose bounds say where its outlines are counted from.
        classes: Which classes mean tumour.
        origin: Where the coordinates of outlines begin: at the corner of level 0 (`slide`), at that of the scan within
            it (`bounds`), or as the program that writes such files does it (`auto`): QuPath counts from the bounds.

    Raises:
        AnnotationError: The file cannot be read, or nothing says which of its outlines are tumour.
    """
    outlines = read_json(path)
    tumor, notes = tumor_area(path.name, outlines, classes)
    return Truth(_shifted(tumor, slide, origin), notes)


def _shifted(tumor: Any, slide: SlideFacts, origin: Origin) -> Any:  # noqa: ANN401  a shapely geometry
    from shapely import affinity  # noqa: PLC0415  heavy: only where outlines are read

    if origin == "slide" or slide.bounds_px is None:
        return tumor
    return affinity.translate(tumor, *slide.bounds_px[:2])


__all__ = ["TRUTH_SUFFIXES", "AnnotationError", "Classes", "Origin", "Outline", "Truth", "open_truth", "truth_files"]
