"""What a person is told while slides are mapped."""

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from making.maps import write_run
from making.models import write_color_filter_model
from wsiseg.cli.streams import Streams
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.prediction.predict import predict_slides
from wsiseg.run import pace
from wsiseg.run.errors import DownloadError
from wsiseg.run.machine import CORES
from wsiseg.run.pace import spoken
from wsiseg.run.record import Run, SlideRecord

MakeSlide = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_color_filter_model(tmp_path / "colors.onnx")


def run(tmp_path: Path, model: Path, streams: Streams, **settings: object) -> Run:
    config = {"inputs": [str(tmp_path / "slides")], "model": [str(model)], "out": tmp_path / "out", **settings}
    return predict_slides(PredictConfig.checked(**config), streams)


@pytest.mark.parametrize("kind", ["dense", "tile"])
def test_an_estimate_comes_once_before_the_first_slide_is_done_and_a_line_a_minute(
    tmp_path: Path,
    make_slide: MakeSlide,
    model: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in "abc":
        make_slide(f"slides/{name}.tiff", size=(1500, 1200))
    monkeypatch.setattr(pace, "LINE_EVERY_S", 0.0)
    run(tmp_path, model, Streams(), map=kind, tissue="none")
    said = capsys.readouterr().err.splitlines()
    (estimate,) = (number for number, text in enumerate(said) if text.startswith("a has "))
    assert not [text for text in said[:estimate] if text.startswith("[")]
    sentence = r"a has (\d+) tiles; at [\d.e+]+ tiles/s, as measured so far, 3 slides like it take about \d+ (?:s|min)"
    (tiles,) = re.findall(sentence, said[estimate])
    assert 32 <= int(tiles) <= 60  # 1500 x 1200 pixels are 36 tiles, and windows overlap
    line = re.compile(r"[0-2]/3 slides, \d+ tiles, [\d.]+ tiles/s, \d+% waiting for reading, about \d+ (?:s|min) left")
    assert [text for text in said if line.fullmatch(text)]
    assert [text[:5] for text in said if text.startswith("[")] == ["[1/3]", "[2/3]", "[3/3]"]


def test_no_estimate_is_made_for_what_is_done(
    tmp_path: Path, make_slide: MakeSlide, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_slide("slides/a.tiff")
    for _ in range(2):
        capsys.readouterr()
        run(tmp_path, model, Streams())
    assert "tiles/s" not in capsys.readouterr().err


def test_the_record_says_how_much_of_the_time_was_spent_waiting_for_reading(
    tmp_path: Path, make_slide: MakeSlide, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CORES, "2")  # many more would wait for next to nothing
    # 64 pixels are read for one that a colour filter sees, and that takes no time to speak of.
    make_slide("slides/a.tiff", size=(3500, 3500), mpp=0.0625, compression="jpeg")
    (record,) = run(tmp_path, model, Streams(quiet=True), tissue="none").slides
    assert record.model_extra is not None
    assert 0.3 < record.model_extra["waiting_share"] <= 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Let no time go by but what is added to `now`."""
    made = SimpleNamespace(now=1000.0)
    made.monotonic = lambda: made.now
    monkeypatch.setattr(pace, "time", made)
    monkeypatch.setattr(pace, "LINE_EVERY_S", 0.0)
    return made


def test_the_time_left_counts_begun_slides_and_not_those_that_were_done_before(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    streams = Streams()
    streams.begin(12)
    for name in "abcdefgh":
        streams.done(SlideRecord(slide=name, path=name, status="up_to_date"))
    streams.slide("i", 100)
    clock.now += 30  # half a slide in 30 s: three and a half are left
    streams.advance("i", 50, 6.0)
    (_, said) = capsys.readouterr().err.rsplit("\n", 2)[:2]
    assert said == "8/12 slides, 50 tiles, 1.7 tiles/s, 20% waiting for reading, about 4 min left"


def test_each_folder_of_maps_is_counted_by_itself_with_those_that_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, slides=4)
    first, second = tmp_path / "maps", tmp_path / "others"
    shutil.copytree(first, second)
    shutil.rmtree(first / "slide-2.ome.zarr")
    places = {"truth": tmp_path / "truth", "cohort": tmp_path / "cohort.csv"}
    evaluate(EvaluateConfig(predictions=(first, second), resamples=0, **places), Streams())
    said = capsys.readouterr().err.splitlines()
    counts = [f"[{number}/4]" for number in range(1, 5)]
    assert [text[:5] for text in said if text.startswith("[")] == [*counts, *counts]


def test_files_that_arrive_are_told_by_their_bytes(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    streams = Streams()
    streams.begin(3, 7_000_000)
    streams.slide("a.svs", 4_000_000)
    streams.slide("b.svs", 2_000_000)
    streams.done(SlideRecord.of_error("b.svs", Path("b.svs"), DownloadError("b.svs: gone"), must_be_slide=True))
    clock.now += 10  # a million bytes in 10 s: four of the five millions that may come are left
    streams.advance("a.svs", 1_000_000)
    streams.done(SlideRecord(slide="a.svs", path="a.svs", status="ok", seconds=10))
    assert capsys.readouterr().err.splitlines() == [
        "[1/3] failed: b.svs: gone",
        "1/3 files, 1.0 MB, 100.0 kB/s, about 40 s left",
        "[2/3] a.svs: ok, 10.0 s",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(4.2, "4 s"), (700, "12 min"), (7300, "2.0 h"), (180000, "2.1 days")])
def test_a_time_is_said_as_a_person_would(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


def on_terminal(*arguments: object, out: Path | None = None, columns: int = 80) -> tuple[int, str]:
    """Run wsiseg with standard error on a terminal, and standard output too unless it goes to a file."""
    own, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "30", CORES: "2"}
    with (out or Path(os.devnull)).open("wb") as file:
        stdout = file if out else terminal
        command = [sys.executable, "-m", "wsiseg", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=stdout, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # the terminal is closed when nobody holds its other end
        while part := os.read(own, 4096):
            shown += part
    os.close(own)
    return process.wait(), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n")


def test_a_terminal_shows_tiles_speed_waiting_and_time_left(tmp_path: Path, make_slide: MakeSlide, model: Path) -> None:
    make_slide("slides/a.tiff", size=(4500, 4500), compression="jpeg")  # for longer than it is between two looks
    arguments = ("predict", tmp_path / "slides", "--model", model, "--tissue", "none", "--out", tmp_path / "out")
    code, text = on_terminal(*arguments, out=tmp_path / "printed.txt", columns=160)
    assert code == 0
    assert re.search(r"slides .*0/1 +[\d.]+ tiles/s, \d+% waiting for reading, about \d+ (s|min) left", text), text
    printed = (tmp_path / "printed.txt").read_text().splitlines()
    assert printed[0] == str(tmp_path / "out/report.html"), (
        "what a terminal draws on the one stream left the other alone"
    )
    assert printed[1].startswith("a: ok, ")


def test_a_terminal_is_told_once_and_words_stay_whole(tmp_path: Path, make_slide: MakeSlide) -> None:
    make_slide("a.tiff", size=(700, 600))
    code, text = on_terminal("tile", tmp_path / "a.tiff", tmp_path / "gone.tiff", "--out", tmp_path / "out", columns=40)
    assert code == 1
    assert text.count("a: ok, ") == 1
    assert text.splitlines()[-2:] == [str(tmp_path / "out/report.html"), str(tmp_path / "out/cohort.csv")]
    assert "no such file; check the path" in re.sub(r"\n  ", " ", text)
    assert "0.0 tiles/s" not in text
    told = [line for line in text.splitlines() if "/" not in line and "\r" not in line]
    assert max(map(len, told)) <= 40
