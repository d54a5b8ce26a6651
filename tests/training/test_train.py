"""Training from bags to checkpoint, on a small cohort."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from making.progress import Heard
from making.tiled import SMALL, TILE_PX, training
from making.waiting import LONGEST_S
from wsiseg.config.doctor import DoctorConfig
from wsiseg.config.settings import read_toml
from wsiseg.config.train import TrainConfig
from wsiseg.exporting.from_run import from_run
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.network.network import TileClassifier, build, load_classifier
from wsiseg.network.weights import read_torch
from wsiseg.prediction.verify import verify
from wsiseg.run.errors import DeviceError, UsageError, WsisegError
from wsiseg.training.bags import TileSource
from wsiseg.training.fit import better
from wsiseg.training.processes import Processes, device_name, interleaved, leaving_word_to_others, precision_on
from wsiseg.training.slides import labelled_slides
from wsiseg.training.train import Trained, train
from wsiseg.training.truths import tile_truths


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = read_torch(path)["network"]
    return tensors


def test_a_run_leaves_checkpoint_state_settings_and_measures(cohort: Path, truth: Path, tmp_path: Path) -> None:
    out, listening = tmp_path / "run", Heard()
    trained = train(training(cohort, out, truth=truth), listening)
    assert isinstance(trained, Trained)
    assert {path.name for path in out.iterdir()} == {
        "best.pt", "last.pt", "config.toml", "metrics.csv", "report.html", "run.json",
    }  # fmt: skip
    assert verify(DoctorConfig(slide=out)).facts["run"]["files"] == "5 of 5 as recorded"
    for name in ("best.pt", "config.toml", "last.pt"):
        content = (out / name).read_bytes()
        (out / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert [text.partition(":")[0] for text in verify(DoctorConfig(slide=out)).problems] == [name]
        (out / name).write_bytes(content)
    assert [row["epoch"] for row in rows(out / "metrics.csv")] == ["1", "2"]
    assert all(0 < float(row["risk"]) < 5 and 0 <= float(row["waiting"]) <= 1 for row in rows(out / "metrics.csv"))
    checkpoint = Checkpoint.load(out / "best.pt")
    assert (checkpoint.arch, checkpoint.tile_px, checkpoint.mpp) == (SMALL, TILE_PX, 0.5)
    assert (checkpoint.alpha, checkpoint.beta, checkpoint.sites) == (0.2, 0.2, ("colon",))
    assert 0 <= checkpoint.threshold <= 1
    assert checkpoint.trained_on["train"]["slides"] == 4
    measures = trained.best.figures["test"]["all"]
    assert set(measures) == {"auc", "auc_background", "precision", "recall", "f1", "slide_auc"}
    assert trained.best.figures["test"]["colon"] == measures
    written = TrainConfig.checked(**read_toml(out / "config.toml"))
    assert written == training(cohort, out, truth=truth, precision="float32")
    assert re.search(r"epoch 2/2: risk \d", listening.notes[-1])


def test_colors_are_those_of_the_training_tiles(cohort: Path, tmp_path: Path) -> None:
    train(training(cohort, tmp_path, epochs=1, max_tiles=2000))
    tensors = Checkpoint.load(tmp_path / "best.pt").state_dict
    source = TileSource()
    tiles = [source.read(slide, np.arange(slide.tiles)) for slide in labelled_slides(cohort) if slide.split == "train"]
    colors = torch.cat(tiles).reshape(-1, 3).double() / 255
    torch.testing.assert_close(tensors["mean"].double(), colors.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(tensors["std"].double(), colors.std(0), atol=0.02, rtol=0)


def test_the_report_stands_alone(cohort: Path, truth: Path, tmp_path: Path) -> None:
    train(training(cohort, tmp_path, truth=truth, epochs=1))
    text = (tmp_path / "report.html").read_text()
    assert text.count("<img") == text.count("data:image/jpeg;base64,") == 8
    assert "AUC on the validation split" in text
    assert "epoch 1 of 1" in text
    assert not re.search(r"(src|href)=.?(http|//|file)", text)


def test_a_frozen_backbone_gives_a_plain_classifier(cohort: Path, truth: Path, tmp_path: Path) -> None:
    """The head of the checkpoint takes the raw features that the head in training saw standardised."""
    train(training(cohort, tmp_path, truth=truth, freeze=True, views=2))
    slides = [slide for slide in labelled_slides(cohort) if slide.split == "val"]
    classifier = load_classifier(Checkpoint.load(tmp_path / "best.pt"))
    probabilities = []
    for slide in slides:
        with torch.inference_mode():
            logits = classifier(TileSource().read(slide, np.arange(slide.tiles)))
        probabilities.append(logits[:, 0].sigmoid().numpy())
    truths = tile_truths(truth, slides, lambda _: None)
    scores = np.concatenate(probabilities)
    tumor, rest = (np.concatenate([getattr(truths[one.slide], name) for one in slides]) for name in ("tumor", "rest"))
    assert float(rows(tmp_path / "metrics.csv")[-1]["val_pixel_auc"]) == pytest.approx(
        _auc(scores, tumor, rest), abs=0.01
    )


def _auc(scores: np.ndarray[Any, Any], positive: np.ndarray[Any, Any], negative: np.ndarray[Any, Any]) -> float:
    """All pairs, by brute force."""
    wins = (scores[:, None] > scores[None, :]) + 0.5 * (scores[:, None] == scores[None, :])
    return float(positive @ wins @ negative / positive.sum() / negative.sum())


def test_features_are_computed_once(cohort: Path, tmp_path: Path) -> None:
    train(training(cohort, tmp_path, freeze=True, epochs=1))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.npy")}
    assert len(files) == 2 * 8, "of each slide its features, and what an early stage is like"
    train(training(cohort, tmp_path, freeze=True, epochs=1, alpha=0.4))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.npy")} == files


def test_the_same_again_is_up_to_date_and_other_settings_are_redone(cohort: Path, tmp_path: Path) -> None:
    train(training(cohort, tmp_path))
    before = (tmp_path / "best.pt").stat().st_mtime_ns
    assert train(training(cohort, tmp_path)).status == "up_to_date"
    assert (tmp_path / "best.pt").stat().st_mtime_ns == before
    listening = Heard()
    assert train(training(cohort, tmp_path, lr=1e-3), listening).status == "ok"
    assert listening.notes.count(f"{tmp_path}: trained again, as these changed: lr") == 1
    with pytest.raises(UsageError, match="was made with other settings: beta"):
        train(training(cohort, tmp_path, lr=1e-3, beta=0.4, resume=True))


def test_a_run_of_an_earlier_version_goes_on_unless_it_used_what_is_gone(cohort: Path, tmp_path: Path) -> None:
    train(training(cohort, tmp_path, max_tiles=2000))
    settings = tmp_path / "config.toml"
    refused = 'guard = 0.0\noptimizer = "adam"\ntop = 0\n'
    settings.write_text(settings.read_text().replace("c0 = 1.0", "c0 = 0").replace("c1 = 1.0", "c1 = 0") + refused)
    assert from_run(tmp_path, None).facts["tile_px"] == TILE_PX
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["settings"]["context"]
    del state["settings"]["max_tiles"]
    state["settings"] |= {"guard": 0.0, "parts": 1, "test_views": 1, "optimizer": "adam"}
    torch.save({**state, "last_risks": {"slide-0": 0.7}}, tmp_path / "last.pt")
    assert train(training(cohort, tmp_path, max_tiles=2000, resume=True)).status == "up_to_date"
    with pytest.raises(UsageError, match="was made with other settings: context; give"):
        train(training(cohort, tmp_path, max_tiles=2000, resume=True, context=64))
    state["settings"]["guard"] = 0.3
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(
        UsageError, match=r"other settings: guard = 0.3, which is no longer a setting; give --overwrite"
    ):
        train(training(cohort, tmp_path, max_tiles=2000, resume=True))


def test_the_state_of_an_earlier_version_goes_on_within_its_epoch(cohort: Path, tmp_path: Path) -> None:
    train(training(cohort, tmp_path, epochs=1))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    # As if it had stopped after the last step of its only epoch.
    risks = [("slide-0", 0.7, 12), ("slide-1", 0.9, 12)]
    torch.save(
        {**state, "epoch": 0, "place": 4, "risks": risks, "history": [], "finished": False}, tmp_path / "last.pt"
    )
    train(training(cohort, tmp_path, epochs=1))
    assert float(rows(tmp_path / "metrics.csv")[0]["risk"]) == pytest.approx(0.8)
    _assert_same(weights(tmp_path / "last.pt"), state["network"])


def test_an_epoch_that_two_processes_began_is_finished_by_one(cohort: Path, tmp_path: Path) -> None:
    settings = training(cohort, tmp_path, epochs=1)
    train(settings)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    # Two visits of each were all four slides.
    left = {"epoch": 0, "place": 2, "processes": 2, "risks": [(0.7, 12)], "history": [], "finished": False}
    torch.save({**state, **left}, tmp_path / "last.pt")
    train(settings)
    _assert_same(weights(tmp_path / "last.pt"), state["network"])


@pytest.mark.parametrize("name", ["guard", "test-views", "parts", "optimizer", "top", "tune-lr", "tune-epochs"])
def test_settings_that_went_are_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is no longer a setting: "):
        TrainConfig.checked(**{"cohort": "c.csv", "out": "r", name.replace("-", "_"): 1})


@pytest.mark.parametrize(
    "values",
    [pytest.param({"max_tiles": 12}, marks=pytest.mark.slow), {"freeze": True, "lr": 1e-2}],
    ids=["whole", "frozen"],
)
def test_more_epochs_go_on_where_fewer_ended(cohort: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    train(training(cohort, tmp_path / "long", epochs=3, **values))
    train(training(cohort, tmp_path / "short", epochs=1, **values))
    train(training(cohort, tmp_path / "short", epochs=3, resume=True, **values))
    _assert_same(weights(tmp_path / "short" / "last.pt"), weights(tmp_path / "long" / "last.pt"))


def _assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


class Killed(BaseException):
    """Ends a run as if it had been killed."""


def train_until(place: str, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and be killed where a function is called."""

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, killed)
        with pytest.raises(Killed):
            train(config)


