"""From networks of PyTorch to ONNX graphs with the input and outputs of a model file.

The graphs take uint8 images [n, height, width, 3] and normalise them inside. A dense graph gives the tile's
probability, which is the sigmoid of the mean of the map's logits as it was trained, and a map in which each cell is
the sigmoid of the mean of the logits in the tile-sized surroundings of that cell. Where the tissue that it knows was
measured, it also gives how far its input lies from that.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.domain import Domain
from wsiseg.errors import UsageError
from wsiseg.network import TileClassifier

OPSET = 17
_NEWEST_IR = 10  # what ONNX Runtime 1.20 reads


class DenseGraph(nn.Module):
    """A tile classifier with its probability and its map.

    Args:
        classifier: From `dilation.exportable`.
        cells: Side of a tile in cells of the map.
        trained_step: Every so many cells, along both axes, make up the map that the network was trained with; their
            mean is the tile's logit, also where the map has been made finer.
        domain: The tissue that the network knows, where that was measured.
    """

    scale: Tensor
    offset: Tensor
    window: Tensor

    def __init__(
        self, classifier: TileClassifier, cells: int, trained_step: int = 1, domain: Domain | None = None
    ) -> None:
        super().__init__()
        self.distance = None if domain is None else Distance(domain)
        self.trained_step = trained_step
        self.backbone, self.head = classifier.backbone, classifier.head
        self.register_buffer("scale", (1 / (255 * classifier.std))[:, None, None])
        self.register_buffer("offset", (classifier.mean / classifier.std)[:, None, None])
        line = torch.from_numpy(tile_window(cells))
        self.register_buffer("window", torch.outer(line, line)[None, None])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the probability [n] and the map [n, rows, columns] of uint8 images [n, height, width, 3].

        Where the domain is known, the distance [n] of the images from it comes third.
        """
        features = self.features(image)
        logits = functional.conv2d(features, self.head.weight[:, :, None, None], self.head.bias)
        reach = self.window.shape[-1] // 2
        # At the borders only cells that exist count.
        total = functional.conv2d(logits, self.window, padding=reach)
        weight = functional.conv2d(torch.ones_like(logits), self.window, padding=reach)
        answers = torch.sigmoid(self._trained(logits).mean((1, 2, 3))), torch.sigmoid((total / weight).squeeze(1))
        return answers if self.distance is None else (*answers, self.distance(self._trained(features).mean((2, 3))))

    def features(self, image: Tensor) -> Tensor:
        """Give the features [n, channels, rows, columns] of uint8 images [n, height, width, 3]."""
        features: Tensor = self.backbone(image.permute(0, 3, 1, 2).float() * self.scale - self.offset)
        return features

    def _trained(self, cells: Tensor) -> Tensor:
        """Pick the cells that the network was trained with."""
        return cells[:, :, :: self.trained_step, :: self.trained_step] if self.trained_step > 1 else cells


class Distance(nn.Module):
    """How far features lie from the domain that a network knows; see `Domain.distances`."""

    mean: Tensor
    scale: Tensor
    axes: Tensor
    gains: Tensor

    def __init__(self, domain: Domain) -> None:
        super().__init__()
        for name in ("mean", "scale", "gains"):
            self.register_buffer(name, torch.from_numpy(getattr(domain, name)))
        self.register_buffer("axes", torch.from_numpy(domain.axes.T.copy()))
        self.gain_of_rest = domain.gain_of_rest

    def forward(self, features: Tensor) -> Tensor:
        """Give the distances [n] of features [n, channels]."""
        inside = (features - self.mean) * self.scale
        along = inside @ self.axes
        distances: Tensor = (along**2 * self.gains).sum(1) + (inside**2).sum(1) * self.gain_of_rest
        return distances


class TileGraph(nn.Module):
    """Any classifier of tiles of one size, with the probability of one of its classes.

    Args:
        network: What `prepare` gives -> logits [n, classes] or [n].
        prepare: uint8 [n, tile, tile, 3] -> what `network` takes.
        logits: How many of them it gives per tile.
        positive: Number of the class; with a single logit there is none to choose.
    """

    # Constants, so that TorchScript makes no branches of them.
    logits: Final[int]
    positive: Final[int]

    def __init__(self, network: nn.Module, prepare: nn.Module, logits: int = 1, positive: int = 0) -> None:
        super().__init__()
        self.network, self.prepare = network, prepare
        self.logits, self.positive = logits, positive

    def forward(self, image: Tensor) -> Tensor:
        """Give the probability [n] of uint8 images [n, tile, tile, 3]."""
        logits = self.network(self.prepare(image)).reshape(image.shape[0], self.logits)
        if self.logits == 1:
            return torch.sigmoid(logits[:, 0])
        return torch.softmax(logits, 1)[:, self.positive]


def tile_window(cells: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Give the weights, along one axis, of the cells around a cell that make up a tile: float32[odd number].

    An even number of cells is centred by giving the outermost cell on either side half its weight.
    """
    window = np.ones(cells + 1 - cells % 2, np.float32)
    if cells % 2 == 0:
        window[[0, -1]] = 0.5
    return window


def output_names(graph: DenseGraph | TileGraph) -> list[str]:
    """Name the outputs of a graph."""
    if isinstance(graph, TileGraph):
        return ["probability"]
    return ["probability", "probability_map", *(["distance"] if graph.distance is not None else [])]


def to_onnx(graph: DenseGraph | TileGraph, tile_px: int) -> onnx.ModelProto:
    """Give the ONNX graph of a network, of operators of ONNX alone.

    Raises:
        UsageError: The network holds something that ONNX cannot express.
    """
    names = output_names(graph)
    sides = {1: "height", 2: "width"} if isinstance(graph, DenseGraph) else {}
    axes = {"image": {0: "n", **sides}, "probability": {0: "n"}, "probability_map": {0: "n", 1: "rows", 2: "columns"}}
    axes["distance"] = {0: "n"}
    example = torch.zeros((2, tile_px, tile_px, 3), dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            # The exporter that traces is the one that takes TorchScript and any image size; it says that it is old.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]  # torch hides its own name
            # It also tells of constants that it leaves for ONNX Runtime to fold.
            warnings.filterwarnings("ignore", "Constant folding", UserWarning)
            warnings.filterwarnings("ignore", "`torch.jit")
            path = Path(folder) / "traced.onnx"
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
    """Give a graph as the exporter takes it: around TorchScript it must be TorchScript itself."""
    if isinstance(graph, TileGraph) and isinstance(graph.network, torch.jit.ScriptModule):
        scripted: nn.Module = torch.jit.script(graph)
        return scripted
    return graph


def _simplified(traced: Path) -> onnx.ModelProto:
    """Fold constants and remove what computes nothing, by ONNX Runtime's rewriting that holds on every device."""
    import onnxruntime  # noqa: PLC0415  heavy: only while exporting

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
