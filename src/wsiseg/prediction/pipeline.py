"""Slides on their way from a row of the cohort to their results: opened ahead, mapped one by one, written behind."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_file import ModelFile
from wsiseg.prediction import cautions
from wsiseg.prediction.cluster import SlideLocks
from wsiseg.prediction.map_files import MapFiles
from wsiseg.prediction.mapping import (
    Job,
    forecast,
    map_slide,
    particulars,
    picture_of,
    prepare,
    settings_of,
    threshold_of,
    warnings_of,
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
_LOOK_AGAIN_S = 1.0
_THRESHOLD = "the threshold changed"
_NAMES = {"min_tissue": "min-tissue", "models": "the model file", "provider": "what computes"}
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


class _Map(NamedTuple):
    """The map of a slide, and the share of time spent waiting for reading where a model was asked."""

    heatmap: Heatmap
    waiting_share: float | None = None


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


def records(
    rows: Sequence[CohortSlide],
    places: Places,
    models: list[ModelFile],
    config: PredictConfig,
    progress: Progress,
) -> Iterator[SlideRecord]:
    """Map slides one after the other; the next is opened and the last is written meanwhile."""
    waiting = deque(rows)
    opening: deque[tuple[_Task, Future[_Opened | SlideRecord]]] = deque()
    writing: deque[Future[SlideRecord]] = deque()
    is_foretold = config.dask is not None  # there nobody listens
    locks = SlideLocks()
    with ThreadPoolExecutor(1, "opener") as opener, ThreadPoolExecutor(1, "writer") as writer:
        while waiting or opening:
            while waiting and len(opening) < _OPEN_AHEAD:
                task = _taken(waiting.popleft(), places, config, locks)
                if isinstance(task, CohortSlide):  # another process works on it: look again after the others
                    waiting.append(task)
                    break
                step = partial(_opened, task, models, config, opener)
                opening.append((task, opener.submit(task.attempt, step)))
            if not opening:
                locks.tell(progress.note)
                time.sleep(_LOOK_AGAIN_S)
                continue
            task, coming = opening.popleft()
            began = time.monotonic()
            opened = coming.result()
            progress.advance(task.row.slide, 0, time.monotonic() - began)
            if not is_foretold and isinstance(opened, _Opened) and opened.known is None and opened.job.tiles:
                progress.note(forecast(opened.job, models, config, 1 + len(opening) + len(waiting)))
                is_foretold = True
            result = _mapped(task, opened, models, config, progress)
            writing.append(writer.submit(_write, task, result, models, progress))
            while len(writing) > 1:
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()


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
            return _record(task, known, "up_to_date", (*cautions.uniform(known), *cautions.unknown(known)))
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


def _mapped(
    task: _Task,
    opened: _Opened | SlideRecord,
    models: list[ModelFile],
    config: PredictConfig,
    progress: Progress,
) -> tuple[_Opened, _Map] | SlideRecord:
    """Ask the models for the map of a slide, unless its probabilities are known."""
    if isinstance(opened, SlideRecord):
        return opened
    if opened.reason is not None:
        progress.note(f"{task.row.slide}: done again, {opened.reason}")
    progress.detail(f"{task.row.slide}: {particulars(opened.job, models)}, opened in {opened.seconds:.1f} s")
    if opened.known is not None:
        return opened, _Map(opened.known)
    name = task.row.slide
    progress.slide(name, opened.job.tiles)
    began, waited = time.monotonic(), 0.0

    def advance(tiles: int, seconds: float) -> None:
        nonlocal waited
        waited += seconds
        progress.advance(name, tiles, seconds)

    heatmap = task.attempt(lambda: map_slide(opened.job, models, config, task.files, advance))
    if isinstance(heatmap, SlideRecord):
        opened.close()
        return heatmap
    seconds = max(time.monotonic() - began, 1e-9)
    progress.detail(f"{name}: mapped in {seconds:.1f} s, {waited:.1f} s of them waiting for reading")
    return opened, _Map(heatmap, round(waited / seconds, 3))


def _write(
    task: _Task, result: tuple[_Opened, _Map] | SlideRecord, models: list[ModelFile], progress: Progress
) -> SlideRecord:
    """Write the results of a slide and let others have it."""
    try:
        if not isinstance(result, SlideRecord):
            opened, found = result
            began = time.monotonic()
            result = task.attempt(lambda: _written(task, opened, found, models))
            opened.close()
            progress.detail(f"{task.row.slide}: written in {time.monotonic() - began:.1f} s")
        return result.model_copy(update={"seconds": round(time.monotonic() - task.began, 3)})
    finally:
        task.lock.release()


def _written(task: _Task, opened: _Opened, found: _Map, models: list[ModelFile]) -> SlideRecord:
    heatmap = found.heatmap
    notes = [f"{model.card.name} {model.card.version}: {model.card.intended_use}" for model in models]
    task.files.write(heatmap, opened.picture.result(), notes)
    status: Status = "no_tissue" if not heatmap.run["tiles"] else "suspect" if cautions.uniform(heatmap) else "ok"
    record = _record(task, heatmap, status, warnings_of(opened.job, heatmap, models))
    return record.model_copy(update={"waiting_share": found.waiting_share})


def _record(task: _Task, heatmap: Heatmap, status: Status, warnings: tuple[str, ...]) -> SlideRecord:
    tissue, tumor = int(heatmap.tissue.sum()), int(heatmap.tumor.sum())
    values = heatmap.probabilities[heatmap.tissue]
    numbers = {"mean_probability": float(values.mean()), "max_probability": float(values.max())} if tissue else {}
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
        tumor_share=round(tumor / tissue, 6) if tissue else None,
        largest_focus_mm2=round(heatmap.largest_focus_mm2, 6),
        tiles=heatmap.run["tiles"],
        bad_tiles=heatmap.run["bad_tiles"],
        warnings=warnings,
        **{name: round(value, 6) for name, value in numbers.items()},
    )
