"""Networks with the input and outputs of a model file: as PyTorch has them, and as ONNX graphs.

They take uint8 images [n, height, width, 3] and normalise them. A dense one returns the tile's probability, which is
the sigmoid of the mean of the map's logits as it was trained, and a map in which each cell is the probability of the
tile around it. Where the tissue of training is known, it also returns how far its input and those tiles lie from that.
"""

import warnings
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.model_file.onnx_session import runtime
from wsiseg.network.known_tissue import FARTHEST, KnownTissue
from wsiseg.network.network import TileClassifier
from wsiseg.network.stage import STRIDE_PX, Stage, described, squared
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import scratch_folder

OPSET = 17
_NEWEST_IR = 10  # what ONNX Runtime 1.20 reads


class _SiteDistance(nn.Module):
    """How far descriptions lie from the tissue of one site; see `KnownTissue.distances`."""

    mean: Tensor
    scale: Tensor
    axes: Tensor
    gains: Tensor

    def __init__(self, known: KnownTissue, place: int) -> None:
        super().__init__()
        self.gain_of_rest = 1 / float(known.rest[place])
        gains = 1 / known.variances[place] - np.float32(self.gain_of_rest)
        for name, value in (("mean", known.mean[place]), ("scale", known.scale[place]), ("gains", gains)):
            self.register_buffer(name, torch.from_numpy(value.copy()))
        self.register_buffer("axes", torch.from_numpy(known.axes[place].T.copy()))

    def forward(self, described: Tensor) -> Tensor:
        """Return the distances [...] of descriptions [..., channels]."""
        inside = (described - self.mean) * self.scale
        along = inside @ self.axes
        distances: Tensor = (along**2 * self.gains).sum(-1) + (inside**2).sum(-1) * self.gain_of_rest
        return distances


class Distance(nn.Module):
    """How far an image, and the tile around each cell of its map, lie from known tissue.

    A tile is so many `cells` of the map wide, and a cell so many positions (`step`) of the stage that is described.
    """

    def __init__(self, known: KnownTissue, cells: int, step: int) -> None:
        super().__init__()
        self.sites = nn.ModuleList(_SiteDistance(known, place) for place in range(len(known.sites)))
        self.cells, self.step = cells, step

    def forward(self, stage: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances [n] and [n, rows, columns] for a stage [n, channels, step * rows, step * columns]."""
        positions = squared(stage)
        around = around_cells(functional.avg_pool2d(positions, self.step), self.cells)
        return self._least(positions.mean((2, 3))), self._least(around.permute(0, 2, 3, 1))

    def _least(self, averages: Tensor) -> Tensor:
        found = described(averages)
        return torch.stack([site(found) for site in self.sites]).amin(0).clamp(max=FARTHEST)


def around_cells(cells: Tensor, side: int) -> Tensor:
    """Average cells [n, channels, rows, columns] over the tile around each, so many cells wide, as far as they exist.

    The weights are those of `tile_window`.
    """
    return _summed(cells, side) / _summed(torch.ones_like(cells[:, :1]), side)


def _summed(cells: Tensor, side: int) -> Tensor:
    """Sum up cells over the tile around each, divided by the number in a tile.

    Two poolings give the outermost cells half the weight where the tile is an even number of cells wide.
    """
    pooled = functional.avg_pool2d(cells, side, 1, side // 2)
    return pooled if side % 2 else functional.avg_pool2d(pooled, 2, 1)


class DenseGraph(nn.Module):
    """A tile classifier with its probability and its map.

    Args:
        classifier: From `dilation.exportable`.
        stride: Input pixels per cell of the map.
        tile_px: Side of a tile in pixels.
        trained_step: Every so many cells, along both axes, make up the map that the network was trained with; their
            mean is the tile's logit, also where the map has been made finer.
        known: The tissue of training, the distances from which are two further outputs.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self, classifier: TileClassifier, stride: int, tile_px: int, trained_step: int = 1,
        known: KnownTissue | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cells, self.trained_step = tile_px // stride, trained_step
        self.backbone, self.head = classifier.backbone, classifier.head
        self.distance = None if known is None else Distance(known, self.cells, stride // STRIDE_PX)
        self.stage = None if known is None else Stage(self.backbone, known.layer)
        self.register_buffer("scale", (1 / (255 * classifier.std))[:, None, None, None])
        self.register_buffer("offset", -classifier.mean / classifier.std)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the probability [n] and the map [n, rows, columns] of uint8 images [n, height, width, 3].

        Where the tissue of training is known, the distances of the images [n] and of the tile around each cell
        [n, rows, columns] follow.
        """
        features = self.features(image)
        logits = functional.conv2d(features, self.head.weight[:, :, None, None], self.head.bias)
        step = self.trained_step
        whole = (logits[:, :, ::step, ::step] if step > 1 else logits).mean((1, 2, 3))
        answers = torch.sigmoid(whole), torch.sigmoid(around_cells(logits, self.cells)).squeeze(1)
        if self.distance is None or self.stage is None:
            return answers
        return *answers, *self.distance(self.stage.map)

    def features(self, image: Tensor) -> Tensor:
        """Return the features [n, channels, rows, columns] of uint8 images [n, height, width, 3]."""
        pixels = image.permute(0, 3, 1, 2).float()
        # As a convolution: a product with three numbers, one for each color, takes runtimes longer than a layer.
        features: Tensor = self.backbone(functional.conv2d(pixels, self.scale, self.offset, groups=len(self.scale)))
        return features


class TileGraph(nn.Module):
    """Any classifier of tiles of one size, with the probability of one of its classes.

    The network turns what `prepare` makes of uint8 [n, tile, tile, 3] into so many logits a tile, or into [n].
    `positive` is the number of the class; with a single logit there is none to choose.
    """

    # Constants, so that TorchScript makes no branches of them.
    logits: Final[int]
    positive: Final[int]

    def __init__(self, network: nn.Module, prepare: nn.Module, logits: int = 1, positive: int = 0) -> None:
        super().__init__()
        self.network, self.prepare = network, prepare
        self.logits, self.positive = logits, positive

    def forward(self, image: Tensor) -> Tensor:
        """Return the probability [n] of uint8 images [n, tile, tile, 3]."""
        logits = self.network(self.prepare(image)).reshape(image.shape[0], self.logits)
        if self.logits == 1:
            return torch.sigmoid(logits[:, 0])
        return torch.softmax(logits, 1)[:, self.positive]


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
