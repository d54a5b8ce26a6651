"""The same graph with fewer bits: float16 for GPUs, 8-bit integers for CPUs."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from wsiseg.exporting.onnx_graph import tidied
from wsiseg.exporting.parity import Answers, OnnxGraph, compared
from wsiseg.exporting.quantization import Range, head_bias, layers, quantised, tensors
from wsiseg.exporting.sample_tiles import Sample, Samples
from wsiseg.model_file.model_card import Parity
from wsiseg.model_file.onnx_session import runtime

_GROUPS = 8
_SEARCH_TILES = 64
_BATCH = 4  # all activations of a batch are held at once
_SURE = 1e-4  # probabilities closer to 0 or 1 say little about logits


class Reduced(NamedTuple):
    """A graph with fewer bits, how closely it follows that of float32, and what share of layers was left as it was."""

    graph: OnnxGraph
    parity: Parity
    kept: float


def to_float16(graph: OnnxGraph, held_out: Sample) -> Reduced:
    """Compute with float16, between the same uint8 input and float32 outputs; distances stay in float32."""
    convert = runtime("onnxruntime.transformers.float16").convert_float_to_float16
    copied = copy.deepcopy(graph.model)
    # Deviations are small differences of large squares.
    distances = [node.name for node in copied.graph.node if node.name.startswith("/distance/")]
    half = OnnxGraph(tidied(convert(copied, keep_io_types=True, node_block_list=distances)))
    answers = half.answers(held_out.tiles), graph.answers(held_out.tiles)
    return Reduced(half, compared(("fp16", "fp32"), *answers, held_out), 0.0)


def to_int8(graph: OnnxGraph, samples: Samples, note: Callable[[str], None], *, any_loss: bool = False) -> Reduced:
    """Compute with 8-bit integers, but for groups of layers that lose too much.

    Layers are taken in groups of neighbours. While the graph strays too far on held-out tiles, the group that helps
    most on calibration tiles is given its float32 back, unless any loss is allowed.
    """
    names = layers(graph.model)
    ranges = measured_ranges(graph.model, tensors(graph.model, names), samples.calibration.tiles)
    groups = [list(part) for part in np.array_split(np.array(names, object), min(_GROUPS, len(names)))]
    search = samples.calibration.first(_SEARCH_TILES)
    wanted, expected = graph.answers(search.tiles), graph.answers(samples.held_out.tiles)

    def tried(kept: Sequence[int]) -> OnnxGraph:
        chosen = [name for number, group in enumerate(groups) if number not in kept for name in group]
        return _centred(OnnxGraph(quantised(graph.model, chosen, ranges)), search.tiles, wanted)

    kept: list[int] = []
    while True:
        found = tried(kept)
        row = compared(("int8", "fp32"), found.answers(samples.held_out.tiles), expected, samples.held_out)
        share = sum(len(groups[number]) for number in kept) / max(len(names), 1)
        if row.passed or any_loss or len(kept) >= len(groups) - 1:
            return Reduced(found, row, share)
        note(f"int8 strays by {row.mean_difference:.3g} on average: more layers stay in float32")
        kept.append(
            min(
                set(range(len(groups))) - set(kept),
                key=lambda number: _distance(tried([*kept, number]).answers(search.tiles), wanted),
            ),
        )


def measured_ranges(model: onnx.ModelProto, names: Sequence[str], tiles: NDArray[np.uint8]) -> dict[str, Range]:
    """Return the least and the largest value of tensors of a graph over tiles (uint8[n, tile, tile, 3])."""
    watched = copy.deepcopy(model)
    del watched.graph.output[:]
    for name in names:
        watched.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    watching = OnnxGraph(watched)
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for begin in range(0, len(tiles), _BATCH):
        found = watching.one(tiles[begin : begin + _BATCH]).values()
        low = np.minimum(low, [tensor.min() for tensor in found])
        high = np.maximum(high, [tensor.max() for tensor in found])
    return {name: Range(float(least), float(most)) for name, least, most in zip(names, low, high, strict=True)}


def _centred(graph: OnnxGraph, tiles: NDArray[np.uint8], wanted: Answers) -> OnnxGraph:
    """Shift the bias of the dense head so that the mean logit is what it was."""
    model = copy.deepcopy(graph.model)
    bias = head_bias(model)
    if bias is not None:
        shift = np.mean(_logits(wanted.probabilities) - _logits(graph.answers(tiles).probabilities))
        moved = numpy_helper.to_array(bias) + np.float32(shift)
        bias.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), bias.name))
    return OnnxGraph(model)


def _logits(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    sure = np.clip(probabilities.astype(np.float64), _SURE, 1 - _SURE)
    return np.asarray(np.log(sure / (1 - sure)))


def _distance(found: Answers, wanted: Answers) -> float:
    return float(np.abs(found.probabilities - wanted.probabilities).mean())
