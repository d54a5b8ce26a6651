"""Several models: combined as numpy would, their disagreement kept, each one's own map the one that it gives alone."""

import hashlib
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
from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.prediction.combining import combined
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.record import Run, Silent

MakeSlide = Callable[..., Path]
HOWS = ("mean", "max", "min", "vote")
shares = st.one_of(st.just(np.nan), st.floats(0, 1, width=32))


def brute_force(members: list[np.ndarray], how: str, thresholds: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Combine cell by cell, in plain Python; cells that a member did not look at are NaN."""
    joined, spread = np.full(members[0].shape, np.nan), np.full(members[0].shape, np.nan)
    for place in np.ndindex(*members[0].shape):
        values = [float(member[place]) for member in members]
        if any(value != value for value in values):  # noqa: PLR0124  NaN
            continue
        votes = [value >= float(np.float32(limit)) for value, limit in zip(values, thresholds, strict=True)]
        mean = sum(values) / len(values)
        joined[place] = {"mean": mean, "max": max(values), "min": min(values), "vote": sum(votes) / len(votes)}[how]
        spread[place] = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    return joined, spread


@given(
    members=st.integers(2, 4).flatmap(lambda n: st.tuples(*[arrays(np.float32, (3, 5), elements=shares)] * n)),
    how=st.sampled_from(HOWS),
    thresholds=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
)
def test_maps_are_combined_as_plain_python_would(
    members: tuple[np.ndarray, ...], how: Any, thresholds: list[float]
) -> None:
    facts = slide_facts(5 * 64, 3 * 64)
    maps = [
        Heatmap(values, 32.0, facts, model={"name": str(number), "sha256": "ab", "mpp": 0.5})
        for number, values in enumerate(members)
    ]
    limits = thresholds[: len(members)]
    found = combined(maps, how, limits)
    joined, spread = brute_force(list(members), how, limits)
    np.testing.assert_allclose(found.probabilities, joined, atol=1e-6)
    assert found.disagreement is not None
    np.testing.assert_allclose(found.disagreement, spread, atol=1e-6)


def models(folder: Path) -> list[Path]:
    """Give three models that see differently, one of them with finer cells, and with thresholds of their own."""
    return [
        write_color_filter_model(folder / "even.onnx", threshold=0.3),
        write_lopsided_model(folder / "lopsided.onnx", threshold=0.6),
        write_color_filter_model(folder / "fine.onnx", mpp=0.25, threshold=0.8),
    ]


def run(out: Path, slide: Path, chosen: list[Path], watch: Silent | None = None, **settings: Any) -> Run:
    settings = {"model": [str(path) for path in chosen], "tissue": "none", "map": "dense", **settings}
    return predict_slides(PredictConfig.checked(inputs=[str(slide)], out=out, **settings), watch)


@pytest.fixture
def slide(make_slide: MakeSlide) -> Path:
    noise = np.random.default_rng(0).integers(60, 230, (28, 40, 3)).repeat(32, 0).repeat(32, 1).astype(np.uint8)
    return make_slide("a.tiff", noise)


@pytest.mark.parametrize("how", HOWS)
def test_the_map_of_several_models_is_their_own_maps_combined(tmp_path: Path, slide: Path, how: str) -> None:
    chosen = models(tmp_path)
    (record,) = run(tmp_path / "out", slide, chosen, combine=how, keep_members=True).slides
    members = [Heatmap.open(Path(record.outputs[f"members/{path.stem}"])) for path in chosen]
    found = Heatmap.open(Path(record.outputs["zarr"]))
    assert [member.cell_um for member in members] == [16, 16, 8]
    assert found.cell_um == 8
    on_one_grid = [member.resample(8).probabilities for member in members]
    joined, spread = brute_force(on_one_grid, how, [0.3, 0.6, 0.8])
    np.testing.assert_allclose(found.probabilities, joined, atol=1e-6)
    assert found.disagreement is not None
    np.testing.assert_allclose(found.disagreement, spread, atol=1e-6)
    assert found.threshold == pytest.approx(0.5 if how == "vote" else (0.3 + 0.6 + 0.8) / 3)
    assert np.nanmax(found.disagreement) > 0.1


def digest(path: Path) -> dict[str, str]:
    files = sorted(one for one in path.rglob("*") if one.is_file())
    return {str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


def test_a_members_own_map_is_to_the_byte_what_it_gives_alone(tmp_path: Path, slide: Path) -> None:
    chosen = models(tmp_path)
    run(tmp_path / "both", slide, chosen, keep_members=True)
    for path in chosen:
        run(tmp_path / path.stem, slide, [path])
        assert digest(tmp_path / "both" / "members" / path.stem) == digest_of_maps(tmp_path / path.stem)


def digest_of_maps(out: Path) -> dict[str, str]:
    return {name: value for name, value in digest(out).items() if ".ome.zarr" in name}


def test_one_model_has_one_channel_and_no_members(tmp_path: Path, slide: Path) -> None:
    chosen = models(tmp_path)[:1]
    (record,) = run(tmp_path / "out", slide, chosen, keep_members=True, combine="max").slides
    assert set(record.outputs) == {"zarr", "geojson", "png"}
    root = zarr.open_group(record.outputs["zarr"], mode="r")
    assert np.asarray(root["0"]).shape == (1, 28, 40)
    assert Heatmap.open(record.outputs["zarr"]).disagreement is None
    assert run(tmp_path / "out", slide, chosen).slides[0].status == "up_to_date"


def test_models_called_alike_are_numbered(tmp_path: Path, slide: Path) -> None:
    same = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        same.append(write_color_filter_model(tmp_path / folder / "m.onnx"))
    (record,) = run(tmp_path / "out", slide, same, keep_members=True).slides
    assert {"members/m-1", "members/m-2"} < set(record.outputs)


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tiles = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:  # noqa: ARG002  one slide
        self.tiles += tiles


def test_what_changes_the_combined_map_is_done_again_and_a_threshold_is_not(tmp_path: Path, slide: Path) -> None:
    chosen, out = models(tmp_path), tmp_path / "out"
    run(out, slide, chosen, keep_members=True)
    cases: list[tuple[dict[str, Any], str, bool]] = [
        ({"combine": "max"}, "combine changed", True),
        ({"combine": "max", "threshold": 0.25}, "the threshold changed", False),
        ({"combine": "vote", "threshold": 0.25}, "combine changed", True),
    ]
    for settings, reason, is_asked in cases:
        listener = Listener()
        run(out, slide, chosen, listener, keep_members=True, **settings)
        assert any(reason in note for note in listener.notes), listener.notes
        assert (listener.tiles > 0) == is_asked
    assert Heatmap.open(out / "members" / "even" / "a.ome.zarr").threshold == pytest.approx(0.3)
    assert Heatmap.open(out / "a.ome.zarr").threshold == 0.25


def test_members_that_were_not_kept_are_asked_again(tmp_path: Path, slide: Path) -> None:
    chosen, out, listener = models(tmp_path), tmp_path / "out", Listener()
    run(out, slide, chosen)
    run(out, slide, chosen, listener, keep_members=True)
    assert listener.tiles > 0
    assert any("own map is missing" in note for note in listener.notes)
    assert (out / "members" / "fine" / "a.ome.zarr").is_dir()


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
