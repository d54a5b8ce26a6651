"""Write networks of PyTorch as ONNX graphs with the input and outputs of a model file."""

import warnings
from pathlib import Path

import onnx
import torch
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
    """Fold constants and padding and remove what computes nothing, by ONNX Runtime's rewriting for every device."""
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    simple = traced.with_name("simple.onnx")
    options.optimized_model_filepath = str(simple)
    onnxruntime.InferenceSession(traced, options, providers=["CPUExecutionProvider"])
    return tidied(onnx.load(simple))


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
