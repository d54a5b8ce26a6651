"""The risk of a bag, word by word as the paper writes it, in plain Python."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Loss = Callable[[float, int], float]


def cross_entropy(logit: float, target: int) -> float:
    """The binary cross-entropy of one logit."""
    return math.log1p(math.exp(-logit)) if target else math.log1p(math.exp(logit))


def focal(logit: float, target: int) -> float:
    """Cross-entropy times the square of what is missing to certainty."""
    return (1 - math.exp(-cross_entropy(logit, target))) ** 2 * cross_entropy(logit, target)


def literal_risk(
    outputs: Floats,
    label: int,
    shares: tuple[float, float],
    c: tuple[float, float],
    loss: Loss,
    truth: Floats | None = None,
) -> float:
    """The risk of logits [tiles, positions]; by true labels of tiles where they are given."""
    costs = {target: [np.mean([loss(one, target) for one in tile]) for tile in outputs] for target in (0, 1)}
    if truth is not None:
        return c[label] * float(np.mean([costs[int(one)][k] for k, one in enumerate(truth)]))
    if label == 0:
        return c[0] * float(np.mean(costs[0]))
    falling = sorted(range(len(outputs)), key=lambda k: -outputs[k].mean())
    top = falling[: int(shares[0] * len(outputs) + 1e-9)]
    bottom = falling[len(outputs) - int(shares[1] * len(outputs) + 1e-9) :]
    return c[1] * float(np.mean([*(costs[1][k] for k in top), *(costs[0][k] for k in bottom)]))
