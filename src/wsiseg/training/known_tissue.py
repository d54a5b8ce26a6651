"""What tissue a network knows after its training, and what its tumour looks like in the network's middle stages."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from wsiseg.config.train import TrainConfig
from wsiseg.network.known_tissue import Features, KnownTissue
from wsiseg.network.texture import STRIDE_PX, Stage, texture_layer, textures, tissue_weights
from wsiseg.training.augment import augmented
from wsiseg.training.bags import TileSource
from wsiseg.training.features import Compute, FeatureBank
from wsiseg.training.processes import Processes
from wsiseg.training.slides import Indices, LabelledSlide, evenly
from wsiseg.training.task import Task

_MOST_SLIDES, _MOST_TUMOR_SLIDES, _MOST_TILES, _MOST_CROPS, _AT_ONCE = 100, 40, 64, 24, 16
_SUREST = 0.5  # of the tiles that training took for tumour
_OTHERS_WITHIN = 90  # percent of such tiles of validation slides


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
        tiles = TileSource(augmented, config.threads, size).read(slide, indices)
        parts += [compute.features(some) for some in tiles.split(_AT_ONCE)]
    return np.concatenate(parts)


def tumor_texture(task: Task, config: TrainConfig, processes: Processes) -> tuple[str, KnownTissue] | None:
    """Measure the textures of the tiles that are tumour most surely.

    Of a tumour slide these are the surer half of the tiles that training took for tumour, alpha / 2 of all; where it
    was given the true labels of tiles, all that are tumour. Tumour of other patients lies farther from those of
    training than they lie from each other, so the validation slides set the limit: nine of ten such tiles of theirs are
    within it, as even of the surest some are not tumour.

    Args:
        task: With the weights that are kept.
        config: How it was trained.
        processes: Who measures.

    Returns:
        The layer and its textures; None for a head on frozen features, for a network without such a layer, and where
        there are too few tiles to tell.
    """
    layer = None if config.freeze else texture_layer(task.classifier.eval())
    if layer is None:
        return None
    training, validation = (
        _some([slide for slide in task.split(name) if slide.label], _MOST_TUMOR_SLIDES) for name in ("train", "val")
    )
    slides = [*training, *validation]
    with Stage(task.classifier.backbone, layer) as stage:
        found = processes.gathered([_textures(task, config, slide, stage) for slide in processes.share(slides)])
    known = KnownTissue.of([some for some in found[: len(training)] if len(some)])
    if known is None:
        return None
    others = [known.distances(some) for some in found[len(training) :] if len(some)]
    limit = float(np.percentile(np.concatenate(others), _OTHERS_WITHIN)) if others else 0.0
    return layer, replace(known, tile_limit=max(known.tile_limit, limit))


@torch.inference_mode()
def _textures(task: Task, config: TrainConfig, slide: LabelledSlide, stage: Stage) -> Features:
    """Return the textures of a slide's surest tumour, float32[tiles, 2 * channels].

    Where the network was shown what lies around a tile, they are those of tiles within that, and of tiles alone.
    """
    compute = Compute(task.classifier, None, config.precision == "bfloat16")
    indices = evenly(slide.tiles, _MOST_TILES)
    alone, logits = [], []
    for tiles in _read(slide, indices, config, None):
        features = torch.from_numpy(compute.features(tiles)).to(task.device)
        logits.append(task.classifier.head(features)[:, 0])
        alone.append(_textures_of(stage.map, tiles))
    if task.labels is not None and slide.slide in task.labels:
        chosen = np.flatnonzero(task.labels[slide.slide][indices])
    else:
        count = max(1, int(_SUREST * config.alpha * len(indices)))
        chosen = torch.cat(logits).cpu().numpy().argsort()[::-1][:count].copy()
    found = [torch.cat(alone)[torch.from_numpy(chosen).to(task.device)]]
    if config.context is not None:
        cells = slide.tile_px // STRIDE_PX
        for crops in _read(slide, indices[chosen], config, config.context):
            compute.features(crops)
            begin = (stage.map.shape[2] - cells) // 2
            found.append(_textures_of(stage.map, crops, slice(begin, begin + cells)))
    together: Features = torch.cat(found).cpu().numpy()
    return together


def _textures_of(stage: Tensor, tiles: Tensor, middle: slice = slice(None)) -> Tensor:
    """Return the textures [n, 2 * channels] of tiles, or of the middle of crops."""
    weights = tissue_weights(tiles.to(stage.device), (stage.shape[2], stage.shape[3]))
    return textures(stage[:, :, middle, middle].float(), weights[:, :, middle, middle])


def _read(slide: LabelledSlide, indices: Indices, config: TrainConfig, side: int | None) -> Iterator[Tensor]:
    """Yield tiles, or the crops around them, a few at a time."""
    source = TileSource(augmented, config.threads, side)
    for begin in range(0, len(indices), _AT_ONCE):
        yield source.read(slide, indices[begin : begin + _AT_ONCE])
