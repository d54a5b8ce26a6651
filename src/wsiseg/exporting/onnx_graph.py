"""Turn networks of PyTorch into ONNX graphs with the input and outputs of a model file.

The graphs take uint8 images [n, height, width, 3] and normalise them inside. A dense graph gives the tile's
probability, which is the sigmoid of the mean of the map's logits as it was trained, and a map in which each cell is
the probability of the tile around it. Where the tissue that it knows was measured, it also gives how far its input
lies from that.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.mathematics.grid import tile_window
from wsiseg.model_file.onnx_session import runtime
from wsiseg.network.known_tissue import KnownTissue
from wsiseg.network.network import TileClassifier
from wsiseg.network.texture import Stage, described, textures, tissue_weights, weighted
from wsiseg.run.errors import UsageError

OPSET = 17
_NEWEST_IR = 10  # what ONNX Runtime 1.20 reads


class TextureLoss(NamedTuple):
    """What tiles lose for a texture unlike that of the tumour of training.

    Attributes:
        layer: The layer of the network whose textures count.
        tumor: The textures of the tumour of training.
        penalty: Logits that a tile loses per `tumor.tile_limit` by which it lies beyond that limit.
    """

    layer: str
    tumor: KnownTissue
    penalty: float


class Distance(nn.Module):
    """How far features lie from known tissue; see `KnownTissue.distances`."""

    mean: Tensor
    scale: Tensor
    axes: Tensor
    gains: Tensor

    def __init__(self, known: KnownTissue) -> None:
        super().__init__()
        for name in ("mean", "scale", "gains"):
            self.register_buffer(name, torch.from_numpy(getattr(known, name)))
        self.register_buffer("axes", torch.from_numpy(known.axes.T.copy()))
        self.gain_of_rest = known.gain_of_rest

    def forward(self, features: Tensor) -> Tensor:
        """Return the distances [...] of features [..., channels]."""
        inside = (features - self.mean) * self.scale
        along = inside @ self.axes
        distances: Tensor = (along**2 * self.gains).sum(-1) + (inside**2).sum(-1) * self.gain_of_rest
        return distances


class Penalty(nn.Module):
    """The logits that tiles lose for their texture."""

    def __init__(self, texture: TextureLoss) -> None:
        super().__init__()
        self.distance = Distance(texture.tumor)
        self.limit, self.penalty = texture.tumor.tile_limit, texture.penalty

    def forward(self, described: Tensor) -> Tensor:
        """Return the logits [...] that tiles with textures [..., 2 * channels] lose."""
        return self.penalty * torch.relu(self.distance(described) / self.limit - 1)


class DenseGraph(nn.Module):
    """A tile classifier with its probability and its map.

    Args:
        classifier: From `dilation.exportable`.
        cells: Side of a tile in cells of the map.
        trained_step: Every so many cells, along both axes, make up the map that the network was trained with; their
            mean is the tile's logit, also where the map has been made finer.
        known: The tissue of training, whose distance is a third output.
        texture: What tiles lose for their texture.
        stage_step: Side of a cell of the map in cells of the stage whose textures it heeds.
    """

    scale: Tensor
    offset: Tensor
    window: Tensor

    def __init__(
        self,
        classifier: TileClassifier,
        cells: int,
        trained_step: int = 1,
        known: KnownTissue | None = None,
        texture: TextureLoss | None = None,
        stage_step: int = 2,
    ) -> None:
        super().__init__()
        self.distance = None if known is None else Distance(known)
        self.texture_penalty = None if texture is None else Penalty(texture)
        self.trained_step, self.stage_step = trained_step, stage_step
        self.backbone, self.head = classifier.backbone, classifier.head
        self.stage = None if texture is None else Stage(self.backbone, texture.layer)
        self.register_buffer("scale", (1 / (255 * classifier.std))[:, None, None, None])
        self.register_buffer("offset", -classifier.mean / classifier.std)
        line = torch.from_numpy(tile_window(cells))
        self.register_buffer("window", torch.outer(line, line)[None, None])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the probability [n] and the map [n, rows, columns] of uint8 images [n, height, width, 3].

        Where the tissue of training is known, the distance [n] of the images from it comes third.
        """
        features = self.features(image)
        logits = functional.conv2d(features, self.head.weight[:, :, None, None], self.head.bias)
        # At the borders only cells that exist count.
        weight = self._summed(torch.ones_like(logits))
        tiles, whole = self._summed(logits) / weight, self._trained(logits).mean((1, 2, 3))
        if self.texture_penalty is not None and self.stage is not None:
            weights = tissue_weights(image)
            cells = functional.avg_pool2d(weighted(self.stage.map, weights), self.stage_step)
            tiles = tiles - self.texture_penalty(described(self._around(cells)))[:, None]
            whole = whole - self.texture_penalty(textures(self.stage.map, weights))
        answers = torch.sigmoid(whole), torch.sigmoid(tiles).squeeze(1)
        return answers if self.distance is None else (*answers, self.distance(self._trained(features).mean((2, 3))))

    def _around(self, cells: Tensor) -> Tensor:
        """Average cells [n, channels, rows, columns] over the surroundings of each: [n, rows, columns, channels]."""
        side = self.window.shape[-1]
        around = functional.avg_pool2d(cells, side, 1, side // 2, count_include_pad=False)
        return around.permute(0, 2, 3, 1)

    def _summed(self, cells: Tensor) -> Tensor:
        """Sum up cells [n, 1, rows, columns] over the tile-sized surroundings of each."""
        return functional.conv2d(cells, self.window, padding=self.window.shape[-1] // 2)

    def features(self, image: Tensor) -> Tensor:
        """Return the features [n, channels, rows, columns] of uint8 images [n, height, width, 3]."""
        pixels = image.permute(0, 3, 1, 2).float()
        # As a convolution: a product with three numbers, one for each color, takes runtimes longer than a layer.
        features: Tensor = self.backbone(functional.conv2d(pixels, self.scale, self.offset, groups=len(self.scale)))
        return features

    def _trained(self, cells: Tensor) -> Tensor:
        """Pick the cells that the network was trained with."""
        return cells[:, :, :: self.trained_step, :: self.trained_step] if self.trained_step > 1 else cells


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
        """Return the probability [n] of uint8 images [n, tile, tile, 3]."""
        logits = self.network(self.prepare(image)).reshape(image.shape[0], self.logits)
        if self.logits == 1:
            return torch.sigmoid(logits[:, 0])
        return torch.softmax(logits, 1)[:, self.positive]


def output_names(graph: DenseGraph | TileGraph) -> list[str]:
    """Name the outputs of a graph."""
    if isinstance(graph, TileGraph):
        return ["probability"]
    return ["probability", "probability_map", *(["distance"] if graph.distance is not None else [])]


def to_onnx(graph: DenseGraph | TileGraph, tile_px: int) -> onnx.ModelProto:
    """Return the ONNX graph of a network, made of operators of ONNX alone.

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
    """Give what a node pads an image with, top, left, bottom, right; None if that is not zeros around an image."""
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
    """Tell whether a node is a convolution that pads by numbers."""
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
