"""Test-time views: a turned slide has the turned map, and a model that does not mind turns gives the same map."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import wsiseg
from making.models import write_color_filter_model, write_lopsided_model
from making.slides import write_slide
from wsiseg.mathematics.grid import Grid
from wsiseg.model_file.answer import Answer, turned, turned_back
from wsiseg.prediction.inference import ask
from wsiseg.prediction.windows import Plan

KINDS = ("dense", "tile")


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "even.onnx")


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lopsided_model(tmp_path_factory.mktemp("model") / "lopsided.onnx")


def noise() -> np.ndarray:
    """Give a picture of 3 x 4 tiles of squares of random shades."""
    squares = np.random.default_rng(0).integers(60, 230, (21, 28, 3))
    return squares.repeat(32, 0).repeat(32, 1).astype(np.uint8)


def middle(shape: tuple[int, ...]) -> np.ndarray:
    """Give a tissue mask that leaves a tile's width at every side, so that dense windows end within the slide."""
    mask = np.zeros((shape[0] // 32, shape[1] // 32), np.uint8)
    mask[7:-7, 7:-7] = 255
    return mask


def probabilities(folder: Path, picture: np.ndarray, model: Path, kind: str, views: int) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    path = write_slide(folder / f"{kind}{views}.tiff", np.ascontiguousarray(picture))
    Image.fromarray(middle(picture.shape)).save(folder / "tissue.png")
    return wsiseg.predict(path, model, map=kind, tissue=str(folder / "tissue.png"), views=views).probabilities


@given(view=st.integers(0, 7), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_turning_back_undoes_turning(view: int, rows: int, columns: int) -> None:
    images = np.arange(2 * rows * columns * 3).reshape(2, rows, columns, 3)
    np.testing.assert_array_equal(turned_back(turned(images, view), view), images)


def test_the_eight_views_are_all_different() -> None:
    image = np.arange(6).reshape(1, 2, 3)
    assert len({turned(image, view).tobytes() + bytes(turned(image, view).shape) for view in range(8)}) == 8


class Corner:
    """Sees the first pixel of each image, and nothing else."""

    def answer(self, tiles: np.ndarray) -> Answer:
        return Answer(tiles[:, 0, 0, 0].astype(np.float32) / np.float32(255))

    def answer_map(self, images: np.ndarray) -> Answer:
        seen: NDArray[np.float32] = np.zeros(images.shape[:3], np.float32)
        seen[:, 0, :] = images[:, 0, :, 0] / 255
        return Answer(seen, seen * np.float32(2))


def asked(images: np.ndarray, views: int, *, is_dense: bool) -> Answer:
    grid = Grid((4, 4), (0.5, 0.5), 4, 4, 0.5)
    return ask(Corner(), images, Plan(grid, np.ones((1, 1), np.bool_), (), is_dense=is_dense, views=views))


def test_the_mean_over_views_is_that_of_what_each_view_shows() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    corners = image[:, [0, 0, -1, -1], [0, -1, 0, -1], 0] / 255
    np.testing.assert_allclose(asked(image, 4, is_dense=False).probabilities, corners.mean(1), atol=1e-6)
    edges = np.zeros((2, 4, 4))
    for side in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        edges[side] += image[..., 0][side] / 255 / 4
    found = asked(image, 8, is_dense=True)
    np.testing.assert_allclose(found.probabilities, edges, atol=1e-6)
    assert found.distances == pytest.approx(2 * found.probabilities)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_does_not_mind_turns_gives_the_same_map(tmp_path: Path, even: Path, kind: str) -> None:
    maps = [probabilities(tmp_path, noise(), even, kind, views) for views in (1, 3, 8)]
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-6)
    np.testing.assert_allclose(maps[2], maps[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("views", "turn"), [(8, "quarter"), (8, "mirror"), (4, "quarter"), (2, "half")])
def test_a_turned_slide_has_the_turned_map(tmp_path: Path, lopsided: Path, kind: str, views: int, turn: str) -> None:
    turns: dict[str, Any] = {"quarter": np.rot90, "half": lambda a: np.rot90(a, 2), "mirror": lambda a: a[:, ::-1]}
    before = probabilities(tmp_path / "before", noise(), lopsided, kind, views)
    after = probabilities(tmp_path / "after", turns[turn](noise()), lopsided, kind, views)
    np.testing.assert_allclose(after, turns[turn](before), atol=1e-6)
    alone = probabilities(tmp_path / "alone", turns[turn](noise()), lopsided, kind, 1)
    assert np.nanmax(np.abs(alone - after)) > 0.01
