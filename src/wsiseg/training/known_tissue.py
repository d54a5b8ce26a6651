"""What tissue a network knows after its training."""

from collections.abc import Sequence

import numpy as np
import torch

from wsiseg.config.train import TrainConfig
from wsiseg.network.known_tissue import Features, KnownTissue
from wsiseg.training.bags import TileSource
from wsiseg.training.features import Compute, FeatureBank
from wsiseg.training.processes import Processes
from wsiseg.training.slides import LabelledSlide, evenly
from wsiseg.training.task import Task

_MOST_SLIDES, _MOST_TILES, _MOST_CROPS = 100, 64, 24


def known_tissue(task: Task, config: TrainConfig, processes: Processes) -> KnownTissue | None:
    """Measure the features of training tiles, and how far the slides of validation lie from them.

    Args:
        task: With the weights that are kept.
        config: How it was trained.
        processes: Who measures.

    Returns:
        None where there are too few tiles to tell.
    """
    training, validation = (_some(task.split(name), _MOST_SLIDES) for name in ("train", "val"))
    slides = [*training, *validation]
    found = processes.gathered([_features(task, config, slide) for slide in processes.share(slides)])
    return KnownTissue.of(found[: len(training)], found[len(training) :])


def _some(slides: Sequence[LabelledSlide], most: int) -> list[LabelledSlide]:
    return [slides[place] for place in evenly(len(slides), most)]


@torch.inference_mode()
def _features(task: Task, config: TrainConfig, slide: LabelledSlide) -> Features:
    """Return the features of tiles of a slide, float32[tiles, channels].

    Where the network was shown what lies around a tile, they are those of tiles within that, as a dense map sees them,
    and of the same tiles alone, as a map by tiles does.
    """
    most = _MOST_TILES if config.context is None or config.freeze else _MOST_CROPS
    indices = evenly(slide.tiles, most)
    if isinstance(task.source, FeatureBank):
        known: Features = task.source.raw(slide)[0, indices].astype(np.float32)
        return known
    sizes = (None,) if config.context is None else (None, config.context)
    parts = []
    for size in sizes:
        middle = None if size is None else slide.tile_px
        compute = Compute(task.classifier.eval(), middle, config.precision == "bfloat16")
        tiles = TileSource(context_px=size).read(slide, indices)
        parts.append(compute.features(tiles))
    return np.concatenate(parts)
