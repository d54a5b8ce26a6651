"""Other classes than tumour, from the table of slides to the measures: alone, and two in one network."""

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from jsonschema import Draft202012Validator
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v04 import Image

from heatmap.test_heatmap import heatmap
from heatmap.test_qupath import QUPATH
from making.tiled import TILE_PX, training
from making.two_classes import write_two_classes
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.config.export import ExportConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.config.tile import TileConfig
from wsiseg.config.train import TrainConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.exporting.export import export
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_file import ModelFile
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.errors import UsageError
from wsiseg.slides.cohort import Cohort
from wsiseg.tiles.tile import tile
from wsiseg.training.slides import labelled_slides
from wsiseg.training.train import train

BOTH = ("tumor", "necrosis")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    table = write_two_classes(folder)
    tile(TileConfig(inputs=(str(table),), out=folder / "tiles", tile=TILE_PX, pixels=True))
    return folder / "tiles" / "cohort.csv"


def made(cohort: Path, out: Path, **values: Any) -> Path:
    """Train on frozen features and export."""
    few = {"freeze": True, "epochs": 40, "lr": 1e-2, "bag": 64, "max_tiles": 100, "alpha": 0.2, "beta": 0.4}
    train(training(cohort, out / "run", **{**few, **values}))
    return export(ExportConfig(run=out / "run", out=out / "model.onnx", allow_loss=True, known_limit=900)).path


def mapped(cohort: Path, model: Path, out: Path) -> dict[str, Heatmap]:
    predict_slides(PredictConfig(inputs=(str(cohort),), model=(str(model),), out=out, csv=True, cells=True))
    return {path.name.split(".")[0]: Heatmap.open(path) for path in sorted(out.glob("*.ome.zarr"))}


@pytest.fixture(scope="module")
def both(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Heatmap]]:
    """A model of two classes with its maps, in one folder."""
    out = tmp_path_factory.mktemp("both")
    model = made(cohort, out, classes=BOTH, truth=cohort.parents[1] / "truth")
    return out, mapped(cohort, model, out / "maps")


def test_two_classes_are_learned_mapped_and_measured(cohort: Path, both: tuple[Path, dict[str, Heatmap]]) -> None:
    out, maps = both
    assert [one.classes for one in maps.values()] == [BOTH] * 8
    report = evaluate(
        EvaluateConfig(
            predictions=(out / "maps",),
            truth=cohort.parents[1] / "truth",
            cohort=cohort,
            out=out / "evaluation",
            fail_under=("class.necrosis.auc=0.9",),
        )
    )
    assert [*report.per_class] == [*BOTH]
    areas = {name: one["without_background"]["auc"]["value"] for name, one in report.per_class.items()}
    assert min(areas.values()) > 0.9
    assert (report.gates[0].value, report.exit_code) == (areas["necrosis"], 0)
    # Each class is measured against its own outlines and columns.
    (further,) = report.others
    assert {one.slide: one.model_dump()["stated_percent"] for one in further.slides}["slide-6"] == 25
    assert [float(one.without_background["tumor_px"] > 0) for one in (report, further)] == [1, 1]
    assert (out / "evaluation" / "class-necrosis" / "metrics.json").is_file()
    assert "class-necrosis/report.html" in (out / "evaluation" / "report.html").read_text()


