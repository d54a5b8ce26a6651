"""Several models' maps of one slide as one map, and how far the models disagree."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wsiseg.config.predict import Combination
from wsiseg.heatmap.heatmap import Heatmap

Values = NDArray[np.float32]


def combined_values(members: Sequence[Values], how: Combination, thresholds: Sequence[float]) -> Values:
    """Combine probabilities cell by cell; a cell counts where all members looked.

    Args:
        members: float32[rows, columns] each, NaN where a member did not look.
        how: `mean`, `max`, `min`, or `vote`: the share of members at or above their own thresholds.
        thresholds: Each member's own threshold.

    Returns:
        float32[rows, columns] in 0..1, NaN where any member did not look.
    """
    stacked = np.stack(members)
    if how == "vote":
        limits = np.asarray(thresholds, np.float32)[:, None, None]
        votes: Values = (stacked >= limits).mean(0, dtype=np.float32)
        return np.where(np.isnan(stacked).any(0), np.float32(np.nan), votes)
    joined: Values = stacked.mean(0) if how == "mean" else stacked.max(0) if how == "max" else stacked.min(0)
    return joined


def disagreement(members: Sequence[Values]) -> Values:
    """Give the standard deviation between members cell by cell, float32[rows, columns] in 0..0.5.

    It is that of the members themselves (divided by their number), NaN where any member did not look.
    """
    spread: Values = np.stack(members).std(0, dtype=np.float64).astype(np.float32)
    return spread


def combined(members: Sequence[Heatmap], how: Combination, thresholds: Sequence[float]) -> Heatmap:
    """Combine the maps of several models on the finest of their grids; one alone is given back as it is.

    Args:
        members: Maps of the same slide.
        how: As in `combined_values`.
        thresholds: Each model's own threshold.
    """
    finest = min(members, key=lambda member: member.cell_um)
    if len(members) == 1:
        return finest
    values = [member.resample(finest.cell_um).probabilities for member in members]
    return replace(
        finest,
        probabilities=combined_values(values, how, thresholds),
        disagreement=disagreement(values),
        model=_several([member.model for member in members], finest),
    )


def _several(models: list[dict[str, object]], finest: Heatmap) -> dict[str, object]:
    """Describe several models as one."""
    hashes = json.dumps({"models": [model["sha256"] for model in models]}, sort_keys=True)
    return {
        "name": " + ".join(str(model["name"]) for model in models),
        "mpp": finest.model["mpp"],
        "sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        "models": models,
    }
