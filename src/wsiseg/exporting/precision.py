"""The same graph with fewer bits: float16 for GPUs, 8-bit integers for CPUs."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from wsiseg.exporting.onnx_graph import tidied
from wsiseg.exporting.parity import Answers, OnnxGraph, compared
from wsiseg.exporting.quantization import DISTANCE, measured_ranges, quantisable, quantised
from wsiseg.exporting.sample_tiles import Sample, Samples
from wsiseg.model_file.model_card import Parity
from wsiseg.model_file.onnx_session import runtime

_GROUPS = 8
_SEARCH_TILES = 64


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
    distances = [node.name for node in copied.graph.node if node.name.startswith(DISTANCE)]
    half = OnnxGraph(tidied(convert(copied, keep_io_types=True, node_block_list=distances)))
    answers = half.answers(held_out.tiles), graph.answers(held_out.tiles)
    return Reduced(half, compared(("fp16", "fp32"), *answers, held_out), 0.0)


def to_int8(graph: OnnxGraph, samples: Samples, note: Callable[[str], None], *, any_loss: bool = False) -> Reduced:
    """Compute with 8-bit integers, but for groups of layers that lose too much.

    Layers are taken in groups of neighbours. While the graph strays too far on held-out tiles, the group that helps
    most on calibration tiles is given its float32 back, unless any loss is allowed.
    """
    layers = quantisable(graph.model)
    ranges = measured_ranges(graph.model, layers, samples.calibration.tiles)
    groups = [list(part) for part in np.array_split(layers, max(1, min(_GROUPS, len(layers))))]
    search = samples.calibration.first(_SEARCH_TILES)
    wanted, expected = graph.answers(search.tiles), graph.answers(samples.held_out.tiles)

    def tried(kept: Sequence[int]) -> OnnxGraph:
        chosen = [name for number, group in enumerate(groups) if number not in kept for name in group]
        return OnnxGraph(quantised(graph.model, chosen, ranges))

    kept: list[int] = []
    while True:
        found = tried(kept)
        row = compared(("int8", "fp32"), found.answers(samples.held_out.tiles), expected, samples.held_out)
        if row.passed or any_loss or len(kept) >= len(groups) - 1:
            return Reduced(found, row, sum(len(groups[number]) for number in kept) / max(len(layers), 1))
        note(f"int8 differs from fp32 by {row.mean_difference:.3g} on average: more layers are kept in float32")
        kept.append(
            min(
                set(range(len(groups))) - set(kept),
                key=lambda number: _distance(tried([*kept, number]).answers(search.tiles), wanted),
            )
        )


def _distance(found: Answers, wanted: Answers) -> float:
    return float(np.abs(found.probabilities - wanted.probabilities).mean())
