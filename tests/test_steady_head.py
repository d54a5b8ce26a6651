"""Heads that changes by a scanner move less, and their calibration."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def steady_head(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(SCRIPTS)
    return runpy.run_path(str(SCRIPTS / "steady_head.py"))


def test_a_penalty_makes_a_head_blind_to_what_changes_move(steady_head: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    features = random.normal(2, 1, (400, 6)) * (1, 1, 1, 1, 1, 3)
    moves = np.zeros((400, 6))
    moves[:, 1] = random.normal(1, 0.1, 400)
    old, sites = np.array([1.0, 1.0, 0.0, -1.0, 0.5, 0.2]), [(features, {"noise of 6": moves})]
    same, nothing = steady_head["steady"](old, sites, steady_head["Steady"](penalty=0.0))
    np.testing.assert_allclose(same, old, atol=1e-9)
    assert nothing == pytest.approx(0)
    new, gain = steady_head["steady"](old, sites, steady_head["Steady"](penalty=1000.0))
    assert abs(moves @ new).max() < 0.01
    np.testing.assert_allclose(new[[0, 2, 3, 4, 5]], old[[0, 2, 3, 4, 5]], atol=0.15)
    assert (features @ new + gain).mean() == pytest.approx((features @ old).mean())


def test_a_logistic_curve_is_found_again(steady_head: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).normal(-3, 0.5, 1000)
    shares = 1 / (1 + np.exp(-(4.2 * logits + 6.7)))
    assert steady_head["logistic"](logits, shares, np.full(1000, 0.001)) == pytest.approx((4.2, 6.7))


@pytest.mark.parametrize("change", ["size x0.8", "noise of 6"])
def test_a_size_alone_must_not_move_the_mean_logit_even_without_a_penalty(
    steady_head: dict[str, Any], change: str
) -> None:
    random = np.random.default_rng(0)
    moves = {change: random.normal((3, 0, 0), 0.1, (400, 3))}
    cost = steady_head["Steady"](penalty=0.0, shift=10.0)
    new, _ = steady_head["steady"](np.ones(3), [(random.normal(0, 1, (400, 3)), moves)], cost)
    np.testing.assert_allclose(new, (0 if change.startswith("size") else 1, 1, 1), atol=0.15)
