"""The head of a network alone as a model file, which takes the features of tiles in place of their pixels."""

import hashlib
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from wsiseg.exporting.onnx_graph import NEWEST_IR, OPSET, of_classes
from wsiseg.exporting.parity import Answers, OnnxGraph, compared
from wsiseg.exporting.sample_tiles import UNKNOWN, Sample
from wsiseg.model_file.model_card import Parity
from wsiseg.network.network import TileClassifier

_COMPARED = 400


class HeadGraph(nn.Module):
    """The probability of tiles by their features."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Return the probability [n], or that of each class [n, classes], of features [n, channels]."""
        return of_classes(torch.sigmoid(self.head(features)))


def features_of(classifier: TileClassifier, architecture: str) -> dict[str, Any]:
    """Return what a model card says of the features under a head: how many there are, and what makes them."""
    digest = hashlib.sha256()
    for key, value in classifier.state_dict().items():
        if not key.startswith("head."):
            digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    encoder = classifier.encoder or f"{architecture} {digest.hexdigest()[:12]}"
    is_stored = isinstance(classifier.backbone, nn.Identity)
    return {"channels": classifier.head.in_features, "encoder": classifier.encoder if is_stored else encoder}


def exported_head(graph: HeadGraph) -> tuple[OnnxGraph, tuple[Parity, ...]]:
    """Return the ONNX graph of a head, and how closely it follows the head on made features."""
    weight, bias = (value.detach().numpy() for value in (graph.head.weight, graph.head.bias))
    several = len(weight) > 1
    nodes = [
        helper.make_node("Gemm", ["features", "weight", "bias"], ["logits"], name="/head/Gemm", transB=1),
        helper.make_node("Sigmoid", ["logits"], ["probability" if several else "probabilities"]),
        *([] if several else [helper.make_node("Squeeze", ["probabilities", "axis"], ["probability"])]),
    ]
    shapes: dict[str, list[str | int | None]] = {
        "features": ["n", weight.shape[1]],
        "probability": ["n", len(weight)] if several else ["n"],
    }
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    tensors = {"weight": weight, "bias": bias, **({} if several else {"axis": np.array([1])})}
    stored = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    model: onnx.ModelProto = helper.make_model(
        helper.make_graph(nodes, "wsiseg", ports[:1], ports[1:], stored),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=NEWEST_IR, producer_name="wsiseg",
    )  # fmt: skip
    found = OnnxGraph(model)
    made: NDArray[Any] = np.random.default_rng(0).normal(size=(_COMPARED, weight.shape[1])).astype(np.float32)
    sample = Sample(made, np.full(_COMPARED, UNKNOWN, np.int8), "made features", is_real=False)
    with torch.no_grad():
        expected = graph(torch.from_numpy(made)).numpy()
    row = compared(("fp32", "torch"), found.answers(made), Answers(expected), sample, is_same=True)
    return found, (row,)
