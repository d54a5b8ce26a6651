from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_zarr_models.v04 import Image as Image04
from PIL import Image

from making.servers import Server
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.config.fetch import FetchTumorMapsConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.fetch.manifest import Entry, read_manifest, write_manifest
from wsiseg.fetch.tumor_maps import TumorMapsResult, fetch_tumor_maps
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.run.connection import Patience
from wsiseg.run.errors import UsageError

QUICK = Patience(tries=3, first_wait_s=0.001, longest_wait_s=0.004, read_s=20)
PLACE = "/96c84d41c04b9c696e998a5641589f10be57f15c/results/raw_probabilities"


@pytest.fixture
def raw(data: Path) -> Path:
    return data / "tumor_maps" / "raw"


def convert(out: Path, maps: Path, **settings: Any) -> TumorMapsResult:
    return fetch_tumor_maps(FetchTumorMapsConfig(out=out, maps=maps, **settings))


def test_the_published_maps_become_heatmaps(raw: Path, tmp_path: Path) -> None:
    pictures = sorted(raw.glob("*.png"))[:24]
    result = convert(tmp_path, raw, limit=24)
    assert (result.maps, result.converted, result.scaled, result.exit_code) == (24, 24, 0, 0)
    assert 0 < result.zeroed < 24
    for picture in pictures:
        heatmap = Heatmap.open(tmp_path / f"{picture.name.removesuffix('.svs.png')}.ome.zarr")
        with Image.open(picture) as image:
            red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
        assert not green.any()
        assert np.array_equal(heatmap.tissue, blue == 255)
        assert np.array_equal(np.round(np.nan_to_num(heatmap.probabilities) * 255), np.where(blue, red, 0))
        assert heatmap.model["license"] == "AGPL-3.0-only"
        assert heatmap.run["scale"] == "unknown"
        assert heatmap.model["zeroed_by_hand"] == ("-11A-" in picture.name)
    assert "GNU" in (tmp_path / "LICENSE.txt").read_text()


