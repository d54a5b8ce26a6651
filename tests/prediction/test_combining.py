"""Several models: averaged as plain Python would, their disagreement kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ome_zarr_models.v04 import Image as Image04
from ome_zarr_models.v05 import Image as Image05

from making.maps import slide_facts
from making.models import write_color_filter_model, write_lopsided_model
from making.progress import Heard
from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.prediction.mapping import combined
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.record import Progress, Run

MakeSlide = Callable[..., Path]
shares = st.one_of(st.just(np.nan), st.floats(0, 1, width=32))


def brute_force(members: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Average cell by cell, in plain Python; cells that a member did not look at are NaN."""
    joined, spread = np.full(members[0].shape, np.nan), np.full(members[0].shape, np.nan)
    for place in np.ndindex(*members[0].shape):
        values = [float(member[place]) for member in members]
        if any(value != value for value in values):  # noqa: PLR0124  NaN
            continue
        joined[place] = mean = sum(values) / len(values)
        spread[place] = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    return joined, spread


@given(st.integers(2, 4).flatmap(lambda n: st.tuples(*[arrays(np.float32, (3, 5), elements=shares)] * n)))
def test_maps_are_averaged_as_plain_python_would(members: tuple[np.ndarray, ...]) -> None:
    facts = slide_facts(5 * 64, 3 * 64)
    found = combined(
        [
            Heatmap(values, 32.0, facts, model={"name": str(number), "sha256": "ab", "mpp": 0.5})
            for number, values in enumerate(members)
        ]
    )
    joined, spread = brute_force(list(members))
    np.testing.assert_allclose(found.probabilities, joined, atol=1e-6)
    assert found.disagreement is not None
    np.testing.assert_allclose(found.disagreement, spread, atol=1e-6)


def models(folder: Path) -> list[Path]:
    """Return three models that see differently, one of them with finer cells, and with thresholds of their own."""
    return [
        write_color_filter_model(folder / "even.onnx", threshold=0.3),
        write_lopsided_model(folder / "lopsided.onnx", threshold=0.6),
        write_color_filter_model(folder / "fine.onnx", mpp=0.25, threshold=0.8),
    ]


def run(out: Path, slide: Path, chosen: list[Path], watch: Progress | None = None, **settings: Any) -> Run:
    settings = {"model": [str(path) for path in chosen], "tissue": "none", "map": "dense", **settings}
    return predict_slides(PredictConfig.checked(inputs=[str(slide)], out=out, **settings), watch)


@pytest.fixture
def slide(make_slide: MakeSlide) -> Path:
    noise = np.random.default_rng(0).integers(60, 230, (28, 40, 3)).repeat(32, 0).repeat(32, 1).astype(np.uint8)
    return make_slide("a.tiff", noise)


def test_the_map_of_several_models_is_the_mean_of_their_own_maps(tmp_path: Path, slide: Path) -> None:
    chosen = models(tmp_path)
    members = []
    for path in chosen:
        (record,) = run(tmp_path / path.stem, slide, [path]).slides
        members.append(Heatmap.open(record.outputs["zarr"]))
    (record,) = run(tmp_path / "out", slide, chosen).slides
    found = Heatmap.open(record.outputs["zarr"])
    assert [member.cell_um for member in members] == [16, 16, 8]
    assert found.cell_um == 8
    joined, spread = brute_force([member.resample(8).probabilities for member in members])
    np.testing.assert_allclose(found.probabilities, joined, atol=1e-6)
    assert found.disagreement is not None
    np.testing.assert_allclose(found.disagreement, spread, atol=1e-6)
    assert found.threshold == pytest.approx((0.3 + 0.6 + 0.8) / 3)
    assert np.nanmax(found.disagreement) > 0.1


def test_one_model_has_one_channel(tmp_path: Path, slide: Path) -> None:
    (record,) = run(tmp_path / "out", slide, models(tmp_path)[:1]).slides
    assert set(record.outputs) == {"zarr", "geojson", "png"}
    root = zarr.open_group(record.outputs["zarr"], mode="r")
    assert np.asarray(root["0"]).shape == (1, 28, 40)
    assert Heatmap.open(record.outputs["zarr"]).disagreement is None


class Listener(Heard):
    tiles = 0

    def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:  # noqa: ARG002  one slide
        self.tiles += tiles


def test_a_new_threshold_asks_no_model_again(tmp_path: Path, slide: Path) -> None:
    chosen, out, listener = models(tmp_path), tmp_path / "out", Listener()
    run(out, slide, chosen)
    run(out, slide, chosen, listener, threshold=0.25)
    assert any("the threshold changed" in note for note in listener.notes), listener.notes
    assert listener.tiles == 0
    assert Heatmap.open(out / "a.ome.zarr").threshold == 0.25


@pytest.mark.parametrize(("ngff", "image"), [("0.4", Image04), ("0.5", Image05)])
def test_two_channels_validate_and_come_back(tmp_path: Path, ngff: Any, image: Any) -> None:
    random = np.random.default_rng(0)
    values = random.random((2, 90, 130)).astype(np.float32)
    values[:, random.random((90, 130)) < 0.3] = np.nan
    saved = Heatmap(values[0], 32.0, slide_facts(130 * 64, 90 * 64), disagreement=values[1] / 2)
    saved.save(tmp_path / "a.ome.zarr", ngff)
    opened = Heatmap.open(tmp_path / "a.ome.zarr")
    np.testing.assert_array_equal(opened.disagreement, saved.disagreement)
    np.testing.assert_array_equal(opened.probabilities, saved.probabilities)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    image.from_zarr(group)
    stated: Any = group.attrs.get("ome", group.attrs)
    assert [channel["label"] for channel in stated["omero"]["channels"]] == ["p(tumor)", "disagreement"]
    assert replace(opened.resample(16.0), disagreement=None).shape == opened.resample(16.0).disagreement.shape  # type: ignore[union-attr]  # it has one
    xml = (tmp_path / "a.ome.zarr" / "OME" / "METADATA.ome.xml").read_text()
    assert 'SizeC="2"' in xml
