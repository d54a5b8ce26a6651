"""The risk of a bag, word by word as the paper writes it, in plain Python."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def cross_entropy(logit: float, target: int) -> float:
    """The binary cross-entropy of one logit."""
    return math.log1p(math.exp(-logit)) if target else math.log1p(math.exp(logit))


def literal_risk(
    logits: Floats,
    shares: tuple[float, float],
    c: float,
    truth: Floats | None = None,
) -> float:
    """The risk of logits [tiles], by the least shares of tumour and normal tissue or by true labels of tiles."""
    costs = {target: [cross_entropy(one, target) for one in logits] for target in (0, 1)}
    if truth is not None:
        return c * float(np.mean([costs[int(one)][k] for k, one in enumerate(truth)]))
    falling = sorted(range(len(logits)), key=lambda k: -logits[k])
    top = falling[: int(shares[0] * len(logits) + 1e-9)]
    bottom = falling[len(logits) - int(shares[1] * len(logits) + 1e-9) :]
    return c * float(np.mean([*(costs[1][k] for k in top), *(costs[0][k] for k in bottom)]))
