"""The laws of proxy labels and of the risk."""

import hashlib
import itertools
import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from wsiseg.mathematics.mil import (
    LEFT_OUT,
    NORMAL,
    TUMOR,
    counts,
    neighbourhood,
    proxy_labels,
    risk,
    share_risk,
    share_target,
)
from wsiseg.run.errors import UsageError

STEPS = [k / 20 for k in range(21)]


NONE = (0.0, 1.0)  # the shares of a slide without tumour


@st.composite
def shares(draw: st.DrawFn) -> tuple[float, float]:
    """Least shares of tumour and normal tissue: of a slide without tumour, with some, with a known share."""
    alpha = draw(st.sampled_from(STEPS))
    beta = draw(st.sampled_from([step for step in STEPS if alpha + step <= 1 + 1e-9]))
    return alpha, beta


@st.composite
def bags(draw: st.DrawFn) -> torch.Tensor:
    """Distinct logits in any order; what ties mean is nobody's business."""
    size = draw(st.integers(1, 60))
    order = draw(st.permutations(range(size)))
    return torch.tensor(order, dtype=torch.float32) * 0.37 - 5


def weak_risk(logits: torch.Tensor, alpha: float, beta: float, c: float = 1.0) -> torch.Tensor:
    """The risk by proxy labels."""
    return risk(logits, proxy_labels(logits, alpha, beta), weight=c)


@given(bags(), shares())
def test_counts_are_floors_with_one_tile_at_least(logits: torch.Tensor, alpha_beta: tuple[float, float]) -> None:
    alpha, beta = alpha_beta
    labels = proxy_labels(logits, alpha, beta)
    n = len(logits)
    tumor, normal = int((labels == TUMOR).sum()), int((labels == NORMAL).sum())
    assert tumor == (max(1, math.floor(round(alpha * n, 6))) if alpha > 0 else 0)
    assert normal == min(max(1, math.floor(round(beta * n, 6))) if beta > 0 else 0, n - tumor)
    assert tumor + normal + int((labels == LEFT_OUT).sum()) == n


@given(bags(), shares())
def test_the_most_probable_are_tumor_and_the_least_probable_normal(
    logits: torch.Tensor, alpha_beta: tuple[float, float]
) -> None:
    labels = proxy_labels(logits, *alpha_beta)
    if (labels == TUMOR).any():
        assert (logits[labels != TUMOR] < logits[labels == TUMOR].min()).all()
    if (labels == NORMAL).any():
        assert (logits[labels != NORMAL] > logits[labels == NORMAL].max()).all()


@given(bags(), shares(), st.randoms(use_true_random=False))
def test_order_does_not_matter(logits: torch.Tensor, alpha_beta: tuple[float, float], random: Random) -> None:
    order = list(range(len(logits)))
    random.shuffle(order)
    labels = proxy_labels(logits, *alpha_beta)
    assert torch.equal(proxy_labels(logits[order], *alpha_beta), labels[order])
    torch.testing.assert_close(weak_risk(logits[order], *alpha_beta), weak_risk(logits, *alpha_beta))


@given(bags(), shares(), st.sampled_from(STEPS[1:]))
def test_a_larger_alpha_keeps_every_tumor_tile(
    logits: torch.Tensor, alpha_beta: tuple[float, float], other: float
) -> None:
    beta = alpha_beta[1]
    low, high = sorted((alpha_beta[0], other))
    if high + beta > 1 + 1e-9:
        beta = 0.0
    less, more = (proxy_labels(logits, alpha, beta) == TUMOR for alpha in (low, high))
    assert bool((more | ~less).all())


@given(bags())
def test_a_known_share_labels_every_tile(logits: torch.Tensor) -> None:
    assert (proxy_labels(logits, *NONE) == NORMAL).all()
    assert (proxy_labels(logits, 1.0, 0.0) == TUMOR).all()
    assert (proxy_labels(logits, 0.0, 0.0) == LEFT_OUT).all()
    half = proxy_labels(logits.repeat_interleave(2), 0.5, 0.5)
    assert (half == TUMOR).sum() == (half == NORMAL).sum() == len(logits)


@given(bags(), shares(), st.sampled_from([1.0, 0.5, 2.0]))
def test_risk_equals_brute_force(logits: torch.Tensor, alpha_beta: tuple[float, float], c: float) -> None:
    value = float(weak_risk(logits.double(), *alpha_beta, c))
    assert value == pytest.approx(_brute_force(logits.tolist(), *alpha_beta, c), rel=1e-9)
    assert math.isfinite(value)


def _brute_force(logits: list[float], alpha: float, beta: float, c: float) -> float:
    """The equation of the paper, word by word."""

    def loss(logit: float, target: int) -> float:
        return math.log1p(math.exp(-logit)) if target else math.log1p(math.exp(logit))

    n = len(logits)
    falling = sorted(logits, reverse=True)
    top = max(1, math.floor(round(alpha * n, 6))) if alpha > 0 else 0
    bottom = min(max(1, math.floor(round(beta * n, 6))), n - top) if beta > 0 else 0
    losses = [loss(logit, 1) for logit in falling[:top]] + [loss(logit, 0) for logit in falling[n - bottom :]]
    return c * sum(losses) / max(1, len(losses))


@given(st.permutations(range(6)), shares().filter(any))
def test_of_all_labels_with_these_shares_the_likeliest_are_taken(
    order: list[int], alpha_beta: tuple[float, float]
) -> None:
    logits = torch.tensor(order, dtype=torch.float64) - 2.6
    tumor, normal = counts(6, *alpha_beta)
    every = itertools.product((TUMOR, NORMAL, LEFT_OUT), repeat=6)
    fitting = [labels for labels in every if (labels.count(TUMOR), labels.count(NORMAL)) == (tumor, normal)]
    risks = [float(risk(logits, torch.tensor(labels))) for labels in fitting]
    assert float(weak_risk(logits, *alpha_beta)) == pytest.approx(min(risks))


