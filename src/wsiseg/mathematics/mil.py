"""Learning tiles from slide labels: proxy labels and the risk (Lerousseau et al., MICCAI 2020, section 2).

A bag is the tiles drawn from one slide. A slide without tumour labels all of them 0. A slide with tumour labels the
floor(alpha n) most probable ones 1 and the floor(beta n) least probable ones 0, and leaves the others out.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from wsiseg.run.errors import UsageError

TUMOR, NORMAL, LEFT_OUT = 1, 0, -1
# 0.29 * 100 is 28.999999999999996 in floating point, and means 29.
_FLOAT_NOISE = 1e-9


def counts(tiles: int, alpha: float, beta: float) -> tuple[int, int]:
    """Count the tiles of a tumour slide that are called tumour and normal.

    floor(alpha n) and floor(beta n), but at least one where the share is above zero: a small bag would otherwise have
    no label at all. Where one tile is left for both, it is called tumour.

    Raises:
        UsageError: The shares lie outside F = {alpha > 0, beta >= 0, alpha + beta <= 1}; beyond a sum of 1 the same
            tile would be called tumour and normal.
    """
    if not (alpha > 0 and beta >= 0 and alpha + beta <= 1 + _FLOAT_NOISE):
        advice = "alpha is above 0, beta at least 0, and their sum at most 1"
        raise UsageError(f"alpha {alpha:g} and beta {beta:g} are no possible shares", advice)
    tumor = _count(tiles, alpha)
    return tumor, min(_count(tiles, beta), tiles - tumor)


def _count(tiles: int, share: float) -> int:
    return min(tiles, max(1, math.floor(share * tiles + _FLOAT_NOISE))) if share > 0 else 0


def proxy_labels(logits: Tensor, label: int, alpha: float, beta: float) -> Tensor:
    """Label the tiles of a bag by the label of their slide and their own ranks.

    With f the classifier and x_(1), ..., x_(n) the tiles by falling f:

        label 0:  every tile is 0
        label 1:  x_(1) ... x_(floor(alpha n)) are 1,  x_(n - floor(beta n) + 1) ... x_(n) are 0,  the rest is left out

    Args:
        logits: float[n], a logit or probability per tile, of which only the order counts.
        label: 1 if the slide holds tumour, else 0.
        alpha: Least share of tumour in a tumour slide.
        beta: Least share of normal tissue in a tumour slide.

    Returns:
        int8[n]: `TUMOR`, `NORMAL` or `LEFT_OUT`.

    Raises:
        UsageError: The shares lie outside F.
    """
    count = len(logits)
    tumor, normal = counts(count, alpha, beta)
    if label == NORMAL:
        return torch.full((count,), NORMAL, dtype=torch.int8, device=logits.device)
    order = torch.argsort(logits.detach(), descending=True, stable=True)
    labels = torch.full((count,), LEFT_OUT, dtype=torch.int8, device=logits.device)
    labels[order[:tumor]] = TUMOR
    labels[order[count - normal :]] = NORMAL
    return labels


def risk(
    logits: Tensor, label: int, labels: Tensor, *, weights: tuple[float, float] = (1.0, 1.0), of: int | None = None
) -> Tensor:
    """Return the risk of one bag; summed over slides it is what training minimises, and validation measures.

    With L the binary cross-entropy:

        c0 * sum over slides without tumour [ mean over tiles L(f(x), 0) ]
      + c1 * sum over slides with tumour    [ mean over top alpha tiles L(f(x), 1) and bottom beta tiles L(f(x), 0) ]

    Args:
        logits: float[n], a logit per tile.
        label: 1 if the slide holds tumour, else 0.
        labels: int8[n], as `proxy_labels` returns them, or true labels.
        weights: c0 and c1.
        of: How many tiles of the bag have a label, where these tiles are only a part of it: the risks of all parts add
            up to that of the bag.

    Returns:
        A scalar with gradients; 0 where all tiles are left out.
    """
    kept, targets = (labels != LEFT_OUT).to(logits.dtype), (labels == TUMOR).to(logits.dtype)
    # Tiles that are left out weigh nothing: to pick the others a GPU would have to tell how many they are.
    total = functional.binary_cross_entropy_with_logits(logits, targets, kept, reduction="sum")
    return weights[label] * total / (of or kept.sum().clamp(min=1))
