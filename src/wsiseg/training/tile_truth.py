"""What is truly tumour in the tiles of a slide."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.truth import Reading, open_truth, truth_files
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.mathematics.metrics import Floats
from wsiseg.run.errors import UsageError
from wsiseg.training.bags import LabelledSlide

_MOST = 0.5


@dataclass(frozen=True)
class TileTruth:
    """Tumour and other level-0 pixels in the cells of a slide's tiles, and where no tile is.

    Attributes:
        tumor: float64[tiles].
        rest: float64[tiles].
        background: Tumour and other pixels outside all tiles.
    """

    tumor: Floats
    rest: Floats
    background: tuple[float, float]

    @property
    def labels(self) -> NDArray[np.int8]:
        """int8[tiles]: 1 where more than half of the cell is tumour, else 0."""
        labels: NDArray[np.int8] = (self.tumor > _MOST * (self.tumor + self.rest)).astype(np.int8)
        return labels


def tile_truths(folder: Path, slides: Sequence[LabelledSlide], note: Callable[[str], None]) -> dict[str, TileTruth]:
    """Read the truth of slides, by slide; those without truth are left out and told.

    Raises:
        UsageError: The folder is missing, or has no truth for any slide.
        AnnotationError: A file cannot be read.
    """
    files = truth_files(folder)
    found = {}
    for slide in slides:
        named = files.get(slide.slide) or files.get(slide.path.name)
        if named:
            found[slide.slide] = _tile_truth(slide, named[0])
    if not found:
        raise UsageError(f"{folder}: holds no truth for any slide of the cohort", "name its files after the slides")
    missing = len(slides) - len(found)
    if missing:
        note(f"{folder}: no truth for {missing} of {len(slides)} slides; pixelwise measures are over the others")
    return found


def _tile_truth(slide: LabelledSlide, path: Path) -> TileTruth:
    with slide.open() as store:
        tiles = store.tiles
    grid = tiles.grid
    # A heatmap of the tiles' cells knows where they end at the slide's border.
    x_edges, y_edges = Heatmap(np.full(grid.shape, np.nan, np.float32), grid.stride_um, tiles.slide).edges()
    area = np.diff(y_edges)[:, None] * np.diff(x_edges)[None, :]
    tumor = open_truth(path, tiles.slide, Reading()).tumor.covered(x_edges, y_edges)
    rest = area - tumor
    row, column = grid.cells(tiles.corners).T
    inside = np.zeros(grid.shape, bool)
    inside[row, column] = True
    background = (float(tumor[~inside].sum()), float(rest[~inside].sum()))
    return TileTruth(tumor[row, column], rest[row, column], background)
