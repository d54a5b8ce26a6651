"""What a person should know before a training begins: what is unusual, and what it will cost."""

import time
from collections.abc import Iterator, Sequence

import torch

from wsiseg.config.train import TrainConfig
from wsiseg.run.machine import cpu_has
from wsiseg.training.bags import at_once, epoch_of
from wsiseg.training.features import Compute
from wsiseg.training.slides import LabelledSlide

_BFLOAT16 = frozenset(["avx512_bf16", "amx_bf16", "bf16"])
_MANY_TILES = 20_000
_BACKWARD = 2  # times the forward pass


def cautions(config: TrainConfig, slides: Sequence[LabelledSlide], device: torch.device) -> Iterator[str]:
    """Yield sentences on what is unusual about slides and settings."""
    training, validation = ([slide for slide in slides if slide.split == name] for name in ("train", "val"))
    small = [slide for slide in training if slide.tiles < config.bag]
    if small:
        fewest = min(small, key=lambda slide: slide.tiles)
        yield (
            f"{len(small)} of {len(training)} training slides have fewer tiles than the bag of {config.bag}, "
            f"{fewest.slide} the fewest with {fewest.tiles}: all of theirs are drawn"
        )
    cut = [slide for slide in slides if slide.stored > slide.tiles]
    if cut:
        largest = max(cut, key=lambda slide: slide.stored)
        yield (
            f"{len(cut)} of {len(slides)} slides have more than {config.max_tiles} tiles, {largest.slide} the most "
            f"with {largest.stored}: {config.max_tiles} of each are used, spread evenly over its tissue (max-tiles)"
        )
    if not validation:
        yield "no validation slides: the last epoch is kept"
    elif not any(
        {0, 1} <= {one.label for one in seen} for seen in zip(*(one.by_class for one in validation), strict=True)
    ):
        yield "the validation slides are all of one class: the epoch of their lowest risk is kept"
    if config.precision == "bfloat16" and device.type == "cpu" and cpu_has(_BFLOAT16) is False:
        yield "this CPU has no instructions for bfloat16 (AVX512-BF16, AMX): float32 is many times as fast on it"


def looks(config: TrainConfig, slides: Sequence[LabelledSlide]) -> tuple[int, int, int]:
    """Count the tiles of a run in which a network is trained whole.

    Returns:
        How many are trained and how many are scored, and how many pass through the network for that, a pass backward
        counted as two forward.
    """
    trained = scored = ranked = 0
    training = [slide for slide in slides if slide.split == "train"]
    for slide in epoch_of(training, config, 0):
        bag = config.epochs * min(config.bag, slide.tiles)
        trained += bag
        ranked += bag * (config.micro_batch is not None and any(one.label != 0 for one in slide.by_class))
    for slide in slides:
        if slide.split != "train":
            scored += min(config.validation_tiles, slide.tiles) * (1 + config.epochs * (slide.split == "val"))
    return trained, scored, trained * (1 + _BACKWARD) + ranked + scored


def cost(tiles: int, compute: Compute, side_px: int, what: str) -> Iterator[str]:
    """Measure how long it takes so many tiles to pass, and yield a sentence on it; nothing where that is short."""
    if tiles < _MANY_TILES:
        return
    count = at_once(compute.device, 3 * side_px**2)
    tried = torch.zeros((count, side_px, side_px, 3), dtype=torch.uint8)
    compute.features(tried)
    began = time.perf_counter()
    compute.features(tried)
    hours = tiles * (time.perf_counter() - began) / count / 3600
    yield f"{what}: about {hours:.1f} h of computing on this machine"
