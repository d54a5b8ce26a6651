"""Several answers as one: those of several models for a slide, and those of a model for several views of an image."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_file import Answer

T = TypeVar("T", bound=np.generic)
_QUARTERS = (0, 2, 1, 3)  # so that two views are an image and its half turn, and four are all turns


def combined(members: Sequence[Heatmap]) -> Heatmap:
    """Average the maps of several models of one slide on the finest of their grids; one alone stays as it is.

    A cell is NaN where any model did not look, and unknown where any does not know it. `disagreement` is the standard
    deviation between the models themselves, divided by their number, in 0..0.5.
    """
    finest = min(members, key=lambda member: member.cell_um)
    if len(members) == 1:
        return finest
    alike = [member.resample(finest.cell_um) for member in members]
    values = np.stack([member.probabilities for member in alike])
    models = [member.model for member in members]
    hashes = json.dumps({"models": [model["sha256"] for model in models]}, sort_keys=True)
    return replace(
        finest,
        probabilities=values.mean(0),
        unknown=np.any([member.unknown for member in alike], 0),
        disagreement=values.std(0, dtype=np.float64).astype(np.float32),
        model={
            "name": " + ".join(str(model["name"]) for model in models),
            "mpp": finest.model["mpp"],
            "sha256": hashlib.sha256(hashes.encode()).hexdigest(),
            "models": models,
        },
    )


class Asked(Protocol):
    """What answers for images: a model file, or one that is asked about several views."""

    def answer(self, tiles: NDArray[np.uint8]) -> Answer:
        """Return one answer per tile, [n] for uint8[n, height, width, 3]."""
        ...

    def answer_map(self, images: NDArray[np.uint8]) -> Answer:
        """Return one answer per cell, [n, rows, columns] for uint8[n, height, width, 3]."""
        ...


@dataclass(frozen=True)
class ManyViews:
    """A model that is asked about the first `count` of the eight views of every image.

    Attributes:
        model: What is asked.
        count: 1 to 8; 4 are all quarter turns, 8 these and their mirror images.
    """

    model: Asked
    count: int

    def answer(self, tiles: NDArray[np.uint8]) -> Answer:
        """Return one answer per tile, the mean over the views."""
        return _mean([self.model.answer(turned(tiles, view)) for view in range(self.count)])

    def answer_map(self, images: NDArray[np.uint8]) -> Answer:
        """Return one answer per cell, the mean over the maps of the views, each turned back."""
        views = [self.model.answer_map(turned(images, view)) for view in range(self.count)]
        return _mean([one.changed(partial(turned_back, view=view)) for view, one in enumerate(views)])


def viewed(model: Asked, count: int) -> Asked:
    """Return the model as it is for one view, otherwise one that is asked about so many views of every image."""
    return model if count == 1 else ManyViews(model, count)


def turned(images: NDArray[T], view: int) -> NDArray[T]:
    """Return a view of images [n, rows, columns, ...]: turned by quarters, and mirrored from the fifth view on."""
    images = np.rot90(images, _QUARTERS[view % 4], (1, 2))
    return images[:, :, ::-1] if view >= len(_QUARTERS) else images


def turned_back(images: NDArray[T], view: int) -> NDArray[T]:
    """Undo `turned`."""
    images = images[:, :, ::-1] if view >= len(_QUARTERS) else images
    return np.rot90(images, -_QUARTERS[view % 4], (1, 2))


def _mean(answers: Sequence[Answer]) -> Answer:
    distances = [one.distances for one in answers if one.distances is not None]
    probabilities = _mean_of([one.probabilities for one in answers])
    return Answer(probabilities, _mean_of(distances) if distances else None)


def _mean_of(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.asarray(np.mean(parts, 0, np.float64), np.float32)
