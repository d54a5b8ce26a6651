"""What is truly of a class in the tiles of slides, from outlines and masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.classes import Classes
from wsiseg.annotations.truth import Reading, open_truth, truth_files
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.mathematics.metrics import Floats
from wsiseg.run.errors import UsageError
from wsiseg.training.slides import LabelledSlide

_MOST = 0.5


@dataclass(frozen=True)
class TileTruth:
    """Tumour and other level-0 pixels in the cells of the tiles that are used of a slide, and where no tile is.

    `tumor` and `rest` are float64[tiles]; `background` counts tumour and other pixels outside all tiles.
    """

    tumor: Floats
    rest: Floats
    background: tuple[float, float]

    @property
    def labels(self) -> NDArray[np.int8]:
        """int8[tiles]: 1 where more than half of the cell is tumour, else 0."""
        labels: NDArray[np.int8] = (self.tumor > _MOST * (self.tumor + self.rest)).astype(np.int8)
        return labels


def tile_truths(
    folder: Path, slides: Sequence[LabelledSlide], note: Callable[[str], None], classes: Classes | None = None
) -> dict[str, TileTruth]:
    """Read the truth of slides, by slide; those without truth are left out and told.

    Raises:
        UsageError: The folder is missing, has no truth for any slide, or none with the class that is meant.
        AnnotationError: A file cannot be read.
    """
    reading = Reading(classes or Classes())
    found, names = {}, set[str]()
    for slide, path in files_of(folder, slides):
        found[slide.slide], of_file = _tile_truth(slide, path, reading)
        names |= of_file
    if names and set(reading.classes.tumor) & set(reading.classes.absent(names)):
        text = f"{folder}: nothing in it is of the class {', '.join(reading.classes.tumor)}"
        raise UsageError(text, f"its classes are: {', '.join(sorted(names))}")
    missing = len(slides) - len(found)
    if missing:
        note(f"{folder}: no truth for {missing} of {len(slides)} slides; pixelwise measures are over the others")
    return found


def files_of(folder: Path, slides: Sequence[LabelledSlide]) -> list[tuple[LabelledSlide, Path]]:
    """Find the files with the truth of slides, without reading them.

    Raises:
        UsageError: The folder is missing, or has no truth for any slide.
    """
    files = truth_files(folder)
    named = [(slide, files.get(slide.slide) or files.get(slide.path.name)) for slide in slides]
    found = [(slide, paths[0]) for slide, paths in named if paths]
    if not found:
        raise UsageError(f"{folder}: holds no truth for any slide of the cohort", "name its files after the slides")
    return found


def _tile_truth(slide: LabelledSlide, path: Path, reading: Reading) -> tuple[TileTruth, frozenset[str]]:
    """Return the truth of a slide, and the classes that its file has."""
    with slide.open() as store:
        tiles, used = store.tiles, slide.places
    grid = tiles.grid
    side = tiles.tile_px // tiles.stride_px
    # A heatmap of the tiles' cells knows where they end at the slide's border.
    x_edges, y_edges = Heatmap(np.full(grid.shape, np.nan, np.float32), grid.stride_um, tiles.slide).edges()
    area = np.diff(y_edges)[:, None] * np.diff(x_edges)[None, :]
    truth = open_truth(path, tiles.slide, reading)
    tumor = truth.tumor.covered(x_edges, y_edges)
    rest = area - tumor
    row, column = grid.cells(tiles.corners).T
    inside = np.zeros(grid.shape, bool)
    for down, right in np.ndindex(side, side):
        inside[np.minimum(row + down, grid.shape[0] - 1), np.minimum(column + right, grid.shape[1] - 1)] = True
    background = (float(tumor[~inside].sum()), float(rest[~inside].sum()))
    of_tiles = [_of_tiles(cells, side)[row, column][used] for cells in (tumor, rest)]
    return TileTruth(of_tiles[0], of_tiles[1], background), truth.classes


def _of_tiles(cells: Floats, side: int) -> Floats:
    """Sum up cells over the tile that begins at each, so many cells wide."""
    padded = np.pad(cells, (0, side - 1))
    summed: Floats = np.lib.stride_tricks.sliding_window_view(padded, (side, side)).sum((2, 3))
    return summed
