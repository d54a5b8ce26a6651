"""The record of a run: what became of every slide, kept in `run.json` as it goes on, and what is told meanwhile."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from wsiseg.run.errors import MORE_MEMORY, NotASlideError, WsisegError, is_out_of_memory
from wsiseg.run.outputs import locked, write_json
from wsiseg.run.proof import Written, sealed

_WRITING_S, _WRITING_SHARE = 0.1, 0.05  # that the record of a run may cost: at first, and of its time
Status = Literal["ok", "no_tissue", "skipped", "up_to_date", "suspect", "failed", "planned"]  # the last of a dry run


def in_words(name: str) -> str:
    """Return a class as sentences call it."""
    return "tumour" if name.casefold() in {"tumor", "tumour"} else name


class Failure(BaseModel, frozen=True):
    """Why a slide failed or was skipped."""

    type: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: WsisegError) -> Self:
        """Describe an error."""
        return cls(type=type(error).__name__, message=error.message, hint=error.hint)


class SlideRecord(BaseModel, frozen=True, extra="allow"):
    """What became of one slide; areas in mm2, `mpp` in um per level-0 pixel along x and y, time in seconds."""

    slide: str
    path: str
    status: Status
    error: Failure | None = None
    outputs: dict[str, str] = Field(default_factory=dict)
    mpp: tuple[float, float] | None = None
    mpp_source: str | None = None
    tissue_mm2: float | None = None
    tumor_mm2: float | None = None  # of the first class, where others than tumour are mapped
    tumor_share: float | None = None
    classes: dict[str, dict[str, float | None]] = Field(default_factory=dict)  # mm2 and share of each, where it is so
    unknown_mm2: float | None = None
    unknown_share: float | None = None
    tiles: int = 0
    bad_tiles: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    written: dict[str, Written] = Field(default_factory=dict)  # its files, by their names in the folder of the run
    state: str = ""  # changes when its files, results or settings do; empty where that cannot be told at a glance

    @property
    def by_class(self) -> dict[str, dict[str, float | None]]:
        """The area and the share of the tissue of each class, as `mm2` and `share`."""
        return self.classes or {"tumor": {"mm2": self.tumor_mm2, "share": self.tumor_share}}

    @classmethod
    def of_error(
        cls, slide: str, path: Path, error: WsisegError | OSError | MemoryError, *, must_be_slide: bool
    ) -> Self:
        """Describe a slide that could not be done; what is not a slide is skipped unless it must be one."""
        is_large = is_out_of_memory(error)  # whatever else, as that it is no slide, came of that
        is_skipped = isinstance(error, NotASlideError) and not must_be_slide and not is_large
        if isinstance(error, WsisegError) and not is_large:
            failure = Failure.of(error)
        else:
            said, hint = ("out of memory", MORE_MEMORY) if is_large else (str(error), "")
            failure = Failure(type=type(error).__name__, message=f"{path.name}: {said}", hint=hint)
        return cls(slide=slide, path=str(path), status="skipped" if is_skipped else "failed", error=failure)


class Run(BaseModel, frozen=True, populate_by_name=True):
    """What became of a run; the content of `run.json`."""

    schema_: str = Field(default="wsiseg.run/1", alias="schema")
    status: Literal["complete", "partial", "failed"] = "partial"
    version: str = ""
    command: str
    started: str
    finished: str | None = None
    model: dict[str, Any] | None = None
    device: dict[str, Any] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    slides: tuple[SlideRecord, ...] = ()
    totals: dict[str, int] = Field(default_factory=dict)
    written: dict[str, Written] = Field(default_factory=dict)  # files of the whole run, by their names in its folder

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a run file; file names that are not UTF-8 come back as they were.

        Raises:
            OSError: There is none.
            ValueError: It is not a run file.
        """
        return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))

    def as_json(self) -> dict[str, Any]:
        """Return what a run file holds, also names of no text as they are, which JSON of pydantic alters."""
        return self.model_dump(by_alias=True)

    @property
    def failed(self) -> tuple[SlideRecord, ...]:
        """The slides that failed."""
        return tuple(record for record in self.slides if record.status == "failed")

    @property
    def has_no_slide(self) -> bool:
        """True where files were found and all were skipped; a shard may well hold no slide."""
        return not self.settings.get("shard") and {record.status for record in self.slides} == {"skipped"}

    @property
    def exit_code(self) -> int:
        """0 where nothing failed and something was a slide, else 1."""
        return 1 if self.failed or self.has_no_slide else 0


