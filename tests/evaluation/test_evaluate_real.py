import json
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score

from making.maps import box, slide_facts, write_outlines
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.evaluation.metrics_file import Report
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.opening import published_heatmap
from wsiseg.run.errors import WsisegError


def run(folder: Path, **how: Any) -> Report:
    cohort = folder / "cohort.csv"
    config: dict[str, Any] = {"predictions": (folder / "maps",), "truth": folder / "truth", "resamples": 50}
    return evaluate(EvaluateConfig(**(config | {"cohort": cohort if cohort.exists() else None} | how)))


def test_published_maps_against_their_thresholded_twins(data: Path, tmp_path: Path) -> None:
    maps = data / "tumor_maps"
    began = time.process_time()
    report = run(tmp_path, predictions=(maps / "raw",), truth=maps / "thresholded")
    assert time.process_time() - began < 10
    # Not exactly 1: the authors cut at p > 0.3 before they wrote 8 bits, so red 76 is on both sides of the cut.
    assert report.without_background["auc"]["value"] == pytest.approx(1.0, abs=1e-5)
    assert report.with_background["auc"]["value"] == pytest.approx(1.0, abs=1e-5)
    statuses = [record.status for record in report.slides]
    assert (len(statuses), statuses.count("ok"), statuses.count("skipped")) == (150, 120, 30)
    skipped = next(record for record in report.slides if record.status == "skipped")
    assert skipped.error is not None
    assert "set to zero by hand" in skipped.error.message
    assert report.exit_code == 0
    assert report.tumor_area is not None
    assert report.tumor_area["slides"] == 0  # nobody knows their pixel size


def test_zeroed_maps_are_no_truth_either(data: Path, tmp_path: Path) -> None:
    name = "TCGA-18-3409-11A-01-TS1.9bd57bcc-6f43-40ff-b8f5-ab028bc17e65"
    picture = data / "tumor_maps" / "raw" / f"{name}.svs.png"
    zeroed = published_heatmap(picture)
    replace(zeroed, model={}).save(tmp_path / "maps" / f"{name}.ome.zarr")
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / picture.name).write_bytes(picture.read_bytes())
    zeroed.save(tmp_path / "other" / f"{name}.ome.zarr")
    for truth in ("truth", "other"):
        with pytest.raises(WsisegError, match="set to zero by hand is not truth"):
            run(tmp_path, truth=tmp_path / truth)


def test_a_published_map_takes_its_scale_from_its_slide(tmp_path: Path, data: Path) -> None:
    (tmp_path / "maps").mkdir()
    slide = "TCGA-CR-7395-01A-01-TS1"
    pixels = np.zeros((8, 10, 3), np.uint8)  # the slide has 4443 x 3567 pixels
    pixels[2:5, 3:8] = (200, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "maps" / f"{slide}.svs.png")
    write_outlines(tmp_path / "truth" / f"{slide}.svs.geojson", box(1400, 900, 3500, 2200))
    row = f"{slide},{data / 'slides' / slide}.svs,0.5"
    (tmp_path / "cohort.csv").write_text(f"slide,path,mpp\n{row}\n")
    report = run(tmp_path)
    looked = report.without_background["tumor_px"] + report.without_background["other_px"]
    assert looked == pytest.approx(3 * 5 * 448**2)
    assert report.with_background["tumor_px"] + report.with_background["other_px"] == pytest.approx(4443 * 3567)
    Image.fromarray(pixels[:, :5]).save(tmp_path / "maps" / f"{slide}.svs.png")
    with pytest.raises(WsisegError, match="do not cover the slide's 4443x3567"):
        run(tmp_path)


def camelyon_map(path: Path, content: dict[str, Any], cell_um: float) -> Heatmap:
    """Write a map of a slide of 100,000 pixels or more a side, a little better than chance."""
    rng = np.random.default_rng(0)
    corners = np.concatenate([one["vertices"] for side in ("positive", "negative") for one in content[side]])
    width, height = (max(100_000, int(side) + 2000) for side in corners.max(0))
    columns, rows = (-(-round(side * 0.243) // round(cell_um)) for side in (width, height))
    values = rng.random((rows, columns)).astype(np.float32) * 0.8
    image = Image.new("1", (columns, rows))
    for one in content["positive"]:
        scaled = np.array(one["vertices"]) * 0.243 / cell_um
        ImageDraw.Draw(image).polygon(scaled.ravel().tolist(), fill=1)
    values[np.asarray(image)] += 0.2
    blobs = np.kron(rng.random((rows // 40 + 1, columns // 40 + 1)) < 0.5, np.ones((40, 40), bool))[:rows, :columns]
    values[blobs & ~np.asarray(image)] = np.nan
    heatmap = Heatmap(values, cell_um, slide_facts(width, height, 0.243))
    heatmap.save(path)
    return heatmap


@pytest.mark.slow
def test_eleven_real_camelyon_slides_take_seconds_where_brute_force_takes_minutes(data: Path, tmp_path: Path) -> None:
    paths = sorted((data / "annotations" / "camelyon16_json").glob("Tumor_*.json"))
    (tmp_path / "truth").mkdir()
    for path in paths:
        content = json.loads(path.read_text())
        camelyon_map(tmp_path / "maps" / f"{path.stem}.ome.zarr", content, 112.0)
        (tmp_path / "truth" / path.name).write_bytes(path.read_bytes())
    tracemalloc.start()
    began = time.process_time()
    report = run(tmp_path, resamples=1000)
    seconds = time.process_time() - began
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(report.slides) == 11
    assert report.exit_code == 0
    assert seconds < 20
    assert most < 1e9


@pytest.mark.slow
def test_brute_force_at_a_sixteenth_agrees_and_takes_fifty_times_as_long(data: Path, tmp_path: Path) -> None:
    step = 16
    path = data / "annotations" / "camelyon16_json" / "Tumor_009.json"
    content = json.loads(path.read_text())
    heatmap = camelyon_map(tmp_path / "maps" / "Tumor_009.ome.zarr", content, 112.0)
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / path.name).write_bytes(path.read_bytes())
    run(tmp_path)  # loads the libraries
    began = time.process_time()
    report = run(tmp_path, resamples=0)
    ours = time.process_time() - began
    began = time.process_time()
    width, height = (side // step for side in heatmap.slide.size_px)
    image = Image.new("1", (width, height))
    for key in ("positive", "negative"):
        for one in content[key]:
            points = (np.array(one["vertices"]) / step - 0.5).ravel().tolist()
            ImageDraw.Draw(image).polygon(points, fill=int(key == "positive"))
    truth = np.asarray(image)
    rows, columns = (
        ((np.arange(count) + 0.5) * step * 0.243 / heatmap.cell_um).astype(int) for count in (height, width)
    )
    scores = heatmap.probabilities[np.ix_(rows, columns)]
    looked = ~np.isnan(scores)
    expected = roc_auc_score(truth[looked], scores[looked])
    with_background = roc_auc_score(truth.ravel(), np.nan_to_num(scores).ravel())
    brute = time.process_time() - began
    assert report.without_background["auc"]["value"] == pytest.approx(expected, abs=1e-3)
    assert report.with_background["auc"]["value"] == pytest.approx(with_background, abs=1e-3)
    assert brute > 50 * ours, (brute, ours)
