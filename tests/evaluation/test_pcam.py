import csv
import gzip
import hashlib
import json
import runpy
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from making.models import DARK_GREEN, write_color_filter_model, write_knowing_model
from wsiseg.config.evaluate import EvaluateConfig, PcamScale
from wsiseg.evaluation import pcam
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.evaluation.metrics_file import Report
from wsiseg.model_file.answer import Answer
from wsiseg.model_file.model_file import BUNDLED, ModelFile, model_path
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.record import Progress
from wsiseg.tiles.pcam_files import BASE, FILES, name

PATCHES = 600


def write_patches(folder: Path, count: int = PATCHES, *, meta: bool = False) -> NDArray[np.bool_]:
    """Write a test split in the original layout: tumour patches are a little darker; give the labels."""
    rng = np.random.default_rng(0)
    labels = rng.random(count) < 0.5
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / name("test", "x"), "w") as file:
        images = file.create_dataset("x", (count, 96, 96, 3), np.uint8, chunks=(1, 96, 96, 3))
        for begin in range(0, count, 500):
            part = labels[begin : begin + 500]
            mean = rng.normal(DARK_GREEN + 10 - 6 * part, 6).reshape(-1, 1, 1, 1)
            images[begin : begin + len(part)] = rng.normal(mean, 20, (len(part), 96, 96, 3)).clip(0, 255)
    with h5py.File(folder / name("test", "y"), "w") as file:
        file["y"] = labels.astype(np.uint8).reshape(-1, 1, 1, 1)
    if meta:
        with (folder / "camelyonpatch_level_2_split_test_meta.csv").open("w", newline="") as table:
            rows = [("", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi")]
            rows += [(str(k), "0", "0", "True", "True", f"camelyon16_test_{k % 13:03}") for k in range(count)]
            csv.writer(table).writerows(rows)
    return labels


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pcam")
    write_patches(folder, meta=True)
    return folder


def run(folder: Path, model: Path, **how: Any) -> Report:
    return evaluate(EvaluateConfig(pcam=folder, model=model, device="cpu", **({"resamples": 200} | how)))


@pytest.mark.parametrize(
    ("card", "asked", "scale", "side_px"),
    [
        ({"mpp": 0.5}, None, "doubled", 224),
        ({"mpp": 0.68}, None, "doubled", 224),
        ({"mpp": 0.7}, None, "native", 96),
        ({"mpp": 1.0, "tile_px": 96}, None, "native", 96),
        ({"mpp": 1.0, "tile_px": 96}, "doubled", "doubled", 192),
        ({"mpp": 0.5}, "native", "native", 96),
    ],
)
def test_a_model_sees_patches_at_the_scale_that_is_nearer_to_its_own(
    tmp_path: Path, card: dict[str, Any], asked: PcamScale | None, scale: str, side_px: int
) -> None:
    with ModelFile.open(write_color_filter_model(tmp_path / "m.onnx", **card)) as opened:
        view = pcam.View.of(opened, asked)
        assert (view.scale, view.side_px) == (scale, side_px)
        assert view.images(np.ones((2, 96, 96, 3), np.uint8)).shape == (2, side_px, side_px, 3)


def test_tiles_that_are_no_images_for_a_map_are_padded_or_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ModelFile.open(model) as opened:
        whole = opened.card
        monkeypatch.setattr(opened, "card", whole.model_copy(update={"output_stride": None}))
        images = pcam.View.of(opened, "native").images(np.full((1, 96, 96, 3), 255, np.uint8))
        assert images.shape == (1, 224, 224, 3)
        assert images[0, 64:160, 64:160].min() == 255
        assert images.sum() == 96 * 96 * 3 * 255
        monkeypatch.setattr(opened, "card", whole.model_copy(update={"output_stride": None, "tile_px": 128}))
        with pytest.raises(UsageError, match="128 pixels are smaller than a patch of 192; set pcam-scale to native"):
            pcam.View.of(opened, "doubled")
        monkeypatch.setattr(opened, "card", whole.model_copy(update={"output_stride": None, "tile_px": 64}))
        with pytest.raises(UsageError, match="64 pixels are smaller than a patch of 96"):
            pcam.View.of(opened, "native")


def test_patches_are_doubled_as_by_torch_and_padded_with_zeros() -> None:
    patches = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
    planes = torch.from_numpy(patches).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(planes, scale_factor=2, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(pcam.doubled(patches), expected.permute(0, 2, 3, 1).numpy(), atol=1e-3)
    padded = torch.nn.functional.pad(expected, (16, 16, 16, 16)).permute(0, 2, 3, 1).numpy()
    images = pcam.View("doubled", 224).images(patches)
    np.testing.assert_allclose(images, padded, atol=0.5 + 1e-3)  # rounded, as the model takes whole numbers


def test_patches_run_through_the_protocol(folder: Path, model: Path, tmp_path: Path) -> None:
    report = run(folder, model, out=tmp_path / "out", fail_under=("auc=0.5",))
    with np.load(tmp_path / "out" / "pcam-test.npz") as kept, h5py.File(folder / name("test", "y")) as y:
        scores, labels = kept["probabilities"], y["y"][:].ravel()
    expected = roc_auc_score(labels, scores)
    with ModelFile.open(model) as opened, h5py.File(folder / name("test", "x")) as x:
        alone = opened.answer(pcam.View("doubled", 224).images(x["x"][590:])).probabilities
    np.testing.assert_allclose(scores[590:], alone, atol=1e-6)
    found = report.without_background["auc"]
    assert found["value"] == pytest.approx(expected, abs=1e-9)
    assert 0.5 < found["ci95"][0] < found["value"] < found["ci95"][1]
    assert (report.unit, report.split, report.settings["resampled"]) == ("patch", "test", "slide")
    assert report.without_background == report.with_background
    assert (report.judged, report.unknown_share, list(report.columns)) == (None, None, ["all patches"])
    assert report.notes == (
        "patches of 0.972 um/px shown doubled, as in the paper, in images of 224 px, to a model of 0.5 um/px",
        "the test split has 600 patches, the published one 32,768",
    )
    assert (report.settings["scale"], report.settings["image_px"]) == ("doubled", 224)
    assert {"metrics.json", "report.html", "roc.png", "pcam-test.npz"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["unit"] == "patch"


def test_answers_of_turned_patches_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_patches(tmp_path, 20)
    corner = model_of_corner(monkeypatch, tmp_path)
    report = run(tmp_path, corner, out=tmp_path / "out", views=2)
    assert report.settings["views"] == 2
    assert "the mean over 2 views of each" in report.notes[0]
    with h5py.File(tmp_path / name("test", "x")) as x:
        expected = (x["x"][:, 0, 0, 0] / 255 + x["x"][:, -1, -1, 0] / 255) / 2
    with np.load(tmp_path / "out" / "pcam-test.npz") as kept:
        np.testing.assert_allclose(kept["probabilities"], expected, atol=1e-6)


def model_of_corner(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Write a model whose answer is the red of the first pixel."""
    monkeypatch.setattr(ModelFile, "answer", lambda _, images: Answer(np.asarray(images[:, 0, 0, 0] / 255, np.float32)))
    return write_color_filter_model(folder / "m.onnx", mpp=1.0)


def test_patches_of_unknown_slides_are_drawn_singly(tmp_path: Path, model: Path) -> None:
    labels = write_patches(tmp_path / "pcam", 300)
    report = run(tmp_path / "pcam", model)
    assert report.settings["resampled"] == "patch"
    assert report.without_background["tumor_px"] == labels.sum()
    low, high = report.without_background["auc"]["ci95"]
    assert 0.01 < high - low < 0.2


class Stops(Progress):
    """Interrupt after so many patches."""

    def __init__(self, after: int) -> None:
        self.left, self.asked = after, 0

    def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:  # noqa: ARG002  what the protocol hands over
        self.asked += tiles
        if self.asked > self.left:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_where_it_stopped(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pcam, "_SAVED_EVERY", 128)
    folder = tmp_path / "pcam"
    write_patches(folder, 400)
    whole = run(folder, model)
    config = EvaluateConfig(pcam=folder, model=model, device="cpu", out=tmp_path, resamples=200)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, Stops(after=300))
    with np.load(tmp_path / "pcam-test.npz") as kept:
        assert len(kept["probabilities"]) == 256
    watch = Stops(after=10**9)
    report = evaluate(config, watch)
    assert watch.asked == 400
    assert report.without_background == whole.without_background
    asked: list[int] = []
    monkeypatch.setattr(ModelFile, "answer", lambda _, tiles: asked.append(len(tiles)))
    assert evaluate(config).without_background == whole.without_background
    assert asked == []


def test_another_model_or_scale_begins_anew(model: Path, tmp_path: Path) -> None:
    other = write_color_filter_model(tmp_path / "other.onnx", name="other")
    (tmp_path / "few").mkdir()
    write_patches(tmp_path / "few", 100)
    first = run(tmp_path / "few", model, out=tmp_path / "out")
    again = run(tmp_path / "few", other, out=tmp_path / "out")
    assert first.settings["sha256"] != again.settings["sha256"]
    native = run(tmp_path / "few", other, out=tmp_path / "out", pcam_scale="native")
    assert native.settings["scale"] == "native"
    assert native.without_background["brier"] != again.without_background["brier"]
    with np.load(tmp_path / "out" / "pcam-test.npz") as kept:
        assert str(kept["key"]).startswith(again.settings["sha256"])
    (tmp_path / "out" / "pcam-test.npz").write_bytes(b"broken")
    assert run(tmp_path / "few", other, out=tmp_path / "out").without_background == again.without_background


def test_unknown_patches_count_in_the_protocol_and_are_told_apart(tmp_path: Path) -> None:
    labels = write_patches(tmp_path, 300)
    with h5py.File(tmp_path / name("test", "x"), "r+") as file:
        file["x"][:60, ..., 2] = 250
    model = write_knowing_model(tmp_path / "m.onnx", limit=200, mpp=1.0)
    report = run(
        tmp_path, model, out=tmp_path / "out", fail_over=("unknown_share=0.1",), fail_under=("judged.auc=0.1",)
    )
    with np.load(tmp_path / "out" / "pcam-test.npz") as kept:
        scores, distances = kept["probabilities"], kept["distances"]
    assert (distances > 200).tolist() == [True] * 60 + [False] * 240
    assert report.unknown_share is not None
    assert report.unknown_share["value"] == pytest.approx(0.2)
    assert 0.13 < report.unknown_share["ci95"][0] < 0.2 < report.unknown_share["ci95"][1] < 0.27
    assert report.without_background["unknown_share"] == report.unknown_share
    assert report.judged is not None
    assert report.judged["slides"] == 240
    assert report.judged["auc"]["value"] == pytest.approx(roc_auc_score(labels[60:], scores[60:]))
    assert report.without_background["auc"]["value"] == pytest.approx(roc_auc_score(labels, scores))
    assert [gate.measure for gate in report.unmet] == ["unknown_share"]
    assert list(report.columns) == ["all patches", "judged patches"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "judged patches" in page
    assert "with background</th>" not in page.partition("<h2>Threshold</h2>")[0]
    nothing = run(tmp_path, write_knowing_model(tmp_path / "m.onnx", limit=1, mpp=1.0))
    assert (nothing.judged, nothing.without_background["unknown_share"]["value"]) == (None, 1)


def test_a_part_that_is_stored_as_pictures_is_written_as_the_published_files(tmp_path: Path, model: Path) -> None:
    script = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "pcam_subset.py"))
    labels, rng = [1, 0, 1], np.random.default_rng(0)
    patches = rng.integers(0, 256, (3, 96, 96, 3), np.uint8)
    with zipfile.ZipFile(tmp_path / "valid.zip", "w") as archive:
        for number, patch in enumerate(patches):
            Image.fromarray(patch).save(tmp_path / "p.png")
            archive.write(tmp_path / "p.png", f"{number}.png")
    rows = "".join(f"val,{label},{number}.png\n" for number, label in enumerate(labels))
    (tmp_path / "patches.csv").write_text(f"split,label,name\ntest,0,other.png\n{rows}")
    assert script["write_split"](tmp_path, tmp_path, "valid") == 3
    with h5py.File(tmp_path / name("valid", "x")) as x, h5py.File(tmp_path / name("valid", "y")) as y:
        np.testing.assert_array_equal(x["x"][:], patches)
        assert y["y"][:].ravel().tolist() == labels
    assert run(tmp_path, model, split="val").without_background["tumor_px"] == 2


def test_published_files_are_unpacked_and_broken_ones_refused(tmp_path: Path, model: Path) -> None:
    write_patches(tmp_path, 20)
    for plain in (tmp_path / name("test", "x"), tmp_path / name("test", "y")):
        with plain.open("rb") as source, gzip.open(f"{plain}.gz", "wb") as target:
            shutil.copyfileobj(source, target)
        plain.unlink()
    assert run(tmp_path, model).without_background["slides"] == 20
    (tmp_path / name("test", "x")).unlink()
    packed = tmp_path / f"{name('test', 'x')}.gz"
    packed.write_bytes(packed.read_bytes()[:-1000])
    with pytest.raises(WsisegError, match="cannot be unpacked"):
        run(tmp_path, model)
    assert not (tmp_path / name("test", "x")).exists()
    packed.unlink()
    with pytest.raises(UsageError, match="no such file; wsiseg fetch pcam gets it"):
        run(tmp_path, model)


def test_files_that_are_laid_out_otherwise_are_refused(tmp_path: Path, model: Path) -> None:
    write_patches(tmp_path, 20)
    images, labels = tmp_path / name("test", "x"), tmp_path / name("test", "y")
    with h5py.File(labels, "w") as file:
        file["y"] = np.zeros(19)
    with pytest.raises(WsisegError, match="not laid out as PatchCamelyon"):
        run(tmp_path, model)
    labels.write_bytes(b"no HDF5")
    with pytest.raises(WsisegError, match="cannot be read as HDF5"):
        run(tmp_path, model)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.zeros((20, 96, 96, 3), np.uint8)
    write_patches(tmp_path, 20)
    images.unlink()
    with h5py.File(images, "w") as file:
        file["x"] = h5py.ExternalLink("secret.h5", "x")
    with pytest.raises(WsisegError, match="holds no data set x"):
        run(tmp_path, model)
    layout = h5py.VirtualLayout((20, 96, 96, 3), np.uint8)
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (20, 96, 96, 3))
    with h5py.File(images, "w") as file:
        file.create_virtual_dataset("x", layout)
    with pytest.raises(WsisegError, match="lies in other files"):
        run(tmp_path, model)


def test_a_split_that_is_none_is_refused(folder: Path, model: Path) -> None:
    with pytest.raises(UsageError, match="PatchCamelyon has no split nightly"):
        run(folder, model, split="nightly")


def test_the_bundled_model_is_found_by_its_name(tmp_path: Path) -> None:
    write_patches(tmp_path, 8)
    report = run(tmp_path, Path(BUNDLED), resamples=0)
    with ModelFile.open(model_path(BUNDLED), "cpu") as bundled:
        assert (report.settings["model"], report.settings["sha256"]) == (bundled.card.name, bundled.sha256)


def test_the_published_files_are_pinned() -> None:
    assert BASE == "https://zenodo.org/records/2546921/files/"
    assert [one.name.removeprefix("camelyonpatch_level_2_split_") for one in FILES] == [
        f"{split}_{part}.h5.gz" for split in ("train", "valid", "test") for part in ("x", "y")
    ]
    assert [one.size for one in FILES] == [6421353462, 21378, 805965320, 3038, 800875929, 3040]
    sums = "".join(one.sha256 for one in FILES)
    assert hashlib.sha256(sums.encode()).hexdigest() == PINNED


PINNED = "3d12c02851f772bdd69a5744a3d824a05d931af3ab7ca24bdd32ebcf474ebe30"
"""SHA-256 over all checksums, copied by hand: a slip of one digit shows."""
