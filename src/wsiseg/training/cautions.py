"""What a person should know before a training begins."""

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from wsiseg.config.train import TrainConfig
from wsiseg.training.bags import LabelledSlide

_CPU = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def cautions(config: TrainConfig, slides: Sequence[LabelledSlide], device: torch.device) -> Iterator[str]:
    """Give sentences on what is unusual about slides and settings.

    Args:
        config: How they are trained on.
        slides: All slides with a label and tiles.
        device: What computes.
    """
    training, validation = ([slide for slide in slides if slide.split == name] for name in ("train", "val"))
    small = [slide for slide in training if slide.tiles < config.bag]
    if small:
        fewest = min(small, key=lambda slide: slide.tiles)
        yield (
            f"{len(small)} of {len(training)} training slides have fewer tiles than the bag of {config.bag}, "
            f"{fewest.slide} the fewest with {fewest.tiles}: all of theirs are drawn"
        )
    if not validation:
        yield "no validation slides: the last epoch is kept"
    elif len({slide.label for slide in validation}) == 1:
        yield "the validation slides are all of one class: the epoch of their lowest risk is kept"
    if config.precision == "bfloat16" and device.type == "cpu" and has_fast_bfloat16() is False:
        yield "this CPU has no instructions for bfloat16 (AVX512-BF16, AMX): float32 is many times as fast on it"


def has_fast_bfloat16(cpu: Path = _CPU) -> bool | None:
    """Tell whether this CPU has instructions for products of bfloat16; None where that cannot be told.

    Args:
        cpu: Linux's description of the CPU.
    """
    if platform.system() != "Linux":
        return None
    try:
        words = cpu.read_text(encoding="utf-8").split()
    except OSError:
        return None
    return not _BFLOAT16_FLAGS.isdisjoint(words)
