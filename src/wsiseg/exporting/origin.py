"""What a model file is made of: a trained network, with all that is known of it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsiseg.exporting.doubts import Doubts
from wsiseg.exporting.onnx_graph import DenseGraph, TileGraph
from wsiseg.exporting.parity import Answers
from wsiseg.network.dilation import exportable, native_stride
from wsiseg.network.network import TileClassifier
from wsiseg.network.texture import STRIDE_PX, Stage, textures, tissue_weights
from wsiseg.run.errors import UsageError

_BATCH = 16
_MULTIPLE_PX = 32
_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Origin:
    """A network that becomes a model file.

    Attributes:
        graph: The network with the input and outputs of a model file.
        facts: Fields of the model card that follow from where it came from.
        trained: Gives the probabilities [n] of uint8 images [n, tile, tile, 3] as the network was trained to.
        is_as_trained: False if `graph` computes something else on purpose, as another output stride does.
        cohort: The cohort CSV that it was trained on, where it is still there.
    """

    graph: DenseGraph | TileGraph
    facts: dict[str, Any]
    trained: Callable[[Tensor], Tensor]
    is_as_trained: bool = True
    cohort: Path | None = None

    @property
    def tile_px(self) -> int:
        """Side of a tile in pixels."""
        return int(self.facts["tile_px"])

    @torch.no_grad()
    def probabilities(self, tiles: NDArray[np.uint8]) -> Answers:
        """Give the probabilities of tiles as the network was trained to."""
        parts = [self.trained(torch.from_numpy(batch)) for batch in batches(tiles)]
        return Answers(torch.cat(parts).numpy(), None)

    @torch.no_grad()
    def answers(self, tiles: NDArray[np.uint8]) -> Answers:
        """Give what the graph says of tiles, computed by PyTorch."""
        parts = [self.graph(torch.from_numpy(batch)) for batch in batches(tiles)]
        if isinstance(self.graph, TileGraph):
            return Answers(torch.cat(parts).numpy(), None)
        probabilities = self.probabilities(tiles).probabilities if self.is_as_trained else None
        if probabilities is None:
            probabilities = torch.cat([part[0] for part in parts]).numpy()
        return Answers(probabilities, torch.cat([part[1] for part in parts]).numpy())


def batches(tiles: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Cut tiles into batches."""
    return [tiles[begin : begin + _BATCH] for begin in range(0, len(tiles), _BATCH)]


def of_classifier(
    classifier: TileClassifier,
    facts: dict[str, Any],
    output_stride: int | None,
    cohort: Path | None = None,
    doubts: Doubts | None = None,
) -> Origin:
    """Make a tile classifier ready for export, with a map where its network can have one.

    Args:
        classifier: In eval mode.
        facts: Fields of the model card; `tile_px` among them.
        output_stride: Input pixels per cell of the map; the network's own where it is not given.
        cohort: What it was trained on.
        doubts: What makes it less sure of a tile; heeded by models with a map alone.

    Raises:
        UsageError: The network cannot have the output stride that is asked for, or it was not measured what it is to
            doubt.
    """
    doubts = doubts or Doubts()
    tile_px, native = facts["tile_px"], native_stride(classifier)
    stride = output_stride or native
    if tile_px % _MULTIPLE_PX or native is None or stride not in _STRIDES:
        if output_stride is not None:
            raise UsageError(
                f"no map of output stride {output_stride}: it needs tiles of a multiple of 32 px, here {tile_px}, "
                f"and a network that divides its input evenly, here by {native or 'no whole number'}",
                "leave out --output-stride",
            )
        if doubts.are_heeded:
            raise UsageError("tiles unlike the training tiles are told by dense models alone", "leave out the penalty")
        graph = TileGraph(classifier, torch.nn.Identity())
        facts = {**facts, "output_stride": None, "map": "tile"}
        return Origin(graph, facts, lambda images: torch.sigmoid(classifier(images)), cohort=cohort)

    def trained(images: Tensor) -> Tensor:
        with nullcontext() if dense.stage is None else Stage(classifier.backbone, doubts.layer) as stage:
            features = classifier.features(images)
        logits = classifier.head(features).squeeze(1)
        if dense.tissue_penalty is not None:
            logits = logits - dense.tissue_penalty(features)
        if dense.texture_penalty is not None and stage is not None:
            logits = logits - dense.texture_penalty(textures(stage.map, tissue_weights(images)))
        return torch.sigmoid(logits)

    doubts.check()
    dense = DenseGraph(
        exportable(classifier, stride), tile_px // stride, native // stride, doubts, stride // STRIDE_PX
    ).eval()
    facts = {**facts, **doubts.facts(), "output_stride": stride, "map_cells": "tiles"}
    return Origin(dense, facts, trained, native == stride, cohort)
