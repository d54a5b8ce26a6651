import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from wsiseg.config import EvaluateConfig
from wsiseg.evaluate import evaluate
from wsiseg.heatmap import Heatmap
from wsiseg.slide import SlideFacts


def facts(width: int, height: int, mpp: float = 0.5, bounds: tuple[int, int, int, int] | None = None) -> SlideFacts:
    return SlideFacts("a.svs", "f", (width, height), (mpp, mpp), "user", {}, bounds, "generic", icc_present=False)


def box(left: int, top: int, right: int, below: int, name: str = "Tumor") -> dict[str, object]:
    ring = [[left, top], [right, top], [right, below], [left, below], [left, top]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}


def write_truth(path: Path, *features: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def test_auc_is_that_of_every_pixel_with_and_without_background(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(1, 8, (7, 9)).astype(np.float32) / 8
    values[rng.random((7, 9)) < 0.3] = np.nan
    Heatmap(values, 5.0, facts(87, 70)).save(tmp_path / "p" / "a.ome.zarr")
    write_truth(tmp_path / "t" / "a.geojson", box(13, 5, 61, 33), box(40, 30, 87, 70))
    report = evaluate(EvaluateConfig(predictions=(tmp_path / "p",), truth=tmp_path / "t"))
    pixels = np.repeat(np.repeat(values, 10, 0), 10, 1)[:70, :87]
    truth = np.zeros((70, 87), bool)
    truth[5:33, 13:61] = truth[30:70, 40:87] = True
    looked = ~np.isnan(pixels)
    assert report.without_background["auc"]["value"] == pytest.approx(roc_auc_score(truth[looked], pixels[looked]))
    expected = roc_auc_score(truth.ravel(), np.nan_to_num(pixels).ravel())
    assert report.with_background["auc"]["value"] == pytest.approx(expected)
