"""Choose images for a model file's self-test, and see that its answers move when any layer is changed."""

import copy

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from wsiseg.exporting.parity import OnnxGraph
from wsiseg.model_file.onnx_session import run, start
from wsiseg.model_file.self_test import (
    WIDER_PX,
    Kind,
    Outputs,
    SelfTest,
    as_features,
    largest_difference,
    recorded,
    seeded_pixels,
)

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_CANDIDATES, _MOST_CANDIDATES, _CHOSEN, _MOST_LAYERS = 24, 240, 4, 100
_MOST_MOVED, _SURE = 0.5, 0.45  # of the tolerance; and how far a probability may be from one half
_MULTIPLE_PX, _MOST_PX = 32, 256
_DISTANCE = "/distance"


def self_test_side(tile_px: int, output_stride: int | None) -> int:
    """Choose the side in pixels of the images of the self-test, so that opening a file takes well below a second.

    Maps are small, but large enough that a cell in a corner has all weights of the pooling over a tile inside; models
    without a map of any size (`output_stride` None) take nothing but tiles.
    """
    if output_stride is None:
        return tile_px
    cells = tile_px // output_stride // 2 + 1
    side = -(-cells * output_stride // _MULTIPLE_PX) * _MULTIPLE_PX
    return min(side, tile_px, _MOST_PX)


def chosen_test(graph: OnnxGraph, side: int, tolerance: float, channels: int | None = None) -> SelfTest:
    """Record the answers to the made images of tissue whose probabilities are nearest to one half.

    Where a network is sure, much can change before an answer does. But where rounding alone changes it, as it may on
    images that are so unlike those of training, the file would fail on a machine that computes in another order: images
    whose answers move by more than a part of the tolerance when nothing is optimised come last. A head is shown noise
    as so many `channels`.
    """
    plain = OnnxGraph(graph.model, is_optimized=False)
    kind: Kind = "noise" if channels else "tissue"

    def answer(image: NDArray[np.uint8], graph: OnnxGraph = graph) -> Outputs:
        return graph.one(as_features(image, channels) if channels else image)

    widths = (side, side + WIDER_PX) if graph.takes_any_size else (side,)
    found: list[tuple[bool, float, int]] = []
    while len(found) < _CANDIDATES or (len(found) < _MOST_CANDIDATES and sum(map(_is_good, found)) < _CHOSEN):
        seed = 100 * len(found)
        images = [seeded_pixels(kind, side, width, seed)[None] for width in widths]
        pairs = [(answer(image), answer(image, plain)) for image in images]
        moved = max(_moved(known, other) for known, other in pairs)
        sure = float(np.abs(pairs[0][0]["probability"][0].astype(np.float64) - 0.5).mean())
        found.append((moved > _MOST_MOVED * tolerance, sure, seed))
    best = [seed for _, _, seed in sorted(found)[:_CHOSEN]]
    tested: list[tuple[Kind, int]] = [(kind, seed) for seed in best]
    return recorded(answer, tested, side, tolerance, with_wider=graph.takes_any_size)


def _moved(known: Outputs, other: Outputs) -> float:
    tested = (name for name in ("probability", "probability_map") if name in known)
    return max(float(np.abs(known[name] - other[name]).max()) for name in tested)


def _is_good(candidate: tuple[bool, float, int]) -> bool:
    moves, sure, _ = candidate
    return not moves and sure < _SURE


def unseen_layers(model: onnx.ModelProto, test: SelfTest) -> list[str]:
    """Name layers that can be changed without failing a self-test: weights set to 0, and for the head of other sign.

    Of more than 100 layers of the model, which is not changed, 100 are tried.
    """
    layers = _layers(model)
    head = [name for name in layers if name != _DISTANCE][-1:]
    places = np.linspace(0, len(layers) - 1, min(len(layers), _MOST_LAYERS)).astype(int)
    names = [list(layers)[place] for place in places]
    changeable = copy.deepcopy(model)
    for tensor in {tensor.name: tensor for tensors in layers.values() for tensor in tensors}.values():
        # What is an input too may be given another value for one run.
        changeable.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    session, outputs = start(changeable.SerializeToString()).session, [output.name for output in model.graph.output]

    def is_unseen(layer: str, factor: int) -> bool:
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in layers[layer]}
        changed = {name: (value * factor).astype(value.dtype) for name, value in weights.items()}

        def answer(image: NDArray[np.uint8]) -> Outputs:
            return dict(zip(outputs, run(session, outputs, {"image": image, **changed}), strict=True))

        return largest_difference(test, answer) <= test.tolerance

    return [name for name in names if is_unseen(name, 0) or (name in head and is_unseen(name, -1))]


def _layers(model: onnx.ModelProto) -> dict[str, list[onnx.TensorProto]]:
    """Return the weights of layers by name: as they are, or as integers that are turned into numbers first.

    The distances from all sites are one layer: which site is nearest depends on the image.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    layers: dict[str, list[onnx.TensorProto]] = {}
    for node in model.graph.node:
        weights = tensors.get(sources.get(node.input[1], node.input[1])) if node.op_type in _WEIGHTED else None
        if weights is not None:
            layers.setdefault(_DISTANCE if node.name.startswith(_DISTANCE) else node.name, []).append(weights)
    return layers
