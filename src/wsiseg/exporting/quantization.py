"""8-bit integers in an ONNX graph: what may compute with them, the ranges that they need, and the rewriting."""

import copy
from collections.abc import Collection

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

_LAYERS = ("Conv", "Gemm", "MatMul")
_CLAMPS = ("Relu", "Clip")  # which unsigned numbers of a range do by themselves
_BATCH = 4  # all activations of a batch are held at once


def quantisable(model: onnx.ModelProto) -> list[str]:
    """Name the layers that integers may compute, in order: all between what normalises the image and the head.

    The head gives the logits, whose errors nothing evens out; what normalises reads whole numbers as they are; and
    distances are small differences of large squares. Products of two activations, as in attention, stay as they are.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    pixels = {node.output[0] for node in model.graph.node if node.op_type == "Cast"}
    layers = [node for node in model.graph.node if node.op_type in _LAYERS and node.input[0] not in pixels]
    layers = [node for node in layers if node.input[1] in weights]
    return [node.name for node in layers if not node.name.startswith(DISTANCE)][:-1]


def _with_clamps(model: onnx.ModelProto, names: Collection[str]) -> list[onnx.NodeProto]:
    """List layers, and the clamps right behind them."""
    layers = [node for node in model.graph.node if node.name in names]
    given = {node.output[0] for node in layers}
    return [*layers, *(node for node in model.graph.node if node.op_type in _CLAMPS and node.input[0] in given)]


def measured_ranges(model: onnx.ModelProto, layers: Collection[str], tiles: NDArray[np.uint8]) -> Ranges:
    """Measure what layers of a graph read and give over tiles (uint8[n, tile, tile, 3])."""
    names = sorted({name for node in _with_clamps(model, layers) for name in (node.input[0], node.output[0])})
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


def quantised(model: onnx.ModelProto, layers: Collection[str], ranges: Ranges) -> onnx.ModelProto:
    """Copy a float32 graph so that some layers compute with integers; sums of their results are rounded once.

    Activations become unsigned and weights signed, with one scale per output channel: the form for which CPUs with VNNI
    instructions have fast products.
    """
    library, shaped = runtime("onnxruntime.quantization"), onnx.shape_inference.infer_shapes(model)
    # Else it infers them by way of a file on the disk, whose name is made of this machine's network address.
    runtime("onnxruntime.quantization.quant_utils").add_infer_metadata(shaped)
    rewriting = library.QDQQuantizer(
        shaped,
        per_channel=True,
        reduce_range=False,
        weight_qType=library.QuantType.QInt8,
        activation_qType=library.QuantType.QUInt8,
        tensors_range=runtime("onnxruntime.quantization.calibrate").TensorsData(
            library.CalibrationMethod.MinMax, ranges
        ),
        nodes_to_quantize=[node.name for node in _with_clamps(model, layers)],
        nodes_to_exclude=(),
        op_types_to_quantize=(*_LAYERS, *_CLAMPS),
        extra_options={},
    )
    rewriting.quantize_model()
    return tidied(rewriting.model.model)
