"""What is refused before any work begins."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from making.models import write_color_filter_model
from making.progress import Heard
from making.tiled import training
from wsiseg.run.errors import DeviceError, OutputError, UsageError, WsisegError
from wsiseg.training import teacher as teachers
from wsiseg.training import truths
from wsiseg.training.slides import LabelledSlide, check_table, labelled_slides
from wsiseg.training.task import check_true_labels
from wsiseg.training.train import train
from wsiseg.training.truths import TileTruth

Row = dict[str, str]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever looks at tiles, truth or maps fail."""

    def work(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(LabelledSlide, "read", work)
    monkeypatch.setattr(truths, "open_truth", work)
    monkeypatch.setattr(teachers, "open_prediction", work)


def changed(cohort: Path, name: str, change: Callable[[list[Row]], list[Row]]) -> Path:
    """Write a table beside that of the cohort, with other rows."""
    with cohort.open(newline="") as file:
        rows = change(list(csv.DictReader(file)))
    path = cohort.with_name(f"{name}.csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("values", "error", "sentence"),
    [
        ({"arch": "resnet5o"}, UsageError, "resnet5o: no such classifier"),
        ({"arch": "timm:test_vit", "context": 96}, UsageError, "takes only whole tiles"),
        ({"init": "imagnet"}, UsageError, "imagnet: no such file of weights; give --init imagenet, hub, none, or a"),
        ({"init": "."}, UsageError, "no such file of weights"),
        ({"init": "{out}/other.pt"}, UsageError, "check --arch"),
        ({"init": "{out}/junk.safetensors"}, WsisegError, "cannot be read"),
        ({"context": 48}, UsageError, "context 48 is smaller than the tiles"),
        ({"device": "meta"}, DeviceError, "device meta"),
        ({"device": "nonsense"}, DeviceError, "device nonsense"),
        ({"truth": "{out}/nothing"}, UsageError, "no such folder"),
        ({"truth": "{out}/empty"}, UsageError, "holds no truth for any slide of the cohort"),
        ({"teacher": ("{out}/nothing",)}, UsageError, "no such model file"),
        ({"teacher": ("{out}/empty",)}, UsageError, "no heatmaps there"),
        ({"teacher": ("{out}/teacher.onnx",)}, UsageError, "takes tiles of 224 px of 1 um"),
        ({"teacher": ("{out}/maps",)}, UsageError, "maps: holds no map of slide-1, slide-3, slide-5"),
        ({"features": "{out}/nothing", "arch": "features:"}, UsageError, "nothing: no such folder"),
        ({"features": "{out}/empty", "arch": "features:"}, UsageError, "no features of slide-0"),
        ({"out": "{out}/file/run"}, OutputError, "file/run: cannot be written"),
    ],
)
def test_what_settings_and_table_tell_is_refused_before_any_work(
    cohort: Path, truth: Path, tmp_path: Path, values: dict[str, Any], error: type[WsisegError], sentence: str
) -> None:
    """The truth of the cohort and its colours take minutes where it is large."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "maps" / "slide-7.ome.zarr").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "junk.safetensors").touch()
    torch.save({"weight": torch.zeros(3, 4)}, tmp_path / "other.pt")
    write_color_filter_model(tmp_path / "teacher.onnx", mpp=1.0)
    placed = json.loads(json.dumps(values).replace("{out}", tmp_path.as_posix()))
    used = {} if "teacher" in values else {"truth": truth}
    with pytest.raises(error, match=sentence):
        train(training(cohort, **{"out": tmp_path / "run", **used, **placed}))


@pytest.mark.usefixtures("no_work")
def test_other_settings_than_those_of_a_run_are_refused_and_a_wrong_network_in_its_place_too(
    cohort: Path, truth: Path, tmp_path: Path
) -> None:
    settings = training(cohort, tmp_path, truth=truth)
    state = {"schema": "wsiseg.training/1", "settings": settings.model_dump(mode="json")}
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(UsageError, match="was made with other settings: lr"):
        train(settings.model_copy(update={"lr": 1e-3, "resume": True}))
    with pytest.raises(UsageError, match="resnet5o: no such classifier"):
        train(settings.model_copy(update={"arch": "resnet5o"}))


@pytest.mark.usefixtures("no_work")
def test_labels_are_checked_before_features_are_read(cohort: Path, tmp_path: Path) -> None:
    """Those of a thousand slides are hundreds of gigabytes."""
    alike = changed(cohort, "alike", lambda rows: [{**row, "label": "1"} for row in rows])
    with pytest.raises(UsageError, match="its 4 training slides with tiles all hold tumour"):
        train(training(alike, tmp_path / "run", features=tmp_path, arch="features:"))
    untaught = changed(cohort, "untaught", lambda rows: [{**row, "split": "test"} for row in rows])
    with pytest.raises(UsageError, match="no training slide"):
        check_table(untaught, ["tumor"])


def test_slides_that_lack_a_label_or_a_split_are_told(cohort: Path) -> None:
    def lacking(rows: list[Row]) -> list[Row]:
        gone = ({"split": ""}, {"label": ""}, {"split": "", "label": ""})
        return [*rows[:4], *({**row, **one} for row, one in zip(rows[4:], gone, strict=False)), rows[7]]

    listening = Heard()
    slides = labelled_slides(changed(cohort, "lacking", lacking), listening.note)
    assert len(slides) == 5
    assert listening.notes == ["left out, having no split: slide-4", "left out, having no label: slide-5"]


def test_copies_of_a_slide_stay_in_one_split(cohort: Path, tmp_path: Path) -> None:
    """Under another name and in another file, which nothing but the content tells."""
    shutil.copytree(cohort.parents[1], tmp_path / "both")
    table = tmp_path / "both" / "tiles" / cohort.name
    slides = table.parents[1] / "cohort" / "slides"
    shutil.copy(slides / "slide-1.tiff", slides / "copy.tiff")
    shutil.copytree(table.parent / "slide-1.tiles.zarr", table.parent / "copy.tiles.zarr")
    copy = {"slide": "copy", "path": "../cohort/slides/copy.tiff", "case": "another"}
    twice = changed(table, "twice", lambda rows: [*rows, {**rows[1], **copy, "split": "test"}])
    with pytest.raises(UsageError, match=r"slide-1 \(train\) and copy \(test\) are copies of one slide"):
        labelled_slides(twice)
    assert len(labelled_slides(changed(table, "alike", lambda rows: [*rows, {**rows[1], **copy}]))) == 9


def test_truth_that_shows_no_training_tile_of_a_kind_is_refused(cohort: Path, truth: Path, tmp_path: Path) -> None:
    for number in (4, 5):
        shutil.copy(truth / f"slide-{number}.geojson", tmp_path)
    with pytest.raises(UsageError, match="no training tile is known to be tumour; supervised needs"):
        train(training(cohort, tmp_path / "run", truth=tmp_path, supervised=True))
    slides = [slide for slide in labelled_slides(cohort) if slide.label]
    all_of_it = {one.slide: TileTruth(np.ones(one.tiles), np.zeros(one.tiles), (0.0, 0.0)) for one in slides}
    with pytest.raises(UsageError, match="known not to be tumour"):
        check_true_labels(slides, [all_of_it], ["tumor"])
