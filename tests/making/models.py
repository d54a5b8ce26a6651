"""Small model files for tests, made without torch and without training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from wsiseg.model_file.model_card import METADATA_KEY, ModelCard, signed
from wsiseg.model_file.onnx_session import run, start
from wsiseg.model_file.self_test import Kind, Outputs, recorded

DARK_GREEN = 140
"""Stained tissue absorbs green: a pixel whose green is below this is dark."""


def write_color_filter_model(path: Path, *, stride: int = 32, tile_px: int = 224, **card: Any) -> Path:
    """Write a valid dense model file whose probability is the share of dark or purple pixels.

    Args:
        path: The file to write.
        stride: Input pixels per cell of its map.
        tile_px: Side of its tiles; an odd number of cells.
        **card: Fields of the model card in place of the usual ones, as `mpp=0.25` or `threshold=0.3`.
    """
    path.write_bytes(color_filter_model(stride=stride, tile_px=tile_px, **card))
    return path


def color_filter_model(*, stride: int = 32, tile_px: int = 224, **card: Any) -> bytes:
    """Give the bytes of the model file of `write_color_filter_model`."""
    fields: dict[str, Any] = {"name": "colour filter", "mpp": 0.5, "map": "dense", "architecture": "none", **card}
    return model_file(color_filter_graph(stride, tile_px), tile_px=tile_px, output_stride=stride, **fields)


def write_lopsided_model(path: Path, **card: Any) -> Path:
    """Write a colour filter that sees the upper left of its surroundings alone, so that turning its input matters."""
    fields: dict[str, Any] = {"name": "lopsided", "mpp": 0.5, "map": "dense", "architecture": "none", **card}
    path.write_bytes(model_file(color_filter_graph(is_lopsided=True), tile_px=224, output_stride=32, **fields))
    return path


def write_knowing_model(path: Path, *, limit: float, **card: Any) -> Path:
    """Write a colour filter that does not know what is bluer: the mean of blue is its distance, `limit` its limit."""
    graph = color_filter_graph()
    graph.graph.node.extend(
        [
            helper.make_node("Slice", ["image", "two", "three", "three"], ["blue"]),
            helper.make_node("Cast", ["blue"], ["blue_nhwc"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["blue_nhwc"], ["blue_nchw"], perm=[0, 3, 1, 2]),
            helper.make_node("AveragePool", ["blue_nchw"], ["blues"], kernel_shape=[32] * 2, strides=[32] * 2),
            helper.make_node("Squeeze", ["blues", "one"], ["distance_map"]),
            helper.make_node("ReduceMean", ["blues"], ["distance"], axes=[1, 2, 3], keepdims=0),
        ]
    )
    for name, shape in (("distance", ["n"]), ("distance_map", ["n", "rows", "columns"])):
        graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    fields: dict[str, Any] = {"name": "knowing", "mpp": 0.5, "map": "dense", "architecture": "none", **card}
    known = {"limit": limit, "tiles": 2, "slides": 1}
    path.write_bytes(model_file(graph, tile_px=224, output_stride=32, known_tissue=known, **fields))
    return path


def color_filter_graph(stride: int = 32, tile_px: int = 224, *, is_lopsided: bool = False) -> onnx.ModelProto:
    """Give the ONNX graph: green below a threshold, averaged over cells, and cells averaged over a tile."""
    cells = tile_px // stride
    pads = [cells - 1, cells - 1, 0, 0] if is_lopsided else [cells // 2] * 4
    pooled: dict[str, Any] = {"kernel_shape": [cells, cells], "pads": pads, "count_include_pad": 0}
    seen = cells // 2 if is_lopsided else cells
    nodes = [
        helper.make_node("Slice", ["image", "one", "two", "three"], ["green"]),
        helper.make_node("Cast", ["green"], ["green_number"], to=TensorProto.FLOAT),
        helper.make_node("Less", ["green_number", "dark"], ["is_dark"]),
        helper.make_node("Cast", ["is_dark"], ["dark_nhwc"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["dark_nhwc"], ["dark_nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["dark_nchw"], ["cells"], kernel_shape=[stride] * 2, strides=[stride] * 2),
        helper.make_node("AveragePool", ["cells"], ["pooled"], **pooled),
        helper.make_node("Squeeze", ["pooled", "one"], ["probability_map"]),
        helper.make_node("Slice", ["cells", "begin", "end", "sides"], ["seen"]),
        helper.make_node("ReduceMean", ["seen"], ["probability"], axes=[1, 2, 3], keepdims=0),
    ]
    constants = {"one": [1], "two": [2], "three": [3], "begin": [0, 0], "end": [seen, cells], "sides": [2, 3]}
    if not is_lopsided:
        constants["end"] = [2**31, 2**31]
    tensors = [numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in constants.items()]
    tensors.append(numpy_helper.from_array(np.array(DARK_GREEN, np.float32), "dark"))
    return graph_of(nodes, tensors)


def graph_of(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> onnx.ModelProto:
    """Give a graph with the input and outputs of a dense model file."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "height", "width", 3])
    outputs = [
        helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("probability_map", TensorProto.FLOAT, ["n", "rows", "columns"]),
    ]
    graph = helper.make_graph(nodes, "test", [image], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def model_file(graph: onnx.ModelProto, **card: Any) -> bytes:
    """Give the bytes of a model file: the graph with a card, its self-test recorded."""
    session = start(graph.SerializeToString()).session

    def answer(image: NDArray[np.uint8]) -> Outputs:
        names = [output.name for output in graph.graph.output]
        return dict(zip(names, run(session, names, {"image": image}), strict=True))

    images: list[tuple[Kind, int]] = [("glass", 0), ("uniform", 0), ("noise", 0), ("texture", 0)]
    test = recorded(answer, images, side=int(card["tile_px"]), tolerance=1e-3)
    return with_card(graph, ModelCard(**{"self_test": test, **card}).to_json())


def with_card(graph: onnx.ModelProto, card: str) -> bytes:
    """Give the bytes of an ONNX file with a card and its checksum."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    helper.set_model_props(copy, {METADATA_KEY: card})
    return signed(copy.SerializeToString())


def with_changed_card(file: bytes, *, is_signed: bool = True, **fields: Any) -> bytes:
    """Forge the card and sign it again, as someone who knows the format could."""
    model = onnx.load_from_string(file)
    card = json.loads({prop.key: prop.value for prop in model.metadata_props}[METADATA_KEY])
    card = {key: value for key, value in {**card, **fields}.items() if value is not ...}
    if is_signed:
        card["sha256"] = "0" * 64
        return with_card(model, json.dumps(card, separators=(",", ":")))
    helper.set_model_props(model, {METADATA_KEY: json.dumps(card, separators=(",", ":"))})
    return bytes(model.SerializeToString())
