"""What is said before a training begins."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from making.tiled import SMALL
from wsiseg.config.train import TrainConfig
from wsiseg.network.network import build
from wsiseg.run.machine import cpu_has
from wsiseg.training import cautions as module
from wsiseg.training.cautions import cautions, cost
from wsiseg.training.features import Compute
from wsiseg.training.slides import LabelledSlide

CPU, HERE = torch.device("cpu"), Path()
SLIDES = [
    LabelledSlide("a", 0, "train", "", HERE, HERE, 200, 224, 0.5, ""),
    LabelledSlide("b", 1, "train", "", HERE, HERE, 40, 224, 0.5, ""),
    LabelledSlide("c", 1, "train", "", HERE, HERE, 90, 224, 0.5, ""),
    LabelledSlide("d", 0, "val", "", HERE, HERE, 10, 224, 0.5, ""),
    LabelledSlide("e", 1, "val", "", HERE, HERE, 10, 224, 0.5, ""),
]


def config(**values: Any) -> TrainConfig:
    return TrainConfig(cohort=Path("c"), out=Path("o"), **values)


def test_training_slides_with_fewer_tiles_than_the_bag_are_counted_and_the_smallest_named() -> None:
    assert list(cautions(config(), SLIDES, CPU)) == [
        "2 of 3 training slides have fewer tiles than the bag of 150, b the fewest with 40: all of theirs are drawn"
    ]
    assert list(cautions(config(bag=40), SLIDES, CPU)) == []


def test_validation_slides_that_cannot_rank_epochs_are_told() -> None:
    bag = config(bag=1)
    assert list(cautions(bag, SLIDES[:3], CPU)) == ["no validation slides: the last epoch is kept"]
    assert list(cautions(bag, SLIDES[:4], CPU)) == [
        "the validation slides are all of one class: the epoch of their lowest risk is kept"
    ]
    two = [*SLIDES[:4], replace(SLIDES[4], split="test")]
    assert "all of one class" in next(cautions(bag, two, CPU))


def test_the_forecast_of_the_cost_leaves_the_network_as_it_is() -> None:
    """Two passes over made tiles in training mode would move statistics of batch norm, which may be frozen then."""
    classifier = build(SMALL, "none").train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    assert len(list(cost(1_000_000, Compute(classifier), 64, "1 tile"))) == 1
    for name, value in classifier.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)


def test_bfloat16_without_its_instructions_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = tmp_path / "slow", tmp_path / "fast"
    slow.write_text("processor : 0\nflags : fpu avx2 avx512f avx512_vnni\n")
    fast.write_text("processor : 0\nflags : fpu avx2 amx_bf16 amx_tile\n")
    bfloat16 = config(bag=1, precision="bfloat16")
    for cpu, told in ((fast, 0), (tmp_path / "missing", 0), (slow, 1)):
        monkeypatch.setattr(module, "cpu_has", partial(cpu_has, facts=cpu))
        assert sum("no instructions for bfloat16" in one for one in cautions(bfloat16, SLIDES, CPU)) == told
    assert list(cautions(bfloat16, SLIDES, torch.device("cuda"))) == []
    assert list(cautions(config(bag=1), SLIDES, CPU)) == []
