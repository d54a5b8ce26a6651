"""Checkpoints: a trained tile classifier with everything that a model file says about it."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from wsiseg.network.known_tissue import KnownTissue
from wsiseg.network.weights import StateDict, read_torch
from wsiseg.run.errors import WsisegError
from wsiseg.run.outputs import written_whole

SCHEMA = "wsiseg.checkpoint/1"
# Fields that earlier versions did not write.
_LATER = {"classes", "known_tissue"}


class ClassFit(NamedTuple):
    """What a checkpoint says of one of its classes."""

    name: str = "tumor"
    threshold: float = 0.5  # probability from which a tile is of the class
    temperature: float = 1.0  # logits are divided by it before they become probabilities; `threshold` is one of these
    offset: float = 0.0  # then it is added to them


@dataclass(frozen=True)
class Checkpoint:
    """A trained tile classifier and everything that a model file says about it."""

    state_dict: StateDict  # of the `TileClassifier`
    arch: str  # what `build` was called with
    tile_px: int  # side of a tile in pixels of `mpp`
    mpp: float  # micrometers per tile pixel
    # least share of tumour that was assumed in tumour slides; None where the tiles' true labels were used
    alpha: float | None
    beta: float | None  # least share of normal tissue that was assumed in tumour slides; None likewise
    classes: tuple[ClassFit, ...] = (ClassFit(),)  # in the order of its logits
    # cohort, slides and tiles per split, and how the training was set up
    trained_on: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)  # what came out, by split and measure
    sites: tuple[str, ...] = ()  # organs that it has seen
    version: str = ""  # the version of wsiseg that trained it
    known_tissue: KnownTissue | None = None  # what it was trained on; None where that was not measured

    def save(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            OutputError: The file cannot be written.
        """
        known = self.known_tissue and {name: _stored(value) for name, value in vars(self.known_tissue).items()}
        with written_whole(path) as partial:
            listed = {"sites": list(self.sites), "classes": [list(one) for one in self.classes]}
            content = {**vars(self), **listed, "known_tissue": known}
            torch.save({"schema": SCHEMA, **content}, partial)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            WsisegError: The file is missing, damaged, or not a checkpoint of wsiseg.
        """
        content = read_torch(path)
        names = {item.name for item in fields(cls)} - (_LATER - set(content if isinstance(content, dict) else ()))
        if not isinstance(content, dict) or content.get("schema") != SCHEMA or not names <= set(content):
            raise WsisegError(f"{path}: not a checkpoint of wsiseg train")
        stored, known = content.get("known_tissue"), None
        # Earlier versions measured the last features, which hardly tell what is foreign.
        if stored and "layer" in stored:
            arrays = {name: value.numpy() for name, value in stored.items() if isinstance(value, Tensor)}
            known = KnownTissue(**{**stored, **arrays})
        # They knew nothing but tumour.
        classes = content.get("classes") or [
            ["tumor", *(content[name] for name in ClassFit._fields[1:] if name in content)]
        ]
        content |= {"known_tissue": known, "sites": tuple(content["sites"])}
        content["classes"] = tuple(ClassFit(*one) for one in classes)
        return cls(**{name: content[name] for name in {*names, "classes"}})

    @property
    def threshold(self) -> float:
        """The probability from which a tile is of the first class."""
        return self.classes[0].threshold


def _stored(value: Any) -> Any:  # noqa: ANN401  an array or a number
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
