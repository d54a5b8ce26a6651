"""8-bit integers in an ONNX graph: what may compute with them, the ranges that they need, and the rewriting."""

import copy
from collections.abc import Collection, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from wsiseg.exporting.onnx_graph import tidied
from wsiseg.exporting.parity import OnnxGraph
from wsiseg.model_file.onnx_session import runtime

Ranges = dict[str, tuple[np.float32, np.float32]]
"""The least and the largest value of tensors, by their names."""

DISTANCE = "/distance/"
"""What the names of nodes begin with that measure how far tissue lies from known tissue."""

_LAYERS = ("Conv", "Gemm")
_WITH_INTEGERS = (*_LAYERS, "Relu", "Clip", "Add", "MaxPool")
_BATCH = 4  # all activations of a batch are held at once


def quantisable(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """List what integers may compute, in order: all between what normalises the image and the head.

    The head gives the logits, whose errors nothing evens out; what normalises reads whole numbers as they are; and
    distances are small differences of large squares.
    """
    pixels = {node.output[0] for node in model.graph.node if node.op_type == "Cast"}
    nodes = [
        node
        for node in model.graph.node
        if node.op_type in _WITH_INTEGERS and node.input[0] not in pixels and not node.name.startswith(DISTANCE)
    ]
    layers = [place for place, node in enumerate(nodes) if node.op_type in _LAYERS][:-1]
    return nodes[: layers[-1] + 1] if layers else []


def measured_ranges(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], tiles: NDArray[np.uint8]) -> Ranges:
    """Measure what some nodes of a graph read and give over tiles (uint8[n, tile, tile, 3])."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = sorted({name for node in nodes for name in (*node.input, *node.output)} - constants)
    watched = copy.deepcopy(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    watching = OnnxGraph(watched)
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for begin in range(0, len(tiles), _BATCH):
        found = watching.one(tiles[begin : begin + _BATCH]).values()
        low = np.minimum(low, [tensor.min() for tensor in found])
        high = np.maximum(high, [tensor.max() for tensor in found])
    return dict(zip(names, zip(low.astype(np.float32), high.astype(np.float32), strict=True), strict=True))


def quantised(model: onnx.ModelProto, names: Collection[str], ranges: Ranges) -> onnx.ModelProto:
    """Copy a float32 graph so that the nodes of some names compute with integers.

    Activations become unsigned and weights signed, with one scale per output channel: the form for which CPUs with VNNI
    instructions have fast products.
    """
    library = runtime("onnxruntime.quantization")
    rewriting = library.QDQQuantizer(
        onnx.shape_inference.infer_shapes(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=library.QuantType.QInt8,
        activation_qType=library.QuantType.QUInt8,
        tensors_range=runtime("onnxruntime.quantization.calibrate").TensorsData(
            library.CalibrationMethod.MinMax, ranges
        ),
        nodes_to_quantize=names,
        nodes_to_exclude=(),
        op_types_to_quantize=_WITH_INTEGERS,
        extra_options={},
    )
    rewriting.quantize_model()
    return tidied(rewriting.model.model)
