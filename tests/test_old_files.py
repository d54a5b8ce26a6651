"""Files that version 0.1 wrote open, go on and say the same; tests/data/version-0.1/README.md says how they came."""

import hashlib
import json
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from making.progress import Heard
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.config.export import ExportConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.config.tile import TileConfig
from wsiseg.config.train import TrainConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_file import ModelFile
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.record import Run
from wsiseg.tiles.store import TileStore
from wsiseg.tiles.tile import tile

OLD = Path(__file__).parent / "data" / "version-0.1"
RUN_OF: dict[str, dict[str, Any]] = {"run": {"train_last": 1, "micro_batch": 12}, "frozen": {"freeze": True}}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpack the files where the test works; their paths are relative, as the user's were."""
    for archive in OLD.glob("*.tar.xz"):
        with tarfile.open(archive) as opened:
            opened.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11 has it from 3.11.4 on
            opened.extractall(tmp_path)  # noqa: S202  our own archive
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What version 0.1 read from its own files."""
    found: dict[str, Any] = json.loads((OLD / "expected.json").read_text())
    return found


def tiles_of(name: str) -> NDArray[np.uint8]:
    with TileStore(Path(f"tiles/{name}.tiles.zarr")) as store:
        return store.read(np.arange(len(store)))


def settings_of(run: str, **changed: Any) -> TrainConfig:
    """The settings that the run was made with."""
    shared = {
        "cohort": Path("tiles/cohort.csv"), "truth": Path("cohort/truth"), "arch": "timm:test_efficientnet",
        "init": "start.pth", "epochs": 8, "bag": 24, "lr": 3e-3, "alpha": 0.2, "beta": 0.4,
    }  # fmt: skip
    return TrainConfig(out=Path(run), **{**shared, **RUN_OF[run], **changed})


@pytest.mark.usefixtures("old")
def test_a_tile_store_gives_its_tiles_and_is_up_to_date(expected: dict[str, Any]) -> None:
    assert hashlib.sha256(tiles_of("slide-5").tobytes()).hexdigest() == expected["tiles_sha256"]
    for number in range(6):
        Path(f"tiles/slide-{number}.png").touch()  # left out of the archive for their size
    run = tile(TileConfig(inputs=("cohort/cohort.csv",), out=Path("tiles"), tile=64, pixels=True))
    assert [record.status for record in run.slides] == ["up_to_date"] * 6


@pytest.mark.parametrize("name", ["model", "frozen"])
@pytest.mark.usefixtures("old")
def test_a_model_file_passes_its_self_test_and_answers_as_before(name: str, expected: dict[str, Any]) -> None:
    with ModelFile.open(f"{name}.onnx") as model:
        answer = model.answer(tiles_of("slide-5"))
        assert (model.limit, answer.distances) == (None, None)
        assert "export it again" in model.warnings[0]
    assert answer.probabilities == pytest.approx(expected[name]["probability"], abs=1e-3)


@pytest.mark.usefixtures("old")
def test_a_model_file_maps_slides() -> None:
    run = predict_slides(PredictConfig(inputs=("cohort/slides/slide-5.tiff",), model=("frozen.onnx",), out=Path("new")))
    assert [record.status for record in run.slides] == ["ok"]
    before, now = (Heatmap.open(Path(f"{folder}/slide-5.ome.zarr")).probabilities for folder in ("maps", "new"))
    assert now == pytest.approx(before, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("run", ["run", "frozen"])
@pytest.mark.usefixtures("old")
def test_a_finished_run_is_up_to_date(run: str) -> None:
    from wsiseg.training.train import train  # noqa: PLC0415  loads torch

    before = Path(run, "last.pt").read_bytes()
    heard = Heard()
    assert train(settings_of(run), heard).status == "up_to_date", heard.notes
    assert Path(run, "last.pt").read_bytes() == before


@pytest.mark.parametrize("run", ["run", "frozen"])
@pytest.mark.usefixtures("old")
def test_a_run_goes_on_where_it_was(run: str) -> None:
    from wsiseg.training.train import train  # noqa: PLC0415  loads torch

    before = Path(run, "metrics.csv").read_text().splitlines()
    train(settings_of(run, epochs=9, resume=True))
    now = Path(run, "metrics.csv").read_text().splitlines()
    assert now[1:9] == before[1:]
    assert len(now) == 10


@pytest.mark.parametrize("run", ["run", "frozen"])
@pytest.mark.usefixtures("old")
def test_a_run_becomes_a_model_file(run: str, expected: dict[str, Any]) -> None:
    from wsiseg.exporting.export import export  # noqa: PLC0415  loads torch

    # The run was hardly trained: some of its layers change no answer, which no self-test can see.
    export(ExportConfig(run=Path(run), out=Path("new.onnx"), allow_loss=run == "run"))
    with ModelFile.open("new.onnx") as model:
        probabilities = model.answer(tiles_of("slide-5")).probabilities
    if run == "frozen":  # the other one was exported with a penalty for unknown tissue, which went
        assert probabilities == pytest.approx(expected["frozen"]["probability"], abs=1e-3)


@pytest.mark.usefixtures("old")
def test_a_heatmap_is_read_and_evaluated(expected: dict[str, Any]) -> None:
    heatmap = Heatmap.open(Path("maps/slide-5.ome.zarr"))
    assert (heatmap.version, heatmap.model["name"]) == ("0.1.0", "wsiseg test_efficientnet")
    report = evaluate(
        EvaluateConfig(predictions=(Path("maps"),), truth=Path("cohort/truth"), cohort=Path("cohort/cohort.csv"))
    )
    assert report.without_background["auc"]["value"] == pytest.approx(expected["auc"])


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize(("folder", "slides"), [("maps", 2), ("tiles", 6)])
def test_the_record_of_a_run_is_read(folder: str, slides: int) -> None:
    run = Run.read(Path(folder, "run.json"))
    assert (run.status, run.totals["ok"]) == ("complete", slides)
    assert [record.tiles for record in run.slides] == [36] * slides


@pytest.mark.usefixtures("old")
def test_no_file_names_the_machine_that_wrote_it() -> None:
    written = [Path("run/config.toml"), Path("maps/run.json"), Path("tiles/run.json"), Path("tiles/cohort.csv")]
    assert not [path for path in written if "/home" in path.read_text() or "/tmp" in path.read_text()]  # noqa: S108  sought
    assert tomllib.loads(written[0].read_text())["cohort"] == "tiles/cohort.csv"