def test_a_run_killed_before_its_best_epoch_was_judged_judges_it(
    cohort: Path, truth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that had ended before with fewer epochs."""
    settings = training(cohort, tmp_path / "run", truth=truth, freeze=True, lr=1e-2, epochs=1)
    train(settings)
    more = settings.model_copy(update={"epochs": 2})
    train_until("wsiseg.training.train.judged", more, monkeypatch)
    with pytest.raises(UsageError, match="the training was interrupted"):
        from_run(tmp_path / "run", None)
    again = train(more)
    assert again.status == "ok"
    whole = train(more.model_copy(update={"out": tmp_path / "whole"}))
    assert again.best.figures == whole.best.figures
    assert from_run(tmp_path / "run", None).facts["threshold"] == whole.best.threshold


def test_what_another_run_left_is_not_taken_for_that_of_one_that_was_killed(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = training(cohort, tmp_path, freeze=True, epochs=1)
    train(settings)
    train_until("wsiseg.training.fit._visit", settings.model_copy(update={"lr": 1e-3}), monkeypatch)
    with pytest.raises(UsageError, match="the training was interrupted"):
        from_run(tmp_path, None)


def test_a_run_of_more_epochs_is_not_taken_for_one_of_fewer(cohort: Path, tmp_path: Path) -> None:
    train(training(cohort, tmp_path, freeze=True, epochs=3))
    fewer = training(cohort, tmp_path, freeze=True, epochs=2)
    with pytest.raises(UsageError, match="was made with other settings: epochs"):
        train(fewer.model_copy(update={"resume": True}))
    assert train(fewer).status == "ok"
    assert len(rows(tmp_path / "metrics.csv")) == 2


def test_validation_that_is_no_number_ends_the_run(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By it no epoch can be ranked: the first would be kept, as nothing is less than NaN."""
    forward = TileClassifier.forward

    def overflowing(self: TileClassifier, images: torch.Tensor) -> torch.Tensor:
        return forward(self, images) * (1 if self.training else torch.nan)

    monkeypatch.setattr(TileClassifier, "forward", overflowing)
    with pytest.raises(WsisegError, match="slide-4: NaN or infinity in its logits; lower --lr"):
        train(training(cohort, tmp_path))


def test_a_state_that_is_none_is_refused(cohort: Path, tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "last.pt")
    with pytest.raises(WsisegError, match="not the state of a training run"):
        train(training(cohort, tmp_path))


def test_a_risk_that_is_no_number_stops_and_keeps_the_last_good_state(cohort: Path, tmp_path: Path) -> None:
    train(training(cohort, tmp_path, epochs=1))
    sentence = r"slide-\d: (the risk is|NaN or infinity in the weights) .*in epoch \d; lower --lr"
    with pytest.raises(WsisegError, match=sentence):
        train(training(cohort, tmp_path, lr=1e30, epochs=30, save_minutes=1e-9))
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "last.pt").values())


