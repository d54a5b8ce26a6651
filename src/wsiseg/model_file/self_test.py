"""Seeded images that a model file is tried on whenever it is opened, and the answers that it must give.

The images are made of the raw bits of PCG64 with integer arithmetic only, so that they are the same everywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from wsiseg.config.settings import Described

Kind = Literal["glass", "uniform", "noise", "texture", "tissue"]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Answer = Probability | tuple[Probability, ...]
Values = NDArray[np.float32]
Outputs = Mapping[str, Values]
"""What a graph answers, by the names of its outputs."""

_SIDE = Field(ge=16, le=2048)
_PINK, _PURPLE = np.array([228, 150, 190], np.int64), np.array([96, 56, 130], np.int64)
WIDER_PX = 64
_OF_DISTANCE = 10  # distances may differ by so many times the tolerance, as a share of what they are
_COARSE_PX, _FINE_PX = 16, 4  # sides of the blocks that the texture is mixed of


class SeededImage(Described):
    """One image and the answers to it; height and width in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    """What it shows: empty glass, one colour, noise, a texture in the colours of tissue, or nuclei in tissue."""
    seed: int | None = Field(default=None, ge=0, le=2**32 - 1)
    """Its own seed, where it is not that of the test."""
    height: int = _SIDE
    """Rows of pixels."""
    width: int = _SIDE
    """Columns of pixels."""
    probability: _Answer
    """The output `probability`; of several classes that of each."""
    map: tuple[tuple[_Answer, ...], ...] | None = None
    """The output `probability_map`, row by row, where the model has one."""
    distance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """The output `distance`, where the model has one: glass may be called normal whatever the network's weights
    are, but its distance depends on all of them."""

    def fits(self, stride: int | None) -> bool:
        """Return whether its map has the rows and columns of an output stride, and is none where that is none."""
        cells = None if self.map is None else (len(self.map), max(map(len, self.map), default=0))
        return cells == (None if stride is None else (self.height // stride, self.width // stride))


class SelfTest(Described):
    """Images with the answers that a model gave when its file was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(ge=0, le=2**32 - 1)
    """Seed of the images that have none of their own."""
    tolerance: float = Field(gt=0, le=0.1)
    """Largest difference in probability that passes; distances may differ by ten times that, of what they are."""
    images: tuple[SeededImage, ...] = Field(min_length=4, max_length=8)
    """The images, each given to the model alone."""


def seeded_pixels(kind: Kind, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Make an image (uint8[height, width, 3], RGB) of a kind; the same seed gives the same image everywhere."""
    if kind == "texture":
        pixels = _texture(height, width, seed)
    elif kind == "tissue":
        pixels = _tissue(height, width, seed)
    elif kind == "uniform":
        pixels = np.broadcast_to(128 + _bytes(1, 1, 3, seed + 2) % 64, (height, width, 3))
    else:
        is_glass = kind == "glass"
        pixels = 240 + _bytes(height, width, 3, seed + 1) % 8 if is_glass else _bytes(height, width, 3, seed + 3)
    return pixels.astype(np.uint8)


def as_features(images: NDArray[np.uint8], channels: int) -> Values:
    """Read the first numbers of images [n, h, w, 3] as so many features of tiles, float32[n, channels] in -2..2."""
    numbers = images.reshape(len(images), -1)[:, :channels].astype(np.float32)
    return (numbers - np.float32(128)) / np.float32(64)


def recorded(
    answer: Callable[[NDArray[np.uint8]], Outputs], images: Sequence[tuple[Kind, int]], side: int, tolerance: float,
    *, with_wider: bool = True,
) -> SelfTest:  # fmt: skip
    """Ask a model (`answer` as for `largest_difference`) for its answers, to be kept in its file.

    The images have kinds, seeds and a side in pixels. A dense model is tried on one more, the first, not square there,
    if it takes such (`with_wider`).
    """
    made = [_recorded(answer, *image, (side, side)) for image in images]
    if with_wider and made[0].map is not None:
        made.append(_recorded(answer, *images[0], (side, side + WIDER_PX)))
    return SelfTest(seed=0, tolerance=tolerance, images=tuple(made))


def _recorded(
    answer: Callable[[NDArray[np.uint8]], Outputs], kind: Kind, seed: int, size: tuple[int, int]
) -> SeededImage:
    found = answer(seeded_pixels(kind, *size, seed)[None])
    cells, distance = found.get("probability_map"), found.get("distance")
    rows, value = None if cells is None else _rounded(cells[0]), _rounded(found["probability"][0])
    far = None if distance is None else max(0.0, float(f"{distance[0]:.6g}"))
    return SeededImage(kind=kind, seed=seed, height=size[0], width=size[1], probability=value, map=rows, distance=far)


def _rounded(values: Any) -> Any:  # noqa: ANN401  an array, or a number of NumPy
    return tuple(map(_rounded, values)) if values.ndim else round(float(values), 6)


def largest_difference(test: SelfTest, answer: Callable[[NDArray[np.uint8]], Outputs]) -> float:
    """Ask for the answer to every image of a test and return the largest absolute difference from what is expected.

    That of a distance is a tenth of its share; it is infinite where a value is missing, is NaN, or a map has another
    shape. `answer` takes uint8[1, h, w, 3] and gives `probability` float32[1], and as far as there are such outputs
    `probability_map` float32[1, h', w'] and `distance` float32[1]; of several classes with a last axis more.
    """
    worst = 0.0
    for image in test.images:
        seed = test.seed if image.seed is None else image.seed
        found = answer(seeded_pixels(image.kind, image.height, image.width, seed)[None])
        worst = max(worst, _difference(found.get("probability"), np.asarray([image.probability])))
        if image.map is not None:
            worst = max(worst, _difference(found.get("probability_map"), _map(image.map)))
        if image.distance is not None:
            off = _difference(found.get("distance"), np.asarray([image.distance]))
            worst = max(worst, off / (_OF_DISTANCE * max(image.distance, 1.0)))
    return worst


def _map(rows: Sequence[Any]) -> NDArray[np.float64]:
    try:
        return np.asarray(rows, float)[None]
    except ValueError:  # rows or cells differ in length
        return np.empty((1, 0))


def _difference(found: Values | None, expected: NDArray[np.float64]) -> float:
    if found is None or found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max(initial=0))


def _bytes(height: int, width: int, channels: int, seed: int) -> NDArray[np.int64]:
    """Return seeded bytes [height, width, channels]; raw bits are promised to stay the same, distributions are not."""
    count = height * width * channels
    raw = np.random.PCG64(seed).random_raw(-(-count // 8)).astype("<u8")
    return raw.view(np.uint8)[:count].reshape(height, width, channels).astype(np.int64)


def _texture(height: int, width: int, seed: int) -> NDArray[np.int64]:
    """Mix pink and purple by coarse and fine blocks and grain."""
    coarse, fine = _blocks(height, width, _COARSE_PX, seed + 4), _blocks(height, width, _FINE_PX, seed + 5)
    purple = (coarse + fine) // 2
    grain = _bytes(height, width, 3, seed + 6) % 17 - 8
    return np.clip((_PINK * (255 - purple) + _PURPLE * purple) // 255 + grain, 0, 255)


def _tissue(height: int, width: int, seed: int) -> NDArray[np.int64]:
    """Strew nuclei over patchy tissue; colours, size and number follow from the seed."""
    chosen = _bytes(1, 9, 1, seed + 7).ravel()
    ground, dark = _PINK + chosen[:3] % 49 - 24, _PURPLE + chosen[3:6] % 65 - 32
    radius = 2 + chosen[6] % 5
    spacing = 2 * radius + 1 + chosen[7] % 16
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    # A nucleus lies whole in its cell of a grid, at a random place; some cells have none.
    made = _bytes(height // spacing + 1, width // spacing + 1, 3, seed + 8)[rows // spacing, columns // spacing]
    place = radius + made[..., :2] % (spacing - 2 * radius)
    squares = (rows % spacing - place[..., 0]) ** 2 + (columns % spacing - place[..., 1]) ** 2
    is_nucleus = (squares < radius**2) & (made[..., 2] >= chosen[8] // 2)
    patches = (2 * _blocks(height, width, _COARSE_PX, seed + 4) + _blocks(height, width, _FINE_PX, seed + 5)) // 3
    light = (ground[None, None] * (512 - patches) + dark * patches) // 512
    grain = _bytes(height, width, 3, seed + 6) % 25 - 12
    return np.clip(np.where(is_nucleus[..., None], (light + 3 * dark) // 4, light) + grain, 0, 255)


def _blocks(height: int, width: int, side: int, seed: int) -> NDArray[np.int64]:
    small = _bytes(-(-height // side), -(-width // side), 1, seed)
    return small.repeat(side, 0).repeat(side, 1)[:height, :width]
