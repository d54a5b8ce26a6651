"""What a model file is made of: a trained network, with all that is known of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsiseg.exporting.dilation import exportable, native_stride
from wsiseg.exporting.head import HeadGraph, features_of
from wsiseg.exporting.onnx_graph import DenseGraph, TileGraph, of_classes
from wsiseg.exporting.parity import Answers, Floats, batches
from wsiseg.network.known_tissue import KnownTissue, limit_of
from wsiseg.network.network import TileClassifier
from wsiseg.run.errors import UsageError

_MULTIPLE_PX = 32
_STRIDES = (8, 14, 16, 32)
_TUMOR = ("tumor", "tumour")
_ALONE = (
    "Its dense map is put together of windows of {} pixels, each seen without what lies around it. A tile's logit is "
    "the mean over its patch tokens; class and register tokens count for nothing."
)


@dataclass(frozen=True)
class Origin:
    """A network that becomes a model file."""

    graph: DenseGraph | TileGraph | HeadGraph  # the network with the input and outputs of a model file
    facts: dict[str, Any]  # fields of the model card that follow from where it came from
    # uint8 images [n, tile, tile, 3] -> probabilities [n] (or [n, classes]), as the network was trained to answer
    trained: Callable[[Tensor], Tensor]
    is_as_trained: bool = True  # false if `graph` computes something else on purpose, as another output stride does
    cohort: Path | None = None  # the cohort CSV that it was trained on, where it is still there
    known: KnownTissue | None = None  # what the graph measures the distance from

    def arrays(self) -> list[NDArray[np.generic]]:
        """Return all numbers that the graph computes with."""
        known = () if self.known is None else (part for site in self.known.gaussians for part in site)
        weights = (value.float().numpy() for value in self.graph.state_dict().values())
        return [np.ascontiguousarray(array) for array in (*weights, *known)]

    @property
    def tile_px(self) -> int:
        """Side of a tile in pixels."""
        return int(self.facts["tile_px"])

    @torch.no_grad()
    def probabilities(self, tiles: NDArray[np.uint8]) -> Answers:
        """Return the probabilities of tiles as the network was trained to answer."""
        return Answers(torch.cat([self.trained(torch.from_numpy(batch)) for batch in batches(tiles)]).numpy())

    @torch.no_grad()
    def answers(self, tiles: NDArray[np.uint8]) -> Answers:
        """Return what the graph answers to tiles, computed by PyTorch."""
        parts = [self.graph(torch.from_numpy(batch)) for batch in batches(tiles)]
        if not isinstance(self.graph, DenseGraph):
            return Answers(torch.cat(parts).numpy())
        whole, maps = (torch.cat([part[output] for part in parts]).numpy() for output in (0, 1))
        return Answers(self.probabilities(tiles).probabilities if self.is_as_trained else whole, maps)


def of_tiles(graph: TileGraph, facts: dict[str, Any], output_stride: int | None) -> Origin:
    """Make an origin of a network that has one value a tile and no map.

    Raises:
        UsageError: An output stride is asked for.
    """
    if output_stride is not None:
        raise UsageError("this model has no linear head over a map: it cannot be dense", "leave out --output-stride")
    return Origin(graph.eval(), {**facts, "output_stride": None}, graph)


def of_head(classifier: TileClassifier, facts: dict[str, Any]) -> Origin:
    """Make an origin of the head of a classifier alone, which takes the features of tiles."""
    graph = HeadGraph(classifier.head).eval()
    features = features_of(classifier, str(facts["architecture"]))
    return Origin(graph, {**facts, "input": "features", "features": features, "output_stride": None}, graph)


def of_classifier(
    classifier: TileClassifier,
    facts: dict[str, Any],
    output_stride: int | None,
    cohort: Path | None = None,
    known: KnownTissue | None = None,
) -> Origin:
    """Make a tile classifier in eval mode ready for export, with a map where its network can have one.

    `facts` are fields of the model card, `tile_px` among them. Without an output stride the map has the network's own.
    The file of a dense model measures the distance from `known`.

    Raises:
        UsageError: The network cannot have the output stride that is asked for.
    """

    def trained(images: Tensor) -> Tensor:
        return of_classes(torch.sigmoid(classifier(images)))

    tile_px, native, window = facts["tile_px"], native_stride(classifier), classifier.window_px
    stride = output_stride or native
    is_whole = tile_px % _MULTIPLE_PX == 0 if window is None else stride == native
    if not is_whole or native is None or stride not in _STRIDES:
        if output_stride is not None:
            raise UsageError(
                f"no map of output stride {output_stride}: it needs tiles of a multiple of 32 px, here {tile_px}, "
                f"and a network that divides its input evenly, here by {native or 'no whole number'}",
                "leave out --output-stride",
            )
        graph = TileGraph(classifier, torch.nn.Identity(), classifier.head.out_features, -1)
        return Origin(graph, {**facts, "output_stride": None}, trained, cohort=cohort)
    dense = DenseGraph(exportable(classifier, stride), stride, tile_px, native // stride, known).eval()
    facts = {**facts, "features": features_of(classifier, facts.get("architecture", "")), "output_stride": stride}
    facts |= {"map_cells": "tiles" if window is None else "pixels"}
    if window is not None:
        facts |= {"window_px": window, "limits": (*facts.get("limits", ()), _ALONE.format(window))}
    if known is not None:
        facts["known_tissue"] = {"limit": 1.0, "sites": known.sites, "tiles": known.tiles, "slides": known.slides}
    return Origin(dense, facts, trained, native == stride, cohort, known)


def with_limit(origin: Origin, before: Floats | None, after: Floats | None) -> Origin:
    """Fit the limit of known tissue to a graph with fewer bits, whose distances are larger.

    The limit was measured on more tiles than an export has; the distances float32[n] of these by the origin's own graph
    and by the other one tell how distances change.
    """
    known = origin.facts.get("known_tissue")
    if known is None or before is None or after is None:
        return origin
    return limited(origin, round(known["limit"] * limit_of(after) / limit_of(before), 4))


def limited(origin: Origin, limit: float | None) -> Origin:
    """Set the limit of known tissue, if one is given and the model can tell."""
    known = origin.facts.get("known_tissue")
    if known is None or limit is None:
        return origin
    return replace(origin, facts={**origin.facts, "known_tissue": {**known, "limit": limit}})


def class_index(source: Path, names: Sequence[str], positive: str | None) -> int:
    """Find the class that counts as tumour.

    Raises:
        UsageError: No class, or more than one, is called so.
    """
    wanted = [positive.lower()] if positive is not None else list(_TUMOR)
    found = [index for index, name in enumerate(names) if name.lower() in wanted]
    if len(found) == 1:
        return found[0]
    if positive is None and len(names) == 1:
        return 0
    what = f"no class is called {positive}" if positive else "which class is tumour is not known"
    raise UsageError(f"{source}: {what}; its classes are {', '.join(names)}", "name one with --positive-class")