def test_readers_of_others_take_maps_of_two_classes(both: tuple[Path, dict[str, Heatmap]]) -> None:
    out, maps = both
    path, heatmap = out / "maps" / "slide-3.ome.zarr", maps["slide-3"]
    Image.from_zarr(zarr.open_group(path, mode="r"))
    location = parse_url(path)
    assert location is not None
    image, *_ = Reader(location)()
    assert image.metadata["channel_names"] == ["p(tumor)", "p(necrosis)"]
    assert [tuple(color) for color in np.array(image.metadata["colormap"])[:, 1].round(2)] == [
        (0.84, 0.37, 0.0), (0.0, 0.62, 0.45),
    ]  # fmt: skip
    np.testing.assert_array_equal(np.nan_to_num(heatmap.others[0].probabilities), np.asarray(image.data[0])[1])
    packed = gzip.decompress((out / "maps" / "slide-3.cells.geojson.gz").read_bytes())
    for text in ((out / "maps" / "slide-3.geojson").read_bytes(), packed):
        collection = json.loads(text)
        Draft202012Validator(QUPATH).validate(collection)
        kinds = {one["properties"]["classification"]["name"] for one in collection["features"]}
        assert kinds == {"Tumor", "Necrosis", "Tissue"}
    with (out / "maps" / "slide-3.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"probability tumor", "probability necrosis"} <= rows[0].keys()
    assert {"tumor", "necrosis"} <= {row["state"] for row in rows}
    with (out / "maps" / "slides.csv").open() as file:
        shares = {
            row["slide"]: (float(row["tumor_share"]), float(row["necrosis_share"])) for row in csv.DictReader(file)
        }
    assert shares["slide-2"][0] < 0.1 < shares["slide-2"][1]
    assert shares["slide-1"][1] < 0.1 < shares["slide-1"][0]


def test_a_cell_above_two_thresholds_is_of_the_more_probable_class() -> None:
    values = np.array([[0.9, 0.6, 0.1, np.nan, 0.6]], np.float32)
    one = heatmap(1, 5, probabilities=values, unknown=np.zeros((1, 5), np.bool_), threshold=0.5)
    other = np.array([[0.8, 0.7, 0.8, np.nan, 0.7]], np.float32)
    found = one.with_others({"necrosis": 0.75}, [other])
    assert found.labels.tolist() == [[2, 2, 4, 0, 2]]
    assert replace(found, unknown=np.ones((1, 5), np.bool_)).labels.tolist() == [[3, 3, 3, 0, 3]]


def test_the_model_file_says_its_classes_and_a_single_head_is_the_same_alone(both: tuple[Path, Any]) -> None:
    out, _ = both
    checkpoint = Checkpoint.load(out / "run" / "best.pt")
    with ModelFile.open(out / "model.onnx") as model:
        assert model.card.given == {one.name: one.threshold for one in checkpoint.classes}
        assert (model.card.classes, model.card.positive_class) == (("normal", *BOTH), "tumor")
        tiles = np.random.default_rng(0).integers(0, 256, (3, TILE_PX, TILE_PX, 3), np.uint8)
        assert model.answer(tiles).probabilities.shape == (3, 2)
        assert model.answer(tiles[:0]).probabilities.shape == (0, 2)
        assert model.answer_map(tiles).probabilities.shape[3] == 2
    page = (out / "model.md").read_text()
    assert "probability of each of `tumor`, `necrosis`, by itself" in page
    assert "It gives probabilities of tumour and necrosis, not" in page


def test_another_class_alone_is_called_so_everywhere(cohort: Path, tmp_path: Path) -> None:
    """No later step is told again what was learned."""
    model = made(cohort, tmp_path, classes=("necrosis",), epochs=5)
    maps = mapped(cohort, model, tmp_path / "maps")
    assert {one.classes for one in maps.values()} == {("necrosis",)}
    report = evaluate(
        EvaluateConfig(predictions=(tmp_path / "maps",), truth=cohort.parents[1] / "truth", cohort=cohort)
    )
    assert (report.positive_class, report.per_class, report.without_background["slides"]) == ("necrosis", {}, 2)
    told = [tmp_path / "maps" / name for name in ("report.html", "slides.csv", "slide-3.geojson", "slide-3.csv")]
    attributes = json.loads((tmp_path / "maps" / "slide-3.ome.zarr" / ".zattrs").read_text())
    assert attributes["omero"]["channels"][0]["label"] == "p(necrosis)"
    texts = {path.name: path.read_text() for path in told} | {"ome": json.dumps(attributes["omero"])}
    assert not [name for name, text in texts.items() if "necrosis" not in text.lower()]
    texts |= {"model": model.with_suffix(".md").read_text().split("## Licence")[0].partition("settings")[0]}
    assert not [name for name, text in texts.items() if "umour" in text]
    assert not [
        name for name, text in texts.items() if "tumor" in text.lower() and name != "report.html"
    ]  # but its CSS


def test_rows_say_of_each_class_what_is_known_of_it(cohort: Path, tmp_path: Path) -> None:
    lines = ["slide,path,label,tumor_percent,necrosis_min,necrosis_max,Stroma_label"]
    lines += ["a,a.svs,1,30,,20 %,yes", "b,b.svs,0,,10,NA,0", "c,c.svs,,,,0,"]
    table = tmp_path / "cohort.csv"
    table.write_text("\n".join(lines))
    necrosis, stroma, tumor = (Cohort.read(table, name).slides for name in ("necrosis", "stroma", "tumor"))
    assert [(row.label, row.stated(0)) for row in necrosis] == [(None, (None, 0.2)), (1, (0.1, None)), (0, (None, 0.0))]
    # The table states percentages of tumour: so its label is tumour's, whatever else is asked for.
    assert [row.label for row in stroma] == [1, 0, None]
    assert [row.label for row in tumor] == [1, 0, None]
    lines[0] = lines[0].replace("tumor_percent", "grade")
    table.write_text("\n".join([*lines[:2], lines[2].replace("b,b.svs,0,,10", "b,b.svs,0,,")]))
    assert [row.label for row in Cohort.read(table, "necrosis").slides] == [1, 0]
    assert [row.label for row in Cohort.read(table, "necrosis", is_first=False).slides] == [None, None]
    table.write_text("\n".join([*lines, "d,d.svs,0,,50,40,"]))
    with pytest.raises(UsageError, match="line 5: necrosis_min 50 is above necrosis_max 40"):
        Cohort.read(table, "necrosis")
    first, second = (slide.by_class for slide in labelled_slides(cohort, percent_error=10, classes=BOTH)[2:4])
    assert [(one.label, one.stated) for one in (*first, *second)] == [
        (0, (None, None)), (1, (0.15, 0.35)), (1, (None, None)), (1, (0.15, 0.35)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values", [{"classes": ("a", "A")}, {"classes": ("normal",)}, {"classes": ("a", "b"), "grid": True},
               {"classes": ("a", "b"), "teacher": ("m.onnx",)}, {"classes": ("a/b",)}, {"classes": ()}],
)  # fmt: skip
def test_classes_that_cannot_be_learned_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainConfig.checked(cohort="a.csv", out="run", **values)


def test_two_classes_stop_and_go_on_as_if_they_had_not(cohort: Path, tmp_path: Path) -> None:
    whole, parts = (
        training(cohort, tmp_path / name, classes=BOTH, freeze=True, max_tiles=12) for name in ("whole", "parts")
    )
    train(whole)
    train(parts.model_copy(update={"epochs": 1}))
    train(parts)
    first, second = (Checkpoint.load(one.out / "best.pt") for one in (whole, parts))
    assert first.state_dict["head.weight"].shape[0] == 2
    for name, value in first.state_dict.items():
        assert torch.equal(value, second.state_dict[name]), name
