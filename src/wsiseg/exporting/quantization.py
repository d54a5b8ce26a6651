"""Rewrite an ONNX graph so that most of it computes with 8-bit integers.

Activations become unsigned and weights signed, with one scale per output channel: the form for which CPUs with VNNI
instructions have fast products. The graph keeps its float operators between pairs of QuantizeLinear and
DequantizeLinear, which ONNX Runtime turns into integer kernels when it loads the file.
"""

import copy
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# Layers with weights; the others follow where all that they read is quantised anyway.
_LAYERS = ("Conv", "Gemm")
_FOLLOWERS = ("Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool")
# A lower end of 0 does what these do, so that they can go; Clip has an upper end too.
_CLAMPS = ("Relu", "Clip")
_LEAST_SCALE = 1e-8
_LARGEST_BIAS = 2.0**30


class Range(NamedTuple):
    """The least and the largest value of a tensor."""

    low: float
    high: float


class _Scale(NamedTuple):
    scale: np.float32
    zero: np.uint8


def layers(model: onnx.ModelProto) -> list[str]:
    """Name the layers that can be quantised: all with weights, but for the last one and what comes behind it.

    The last layer gives the logits, whose errors nothing evens out; what averages logits has a single filter. What
    normalises the image is none of them: it reads whole numbers as they are.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    pixels = {node.output[0] for node in model.graph.node if node.op_type == "Cast"}
    found = [
        node.name
        for node in model.graph.node
        if node.op_type in _LAYERS
        and node.input[0] not in pixels
        and len(shapes.get(node.input[1], ())) in {2, 4}
        and shapes[node.input[1]][0] > 1
    ]
    # A dense head has a single filter and is left out already; of tile models the last layer is the head.
    has_map = "probability_map" in {output.name for output in model.graph.output}
    return found if has_map else found[:-1]


def head_bias(model: onnx.ModelProto) -> onnx.TensorProto | None:
    """Find the bias of the dense head: of the layer with a single filter over many channels."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    biased = [node.input for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 2]  # noqa: PLR2004  input, weights, bias
    found = [bias for _, weights, bias in biased if weights in tensors and tensors[weights].dims[0] == 1]
    return tensors.get(found[0]) if len(found) == 1 else None


def tensors(model: onnx.ModelProto, names: Collection[str]) -> list[str]:
    """Name the activations whose ranges must be known to quantise some layers."""
    return sorted(_Plan(model, names).quantised)


