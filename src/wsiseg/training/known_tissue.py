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
from wsiseg.network.stage import STRIDE_PX, Reached, Stage, stage_layer, summary
from wsiseg.training.bags import TileSource, ahead
from wsiseg.training.features import DESCRIBED, FeatureBank
from wsiseg.training.processes import Processes
from wsiseg.training.slides import LabelledSlide, evenly

# With 16 tiles and 8 crops a slide only a third of the foreign cells were unknown that are with these.
_MOST_SLIDES, _MOST_CROPS, _AT_ONCE = 100, 24, 16
_BYTES_AHEAD = 16_000_000  # of a slide
_AROUND_PX = 32  # which an early stage hardly sees beyond

Read = tuple[list[Features], list[tuple[int, Tensor]]]
"""Descriptions that are there already, and tiles to describe with the positions around each."""


def known_tissue(
    classifier: TileClassifier,
    slides: Sequence[LabelledSlide],
    source: TileSource,
    processes: Processes,
    bank: FeatureBank | None = None,
) -> KnownTissue | None:
    """Measure the tissue of training slides, and how far tissue of those for validation lies from it.

    What `bank` holds of tiles is not computed again.

    Returns:
        None where there are too few tiles to tell, or the network has no stage that tells.
    """
    layer = stage_layer(classifier.eval())
    if layer is None:
        return None
    training, validation = (_some([one for one in slides if one.split == name]) for name in ("train", "val"))
    every = [*training, *validation]
    with Stage(classifier.backbone, layer, ends=True) as stage:
        reading = ahead([partial(_read, source, bank, one) for one in processes.share(every)], _BYTES_AHEAD)
        parts = processes.gathered([_described(classifier, stage, *read) for read in reading])
    found = [(slide.site, tiles) for slide, tiles in zip(every, parts, strict=True)]
    return KnownTissue.of(layer, found[: len(training)], found[len(training) :])


def _some(slides: Sequence[LabelledSlide]) -> list[LabelledSlide]:
    return [slides[place] for place in evenly(len(slides), _MOST_SLIDES)]


def _read(source: TileSource, bank: FeatureBank | None, slide: LabelledSlide) -> Read:
    """Read tiles of a slide alone, as a map by tiles sees them, unless the bank has them, and within crops."""
    tiles, crops = evenly(slide.tiles, DESCRIBED), evenly(slide.tiles, _MOST_CROPS)
    kept = None if bank is None else bank.stage(slide)
    read = [] if kept is not None else [(0, replace(source, context_px=None).read(slide, tiles))]
    if slide.path.exists():
        wider = replace(source, context_px=slide.tile_px + 2 * _AROUND_PX, is_whole=False)
        read.append((_AROUND_PX // STRIDE_PX, wider.read(slide, crops)))
    return [] if kept is None else [kept], read


def _described(
    classifier: TileClassifier, stage: Stage, kept: list[Features], read: list[tuple[int, Tensor]]
) -> Features:
    """Describe the tiles of a slide, float32[tiles, channels]."""
    asked = [_of_middle(classifier, stage, some, around) for around, tiles in read for some in tiles.split(_AT_ONCE)]
    return np.concatenate([*kept, *asked])


@torch.inference_mode()
def _of_middle(classifier: TileClassifier, stage: Stage, crops: Tensor, around: int) -> Features:
    """Describe uint8 crops [n, side, side, 3] without so many positions around: float32[n, channels]."""
    with suppress(Reached):
        classifier.backbone(classifier.normalised(crops.to(classifier.head.weight.device)))
    rows, columns = (slice(around, size - around) for size in stage.map.shape[2:])
    found: Features = summary(stage.map[:, :, rows, columns]).cpu().numpy()
    return found
