"""Slides that processes of one machine share."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from wsiseg.config.predict import PredictConfig
from wsiseg.prediction.processes import in_processes
from wsiseg.run.errors import DeviceError, UsageError
from wsiseg.run.machine import cores
from wsiseg.run.record import Progress, SlideRecord
from wsiseg.slides.cohort import CohortSlide

ROWS = [CohortSlide(f"s{number}", Path(f"s{number}.tiff")) for number in range(9)]


class Watch(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.tiles = 0

    def note(self, text: str) -> None:
        self.said.append(text)

    def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:
        assert slide
        assert waited_s <= 1
        self.tiles += tiles


def mapped(rows: Sequence[CohortSlide], progress: Progress, device: str) -> Iterator[SlideRecord]:
    """Map slides; `deadly` kills whoever tries, `breaks it` the device, and on cuda:1 nothing works."""
    is_broken = False
    if device == "cuda:1":
        raise DeviceError("cuda:1: is not here", "use another")
    for row in rows:
        if row.slide == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if row.slide == "breaks it" or is_broken:
            is_broken = True
            error = DeviceError("CUDA failure 719: unspecified launch failure", "try --device cpu")
            yield SlideRecord.of_error(row.slide, row.path, error, must_be_slide=True)
            continue
        progress.advance(row.slide, 5, 1.0)
        told = {"provider": device, "tiles": cores(), "warnings": (str(os.getpid()),)}
        yield SlideRecord(slide=row.slide, path=str(row.path), status="ok", **told)


def test_each_slide_is_done_once() -> None:
    watch = Watch()
    records = list(in_processes(["cpu", "cuda:0"], mapped, ROWS, watch))
    assert sorted(record.slide for record in records) == [row.slide for row in ROWS]
    assert {record.model_dump()["provider"] for record in records} <= {"cpu", "cuda:0"}
    assert {record.tiles for record in records} == {max(1, cores() // 2)}
    assert str(os.getpid()) not in {record.warnings[0] for record in records}
    assert watch.tiles == 5 * len(ROWS)
    assert watch.said == []


@pytest.mark.slow
def test_a_slide_that_kills_three_processes_has_failed_and_the_others_are_done() -> None:
    watch, deadly = Watch(), CohortSlide("deadly", Path("deadly.tiff"))
    records = {record.slide: record for record in in_processes(["cpu", "cpu"], mapped, [*ROWS, deadly, *ROWS], watch)}
    failed = records.pop("deadly")
    assert (failed.status, failed.error and failed.error.message) == (
        "failed",
        "deadly.tiff: ended its process 3 times",
    )
    assert sorted(records) == [row.slide for row in ROWS]
    assert [text.partition(":")[0] for text in watch.said] == ["the process on cpu ended with exit code -9"] * 3


def test_a_device_that_breaks_fails_one_slide_as_a_fresh_process_does_the_others() -> None:
    watch, rows = Watch(), [CohortSlide("breaks it", Path("a.tiff")), *ROWS[:3]]
    records = {record.slide: record for record in in_processes(["cpu"], mapped, rows, watch)}
    assert {name for name, record in records.items() if record.status == "failed"} == {"breaks it"}
    assert len(records) == len(rows)


def test_what_fails_in_a_process_is_raised_here() -> None:
    with pytest.raises(DeviceError, match="cuda:1: is not here; use another"):
        list(in_processes(["cuda:1"], mapped, ROWS, Progress()))


def test_devices_are_named_in_a_list() -> None:
    config = PredictConfig.checked(inputs=("a.tiff",), device="cuda:0,cuda:1", jobs=2)
    assert config.devices == ("cuda:0", "cuda:1", "cuda:0", "cuda:1")
    for names in ("gpu", "cuda:", "cuda:0,,cpu", "cuda:x"):
        with pytest.raises(UsageError, match="unknown device"):
            PredictConfig.checked(inputs=("a.tiff",), device=names)
    with pytest.raises(UsageError, match="leave out jobs"):
        PredictConfig.checked(inputs=("a.tiff",), jobs=2, dask="local:2")