def test_a_run_without_validation_slides_keeps_the_last_epoch(cohort: Path, tmp_path: Path) -> None:
    text = cohort.read_text().replace(",val,", ",train,")
    alone = cohort.with_name("no-val.csv")
    alone.write_text(text)
    listening = Heard()
    train(training(alone, tmp_path), listening)
    assert "no validation slides: the last epoch is kept" in listening.notes
    assert Checkpoint.load(tmp_path / "best.pt").figures["epoch"]["epoch"] == 2


def test_crops_smaller_than_the_tiles_are_refused(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="context 48 is smaller than the tiles of 64 pixels"):
        train(training(cohort, tmp_path, context=48))
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there_is_named(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="device nonsense"):
        train(training(cohort, tmp_path, device="nonsense"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"alpha": 0.6, "beta": 0.6}, "together exceed 1"),
        ({"alpha": 0.0}, "alpha: Input should be greater than 0"),
        ({"supervised": True}, "supervised needs the tiles' true labels"),
        ({"views": 3}, "views are for freeze"),
        ({"stain_jitter": 0.1, "freeze": True}, "stain-jitter changes further copies of frozen tiles alone"),
        ({"features": "f", "init": "best.pt"}, "stored features come without their network and colours"),
        ({"features": "f", "colors": "cohort"}, "leave out init and colors"),
        ({"c0": 0, "c1": 0}, "with c0 and c1 0 nothing is learned"),
        ({"loss": "focal"}, "loss is no longer a setting: the loss of a tile is always its cross-entropy"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_once(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)):
        TrainConfig.checked(cohort="c.csv", out="r", **values)


