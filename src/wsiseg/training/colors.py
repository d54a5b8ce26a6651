"""The colours that tiles are standardised by: mean and deviation over a sample of the training tiles."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsiseg.config.train import TrainConfig
from wsiseg.run.pace import Pace
from wsiseg.training.bags import CPU, TileSource, ahead
from wsiseg.training.processes import Processes
from wsiseg.training.slides import LabelledSlide, evenly, spread

_SLIDES, _TILES = 200, 16
_STEP_PX = 4
_SMALLEST_VARIANCE = 1e-6


class Colors(NamedTuple):
    """Mean and deviation of red, green and blue in 0..1, float32[3] each."""

    mean: Tensor
    std: Tensor


def cohort_colors(
    config: TrainConfig,
    slides: Sequence[LabelledSlide],
    source: TileSource,
    processes: Processes,
    note: Callable[[str], None],
) -> Colors | None:
    """Measure the colours of the training slides, each process its share; None where the weights' own are used.

    A sample suffices and is always the same for a seed: 16 tiles of each slide, one from each sixteenth of its tissue,
    of at most 200 slides spread evenly over the cohort.
    """
    if config.colors == "weights" or (config.colors == "auto" and config.freeze):
        return None
    training = [slide for slide in slides if slide.split == "train"]
    chosen = [training[place] for place in evenly(len(training), _SLIDES)]
    if processes.is_first:
        note(f"measuring the colours of {len(chosen)} training slides")
    own = processes.share(chosen)
    sums = processes.gathered(list(_sums(own, config, source, note)))
    count, total, squares = np.sum(sums, axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, _SMALLEST_VARIANCE))
    return Colors(*(torch.from_numpy(one.astype(np.float32)) for one in (mean, std)))


def _sums(
    slides: Sequence[LabelledSlide], config: TrainConfig, source: TileSource, note: Callable[[str], None]
) -> Iterator[NDArray[np.float64]]:
    """Yield for each slide, by colour, the count, the sum and the sum of squares of some pixels: float64[3, 3]."""
    pace = Pace(len(slides))
    for colors in ahead([partial(_colors, slide, source, config.seed) for slide in slides]):
        yield np.stack([np.full(3, float(len(colors))), colors.sum(0), (colors**2).sum(0)])
        pace.advance(1)
        if pace.is_due():
            note(f"colours: {pace.done:.0f} of {pace.total} slides, {pace.left()}")


def _colors(slide: LabelledSlide, source: TileSource, seed: int) -> NDArray[np.float64]:
    """Return the colours of some pixels of a slide, float64[n, 3] in 0..1."""
    random = np.random.default_rng([seed, int(slide.fingerprint, 16)])
    tiles = replace(source, device=CPU, context_px=None).read(slide, spread(slide.tiles, _TILES, random))
    colors: NDArray[np.float64] = tiles.numpy()[:, ::_STEP_PX, ::_STEP_PX].reshape(-1, 3) / 255.0
    return colors
