"""An ONNX graph that answers: tiles in, probabilities out, before it is a model file."""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from wsiseg.exporting.origin import batches
from wsiseg.exporting.parity import Answers, Floats
from wsiseg.model_file.onnx_session import run, start

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class OnnxGraph:
    """An ONNX graph with the input and outputs of a model file, on the CPU.

    Args:
        model: The graph; it is not changed while this lives.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._outputs = [output.name for output in model.graph.output]

    @cached_property
    def _session(self) -> "InferenceSession":
        return start(self.model.SerializeToString()).session

    @property
    def has_map(self) -> bool:
        """True if it gives a map."""
        return "probability_map" in self._outputs

    def outputs(self, images: NDArray[np.uint8]) -> list[Floats]:
        """Give all outputs for uint8 [n, height, width, 3], in their order."""
        found: list[Floats] = run(self._session, self._outputs, {"image": images})
        return found

    def one(self, images: NDArray[np.uint8]) -> tuple[Floats, Floats | None, Floats | None]:
        """Give the probabilities, the maps and the distances of uint8 [n, height, width, 3], all at once."""
        found = dict(zip(self._outputs, self.outputs(images), strict=True))
        return found["probability"], found.get("probability_map"), found.get("distance")

    def answers(self, tiles: NDArray[np.uint8]) -> Answers:
        """Give the probabilities and the maps of many tiles."""
        parts = [self.one(batch) for batch in batches(tiles)]
        maps = [cells for _, cells, _ in parts if cells is not None]
        return Answers(np.concatenate([part[0] for part in parts]), np.concatenate(maps) if maps else None)
