"""How closely one graph follows another, and whether that is close enough."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsiseg.exporting.sample_tiles import Sample
from wsiseg.mathematics.metrics import Pixels, auc, curve
from wsiseg.model_file.model_card import Parity

Floats = NDArray[np.float32]


class Answers(NamedTuple):
    """What a graph says of some tiles: float32[n], and float32[n, rows, columns] where it has a map."""

    probabilities: Floats
    maps: Floats | None


@dataclass(frozen=True)
class Bars:
    """What is close enough; None is not asked for.

    Attributes:
        max_difference: Largest difference in probability, of tiles and of cells.
        mean_difference: Mean absolute difference in probability, of tiles and of cells.
        auc_loss: Difference of the AUC over the labels of the slides that the tiles came from.
    """

    max_difference: float | None = None
    mean_difference: float | None = None
    auc_loss: float | None = None


SAME_NUMBERS = Bars(max_difference=1e-4)
"""For the same network computed by another program."""

FEWER_BITS = Bars(mean_difference=0.02, auc_loss=0.005)
"""For the same network computed with fewer bits."""


def compared(names: tuple[str, str], found: Answers, expected: Answers, sample: Sample, bars: Bars) -> Parity:
    """Compare the answers of a graph with those of a reference.

    Args:
        names: Of the graph and of the reference.
        found: Answers of the graph.
        expected: Answers of the reference.
        sample: What both were asked.
        bars: What is close enough.
    """
    differences = [_difference(found.probabilities, expected.probabilities)]
    if found.maps is not None and expected.maps is not None:
        differences.append(_difference(found.maps, expected.maps))
    largest = max(float(difference.max()) for difference in differences)
    means = [float(difference.mean()) for difference in differences]
    areas = [_auc(answers.probabilities, sample.labels) for answers in (found, expected)]
    # NaN is no number that any bar lets through.
    passed = (
        np.isfinite(largest)
        and (bars.max_difference is None or largest <= bars.max_difference)
        and (bars.mean_difference is None or max(means) <= bars.mean_difference)
        and (bars.auc_loss is None or areas[0] is None or areas[1] is None or abs(areas[0] - areas[1]) <= bars.auc_loss)
    )
    return Parity(
        graph=names[0],
        reference=names[1],
        tiles=len(sample),
        source=sample.source,
        max_difference=_share(largest),
        mean_difference=_share(means[0]),
        map_mean_difference=_share(means[1]) if len(means) > 1 else None,
        auc=areas[0],
        auc_reference=areas[1],
        passed=bool(passed),
    )


def _difference(found: Floats, expected: Floats) -> Floats:
    """Give the absolute differences; answers of another shape are no answers."""
    return np.abs(found - expected) if found.shape == expected.shape else np.full(1, np.nan, np.float32)


def _share(value: float) -> float:
    """Round for the file; what is no number counts as the largest difference there is."""
    return float(f"{value:.3g}") if np.isfinite(value) else 1.0


def _auc(probabilities: Floats, labels: NDArray[np.int8]) -> float | None:
    """Give the AUC over the labels of slides, or None where there are not both kinds."""
    positive, negative = (labels == 1).astype(float), (labels == 0).astype(float)
    is_complete = probabilities.shape == labels.shape and np.isfinite(probabilities).all()
    if not positive.any() or not negative.any() or not is_complete:
        return None
    return round(float(auc(curve([Pixels.of(probabilities, positive, negative)]))), 4)