def test_a_grid_trains_every_configuration_on_shared_features(cohort: Path, truth: Path, tmp_path: Path) -> None:
    settings = training(cohort, tmp_path, truth=truth, freeze=True, grid=True, supervised=True, epochs=1)
    trained = train(settings)
    assert len(trained.configurations) == 16
    table = rows(tmp_path / "grid.csv")
    assert list(table[0])[:4] == ["alpha", "beta", "split", "site"]
    assert len(table) == 16 * 2 * 2
    pairs = {(row["alpha"], row["beta"]) for row in table}
    assert len(pairs) == 16
    assert all(float(alpha) + float(beta) <= 1 + 1e-9 for alpha, beta in pairs if alpha)
    assert table[-1]["alpha"] == table[-1]["beta"] == ""
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > 800
    assert len(list((tmp_path / "features").rglob("*.1.npy"))) == 8
    assert "alpha-0.2-beta-0.8" in (tmp_path / "report.html").read_text()
    assert verify(DoctorConfig(slide=tmp_path)).facts["run"]["files"] == "5 of 5 as recorded"
    assert train(settings.model_copy(update={"train_last": 1, "batch_norm": "frozen"})).status == "up_to_date"


def test_a_grid_that_was_stopped_before_its_table_writes_it(cohort: Path, tmp_path: Path) -> None:
    settings = training(cohort, tmp_path, freeze=True, grid=True, epochs=1)
    train(settings)
    table = (tmp_path / "grid.csv").read_text()
    for name in ("grid.csv", "grid.png", "report.html"):
        (tmp_path / name).unlink()
    (tmp_path / "alpha-0.2-beta-0" / "last.pt").unlink()
    listening = Heard()
    assert train(settings, listening).status == "ok"
    assert [text for text in listening.notes if text.startswith("alpha")] == ["alpha-0.2-beta-0:"]
    assert (tmp_path / "grid.csv").read_text() == table
    (tmp_path / "report.html").unlink()
    assert train(settings).status == "up_to_date"
    assert "alpha-1-beta-0" in (tmp_path / "report.html").read_text()


def test_true_labels_are_an_upper_bound(cohort: Path, truth: Path, tmp_path: Path) -> None:
    trained = train(training(cohort, tmp_path, truth=truth, freeze=True, supervised=True, epochs=20, lr=1e-2))
    assert trained.best.alpha is None
    assert (trained.best.measure("auc", "test") or 0) > 0.95


