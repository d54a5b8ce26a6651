"""What makes a network less sure of a tile: tissue unlike that of its training, texture unlike that of its tumour."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsiseg.network.known_tissue import KnownTissue
from wsiseg.run.errors import UsageError


class Doubt(NamedTuple):
    """One reason for it.

    Attributes:
        known: What tiles are held against; None where that was not measured.
        penalty: Logits that a tile loses per `known.tile_limit` by which it lies beyond that limit.
    """

    known: KnownTissue | None = None
    penalty: float = 0.0


class Doubts(NamedTuple):
    """All reasons.

    Attributes:
        tissue: The tissue of training: what is unlike it is no tumour that the network could know.
        texture: The textures of the tumour of training.
        layer: The layer of the network that these are of.
    """

    tissue: Doubt = Doubt()
    texture: Doubt = Doubt()
    layer: str = ""

    @property
    def are_heeded(self) -> bool:
        """True if a tile can lose anything."""
        return self.tissue.penalty > 0 or self.texture.penalty > 0

    def check(self) -> None:
        """Refuse a penalty for what was not measured.

        Raises:
            UsageError: It was not.
        """
        known = self.tissue.known
        if self.tissue.penalty and (known is None or not math.isfinite(known.tile_limit)):
            raise UsageError(
                "it was not measured which tiles this network knows", "train it again, or leave out the penalty"
            )
        if self.texture.penalty and self.texture.known is None:
            raise UsageError(
                "the textures of tumour were not measured, which takes a run without --freeze, 64 such tiles and a "
                "network with a stage of stride 16",
                "train it again, or leave out --texture-penalty",
            )

    def facts(self) -> dict[str, Any]:
        """Give the fields of the model card that say what it doubts."""
        found: dict[str, Any] = {}
        if self.tissue.known is not None:
            found["known_tissue"] = {"limit": self.tissue.known.limit, **_facts(self.tissue.known, self.tissue)}
        if self.texture.known is not None and self.texture.penalty:
            found["tumor_texture"] = {"layer": self.layer, **_facts(self.texture.known, self.texture)}
        return found


def _facts(known: KnownTissue, doubt: Doubt) -> dict[str, Any]:
    limit = {"tile_limit": known.tile_limit} if math.isfinite(known.tile_limit) else {}
    return {**limit, "tiles": known.tiles, "slides": known.slides, "penalty": doubt.penalty}


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
        """Give the distances [...] of features [..., channels]."""
        inside = (features - self.mean) * self.scale
        along = inside @ self.axes
        distances: Tensor = (along**2 * self.gains).sum(-1) + (inside**2).sum(-1) * self.gain_of_rest
        return distances


class Penalty(nn.Module):
    """The logits that tiles lose for a doubt."""

    def __init__(self, known: KnownTissue, penalty: float) -> None:
        super().__init__()
        self.distance = Distance(known)
        self.limit, self.penalty = known.tile_limit, penalty

    @classmethod
    def of(cls, doubt: Doubt) -> "Penalty | None":
        """Give what a doubt takes from tiles; None where it takes nothing."""
        return cls(doubt.known, doubt.penalty) if doubt.known is not None and doubt.penalty else None

    def forward(self, features: Tensor) -> Tensor:
        """Give the logits [...] that tiles with features [..., channels] lose."""
        return self.penalty * torch.relu(self.distance(features) / self.limit - 1)