class Progress:
    """What a long run tells whoever watches it: nobody, unless a subclass listens. Every call must return quickly."""

    def begin(self, slides: int, size: int | None = None) -> None:
        """Tell how many slides there are; or files and their bytes, which are then told as slides and tiles."""

    def slide(self, slide: str, tiles: int) -> None:
        """Tell that work on a slide of so many tiles begins."""

    def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:
        """Tell that so many more tiles of a slide are done, and how long was waited for them to be read."""

    def done(self, record: SlideRecord) -> None:
        """Tell what became of a slide."""

    def note(self, text: str) -> None:
        """Tell something a person should know."""

    def detail(self, text: str) -> None:
        """Tell something that only a person who asked for more wants to know."""


class RunFile:
    """`run.json` while the run goes on: whole at every moment, finished also when the run is interrupted.

    The slides of an earlier run of the same command in the same folder stay in it, unless this run does them again; so
    several processes may share a folder. As the file grows, the last slides are added together, so that thousands of
    them do not cost more each.

    Args:
        path: Where to write; None keeps the record in memory.
        run: The run as it begins.
    """

    def __init__(self, path: Path | None, run: Run) -> None:
        self.path, self.before = path, _read(path)  # the run that the file held, if any
        self._run = run if path is None else run.model_copy(update={"started": _begun(path, run.started)})
        self._slides = list(run.slides)
        self._began, self._spent = time.monotonic(), 0.0
        self.update()

    @property
    def run(self) -> Run:
        """The run as it stands."""
        return self._run.model_copy(update={"slides": tuple(self._slides), "totals": totals(self._slides)})

    def add(self, record: SlideRecord) -> None:
        """Add what became of a slide."""
        self._slides.append(record)
        if self._spent <= _WRITING_S + _WRITING_SHARE * (time.monotonic() - self._began):
            self.update()

    def finish(self) -> Run:
        """Write the end of the run."""
        is_vain = all(record.status in ("failed", "skipped") for record in self._slides)
        status = "complete" if self.run.exit_code == 0 else "failed" if is_vain else "partial"
        self.update(status=status, finished=max(now(), self._run.started))
        return self.run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.update(finished=max(now(), self._run.started))

    def update(self, **changes: Any) -> None:  # noqa: ANN401  values of the fields of a run
        """Change fields of the run and write it."""
        began = time.monotonic()
        self._run = self._run.model_copy(update=changes)
        if self.path is not None:
            with locked(self.path.with_name(f".{self.path.name}.lock")):
                merged = _with_earlier(self.path, self.run)
                write_json(self.path, sealed(merged.as_json()))
        self._spent += time.monotonic() - began


def _read(path: Path | None) -> Run | None:
    """Read the file of a run, if there is one that can be read."""
    try:
        return None if path is None else Run.read(path)
    except (OSError, ValueError):
        return None


def _begun(path: Path, started: str) -> str:
    """Return when a run begins: after all others of its folder, as the latest counts, even if a clock was set back."""
    others = [_read(one) for one in run_files(path.parent) if one != path]
    last = max((one.started for one in others if one is not None), default="")
    with suppress(ValueError):  # it is no time
        if last >= started:
            return _written(datetime.fromisoformat(last) + timedelta(seconds=1))
    return started


def _with_earlier(path: Path, run: Run) -> Run:
    """Put the slides that other runs have written to the same file before those of this run."""
    earlier = _read(path)
    if earlier is None or earlier.command != run.command:
        return run
    mine = {record.slide for record in run.slides}
    slides = (*(record for record in earlier.slides if record.slide not in mine), *run.slides)
    return run.model_copy(update={"slides": slides, "totals": totals(slides)})


def run_files(folder: Path) -> list[Path]:
    """Return the files that say what became of the slides in a folder, those of shards too."""
    return sorted(path for pattern in ("run.json", "run.*-of-*.json") for path in folder.glob(pattern))


def slides_of(folder: Path) -> list[SlideRecord]:
    """Return what became of every slide in the folder of one run or of several, as of shards; the latest counts.

    Raises:
        OSError: A run file cannot be read.
        ValueError: It is none.
    """
    runs = [Run.read(path) for path in run_files(folder)]
    found = {record.slide: record for run in sorted(runs, key=lambda run: run.started) for record in run.slides}
    return sorted(found.values(), key=lambda record: record.slide)


def totals(slides: Sequence[SlideRecord]) -> dict[str, int]:
    """Count the slides of each status; `ok` and `failed` always stand in the result."""
    return {"ok": 0, "failed": 0, **Counter(record.status for record in slides)}


def now() -> str:
    """Return the time in UTC, as `2026-01-31T12:00:00Z`."""
    return _written(datetime.now(UTC))


def _written(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