def test_epochs_are_ranked_by_slides_then_by_risk() -> None:
    def row(area: float | None, risk: float | None) -> dict[str, Any]:
        return {"val_slide_auc": area, "val_risk": risk}

    assert better(row(0.8, 0.5), row(0.7, 0.1))
    assert better(row(0.8, 0.4), row(0.8, 0.5))
    assert not better(row(0.8, 0.5), row(0.8, 0.5))
    assert better(row(None, None), row(None, None))
    assert better(row(0.8, 0.4), row(0.9, 0.5), is_taught=True)
    assert not better(row(0.9, 0.5), row(0.8, 0.4), is_taught=True)


def test_truth_counts_every_pixel_of_a_slide_once(cohort: Path, truth: Path) -> None:
    slides = labelled_slides(cohort)
    truths = tile_truths(truth, slides, lambda _: None)
    for slide in slides:
        one = truths[slide.slide]
        total = one.tumor.sum() + one.rest.sum() + sum(one.background)
        assert total == pytest.approx(672 * 672)
        tumor = one.tumor.sum() + one.background[0]
        assert tumor == pytest.approx(336 * 336 if slide.label else 0)
        assert one.labels.any() == bool(slide.label)


def test_truth_for_nobody_is_refused(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no truth for any slide"):
        tile_truths(tmp_path, labelled_slides(cohort), lambda _: None)


def test_missing_truths_are_counted(cohort: Path, truth: Path) -> None:
    slides = labelled_slides(cohort)
    said: list[str] = []
    nameless = [replace(slide, slide="other", path=Path("other")) for slide in slides[:3]]
    tile_truths(truth, [*nameless, *slides[3:]], said.append)
    assert "no truth for 3 of 8 slides" in said[0]


# What follows starts processes, stops them and compares what they leave.


def arguments(cohort: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--arch", SMALL, "--init", "none", "--bag", "12", "--micro-batch", "5"]
    return ["train", str(cohort), "--out", str(out), *fixed, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def in_file(folder: Path, **values: Any) -> tuple[str, str]:
    """Write settings that are not options into a file, and return the option that names it."""
    path = folder / "settings.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return "--config", str(path)


def started(cohort: Path, out: Path, *more: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "wsiseg", *arguments(cohort, out, *more)]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment(), stdout=log, stderr=log)


def wait_until_saved(path: Path, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a running process writes its state for the first time."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns > before):
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_runs_go_on_bit_for_bit(cohort: Path, tmp_path: Path) -> None:
    more = ("--epochs", "60", *in_file(tmp_path, save_minutes=0.0001, average=0.9))
    assert started(cohort, tmp_path / "whole", *more).wait() == 0
    draw, kills = random.Random(0), 0
    last = tmp_path / "killed" / "last.pt"
    while kills < 5:
        process = started(cohort, tmp_path / "killed", *more, "--resume")
        wait_until_saved(last, process)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        kills += 1
    assert not read_torch(last)["finished"]
    assert started(cohort, tmp_path / "killed", *more, "--resume").wait() == 0
    _assert_same(weights(last), weights(tmp_path / "whole" / "last.pt"))
    best = [Checkpoint.load(tmp_path / name / "best.pt").state_dict for name in ("killed", "whole")]
    _assert_same(*best)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_saves_and_goes_on(cohort: Path, tmp_path: Path, sent: int, code: int) -> None:
    more = ("--epochs", "40", *in_file(tmp_path, save_minutes=1000))
    assert started(cohort, tmp_path / "whole", *more).wait() == 0
    process = started(cohort, tmp_path / "stopped", *more)
    wait_until_saved(tmp_path / "stopped" / "last.pt", process)
    process.send_signal(sent)
    assert process.wait() == code
    assert not read_torch(tmp_path / "stopped" / "last.pt")["finished"]
    assert started(cohort, tmp_path / "stopped", *more).wait() == 0
    _assert_same(weights(tmp_path / "stopped" / "last.pt"), weights(tmp_path / "whole" / "last.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["measuring the colours of 4 training slides", "features: "])
def test_a_run_stopped_before_its_first_step_ends_cleanly(cohort: Path, tmp_path: Path, phase: str) -> None:
    more = ("--freeze", "--epochs", "1", *in_file(tmp_path, views=30, colors="cohort"))
    process = started(cohort, tmp_path / "run", *more)
    log, features = tmp_path / "run.log", tmp_path / "run" / "features"
    while process.poll() is None and not (phase in log.read_text() or (phase == "features: " and features.exists())):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "run" / "last.pt").exists()
    assert not list((tmp_path / "run").rglob("*.partial*"))
    assert started(cohort, tmp_path / "run", *more).wait() == 0


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates(cohort: Path, tmp_path: Path) -> None:
    more = ("--lr", "0.0001", "--epochs", "1", *in_file(tmp_path, colors="weights"))
    both = in_file(tmp_path, colors="weights", accumulate=2)
    assert started(cohort, tmp_path / "one", *more[:-2], *both).wait() == 0
    in_file(tmp_path, colors="weights")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "wsiseg"]
    command = [*torchrun, *arguments(cohort, tmp_path / "two", *more)]
    done = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True)
    assert done.stdout.count("best.pt") == 1
    assert done.stderr.count("epoch 1/1") == 1
    assert "FutureWarning" not in done.stderr
    one, two = (weights(tmp_path / name / "last.pt") for name in ("one", "two"))
    torch.manual_seed(0)
    begin = build(SMALL, "none").state_dict()
    parameters = [key for key in one if "running" not in key and "num_batches" not in key]
    assert len(parameters) > 20
    for key in parameters:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-5)
    assert sum(bool((one[key] - begin[key]).abs().max() > 5e-5) for key in parameters) > 20
    _assert_a_stopped_epoch_is_finished(command, tmp_path / "two" / "last.pt", two)


def _assert_a_stopped_epoch_is_finished(command: list[str], last: Path, trained: dict[str, torch.Tensor]) -> None:
    """Go on from the moment after an epoch's last step: the first process knows risks, the others have forgotten."""
    state = read_torch(last)
    risks = [["slide-0", 0.7, 12], ["slide-1", 0.7, 12]]
    torch.save({**state, "epoch": 0, "place": 2, "risks": risks, "history": [], "finished": False}, last)
    subprocess.run([*command, "--resume"], env=environment(), check=True, capture_output=True)
    assert read_torch(last)["finished"]
    _assert_same(weights(last), trained)


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("auto", 0, ["cpu", "cpu"]),
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("cuda", 2, ["cuda:0", "cuda:1"]),
        ("cuda", 0, ["cuda", "cuda"]),  # which is not there, and refused
        ("cuda:1", 2, ["cuda:1", "cuda:1"]),
        ("cpu", 2, ["cpu", "cpu"]),
    ],
)
def test_each_process_has_a_gpu_of_its_own(name: str, gpus: int, expected: list[str]) -> None:
    assert [device_name(name, rank, gpus) for rank in range(2)] == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_gpus_that_are_made_for_it_compute_in_half_the_bits(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    assert precision_on(torch.device("cuda"), "auto") == expected
    assert said == (["high"] if expected == "bfloat16" else [])
    assert precision_on(torch.device("cuda"), "float32") == "float32"
    assert precision_on(torch.device("cpu"), "auto") == "float32"


def test_a_process_whose_partner_ended_says_so_in_a_sentence() -> None:
    gone = "[third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:1"
    sentence = (
        "another process of this training cannot be reached: (Connection closed by peer|NCCL communicator was ab)"
    )
    for error in (RuntimeError(gone), torch.distributed.DistBackendError("NCCL communicator was aborted")):
        with pytest.raises(WsisegError, match=sentence), leaving_word_to_others():
            raise error
    with pytest.raises(RuntimeError, match="sizes differ"), leaving_word_to_others():
        raise RuntimeError("sizes differ")


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_one_sentence_each(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort.parents[1], tmp_path / "both")
    table = tmp_path / "both" / "tiles" / cohort.name
    (pixels,) = (table.parent / "slide-3.tiles.zarr" / "pixels").glob("c/*")
    pixels.write_bytes(pixels.read_bytes()[:4000])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "wsiseg"]
    command = [*torchrun, *arguments(table, tmp_path / "run", *in_file(tmp_path, colors="weights"))]
    done = subprocess.run(command, env=environment(), check=False, capture_output=True, text=True, timeout=LONGEST_S)
    assert done.returncode == 1
    sentences = [line for line in done.stderr.splitlines() if line.startswith("wsiseg: ")]
    assert [one for one in sentences if "slide-3.tiles.zarr" in one]
    assert "[rank" not in done.stderr, "the traceback of a process that lost the other"


def test_shares_of_processes_come_back_in_order() -> None:
    items = list(range(7))
    assert interleaved([Processes(rank, 3).share(items) for rank in range(3)]) == items
    assert interleaved([[1, 2, 3], [], [4]]) == [1, 4, 2, 3]
