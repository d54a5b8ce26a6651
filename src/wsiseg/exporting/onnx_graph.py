"""Write networks of PyTorch as ONNX graphs with the input and outputs of a model file."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from wsiseg.exporting.graphs import DenseGraph, TileGraph
from wsiseg.model_file.onnx_session import runtime
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import scratch_folder

OPSET = 17
_NEWEST_IR = 10  # what ONNX Runtime 1.20 reads


def to_onnx(graph: DenseGraph | TileGraph, tile_px: int, outputs: Path) -> onnx.ModelProto:
    """Return the ONNX graph of a network, made of operators of ONNX alone.

    Files stand for a moment in the folder `outputs`, where the system has none for such.

    Raises:
        UsageError: The network holds something that ONNX cannot express.
    """
    names, sides = ["probability"], {}
    if isinstance(graph, DenseGraph):
        names += ["probability_map"] if graph.distance is None else ["probability_map", "distance", "distance_map"]
        sides = {1: "height", 2: "width"}
    cells = {0: "n", 1: "rows", 2: "columns"}
    axes = {"image": {0: "n", **sides}, **{name: cells if name.endswith("_map") else {0: "n"} for name in names}}
    example = torch.zeros((2, tile_px, tile_px, 3), dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.no_grad(), scratch_folder(outputs) as folder:
            # The exporter that traces is the one that takes TorchScript and any image size; it says that it is old.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]  # torch hides its own name
            # It also tells of constants that it leaves for ONNX Runtime to fold.
            warnings.filterwarnings("ignore", "Constant folding", UserWarning)
            warnings.filterwarnings("ignore", "`torch.jit")
            path = folder / "traced.onnx"
            torch.onnx.export(
                _traceable(graph.eval()),
                (example,),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=names,
                dynamic_axes={name: axes[name] for name in ("image", *names)},
            )
            return _simplified(path)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"the network cannot be written as ONNX: {reason}", "choose another network") from error


def _traceable(graph: DenseGraph | TileGraph) -> nn.Module:
    """Return a graph that the exporter takes: around TorchScript it must be TorchScript itself."""
    if isinstance(graph, TileGraph) and isinstance(graph.network, torch.jit.ScriptModule):
        scripted: nn.Module = torch.jit.script(graph)
        return scripted
    return graph


def _simplified(traced: Path) -> onnx.ModelProto:
    """Fold constants and remove what computes nothing, by ONNX Runtime's rewriting that holds on every device."""
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    simple = traced.with_name("simple.onnx")
    options.optimized_model_filepath = str(simple)
    onnxruntime.InferenceSession(traced, options, providers=["CPUExecutionProvider"])
    return tidied(padded_by_convolutions(onnx.load(simple)))


def padded_by_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let convolutions pad with zeros themselves, in place, where a node of its own does it for them.

    Such a node costs more than its copying: runtimes leave their fastest layout of images for it.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    # Sides and values may be constants of either form.
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        readers = [node for node in graph.node if pad.output[0] in node.input]
        sides = _sides_of(pad, constants)
        if sides is None or pad.output[0] in outputs or not all(_can_pad(node) for node in readers):
            continue
        for node in readers:
            own = next((attribute for attribute in node.attribute if attribute.name == "pads"), None)
            before = list(own.ints) if own is not None else [0] * len(sides)
            if own is not None:
                node.attribute.remove(own)
            total = [one + two for one, two in zip(before, sides, strict=True)]
            node.attribute.append(helper.make_attribute("pads", total))
            node.input[0] = pad.input[0]
        graph.node.remove(pad)
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    return model


def _sides_of(pad: onnx.NodeProto, constants: dict[str, np.ndarray[Any, Any]]) -> list[int] | None:
    """Return the zeros that a node puts around an image, top, left, bottom, right; None if it does anything else."""
    mode = next((attribute.s for attribute in pad.attribute if attribute.name == "mode"), b"constant")
    sides = constants.get(pad.input[1])
    value = constants.get(pad.input[2], np.float32(np.nan)) if len(pad.input) > 2 and pad.input[2] else np.float32(0)  # noqa: PLR2004  image, sides, value
    has_axes = len(pad.input) > 3 and bool(pad.input[3])  # noqa: PLR2004  the fourth names axes
    if mode != b"constant" or sides is None or sides.shape != (8,) or np.any(value != 0) or has_axes:
        return None
    found = [int(side) for side in sides]
    if any(found[:2] + found[4:6]) or min(found) < 0:
        return None
    return found[2:4] + found[6:]


def _can_pad(node: onnx.NodeProto) -> bool:
    """Return True for a convolution that pads by numbers."""
    is_automatic = any(one.name == "auto_pad" and one.s not in {b"", b"NOTSET"} for one in node.attribute)
    return node.op_type == "Conv" and not is_automatic


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove from a graph, in place, what programs left in it and nothing needs."""
    used = {node.domain for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
    model.ir_version = min(model.ir_version, _NEWEST_IR)
    model.producer_name, model.producer_version, model.doc_string = "wsiseg", "", ""
    model.graph.name = "wsiseg"
    return model
