"""What a model says of images, and the mean of what it says of their views."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

_QUARTERS = (0, 2, 1, 3)  # so that two views are an image and its half turn, and four are all turns


class Answer(NamedTuple):
    """What a model says of tiles, [n], or of the cells of images, [n, rows, columns]."""

    # float32 in 0..1, of the positive class; of a model that gives several, with a last axis for them.
    probabilities: NDArray[np.float32]
    # float32, squared Mahalanobis distances from the tissue of training, about 1 where 98 % of such tissue is nearer;
    # what is farther than `ModelFile.limit` is unknown. None where the model cannot tell.
    distances: NDArray[np.float32] | None = None
    features: NDArray[np.float32] | None = None  # float32[n, channels] of tiles, where they are asked for

    def part(self, which: slice) -> "Answer":
        """Return it for some of the images."""
        return self.changed(lambda values: values[which])

    @classmethod
    def of_parts(cls, parts: "Sequence[Answer]") -> "Answer":
        """Return the answer to images that were asked about in parts."""
        probabilities, *others = zip(*parts, strict=True)
        joined = (None if one[0] is None else np.concatenate(one) for one in others)
        return cls(np.concatenate(probabilities), *joined)

    def changed(self, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> "Answer":
        """Return it with every array changed."""
        distances, features = (None if one is None else change(one) for one in self[1:])
        return Answer(change(self.probabilities), distances, features)


def of_views(ask: Callable[[NDArray[np.uint8]], Answer], images: NDArray[np.uint8], views: int) -> Answer:
    """Ask about so many views of images (uint8[n, height, width, 3]), and return the mean of the answers."""
    answers = [ask(turned(images, view)).changed(partial(turned_back, view=view)) for view in range(views)]
    if views == 1:
        return answers[0]
    distances = [one.distances for one in answers if one.distances is not None]
    return Answer(_mean([one.probabilities for one in answers]), _mean(distances) if distances else None)


def _mean(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.asarray(np.mean(parts, 0, np.float64), np.float32)


def turned(images: NDArray[T], view: int) -> NDArray[T]:
    """Return a view of images [n, rows, columns, ...]: turned by quarters, and mirrored from the fifth view on."""
    images = np.rot90(images, _QUARTERS[view % 4], (1, 2))
    return images[:, :, ::-1] if view >= len(_QUARTERS) else images


def turned_back(images: NDArray[T], view: int) -> NDArray[T]:
    """Undo `turned`; one value or the features of an image stay as they are."""
    if images.ndim < 3:  # noqa: PLR2004  [n, rows, columns]
        return images
    images = images[:, :, ::-1] if view >= len(_QUARTERS) else images
    return np.rot90(images, -_QUARTERS[view % 4], (1, 2))
