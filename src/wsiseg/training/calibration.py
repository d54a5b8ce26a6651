"""Probabilities that mean what they say: logits scaled and shifted so that they fit the validation slides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wsiseg.mathematics.metrics import Floats, reliability
from wsiseg.training.scoring import Scored, pixels_of
from wsiseg.training.tile_truth import TileTruth

_STEEPEST = 50.0


@dataclass(frozen=True)
class Calibration:
    """What becomes of a logit: it is divided by `temperature`, then `offset` is added.

    Neither changes the order of tiles, nor therefore any AUC. Source: Platt, Probabilistic outputs for support vector
    machines, 1999; Guo et al., On calibration of modern neural networks, ICML 2017.
    """

    temperature: float = 1.0
    offset: float = 0.0

    def applied(self, slides: Sequence[Scored]) -> list[Scored]:
        """Give slides with calibrated logits."""
        return [
            replace(one, logits=(one.logits / np.float32(self.temperature) + np.float32(self.offset))) for one in slides
        ]


def fitted(slides: Sequence[Scored], truths: Mapping[str, TileTruth]) -> Calibration:
    """Find the calibration under which the truth of slides is most likely, each tile weighted by its pixels.

    Returns:
        No change where there is no truth of both kinds, or where tumour has not the higher logits.
    """
    known = [(one, truths[one.slide.slide]) for one in slides if one.slide.slide in truths]
    if not known:
        return Calibration()
    logits = np.concatenate([one.logits for one, _ in known]).astype(np.float64)
    tumor, rest = (
        np.concatenate([getattr(truth, name)[one.indices] for one, truth in known]) for name in ("tumor", "rest")
    )
    if not tumor.any() or not rest.any():
        return Calibration()
    slope, offset = _logistic(logits, tumor, rest)
    return Calibration(1 / min(slope, _STEEPEST), offset) if slope > 1 / _STEEPEST else Calibration()


def _logistic(logits: Floats, tumor: Floats, rest: Floats) -> tuple[float, float]:
    """Fit slope and offset of a logistic curve."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  heavy: only after a training

    weights = np.concatenate([tumor, rest])
    labels = np.concatenate([np.ones(len(tumor)), np.zeros(len(rest))])
    # Hardly any penalty: just enough for an end where a threshold parts the two without error.
    fit = LogisticRegression(C=1e6).fit(np.tile(logits, 2)[:, None], labels, weights * len(logits) / weights.sum())
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def calibration_error(slides: Sequence[Scored], truths: Mapping[str, TileTruth]) -> float | None:
    """Give the expected calibration error over ten ranges of probability; None where there is no truth."""
    pixels = pixels_of(slides, truths)
    if not pixels:
        return None
    found = reliability(pixels)
    share = found.pixels / found.pixels.sum()
    return float(np.nansum(share * np.abs(found.mean_score - found.tumor_share)))