def test_a_map_of_unknown_scale_has_no_unit(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path, raw, limit=1)
    (path,) = tmp_path.glob("*.ome.zarr")
    group = zarr.open_group(str(path), mode="r")
    Image04.from_zarr(group)
    attributes: Any = group.attrs.asdict()
    (image,) = attributes["multiscales"]
    assert [axis for axis in image["axes"] if "unit" in axis] == []
    scale, shift = image["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == [1.0, 448.0, 448.0]
    assert shift["translation"] == [0.0, 223.5, 223.5]
    assert "PhysicalSize" not in (path / "OME" / "METADATA.ome.xml").read_text()


def test_a_second_run_writes_only_what_changed(raw: Path, tmp_path: Path) -> None:
    assert convert(tmp_path, raw, limit=2).converted == 2
    assert convert(tmp_path, raw, limit=3).converted == 1
    assert convert(tmp_path, raw, limit=3, overwrite=True).converted == 3


def test_a_map_takes_its_scale_from_its_slide(tmp_path: Path, make_slide: Any) -> None:
    name = "TCGA-CR-7395-01A-01-TS1.svs"
    slide = make_slide(name, np.full((3600, 4400, 3), 200, np.uint8), mpp=0.25)
    (tmp_path / "maps").mkdir()
    pixels = np.zeros((9, 10, 3), np.uint8)
    pixels[1, 2] = (200, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "maps" / f"{name}.png")
    result = convert(tmp_path / "out", tmp_path / "maps", slides=slide.parent)
    heatmap = Heatmap.open(tmp_path / "out" / "TCGA-CR-7395-01A-01-TS1.ome.zarr")
    assert result.scaled == 1
    assert heatmap.slide.size_px == (4400, 3600)
    assert heatmap.cell_um == pytest.approx(448 * 0.25)
    assert heatmap.at(2.5 * 448, 1.5 * 448) == pytest.approx(200 / 255)
    Image.fromarray(np.zeros((9, 4, 3), np.uint8)).save(tmp_path / "maps" / f"{name}.png")
    wrong = convert(tmp_path / "wrong", tmp_path / "maps", slides=slide.parent)
    assert (wrong.maps, len(wrong.failed), wrong.exit_code) == (0, 1, 1)


def test_a_slide_without_a_pixel_size_leaves_its_map_in_pixels(data: Path, tmp_path: Path) -> None:
    name = "TCGA-CR-7395-01A-01-TS1.svs"
    (tmp_path / "maps").mkdir()
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(tmp_path / "maps" / f"{name}.png")
    result = convert(tmp_path / "out", tmp_path / "maps", slides=data / "slides")
    assert (result.maps, result.scaled) == (1, 0)
    assert "no pixel size in the file: its map is written in pixels" in result.warnings[0]


def test_heatmaps_are_judged_as_the_pictures_are(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path, raw, limit=12)
    truth = raw.parent / "thresholded"
    report = evaluate(EvaluateConfig(predictions=(tmp_path,), truth=truth))
    assert report.without_background["auc"]["value"] > 0.9999
    assert not report.failed
    judged = [path.name.removesuffix(".svs.png") for path in sorted(raw.glob("*.png"))[:12] if "-11A-" not in path.name]
    assert [slide.slide for slide in report.slides if slide.status == "ok"] == judged


def test_maps_are_fetched_and_slides_without_one_are_named(server: Server, raw: Path, tmp_path: Path) -> None:
    pictures = sorted(raw.glob("*.png"))[:4]
    names = [picture.name.removesuffix(".png") for picture in pictures] + ["TCGA-BH-0001-01A-01-TS1.svs"]
    for picture in pictures:
        body = picture.read_bytes()
        server.pages[f"{PLACE}/{picture.name}"] = lambda handler, body=body: handler.answer(  # type: ignore[misc]  # a default binds it
            200, body, {"Content-Type": "image/png"}
        )
    identity = "00000000-0000-0000-0000-000000000000"
    write_manifest(tmp_path / "m.tsv", [Entry(identity, name, "0" * 32, 1) for name in names])
    config = FetchTumorMapsConfig(out=tmp_path / "out", manifest=tmp_path / "m.tsv", mirror=server.url)
    result = fetch_tumor_maps(config, patience=QUICK)
    assert (result.maps, result.converted, result.exit_code) == (4, 4, 0)
    assert result.unpublished == (names[-1],)
    asked = sum(server.requests.values())
    assert fetch_tumor_maps(config, patience=QUICK).converted == 0
    assert sum(server.requests.values()) == asked + 1


def test_without_any_map_the_fetch_has_failed(server: Server, tmp_path: Path) -> None:
    entry = Entry("00000000-0000-0000-0000-000000000000", "TCGA-BH-0001-01A-01-TS1.svs", "0" * 32, 1)
    write_manifest(tmp_path / "m.tsv", [entry])
    config = FetchTumorMapsConfig(out=tmp_path / "out", manifest=tmp_path / "m.tsv", mirror=server.url)
    assert fetch_tumor_maps(config, patience=QUICK).exit_code == 6


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_what_is_no_map_is_named(raw: Path, tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "maps").mkdir()
    path = tmp_path / "maps" / "TCGA-BH-0001-01A-01-TS1.svs.png"
    if content is None:
        Image.fromarray(np.full((3, 4, 3), 90, np.uint8)).save(path)
    else:
        path.write_bytes(content)
    result = convert(tmp_path / "out", tmp_path / "maps")
    assert (result.maps, result.exit_code) == (0, 1)
    assert path.name in result.failed[0].message
    with pytest.raises(UsageError, match="no published maps there"):
        convert(tmp_path / "out", raw.parent)


def test_the_manifest_names_every_published_map_of_the_sample(data: Path) -> None:
    names = {entry.name for entry in read_manifest(data / "gdc" / "paper_manifest.tsv")}
    assert {path.name.removesuffix(".png") for path in (data / "tumor_maps" / "raw").glob("*.png")} <= names
