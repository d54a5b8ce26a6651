import json
from pathlib import Path

import pytest

from wsiseg.run import record as recording
from wsiseg.run.errors import SlideError
from wsiseg.run.record import Failure, Run, RunFile, SlideRecord, now, slides_of


def record(slide: str, status: str = "ok") -> SlideRecord:
    error = Failure.of(SlideError(f"{slide}: broken", "mend it")) if status == "failed" else None
    return SlideRecord.model_validate({"slide": slide, "path": f"{slide}.svs", "status": status, "error": error})


def run() -> Run:
    return Run(command="tile", started=now())


def test_the_record_is_whole_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with RunFile(path, run()) as file:
        assert json.loads(path.read_text())["slides"] == []
        file.add(record("a"))
        stored = json.loads(path.read_text())
        assert [one["slide"] for one in stored["slides"]] == ["a"]
        assert stored["finished"] is None
        file.add(record("b", "failed"))
        done = file.finish()
    stored = json.loads(path.read_text())
    assert stored["schema"] == "wsiseg.run/1"
    assert stored["status"] == done.status == "partial"
    assert stored["totals"] == {"ok": 1, "failed": 1}
    assert stored["slides"][1]["error"] == {"type": "SlideError", "message": "b: broken", "hint": "mend it"}
    assert stored["finished"].endswith("Z")


@pytest.mark.parametrize(
    ("statuses", "status", "code"),
    [
        (["ok", "no_tissue", "skipped", "up_to_date", "suspect"], "complete", 0),
        (["ok", "failed"], "partial", 1),
        (["failed", "failed"], "failed", 1),
        (["failed", "skipped"], "failed", 1),
        (["skipped", "skipped"], "failed", 1),
        ([], "complete", 0),
    ],
)
def test_the_outcome_follows_from_the_slides(tmp_path: Path, statuses: list[str], status: str, code: int) -> None:
    with RunFile(tmp_path / "run.json", run()) as file:
        for number, one in enumerate(statuses):
            file.add(record(str(number), one))
        done = file.finish()
    assert (done.status, done.exit_code) == (status, code)


def test_an_interrupted_run_is_finished_as_partial(tmp_path: Path) -> None:
    def interrupted() -> None:
        with RunFile(tmp_path / "run.json", run()) as file:
            file.add(record("a"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored["status"] == "partial"
    assert stored["finished"]


def test_slides_of_earlier_runs_stay_unless_done_again(tmp_path: Path) -> None:
    for slides in (["a", "b"], ["b", "c"]):
        with RunFile(tmp_path / "run.json", run()) as file:
            for one in slides:
                file.add(record(one))
            file.finish()
    stored = json.loads((tmp_path / "run.json").read_text())
    assert [one["slide"] for one in stored["slides"]] == ["a", "b", "c"]


TOMORROW, TODAY, YESTERDAY = "2026-01-03T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(("first", "then"), [("run.json", "run.1-of-2.json"), ("run.1-of-2.json", "run.json")])
def test_what_was_done_last_counts_where_the_clock_was_set_back(tmp_path: Path, first: str, then: str) -> None:
    for name, started, status in ((first, TOMORROW, "failed"), (then, TODAY, "ok")):
        with RunFile(tmp_path / name, Run(command="predict", started=started)) as file:
            file.add(record("a", status))
            file.finish()
    assert [one.status for one in slides_of(tmp_path)] == ["ok"]


def test_a_run_does_not_end_before_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "now", lambda: YESTERDAY)
    with RunFile(tmp_path / "run.json", Run(command="tile", started=TODAY)) as file:
        done = file.finish()
    assert done.started == done.finished == TODAY
    with RunFile(tmp_path / "run.json", Run(command="tile", started=YESTERDAY)) as file:
        assert file.run.started == YESTERDAY, "a file that is written anew holds one run"
