"""What tissue a network knows after its training."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from wsiseg.network.known_tissue import Features, KnownTissue
from wsiseg.network.network import TileClassifier
from wsiseg.network.stage import STRIDE_PX, Reached, Stage, described, squared, stage_layer
from wsiseg.training.bags import TileSource, ahead
from wsiseg.training.processes import Processes
from wsiseg.training.slides import LabelledSlide, evenly

# With 16 tiles and 8 crops a slide only a third of the foreign cells were unknown that are with these.
_MOST_SLIDES, _MOST_TILES, _MOST_CROPS, _AT_ONCE = 100, 64, 24, 16
_BYTES_AHEAD = 16_000_000  # of a slide
_AROUND_PX = 32  # which an early stage hardly sees beyond


def known_tissue(
    classifier: TileClassifier, slides: Sequence[LabelledSlide], source: TileSource, processes: Processes
) -> KnownTissue | None:
    """Measure the tissue of training slides, and how far tissue of those for validation lies from it.

    Returns:
        None where there are too few tiles to tell, or the network has no stage that tells.
    """
    layer = stage_layer(classifier.eval())
    if layer is None:
        return None
    training, validation = (_some([one for one in slides if one.split == name]) for name in ("train", "val"))
    every = [*training, *validation]
    with Stage(classifier.backbone, layer, ends=True) as stage:
        reading = ahead([partial(_crops, source, one) for one in processes.share(every)], _BYTES_AHEAD)
        parts = processes.gathered([_described(classifier, stage, crops) for crops in reading])
    found = [(slide.site, tiles) for slide, tiles in zip(every, parts, strict=True)]
    return KnownTissue.of(layer, found[: len(training)], found[len(training) :])


def _some(slides: Sequence[LabelledSlide]) -> list[LabelledSlide]:
    return [slides[place] for place in evenly(len(slides), _MOST_SLIDES)]


def _crops(source: TileSource, slide: LabelledSlide) -> list[tuple[int, Tensor]]:
    """Read tiles of a slide alone, as a map by tiles sees them, and within crops; with the positions around each."""
    whole = [(0, None, _MOST_TILES), (_AROUND_PX // STRIDE_PX, slide.tile_px + 2 * _AROUND_PX, _MOST_CROPS)]
    return [
        (around, replace(source, context_px=side).read(slide, evenly(slide.tiles, most)))
        for around, side, most in (whole if slide.path.exists() else whole[:1])
    ]


def _described(classifier: TileClassifier, stage: Stage, crops: list[tuple[int, Tensor]]) -> Features:
    """Describe the tiles of a slide, float32[tiles, channels]."""
    return np.concatenate(
        [_of_middle(classifier, stage, some, around) for around, tiles in crops for some in tiles.split(_AT_ONCE)]
    )


@torch.inference_mode()
def _of_middle(classifier: TileClassifier, stage: Stage, crops: Tensor, around: int) -> Features:
    """Describe uint8 crops [n, side, side, 3] without so many positions around: float32[n, channels]."""
    with suppress(Reached):
        classifier.backbone(classifier.normalised(crops.to(classifier.head.weight.device)))
    rows, columns = (slice(around, size - around) for size in stage.map.shape[2:])
    found: Features = described(squared(stage.map[:, :, rows, columns]).mean((2, 3))).cpu().numpy()
    return found
