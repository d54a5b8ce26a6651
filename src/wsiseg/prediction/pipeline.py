"""Slides on their way from a row of the cohort to their results: opened ahead, mapped in turn, written behind."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_file import ModelFile
from wsiseg.model_file.onnx_session import CPU
from wsiseg.prediction.cautions import warnings_of
from wsiseg.prediction.cluster import SlideLocks
from wsiseg.prediction.feed import Feed
from wsiseg.prediction.inference import Asking
from wsiseg.prediction.map_files import MapFiles
from wsiseg.prediction.mapping import (
    Job,
    askings_of,
    forecast,
    map_of,
    particulars,
    picture_of,
    prepare,
    settings_of,
    threshold_of,
)
from wsiseg.prediction.places import Places
from wsiseg.run.errors import WsisegError
from wsiseg.run.record import Progress, SlideRecord, Status
from wsiseg.slides.cohort import CohortSlide
from wsiseg.slides.slide import Slide

if TYPE_CHECKING:
    from filelock import SoftFileLease

Result = TypeVar("Result")

_OPEN_AHEAD = 2
_LANES = 2  # batches that an accelerator is given at once: it copies one while it computes the other
_LOOK_AGAIN_S = 1.0
_THRESHOLD = "the threshold changed"
_NAMES = {"min_tissue": "min-tissue", "models": "the model file", "provider": "what computes"}
_NAMES |= {"limits": "from where on tissue is unknown"}
_FORMER = {"stride": None, "combine": "mean"}  # settings of earlier versions, and what everything is made with now


@dataclass(frozen=True)
class _Task:
    """A slide that this process has taken; the lock is held until its results are written."""

    row: CohortSlide
    places: Places
    files: MapFiles
    lock: "SoftFileLease"
    began: float

    def attempt(self, step: Callable[[], Result]) -> Result | SlideRecord:
        """Take a step; where it fails return the record that says why."""
        try:
            return step()
        except (WsisegError, OSError) as error:
            must_be_slide = self.row.must_be_slide
            return SlideRecord.of_error(self.row.slide, self.row.path, error, must_be_slide=must_be_slide)


@dataclass(frozen=True)
class _Opened:
    """An open slide, with a map where the very probabilities that are asked for are known, and why it is done again."""

    job: Job
    known: Heatmap | None
    reason: str | None
    picture: Future[NDArray[np.uint8]]
    seconds: float  # that opening took

    def close(self) -> None:
        """Free the slide, once nobody reads it."""
        wait([self.picture])
        self.job.slide.close()


@dataclass
class _Work:
    """A slide whose turn has come: open, or with a record where nothing is asked about it."""

    task: _Task
    opened: _Opened | SlideRecord
    progress: Progress
    askings: list[Asking] = field(default_factory=list)
    begun: float = 0.0
    waited: float = 0.0

    def advance(self, tiles: int, seconds: float) -> None:
        """Tell of further tiles that are done."""
        name = self.task.row.slide
        if not self.begun and isinstance(self.opened, _Opened):
            self.progress.slide(name, self.opened.job.tiles)
            self.begun = time.monotonic() - seconds
        self.waited += seconds
        self.progress.advance(name, tiles, seconds)

    def begin(self, models: list[ModelFile], config: PredictConfig) -> None:
        """Tell how an open slide is read, and find out what is to be asked, unless its probabilities are known."""
        if not isinstance(self.opened, _Opened):
            return
        name, opened = self.task.row.slide, self.opened
        if opened.reason is not None:
            self.progress.note(f"{name}: done again, {opened.reason}")
        self.progress.detail(f"{name}: {particulars(opened.job, models)}, opened in {opened.seconds:.1f} s")
        if opened.known is None:
            self.askings = askings_of(opened.job, models, config, self.task.files, self.advance)

    def finish(self, models: list[ModelFile], config: PredictConfig) -> SlideRecord:
        """Write the results of a slide and let others have it."""
        try:
            record = self.opened if isinstance(self.opened, SlideRecord) else self._written(self.opened, models, config)
            return record.model_copy(update={"seconds": round(time.monotonic() - self.task.began, 3)})
        finally:
            self.task.lock.release()

    def _written(self, opened: _Opened, models: list[ModelFile], config: PredictConfig) -> SlideRecord:
        """Write the results of an open slide and close it."""
        began, name, share = time.monotonic(), self.task.row.slide, None
        if self.askings:
            seconds = max(began - self.begun, 1e-9) if self.begun else 0.0
            share = round(min(1.0, self.waited / seconds), 3) if self.begun else 0.0
            told = f"{name}: mapped in {seconds:.1f} s, {self.waited:.1f} s of them waiting for reading"
            self.progress.detail(told)

        def write() -> SlideRecord:
            heatmap = opened.known or map_of(opened.job, self.askings, models, config)
            return _written(self.task, opened, heatmap, models).model_copy(update={"waiting_share": share})

        record = self.task.attempt(write)
        opened.close()
        self.progress.detail(f"{name}: written in {time.monotonic() - began:.1f} s")
        return record


def records(
    rows: Sequence[CohortSlide],
    places: Places,
    models: list[ModelFile],
    config: PredictConfig,
    progress: Progress,
) -> Iterator[SlideRecord]:
    """Map slides one after the other; the next are opened and read, and the last are written meanwhile."""
    writing: deque[Future[SlideRecord]] = deque()
    is_cpu = all(model.provider == CPU for model in models)
    with ThreadPoolExecutor(_OPEN_AHEAD, "opener") as opener, ThreadPoolExecutor(_OPEN_AHEAD, "writer") as writer:
        feed = Feed(1 if is_cpu else _LANES, lambda seconds: progress.advance("", 0, seconds))
        for work in feed.run(_arriving(deque(rows), places, models, config, progress, opener)):
            writing.append(writer.submit(work.finish, models, config))
            while len(writing) > _OPEN_AHEAD or (writing and writing[0].done()):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()


def _arriving(
    waiting: deque[CohortSlide],
    places: Places,
    models: list[ModelFile],
    config: PredictConfig,
    progress: Progress,
    opener: ThreadPoolExecutor,
) -> Iterator[_Work | None]:
    """Yield the slides in the order in which they were taken; None while the next is not open."""
    opening: deque[tuple[_Task, Future[_Opened | SlideRecord]]] = deque()
    is_foretold = config.dask is not None or len(config.devices) > 1  # each process knows of some slides alone
    locks, look_again = SlideLocks(), 0.0
    while waiting or opening:
        while waiting and len(opening) < _OPEN_AHEAD and time.monotonic() >= look_again:
            task = _taken(waiting.popleft(), places, config, locks)
            if isinstance(task, CohortSlide):  # another process works on it: look again after the others
                waiting.append(task)
                look_again = time.monotonic() + _LOOK_AGAIN_S / len(waiting)
                continue
            step = partial(_opened, task, models, config, opener)
            opening.append((task, opener.submit(task.attempt, step)))
        if not opening or not opening[0][1].done():
            if not opening:
                locks.tell(progress.note)
            yield None
            continue
        task, coming = opening.popleft()
        work = _Work(task, coming.result(), progress)
        if isinstance(work.opened, _Opened):
            work.begin(models, config)
            if not is_foretold and work.askings and work.opened.job.tiles:
                progress.note(forecast(work.opened.job, models, config, 1 + len(opening) + len(waiting)))
                is_foretold = True
        yield work


def _taken(row: CohortSlide, places: Places, config: PredictConfig, locks: SlideLocks) -> _Task | CohortSlide:
    """Take the lock of a slide; return the row as it is while another process has it."""
    files = MapFiles(config.out, row.slide, config.csv, config.ngff)
    lock = locks.take(files.lock)
    return row if lock is None else _Task(row, places, files, lock, time.monotonic())


def _opened(
    task: _Task, models: list[ModelFile], config: PredictConfig, reader: ThreadPoolExecutor
) -> _Opened | SlideRecord:
    """Open a slide, unless its results are there and right."""
    began = time.monotonic()
    known = None if config.overwrite else task.files.open()
    slide = task.row.open(config.slide_mpp, config.read_timeout)
    try:
        wanted = settings_of(models, config, task.places.settings(task.row.slide))
        threshold = threshold_of(models, config)
        reason = None if known is None else _what_changed(known, slide, wanted, threshold)
        if known is not None and known.run.get("bad_tiles", 0) > config.max_bad_tiles * known.run.get("tiles", 0):
            reason = "more of it could not be read than max-bad-tiles allows"
        if known is not None and reason is None and task.files.are_there:
            slide.close()
            return _record(task, known, "up_to_date", known.warnings)
        known = replace(known, threshold=threshold) if known is not None and reason in (None, _THRESHOLD) else None
        job = prepare(task.row, slide, models, config, task.places)
        return _Opened(job, known, reason, reader.submit(picture_of, job), time.monotonic() - began)
    except BaseException:
        slide.close()
        raise


def _what_changed(known: Heatmap, slide: Slide, wanted: dict[str, Any], threshold: float) -> str | None:
    """Name what a heatmap was made with that differs from what is asked for now; None where nothing does."""
    if known.slide != slide.facts:
        return slide.facts.difference(known.slide)
    changed = [_NAMES.get(name, name) for name, value in wanted.items() if known.run.get(name) != value]
    changed += [name for name, value in _FORMER.items() if known.run.get(name, value) != value]
    if changed:
        return f"{', '.join(changed)} changed"
    return None if known.threshold == threshold else _THRESHOLD


def _written(task: _Task, opened: _Opened, heatmap: Heatmap, models: list[ModelFile]) -> SlideRecord:
    notes = [f"{model.card.name} {model.card.version}: {model.card.intended_use}" for model in models]
    task.files.write(heatmap, opened.picture.result(), notes)
    status: Status = "no_tissue" if not heatmap.run["tiles"] else "suspect" if heatmap.warnings else "ok"
    return _record(task, heatmap, status, warnings_of(opened.job, heatmap, models))


def _record(task: _Task, heatmap: Heatmap, status: Status, warnings: tuple[str, ...]) -> SlideRecord:
    tissue, tumor, unknown = (int(mask.sum()) for mask in (heatmap.tissue, heatmap.tumor, heatmap.unknown))
    values = heatmap.probabilities[heatmap.judged]
    numbers = {"mean_probability": float(values.mean()), "max_probability": float(values.max())} if values.size else {}
    return SlideRecord(
        slide=task.row.slide,
        path=str(task.row.path),
        status=status,
        outputs={kind: str(path) for kind, path in task.files.outputs.items()},
        mpp=heatmap.slide.mpp,
        mpp_source=heatmap.slide.mpp_source,
        mpp_raw=heatmap.slide.mpp_raw,
        provider=heatmap.run.get("provider"),
        tissue_mm2=round(tissue * heatmap.cell_mm2, 6),
        tumor_mm2=round(tumor * heatmap.cell_mm2, 6),
        tumor_share=round(tumor / tissue, 6) if values.size else None,
        unknown_mm2=round(unknown * heatmap.cell_mm2, 6),
        unknown_share=round(unknown / tissue, 6) if tissue else None,
        largest_focus_mm2=round(heatmap.largest_focus_mm2, 6),
        tiles=heatmap.run["tiles"],
        bad_tiles=heatmap.run["bad_tiles"],
        warnings=warnings,
        **{name: round(value, 6) for name, value in numbers.items()},
    )
