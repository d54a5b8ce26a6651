"""Networks with the input and outputs of a model file: as PyTorch has them, and as ONNX graphs.

They take uint8 images [n, height, width, 3] and normalise them. A dense one returns the tile's probability, which is
the sigmoid of the mean of the map's logits as it was trained, and a map in which each cell is the probability of the
tile around it; or of its own pixels, where the network takes nothing but tiles. Where the tissue of training is known,
it also returns how far its input and those tiles lie from that. Of a network with several classes both have a last axis
more, with the probability of each.
"""

import warnings
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.model_file.onnx_bytes import MOST_BYTES
from wsiseg.model_file.onnx_session import runtime
from wsiseg.network.known_tissue import FARTHEST, KnownTissue, squared_distances
from wsiseg.network.network import TileClassifier
from wsiseg.network.stage import STRIDE_PX, Stage, described, squared
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import scratch_folder

OPSET = 17
NEWEST_IR = 10  # what ONNX Runtime 1.20 reads


class Distance(nn.Module):
    """How far an image, and the tile around each cell of its map, lie from known tissue.

    A tile is so many `cells` of the map wide, and a cell so many positions (`step`) of the stage that is described.
    """

    def __init__(self, known: KnownTissue, cells: int, step: int) -> None:
        super().__init__()
        self.sites = [[torch.from_numpy(np.array(part)) for part in site] for site in known.gaussians]
        self.cells, self.step = cells, step

    def forward(self, stage: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances [n] and [n, rows, columns] for a stage [n, channels, step * rows, step * columns]."""
        positions = squared(stage)
        around = around_cells(functional.avg_pool2d(positions, self.step), self.cells)
        # At once, so that the file holds what is known only once.
        found = described(torch.cat([positions.mean((2, 3))[:, :, None], around.flatten(2)], 2).permute(0, 2, 1))
        least = torch.stack([squared_distances(found, *site) for site in self.sites]).amin(0).clamp(max=FARTHEST)
        return least[:, 0], least[:, 1:].reshape(around[:, 0].shape)


def of_classes(values: Tensor) -> Tensor:
    """Return values [n, classes, ...] with the classes last, [n, ..., classes]; of a single one as [n, ...]."""
    return values.squeeze(1) if values.shape[1] == 1 else values.movedim(1, -1)


def around_cells(cells: Tensor, side: int) -> Tensor:
    """Average cells [n, channels, rows, columns] over the tile around each, so many cells wide, as far as they exist.

    The weights are those of `tile_window`.
    """
    # What lies beyond the border weighs nothing: the last channel counts what exists.
    counted = torch.cat([cells, torch.ones_like(cells[:, :1])], 1)
    pooled = functional.avg_pool2d(counted, side, 1, side // 2)
    if side % 2 == 0:
        # Two poolings give the outermost cells half the weight.
        pooled = functional.avg_pool2d(pooled, 2, 1)
    return pooled[:, :-1] / pooled[:, -1:]


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
        self.cells, self.trained_step, self.window_px = tile_px // stride, trained_step, classifier.window_px
        self.backbone, self.head = classifier.backbone, classifier.head
        self.distance = None if known is None else Distance(known, self.cells, stride // STRIDE_PX)
        self.stage = None if known is None else Stage(self.backbone, known.layer)
        self.register_buffer("scale", (1 / (255 * classifier.std))[:, None, None, None])
        self.register_buffer("offset", -classifier.mean / classifier.std)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the probability [n] and the map [n, rows, columns] of uint8 images [n, height, width, 3].

        Where the tissue of training is known, the distances of the images [n] and of the tile around each cell
        [n, rows, columns] follow. Last come the features [n, channels] that the probability is made of.
        """
        pixels = image.permute(0, 3, 1, 2).float()
        # As a convolution: a product with three numbers, one for each color, takes runtimes longer than a layer.
        features = self.backbone(functional.conv2d(pixels, self.scale, self.offset, groups=len(self.scale)))
        logits = functional.conv2d(features, self.head.weight[:, :, None, None], self.head.bias)
        step = self.trained_step
        whole, average = ((one[:, :, ::step, ::step] if step > 1 else one).mean((2, 3)) for one in (logits, features))
        cells = around_cells(logits, self.cells) if self.window_px is None else logits
        answers = of_classes(torch.sigmoid(whole)), of_classes(torch.sigmoid(cells))
        if self.distance is None or self.stage is None:
            return *answers, average
        return *answers, *self.distance(self.stage.map), average


class TileGraph(nn.Module):
    """Any classifier of tiles of one size, with the probability of one of its classes.

    The network turns what `prepare` makes of uint8 [n, tile, tile, 3] into so many logits a tile, or into [n].
    `positive` is the number of the class; with a single logit there is none to choose. Where it is below 0, every logit
    has a probability of its own.
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
        if self.positive < 0:
            return torch.sigmoid(logits)
        return torch.softmax(logits, 1)[:, self.positive]


def to_onnx(graph: DenseGraph | TileGraph, tile_px: int, outputs: Path) -> onnx.ModelProto:
    """Return the ONNX graph of a network, made of operators of ONNX alone.

    Files stand for a moment in the folder `outputs`, where the system has none for such.

    Raises:
        UsageError: The network is too large for a file, or holds something that ONNX cannot express.
    """
    size = 4 * sum(weight.numel() for weight in (*graph.parameters(), *graph.buffers()))
    if size > MOST_BYTES:
        text = f"the network has {size / 1e9:.1f} GB of weights, and a model file holds 2 GB at most"
        raise UsageError(text, "choose a smaller one, or train a head on stored features of it")
    names, sides = ["probability"], {}
    if isinstance(graph, DenseGraph):
        distances = [] if graph.distance is None else ["distance", "distance_map"]
        names += ["probability_map", *distances, "features"]
        sides = {1: "height", 2: "width"} if graph.window_px is None else {}
    cells = {0: "n", 1: "rows", 2: "columns"}
    axes = {"image": {0: "n", **sides}, **{name: cells if name.endswith("_map") else {0: "n"} for name in names}}
    example = torch.zeros((2, tile_px, tile_px, 3), dtype=torch.uint8)
    traceable: nn.Module = graph.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad(), scratch_folder(outputs) as folder:
            # The exporter that traces is the one that takes TorchScript and any image size; it says that it is old.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]  # torch hides its own name
            # It also tells of constants that it leaves for ONNX Runtime to fold.
            warnings.filterwarnings("ignore", "Constant folding", UserWarning)
            warnings.filterwarnings("ignore", "`torch.jit")
            if isinstance(graph, TileGraph) and isinstance(graph.network, torch.jit.ScriptModule):
                traceable = torch.jit.script(graph)  # around TorchScript the exporter takes TorchScript alone
            path = folder / "traced.onnx"
            torch.onnx.export(
                traceable,
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
    """Return a graph without what programs left in it and nothing needs."""
    graph, used = model.graph, {node.domain for node in model.graph.node}
    for node in graph.node:
        node.doc_string = ""
    return helper.make_model(
        helper.make_graph(graph.node, "wsiseg", graph.input, graph.output, graph.initializer),
        opset_imports=[opset for opset in model.opset_import if opset.domain in used],
        ir_version=min(model.ir_version, NEWEST_IR),
        producer_name="wsiseg",
    )