def quantised(model: onnx.ModelProto, names: Collection[str], ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """Copy a graph so that some of its layers compute with integers.

    Args:
        model: A float32 graph; it is not changed.
        names: The layers, out of `layers`.
        ranges: Of every tensor in `tensors`.
    """
    copied = copy.deepcopy(model)
    _Rewriting(copied, _Plan(copied, names), ranges).run()
    return copied


class _Plan:
    """Which tensors are quantised, and which operators a quantised tensor makes needless.

    Attributes:
        layers: Nodes with weights that are quantised.
        quantised: Tensors that are.
        clamped: Output of a layer or follower -> output of the clamp behind it, which it then gives itself.
    """

    def __init__(self, model: onnx.ModelProto, names: Collection[str]) -> None:
        wanted, nodes = set(names), list(model.graph.node)
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        outputs = {output.name for output in model.graph.output}
        self.layers = [node for node in nodes if node.name in wanted]
        behind = {
            name: found[0].output[0]
            for name, found in readers.items()
            if name not in outputs and [reader.op_type for reader in found] in _ONE_CLAMP
        }
        self.clamped: dict[str, str] = {
            node.output[0]: behind[node.output[0]] for node in self.layers if node.output[0] in behind
        }
        self.quantised = {node.input[0] for node in self.layers}
        self.quantised |= {self._given(node) for node in self.layers}
        for node in nodes:
            if node.op_type in _FOLLOWERS and self.quantised.issuperset(node.input):
                # A sum that is clamped is rounded once, behind the clamp.
                if behind.get(node.output[0]) in self.quantised:
                    self.clamped[node.output[0]] = behind[node.output[0]]
                self.quantised.add(self._given(node))
        self.quantised -= outputs
        self._spare_what_floats_read(nodes, readers)

    def _given(self, node: onnx.NodeProto) -> str:
        """Name what a node gives once it does the work of the clamp behind it."""
        return self.clamped.get(node.output[0], str(node.output[0]))

    def _spare_what_floats_read(self, nodes: list[onnx.NodeProto], readers: Mapping[str, list[onnx.NodeProto]]) -> None:
        """Leave the outputs of followers as floats where nothing with integers reads them."""
        chosen = {node.name for node in self.layers}
        for node in reversed(nodes):
            name = self._given(node)
            if node.op_type in _FOLLOWERS and name in self.quantised:
                used = (r.name in chosen or self.quantised.issuperset(r.output[:1]) for r in readers.get(name, ()))
                if not any(used):
                    self.quantised.discard(name)
                    self.clamped.pop(node.output[0], None)


_ONE_CLAMP = [[kind] for kind in _CLAMPS]


class _Rewriting:
    """The rewriting of one graph, in place."""

    def __init__(self, model: onnx.ModelProto, plan: _Plan, ranges: Mapping[str, Range]) -> None:
        self.graph, self.plan = model.graph, plan
        self.scales = {name: _activation_scale(ranges[name]) for name in plan.quantised}
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.added: list[onnx.TensorProto] = []

    def run(self) -> None:
        """Rewrite the graph."""
        chosen = {node.name for node in self.plan.layers}
        gone = set(self.plan.clamped.values())
        for name in {port.name for port in self.graph.input} & self.plan.quantised:
            self._add_pair(name)
        for node in self.graph.node:
            if node.output[0] in gone:
                continue
            if node.name in chosen:
                self._quantise_weights(node)
            node.output[0] = self.plan.clamped.get(node.output[0], node.output[0])
            for place, name in enumerate(node.input):
                if name in self.plan.quantised:
                    node.input[place] = _dequantised(name)
            self.nodes.append(node)
            if node.output[0] in self.plan.quantised:
                self._add_pair(node.output[0])
        read = Counter(name for node in self.nodes for name in node.input)
        kept = [tensor for tensor in (*self.graph.initializer, *self.added) if read[tensor.name]]
        kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept)

    def _add_pair(self, name: str) -> None:
        scale, zero = self.scales[name]
        parts = self._constant(f"{name}_scale", np.asarray(scale)), self._constant(f"{name}_zero", np.asarray(zero))
        self.nodes.append(helper.make_node("QuantizeLinear", [name, *parts], [f"{name}_quantised"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{name}_quantised", *parts], [_dequantised(name)]))

    def _quantise_weights(self, node: onnx.NodeProto) -> None:
        """Replace the weights of a layer, and its bias where it has one, by integers."""
        weights = self.weights[node.input[1]]
        bias = self.weights[node.input[2]] if len(node.input) > 2 else np.zeros(len(weights), np.float32)  # noqa: PLR2004  input, weights, bias
        step = self.scales[node.input[0]].scale
        largest = np.abs(weights.reshape(len(weights), -1)).max(1)
        scales = np.maximum(largest / 127, np.abs(bias) / (step * _LARGEST_BIAS))
        scales = np.maximum(scales, _LEAST_SCALE).astype(np.float32)
        column = scales.reshape(-1, *[1] * (weights.ndim - 1))
        whole = np.clip(np.rint(weights / column), -127, 127).astype(np.int8)
        node.input[1] = self._dequantised_constant(f"{node.name}_weights", whole, scales)
        if len(node.input) > 2:  # noqa: PLR2004  input, weights, bias
            steps = (step * scales).astype(np.float32)
            whole_bias = np.rint(bias.astype(np.float64) / steps).astype(np.int32)
            node.input[2] = self._dequantised_constant(f"{node.name}_bias", whole_bias, steps)

    def _dequantised_constant(self, name: str, values: NDArray[np.signedinteger], scales: NDArray[np.float32]) -> str:
        """Add integers with one scale for each item of their first axis."""
        parts = self._constant(f"{name}_quantised", values), self._constant(f"{name}_scale", scales)
        zero = self._constant(f"{name}_zero", np.zeros(len(scales), values.dtype))
        self.nodes.append(helper.make_node("DequantizeLinear", [*parts, zero], [name], axis=0))
        return name

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.added.append(numpy_helper.from_array(value, name))
        return name


def _dequantised(name: str) -> str:
    return f"{name}_dequantised"


def _activation_scale(range_: Range) -> _Scale:
    """Choose the step and the zero of unsigned 8-bit numbers, so that 0 is one of them exactly."""
    low, high = min(range_.low, 0.0), max(range_.high, 0.0)
    scale = max((high - low) / 255, _LEAST_SCALE)
    return _Scale(np.float32(scale), np.uint8(np.clip(np.rint(-low / scale), 0, 255)))
