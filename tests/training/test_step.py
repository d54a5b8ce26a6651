"""A step against the equation of the paper, and what moves in it."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from making.equation import Floats, literal_risk
from making.tiled import SMALL
from wsiseg.config.train import TrainConfig
from wsiseg.network.network import build
from wsiseg.training.bags import Bag, TileSource
from wsiseg.training.slides import LabelledSlide, labelled_slides
from wsiseg.training.step import (
    Stepper,
    batch_norms,
    blocks,
    hold,
    moving_average,
    optimizer_of,
    set_learning_rate,
    set_training,
)

TILES, CHANNELS = 30, 5
ALPHA, BETA, C0, C1, WEIGHT = 0.3, 0.4, 0.5, 2.0, 0.7
CPU, HERE = torch.device("cpu"), Path()


class Linear(nn.Module):
    """Logits [n, 1] of features [n, channels]."""

    def __init__(self, weights: Floats) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features @ self.weights)[:, None]


@pytest.mark.parametrize("micro_batch", [None, 7])
@pytest.mark.parametrize(
    ("label", "stated", "shares"),
    [
        (0, (None, None), (0.0, 1.0)),
        (0, (None, 0.2), (0.0, 1.0)),
        (1, (None, None), (ALPHA, BETA)),
        (1, (0.5, 0.7), (0.6, 0.0)),
        (1, (0.5, None), (0.5, 0.0)),
        (1, (None, 0.2), (0.2, BETA)),
        (1, (None, 0.9), (ALPHA, 0.1)),
        (1, (0.0, 0.2), (0.1, 0.0)),
        (None, (None, 0.2), (0.0, BETA)),
        (None, (0.0, 0.9), (0.0, 0.1)),
    ],
)
@pytest.mark.parametrize("is_supervised", [False, True])
def test_risk_and_gradients_are_those_of_the_literal_equation(
    is_supervised: bool,  # noqa: FBT001  a parameter of the test
    label: int | None,
    stated: tuple[float | None, float | None],
    shares: tuple[float, float],
    micro_batch: int | None,
) -> None:
    random = np.random.default_rng(0)
    weights, features = random.normal(size=CHANNELS), random.normal(size=(TILES, CHANNELS))
    truth = (random.random(TILES) < 0.4).astype(float) if is_supervised else None
    config = TrainConfig(cohort=HERE, out=HERE, alpha=ALPHA, beta=BETA, c0=C0, c1=C1, micro_batch=micro_batch)
    network = Linear(weights)
    slide = LabelledSlide("a", label, "train", "", HERE, HERE, TILES, 64, 0.5, "", stated=stated)
    labels = None if truth is None else torch.from_numpy(truth.astype(np.int8))[:, None]
    risk = Stepper(config, CPU).backward(network, Bag(slide, torch.from_numpy(features), WEIGHT, labels))

    def risk_at(moved: Floats) -> float:
        return literal_risk(features @ moved, shares, C0 if label == 0 else C1, truth)

    assert risk == pytest.approx(risk_at(weights), rel=1e-5)
    steps = 1e-6 * np.eye(CHANNELS)
    slopes = [WEIGHT * (risk_at(weights + step) - risk_at(weights - step)) / 2e-6 for step in steps]
    assert network.weights.grad is not None
    assert network.weights.grad.tolist() == pytest.approx(slopes, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("micro_batch", [None, 7])
def test_the_risk_of_classes_is_the_mean_of_their_own(micro_batch: int | None) -> None:
    """Of the third class nothing is known in this slide."""
    random = np.random.default_rng(0)
    weights, features = random.normal(size=(CHANNELS, 3)), random.normal(size=(TILES, CHANNELS))
    config = TrainConfig(cohort=HERE, out=HERE, alpha=ALPHA, beta=BETA, c0=C0, c1=C1, micro_batch=micro_batch)
    slide = LabelledSlide("a", 1, "train", "", HERE, HERE, TILES, 64, 0.5, "", stated=(0.5, None))
    slide = replace(slide, others=(replace(slide, label=0), replace(slide, label=None, stated=(None, None))))
    network = nn.Linear(CHANNELS, 3, bias=False).double()
    network.weight.data = torch.from_numpy(weights.T.copy())
    risk = Stepper(config, CPU).backward(network, Bag(slide, torch.from_numpy(features), WEIGHT))

    def risk_at(moved: Floats) -> float:
        logits = features @ moved
        return (literal_risk(logits[:, 0], (0.5, 0.0), C1) + literal_risk(logits[:, 1], (0.0, 1.0), C0)) / 3

    assert risk == pytest.approx(risk_at(weights), rel=1e-5)
    assert network.weight.grad is not None
    for channel, place in ((0, 0), (3, 1), (2, 2)):
        step = np.zeros_like(weights)
        step[channel, place] = 1e-6
        slope = WEIGHT * (risk_at(weights + step) - risk_at(weights - step)) / 2e-6
        assert float(network.weight.grad[place, channel]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("micro_batch", [None, 7])
def test_without_normal_slides_tiles_are_drawn_to_what_the_share_of_their_slide_says(micro_batch: int | None) -> None:
    random = np.random.default_rng(0)
    weights, features = random.normal(size=CHANNELS), random.normal(size=(TILES, CHANNELS))
    config = TrainConfig(cohort=HERE, out=HERE, c1=C1, micro_batch=micro_batch)
    slide = LabelledSlide("a", 1, "train", "", HERE, HERE, TILES, 64, 0.5, "", stated=(0.2, 0.4))
    slide = replace(slide, needs_normal=True, target=-1.0)
    network = Linear(weights)
    risk = Stepper(config, CPU).backward(network, Bag(slide, torch.from_numpy(features), WEIGHT))

    def risk_at(moved: Floats) -> float:
        logits = features @ moved
        drawn = 0.3 * float(np.mean(np.log1p(np.exp(logits)) + logits))
        return literal_risk(logits, (0.2, 0.6), C1) + C1 * drawn

    assert risk == pytest.approx(risk_at(weights), rel=1e-5)
    steps = 1e-6 * np.eye(CHANNELS)
    slopes = [WEIGHT * (risk_at(weights + step) - risk_at(weights - step)) / 2e-6 for step in steps]
    assert network.weights.grad is not None
    assert network.weights.grad.tolist() == pytest.approx(slopes, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("micro_batch", [None, 7])
def test_tiles_that_the_share_draws_are_ranked_with_those_around_them(micro_batch: int | None) -> None:
    """Of two classes only the first is drawn."""
    random = np.random.default_rng(0)
    weights, features = random.normal(size=(2, CHANNELS)), random.normal(size=(TILES, CHANNELS))
    config = TrainConfig(cohort=HERE, out=HERE, c1=1.0, micro_batch=micro_batch)
    slide = LabelledSlide("a", 1, "train", "", HERE, HERE, TILES, 64, 0.5, "", stated=(0.3, 0.3), needs_normal=True)
    slide = replace(slide, target=0.0, others=(slide,))
    network = nn.Linear(CHANNELS, 2, bias=False).double()
    network.weight.data = torch.from_numpy(weights)
    near = random.random((TILES, TILES))
    bag = Bag(slide, torch.from_numpy(features), near=torch.from_numpy(near))
    first, second = (features @ weights.T).T
    means = near @ first
    truth = (means >= np.sort(means)[-9]).astype(float)
    assert truth.tolist() != (first >= np.sort(first)[-9]).astype(float).tolist()
    of_first = literal_risk(first, (0.3, 0.7), 1.0, truth) + 0.3 * np.mean(np.log1p(np.exp(first)))
    expected = (of_first + literal_risk(second, (0.3, 0.7), 1.0)) / 2
    assert Stepper(config, CPU).backward(network, bag) == pytest.approx(expected, rel=1e-5)


def test_without_normal_slides_all_is_called_normal_that_is_known_to_be() -> None:
    slide = LabelledSlide("a", 1, "train", "", HERE, HERE, TILES, 64, 0.5, "", stated=(0.5, 0.6), needs_normal=True)
    assert slide.shares(ALPHA, BETA) == (0.5, 0.4)
    assert replace(slide, label=None, stated=(None, 0.25)).shares(ALPHA, BETA) == (0.0, 0.75)
    assert replace(slide, stated=(0.95, None)).shares(ALPHA, BETA) == pytest.approx((0.95, 0.05))
    assert replace(slide, stated=(None, None)).shares(ALPHA, BETA) == (ALPHA, BETA)


def test_bfloat16_computes_in_half_the_bits() -> None:
    seen = []

    class Listening(nn.Linear):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            out = super().forward(features)
            seen.append(out.dtype)
            return out

    slide = LabelledSlide("a", 1, "train", "", HERE, HERE, TILES, 64, 0.5, "")
    for precision in ("float32", "bfloat16"):
        config = TrainConfig(cohort=HERE, out=HERE, precision=precision)
        Stepper(config, CPU).backward(Listening(CHANNELS, 1), Bag(slide, torch.ones(TILES, CHANNELS)))
    assert seen == [torch.float32, torch.bfloat16]


def test_weights_shrink_where_that_is_asked_for_and_their_average_trails_them() -> None:
    for decay in (0.0, 0.5):
        network = nn.Linear(3, 1)
        begin = network.weight.detach().clone()
        average = moving_average(network, 0.9)
        average.update_parameters(network)  # the first time it copies
        config = TrainConfig(cohort=HERE, out=HERE, lr=0.1, weight_decay=decay)
        optimizer = optimizer_of(network, config)
        network.weight.grad = torch.zeros_like(network.weight)
        optimizer.step()
        average.update_parameters(network)
        torch.testing.assert_close(network.weight.detach(), begin * (1 - 0.1 * decay))
        (trailing,) = (value for name, value in average.module.named_parameters() if name == "weight")
        torch.testing.assert_close(trailing.detach(), 0.9 * begin + 0.1 * network.weight.detach())


def test_batch_norm_statistics_move_in_the_pass_that_sees_all_tiles(cohort: Path) -> None:
    slide = next(one for one in labelled_slides(cohort) if one.label == 1)
    bag = Bag(slide, TileSource().read(slide, np.arange(12)))
    classifier = build(SMALL, "none").train()
    alone = copy.deepcopy(classifier)
    momenta = [layer.momentum for layer in batch_norms(classifier)]
    Stepper(TrainConfig(cohort=HERE, out=HERE, alpha=0.4, beta=0.4, micro_batch=6), CPU).backward(classifier, bag)
    with torch.no_grad():
        for part in bag.tiles.split(6):
            alone(part)
    assert [layer.momentum for layer in batch_norms(classifier)] == momenta
    for layer, expected in zip(batch_norms(classifier), batch_norms(alone), strict=True):
        torch.testing.assert_close(layer.running_mean, expected.running_mean)
        torch.testing.assert_close(layer.running_var, expected.running_var)


def test_what_is_held_does_not_move() -> None:
    classifier = build("resnet18", "none")
    settings = TrainConfig(cohort=Path("c"), out=Path("o"), train_last=2, batch_norm="frozen")
    hold(classifier, 2)
    set_training(classifier, classifier, settings)
    every = blocks(classifier.backbone)
    assert len(every) == 10
    assert not any(weight.requires_grad for block in every[:-2] for weight in block.parameters())
    assert all(weight.requires_grad for block in every[-2:] for weight in block.parameters())
    assert not any(layer.training for layer in batch_norms(classifier))
    assert every[-1].training
    assert not every[0].training


def test_of_a_transformer_the_last_blocks_move_alone() -> None:
    """Its class token and position embeddings are of no block, and lie before all."""
    whole, some = (build("timm:test_vit", "none", tile_px=160) for _ in range(2))
    every = blocks(some.backbone)
    hold(some, 2)
    moving = {name for name, weight in some.named_parameters() if weight.requires_grad}
    last = {f"backbone.network.{name}" for name in ("norm.weight", "norm.bias")} | {"head.weight", "head.bias"}
    assert {name for name in moving if ".blocks." not in name} == last
    assert len({name.split(".blocks.")[1].split(".")[0] for name in moving if ".blocks." in name}) == 1
    hold(whole, len(every))
    assert all(weight.requires_grad for weight in whole.parameters())


def test_the_learning_rate_falls_as_a_cosine() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    settings = TrainConfig(cohort=Path("c"), out=Path("o"), lr=0.4, schedule="cosine")
    rates = []
    for done in (0.0, 0.5, 1.0):
        set_learning_rate(optimizer, settings, done)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.4, 0.2, 0.0])


def test_the_learning_rate_rises_while_a_training_warms_up() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    settings = TrainConfig(cohort=Path("c"), out=Path("o"), lr=0.4, warm_up=0.2)
    rates = []
    for done in (0.0, 0.05, 0.1, 0.2, 1.0):
        set_learning_rate(optimizer, settings, done)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.4])
