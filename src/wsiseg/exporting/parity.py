"""What graphs answer to tiles, how closely one follows another, and whether that is close enough."""

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from wsiseg.exporting.sample_tiles import Sample
from wsiseg.mathematics.metrics import Pixels, auc, curve
from wsiseg.model_file.model_card import Parity
from wsiseg.model_file.onnx_session import run, speed, start

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Floats = NDArray[np.float32]
Shown = NDArray[np.uint8] | NDArray[np.float32]
"""What a graph takes: images [n, height, width, 3], or features [n, channels]."""

_BATCH = 16
_SAME_MOST, _FEWER_BITS_MEAN, _FEWER_BITS_AUC = 1e-4, 0.02, 0.005


class Answers(NamedTuple):
    """What a graph answers to tiles: float32[n], float32[n, rows, columns] where it has a map, and how far they lie.

    Of several classes the first two have a last axis more.
    """

    probabilities: Floats
    maps: Floats | None = None
    distances: Floats | None = None


class OnnxGraph:
    """An ONNX graph with the input and outputs of a model file, on the CPU; it is not changed while this lives.

    Where it is not `is_optimized`, every node is computed as it stands.
    """

    def __init__(self, model: onnx.ModelProto, *, is_optimized: bool = True) -> None:
        self.model, self._is_optimized = model, is_optimized
        self._input, self._outputs = model.graph.input[0].name, [output.name for output in model.graph.output]

    @cached_property
    def _session(self) -> "InferenceSession":
        return start(self.model.SerializeToString(), is_optimized=self._is_optimized).session

    @property
    def takes_any_size(self) -> bool:
        """True if the sides of its images are free."""
        return bool(self.model.graph.input[0].type.tensor_type.shape.dim[1].dim_param)

    def one(self, images: Shown) -> dict[str, Floats]:
        """Return all outputs by their names, all at once."""
        return dict(zip(self._outputs, run(self._session, self._outputs, {self._input: images}), strict=True))

    def tiles_per_s(self, tile_px: int) -> float:
        """Measure how many made tiles it computes in a second on this CPU, in about a second."""
        return speed(self._session, tile_px)

    def answers(self, tiles: Shown) -> Answers:
        """Return the probabilities of many tiles, their maps and their distances from known tissue."""
        parts = [self.one(batch) for batch in batches(tiles)]
        found = {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}
        return Answers(found["probability"], found.get("probability_map"), found.get("distance"))


def batches(tiles: Shown) -> list[Shown]:
    """Cut tiles into batches."""
    return [tiles[begin : begin + _BATCH] for begin in range(0, len(tiles), _BATCH)]


def compared(
    names: tuple[str, str], found: Answers, expected: Answers, sample: Sample, *, is_same: bool = False
) -> Parity:
    """Compare the answers of a graph with those of a reference to the same sample; `names` are those of both.

    Where it is the same computed by another program (`is_same`), no probability of a tile or cell may differ by more
    than rounding. Fewer bits may change them a little, and the AUC over the labels of slides.
    """
    differences = [_difference(found.probabilities, expected.probabilities)]
    if found.maps is not None and expected.maps is not None:
        differences.append(_difference(found.maps, expected.maps))
    means = [float(difference.mean()) for difference in differences]
    # Unlike Python's, NumPy's maximum is NaN where one of them is, and NaN is below no bar.
    largest, mean = np.max([difference.max() for difference in differences]), np.max(means)
    area, reference = (_auc(answers.probabilities, sample.labels) for answers in (found, expected))
    lost = 0.0 if area is None or reference is None else abs(area - reference)
    passed = largest <= _SAME_MOST if is_same else mean <= _FEWER_BITS_MEAN and lost <= _FEWER_BITS_AUC
    return Parity(
        graph=names[0],
        reference=names[1],
        tiles=len(sample),
        source=sample.source,
        max_difference=_share(float(largest)),
        mean_difference=_share(means[0]),
        map_mean_difference=_share(means[1]) if len(means) > 1 else None,
        auc=area,
        auc_reference=reference,
        passed=bool(passed),
    )


def _difference(found: Floats, expected: Floats) -> Floats:
    """Return the absolute differences; NaN where the shapes differ."""
    return np.abs(found - expected) if found.shape == expected.shape else np.full(1, np.nan, np.float32)


def _share(value: float) -> float:
    """Round for the file; NaN counts as the largest difference there is."""
    return float(f"{value:.3g}") if np.isfinite(value) else 1.0


def _auc(probabilities: Floats, labels: NDArray[np.int8]) -> float | None:
    """Return the AUC of the first class over the labels of slides, or None unless there are both kinds."""
    positive, negative = (labels == 1).astype(float), (labels == 0).astype(float)
    is_complete = len(probabilities) == len(labels) and np.isfinite(probabilities).all()
    if not positive.any() or not negative.any() or not is_complete:
        return None
    return round(float(auc(curve([Pixels.of(probabilities.reshape(len(labels), -1)[:, 0], positive, negative)]))), 4)
