"""Learning tiles from slide labels: proxy labels and the risk (Lerousseau et al., MICCAI 2020, section 2).

A bag is the n tiles drawn from one slide; alpha is the least share of tumour in the slide's tissue, beta the least
share of normal tissue. The floor(alpha n) most probable tiles are labelled 1, the floor(beta n) least probable ones 0,
and the others are left out. A slide without tumour has the shares 0 and 1.
"""

import math
from collections.abc import Iterable
from statistics import fmean, pvariance

import torch
from torch import Tensor
from torch.nn import functional

from wsiseg.run.errors import UsageError

TUMOR, NORMAL, LEFT_OUT = 1, 0, -1
# 0.29 * 100 is 28.999999999999996 in floating point, and means 29.
_FLOAT_NOISE = 1e-9
SHARE_WEIGHT = 0.3
"""What `share_risk` counts beside the risk of ranks."""
_Bounds = tuple[float | None, float | None]


def counts(tiles: int, alpha: float, beta: float) -> tuple[int, int]:
    """Count the tiles of a bag that are called tumour and normal.

    floor(alpha n) and floor(beta n), but at least one where the share is above zero: a small bag would otherwise have
    no label at all. Where one tile is left for both, it is called tumour.

    Raises:
        UsageError: A share is below 0, or their sum above 1: the same tile would be called tumour and normal.
    """
    if not (alpha >= 0 and beta >= 0 and alpha + beta <= 1 + _FLOAT_NOISE):
        advice = "alpha and beta are at least 0, and their sum at most 1"
        raise UsageError(f"alpha {alpha:g} and beta {beta:g} are no possible shares", advice)
    tumor = _count(tiles, alpha)
    return tumor, min(_count(tiles, beta), tiles - tumor)


def _count(tiles: int, share: float) -> int:
    return min(tiles, max(1, math.floor(share * tiles + _FLOAT_NOISE))) if share > 0 else 0


def proxy_labels(logits: Tensor, alpha: float, beta: float) -> Tensor:
    """Label the tiles of a bag by what is known of their slide and their own ranks.

    With f the classifier and x_(1), ..., x_(n) the tiles by falling f:

        x_(1) ... x_(floor(alpha n)) are 1,  x_(n - floor(beta n) + 1) ... x_(n) are 0,  the rest is left out

    Args:
        logits: float[n], a logit or probability per tile, of which only the order counts.
        alpha: Least share of tumour in the slide; 0 where it holds none.
        beta: Least share of normal tissue in the slide; 1 where it holds no tumour.

    Returns:
        int8[n]: `TUMOR`, `NORMAL` or `LEFT_OUT`.

    Raises:
        UsageError: There are no such shares.
    """
    count = len(logits)
    tumor, normal = counts(count, alpha, beta)
    order = torch.argsort(logits.detach(), descending=True, stable=True)
    labels = torch.full((count,), LEFT_OUT, dtype=torch.int8, device=logits.device)
    labels[order[:tumor]] = TUMOR
    labels[order[count - normal :]] = NORMAL
    return labels


def neighbourhood(cells: Tensor) -> Tensor:
    """Return how much each tile counts in the mean over the surroundings of each: tumour grows together.

    exp(-d^2 / 2) at a distance of d tiles, divided by its sum over all tiles: a sixth is the tile's own, where all
    around it were drawn, and the whole, where none were.

    Args:
        cells: float[n, 2], row and column of each tile, in tiles.

    Returns:
        float[n, n], whose rows add up to 1: times logits [n] it gives their means.
    """
    weights = torch.exp((cells[:, None] - cells).square().sum(-1) / -2)
    return weights / weights.sum(1, keepdim=True)


def risk(logits: Tensor, labels: Tensor, *, weight: float = 1.0, of: int | None = None) -> Tensor:
    """Return the risk of one bag; summed over slides it is what training minimises, and validation measures.

    With L the binary cross-entropy, and c the weight of a slide, c0 without tumour and c1 with it:

        sum over slides c [ mean over top alpha tiles L(f(x), 1) and bottom beta tiles L(f(x), 0) ]

    Args:
        logits: float[n], a logit per tile.
        labels: int8[n], as `proxy_labels` returns them, or true labels; or float32[n], probabilities to be learned.
        weight: c.
        of: How many tiles of the bag have a label, where these tiles are only a part of it: the risks of all parts add
            up to that of the bag.

    Returns:
        A scalar with gradients; 0 where all tiles are left out.
    """
    kept = (labels != LEFT_OUT).to(logits.dtype)
    targets = (labels if labels.is_floating_point() else labels == TUMOR).to(logits.dtype)
    # Tiles that are left out weigh nothing: to pick the others a GPU would have to tell how many they are.
    total = functional.binary_cross_entropy_with_logits(logits, targets, kept, reduction="sum")
    return weight * total / (of or kept.sum().clamp(min=1))


def share_target(stated: _Bounds, among: Iterable[_Bounds]) -> float | None:
    """Return what `share_risk` draws the tiles of a slide to, by the middle s of its two bounds and those of all.

        t(s) = m + (s - m) m (1 - m) / v,  with m the mean and v the variance of s over all slides

    A slide with more tumour than others has the target above m, also above 1, and one with less below it, also below 0.
    With it as the target of all tiles, the risks of all slides have the gradients that true labels would have, where a
    network gives tumour one logit and normal tissue another in all slides. Source: the mean operator of Quadrianto et
    al., Estimating labels from label proportions, JMLR 2009, which comes here from the regression on the shares.

    Args:
        stated: Least and most share of tumour in the slide, 0..1.
        among: Those of all training slides.

    Returns:
        None where a bound is missing, or where the shares do not differ, and so tell nothing of what tumour looks like.
    """
    shares = [(least + most) / 2 for least, most in among if least is not None and most is not None]
    least, most = stated
    if least is None or most is None or not shares:
        return None
    mean = fmean(shares)
    variance = pvariance(shares, mean)
    return mean + ((least + most) / 2 - mean) * mean * (1 - mean) / variance if variance > _FLOAT_NOISE else None


def share_risk(logits: Tensor, target: float, *, weight: float = 1.0, of: int | None = None) -> Tensor:
    """Return the mean of log(1 + exp f(x)) - target f(x) over tiles: the cross-entropy, for targets beyond 0..1 too.

    Args:
        logits: float[n], a logit f(x) per tile.
        target: As `share_target` returns it.
        weight: That of the slide.
        of: How many tiles the bag has, where these are only a part of it.
    """
    total = functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="sum")
    return weight * total / (of or len(logits))
