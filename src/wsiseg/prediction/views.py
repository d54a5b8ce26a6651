"""Test-time views: a model is asked about an image turned and mirrored, and its answers are averaged."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)
_QUARTERS = (0, 2, 1, 3)  # so that two views are an image and its half turn, and four are all turns


class Asked(Protocol):
    """What answers for images: a model file, or one that is asked about several views."""

    def probabilities(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give one probability per tile: float32[n] for uint8[n, height, width, 3]."""
        ...

    def probability_map(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give a probability per cell: float32[n, rows, columns] for uint8[n, height, width, 3]."""
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

    def probabilities(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give the mean over the views of one probability per tile."""
        total = np.zeros(len(tiles), np.float64)
        for view in range(self.count):
            total += self.model.probabilities(turned(tiles, view))
        return (total / self.count).astype(np.float32)

    def probability_map(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give the mean over the views of the map, each turned back."""
        total = turned_back(self.model.probability_map(image), 0).astype(np.float64)
        for view in range(1, self.count):
            total += turned_back(self.model.probability_map(turned(image, view)), view)
        return (total / self.count).astype(np.float32)


def viewed(model: Asked, count: int) -> Asked:
    """Let a model be asked about so many views of every image; one view is the model as it is."""
    return model if count == 1 else ManyViews(model, count)


def turned(images: NDArray[T], view: int) -> NDArray[T]:
    """Give a view of images [n, rows, columns, ...]: turned by quarters, and mirrored from the fifth view on."""
    images = np.rot90(images, _QUARTERS[view % 4], (1, 2))
    return images[:, :, ::-1] if view >= len(_QUARTERS) else images


def turned_back(images: NDArray[T], view: int) -> NDArray[T]:
    """Undo `turned`."""
    images = images[:, :, ::-1] if view >= len(_QUARTERS) else images
    return np.rot90(images, -_QUARTERS[view % 4], (1, 2))