def test_slides_that_are_only_known_to_hold_tumor_or_none_are_labelled_as_in_version_0_1() -> None:
    digest = hashlib.sha256()
    for seed, tiles in enumerate((1, 2, 7, 150, 384)):
        logits = torch.from_numpy(np.random.default_rng(seed).permutation(tiles))
        digest.update(proxy_labels(logits, *NONE).numpy().tobytes())
        for alpha in STEPS[1:]:
            for beta in STEPS:
                if alpha + beta <= 1 + 1e-9:
                    digest.update(proxy_labels(logits, alpha, beta).numpy().tobytes())
    assert digest.hexdigest()[:16] == "6604e66e7fef1a32"


def test_gradients_reach_kept_tiles_only() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 0.1, -3.0], requires_grad=True)
    weak_risk(logits, 0.2, 0.2).backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(("alpha", "beta"), [(-0.1, 0.5), (0.2, -0.1), (0.6, 0.6), (1.1, 0)])
def test_shares_outside_the_set_are_refused(alpha: float, beta: float) -> None:
    with pytest.raises(UsageError, match="no possible shares"):
        proxy_labels(torch.zeros(5), alpha, beta)


def test_float_noise_does_not_lose_a_tile() -> None:
    assert counts(100, 0.29, 0.7) == (29, 70)
    assert counts(10, 0.6, 0.4) == (6, 4)
    assert counts(1, 0.2, 0.2) == (1, 0)


def test_an_empty_bag_has_no_risk() -> None:
    assert float(weak_risk(torch.empty(0), 0.2, 0.2)) == 0.0


@given(bags(), shares().filter(any), st.integers(1, 7))
def test_the_risks_of_parts_add_up_to_that_of_the_bag(
    logits: torch.Tensor, alpha_beta: tuple[float, float], size: int
) -> None:
    labels, logits = proxy_labels(logits, *alpha_beta), logits.double()
    whole = risk(logits, labels, weight=2.0)
    kept = torch.nonzero(labels != LEFT_OUT).flatten()
    parts = [risk(logits[k], labels[k], weight=2.0, of=len(kept)) for k in kept.split(size)]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-9)
    losses = functional.binary_cross_entropy_with_logits(logits[kept], labels[kept].double(), reduction="none")
    assert float(whole) == pytest.approx(2.0 * float(losses.mean()), rel=1e-9)


def test_logits_that_differ_in_their_last_digit_are_told_apart() -> None:
    logits = torch.full((3,), 1.0)
    logits[1] = torch.nextafter(logits[0], torch.tensor(2.0))
    logits[0] = torch.nextafter(logits[2], torch.tensor(0.0))
    assert proxy_labels(logits, 0.4, 0.4).tolist() == [NORMAL, TUMOR, LEFT_OUT]


@given(
    tumors=st.lists(st.integers(0, 20), min_size=2, max_size=12).filter(lambda each: len(set(each)) > 1),
    tumor=st.floats(-5, 5),
    normal=st.floats(-5, 5),
    error=st.floats(0, 0.1),
)
def test_shares_alone_give_the_risk_of_true_labels_where_tissue_is_alike_in_all_slides(
    tumors: list[int], tumor: float, normal: float, error: float
) -> None:
    stated = [(count / 20 - error, count / 20 + error) for count in tumors]
    by_shares, by_labels = [], []
    for count, bounds in zip(tumors, stated, strict=True):
        labels = torch.tensor([1.0] * count + [0.0] * (20 - count), dtype=torch.float64)
        logits = labels * tumor + (1 - labels) * normal
        target = share_target(bounds, [*stated, (0.3, None)])
        assert target is not None
        by_shares.append(float(share_risk(logits[:7], target, of=20) + share_risk(logits[7:], target, of=20)))
        by_labels.append(float(functional.binary_cross_entropy_with_logits(logits, labels)))
    assert sum(by_shares) == pytest.approx(sum(by_labels), rel=1e-6, abs=1e-6)


def test_shares_that_are_alike_or_unknown_draw_no_tile() -> None:
    assert share_target((0.2, 0.4), [(0.2, 0.4), (0.1, 0.5)]) is None
    assert share_target((None, 0.4), [(0.2, 0.4), (0.5, 0.5)]) is None
    assert share_target((0.2, 0.4), []) is None


@given(
    cells=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=30, unique=True),
    moved=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    random=st.randoms(use_true_random=False),
)
def test_a_tile_counts_by_its_distance_alone(
    cells: list[tuple[int, int]], moved: tuple[int, int], random: Random
) -> None:
    places = torch.tensor(cells, dtype=torch.float64)
    near = neighbourhood(places)
    expected = [[math.exp(-((a - c) ** 2 + (b - d) ** 2) / 2) for c, d in cells] for a, b in cells]
    assert near.tolist() == [pytest.approx([one / sum(row) for one in row], abs=1e-12) for row in expected]
    assert torch.allclose(neighbourhood(places + torch.tensor(moved)), near)
    order = random.sample(range(len(cells)), len(cells))
    assert torch.allclose(neighbourhood(places[order]), near[order][:, order])


def test_tiles_without_others_around_them_are_ranked_alone() -> None:
    assert torch.allclose(neighbourhood(torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0]])), torch.eye(3), atol=1e-6)
