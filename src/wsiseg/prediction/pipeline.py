"""Slides on their way from a row of the cohort to their results: opened ahead, mapped in turn, written behind."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.onnx_session import CPU, PROVIDERS
from wsiseg.prediction.feed import Feed
from wsiseg.prediction.inference import Asking
from wsiseg.prediction.locks import SlideLocks
from wsiseg.prediction.map_files import OTHER_THRESHOLD, MapFiles, what_changed
from wsiseg.prediction.mapping import (
    Job,
    askings_of,
    forecast,
    map_of,
    particulars,
    picture_of,
    plan_record,
    prepare,
    settings_of,
    threshold_of,
    warnings_of,
)
from wsiseg.prediction.stored import write_of
from wsiseg.prediction.unchanged import Marks, Setting, marks_of
from wsiseg.run.errors import WsisegError
from wsiseg.run.memory import start_zarr
from wsiseg.run.record import SlideRecord, Status
from wsiseg.slides.address import bare
from wsiseg.slides.cache import Cache, lock_of
from wsiseg.slides.cohort import CohortSlide
from wsiseg.slides.slide import Slide

if TYPE_CHECKING:
    from filelock import SoftFileLease

_AT_ONCE = 2  # slides that are opened or written
_LANES = 2  # batches that an accelerator is given at once: it copies one while it computes the other
_ONE_AT_A_TIME = {CPU, PROVIDERS["directml"]}  # DirectML must not be called twice at once
_LOOK_AGAIN_S, _FORETOLD_AFTER_S = 1.0, 2.0


@dataclass
class _Work:
    """A slide that this process has taken: opened, asked about and written, in this order."""

    setting: Setting
    row: CohortSlide
    files: MapFiles
    locks: "Sequence[SoftFileLease]" = ()  # held until the results are written
    began: float = field(default_factory=time.monotonic)
    record: SlideRecord | None = None  # what became of it, once that is known
    job: Job | None = None  # while it is open
    picture: "Future[NDArray[np.uint8]] | None" = None
    marks: Marks = field(default_factory=list)  # of the slide, before it was opened
    known: Heatmap | None = None  # a map of the very probabilities that are asked for
    askings: list[Asking] = field(default_factory=list)
    foretells: tuple[float, int] | None = None  # of the first slide, when it was begun, and how many slides there are
    done: int = 0  # tiles
    asked_from: float = 0.0
    waited_s: float = 0.0

    def attempt(self, step: Callable[[], SlideRecord | None]) -> None:
        """Take a step; where it fails the record says why."""
        try:
            self.record = step()
        except (WsisegError, OSError, MemoryError) as error:
            must_be_slide = self.row.must_be_slide
            self.record = SlideRecord.of_error(self.row.slide, self.row.path, error, must_be_slide=must_be_slide)

    def open(self, reader: ThreadPoolExecutor) -> None:
        """Open the slide, unless its results are there and right."""

        def step() -> SlideRecord | None:
            began, config = time.monotonic(), self.setting.config
            if self.files.outputs["zarr"].exists():
                start_zarr()
            known, self.marks = None if config.overwrite else self.files.open(), marks_of(self.row)
            slide = self._slide()
            try:
                if known is not None and self._is_up_to_date(known, slide):
                    slide.close()
                    return self._with_state(self._up_to_date(known, slide))
                self._prepare(slide, reader, began)
            except BaseException:
                slide.close()
                raise
            return None

        self.attempt(step)

    def _up_to_date(self, known: Heatmap, slide: Slide) -> SlideRecord:
        return _record(self, known, "up_to_date", warnings_of(self.row, slide, known, self.setting.models))

    def _with_state(self, record: SlideRecord) -> SlideRecord:
        return record.model_copy(update={"state": self.setting.state(self.row, self.marks)})

    def plan(self, speed: float) -> SlideRecord:
        """Say what would be done, at so many tiles a second."""
        config = self.setting.config
        known = None if config.overwrite else self.files.open()
        with self._slide() as slide:
            if known is not None and self._is_up_to_date(known, slide):
                return self._up_to_date(known, slide)
            job = prepare(self.row, slide, self.setting.models, config, self.setting.places)
            return plan_record(job, 0 if self.known else job.tiles, speed)  # a new threshold alone asks about none

    def _slide(self) -> Slide:
        """Open the slide, fetched first where it lies elsewhere."""
        config = self.setting.config
        if self.row.address:
            from wsiseg.slides.remote import fetch  # noqa: PLC0415  loads the HTTP client

            fetch(self.row, Cache(*config.cache_place), self.setting.progress)
        return self.row.open(config.slide_mpp, config.read_timeout)

    def _is_up_to_date(self, known: Heatmap, slide: Slide) -> bool:
        """Tell whether nothing is to be done; otherwise say why, and keep what of it can be used."""
        models, config = self.setting.models, self.setting.config
        threshold = threshold_of(models, config)
        wanted = settings_of(models, config, self.setting.places.settings(self.row.slide))
        reason = what_changed(known, slide, wanted, threshold)
        if known.run.get("bad_tiles", 0) > config.max_bad_tiles * known.run.get("tiles", 0):
            reason = "more of it could not be read than max-bad-tiles allows"
        if reason in (None, OTHER_THRESHOLD):
            has_all = not config.write_features or self.files.outputs["features"].exists()
            self.known = replace(known, threshold=threshold) if has_all else None
        if reason is not None:
            self.setting.progress.note(f"{self.row.slide}: done again, {reason}")
        return reason is None and self.files.are_there

    def _prepare(self, slide: Slide, reader: ThreadPoolExecutor, began: float) -> None:
        """Find out what is to be asked, unless the probabilities are known."""
        setting = self.setting
        self.job = prepare(self.row, slide, setting.models, setting.config, setting.places)
        seconds = time.monotonic() - began
        told = f"{self.row.slide}: {particulars(self.job, setting.models)}, opened in {seconds:.1f} s"
        setting.progress.detail(told)
        if self.known is None:
            self.askings = askings_of(self.job, setting.models, setting.config, self.files, self._advance)
        self.picture = reader.submit(picture_of, self.job)

    def _advance(self, tiles: int, seconds: float) -> None:
        """Tell of further tiles that are done."""
        if not self.asked_from and self.job is not None:
            self.setting.progress.slide(self.row.slide, self.job.tiles)
            self.asked_from = time.monotonic() - seconds
        self.waited_s, self.done = self.waited_s + seconds, self.done + tiles
        if self.foretells and self.job is not None:
            took, slides = time.monotonic() - self.foretells[0], self.foretells[1]
            is_last = self.done >= self.job.tiles
            if took > _FORETOLD_AFTER_S or (is_last and slides > 1):
                self.setting.progress.note(forecast(self.job, self.done / took, slides))
                self.foretells = None
        self.setting.progress.advance(self.row.slide, tiles, seconds)

    def finish(self) -> SlideRecord:
        """Write the results of the slide, close it and let others have it."""
        try:
            if self.job is not None and self.picture is not None:
                self._write(self.job, self.picture)
            assert self.record is not None  # noqa: S101  it could not be opened, was done, or was written
            seconds = self.record.seconds or round(time.monotonic() - self.began, 3)
            elsewhere = {"address": bare(self.row.address)} if self.row.address else {}
            return self.record.model_copy(update={"seconds": seconds, **elsewhere})
        finally:
            for lock in self.locks:
                lock.release()

    def _write(self, job: Job, picture: "Future[NDArray[np.uint8]]") -> None:
        began, name, share, progress = time.monotonic(), self.row.slide, None, self.setting.progress
        if self.askings:
            seconds = max(began - self.asked_from, 1e-9) if self.asked_from else 0.0
            share = round(min(1.0, self.waited_s / seconds), 3) if self.asked_from else 0.0
            progress.detail(f"{name}: mapped in {seconds:.1f} s, {self.waited_s:.1f} s of them waiting for reading")

        def step() -> SlideRecord:
            models = self.setting.models
            heatmap = self.known or map_of(job, self.askings, models, self.setting.config)
            heatmap = replace(heatmap, run={**heatmap.run, "warnings": [*job.warnings]})  # for runs that find it done
            notes = [f"{model.card.name} {model.card.version}: {model.card.intended_use}" for model in models]
            if self.setting.config.write_features and self.askings and self.askings[0].features:
                facts = models[0].card.features
                write_of(self.askings[0], facts.encoder if facts else "", self.files.outputs["features"])
            warnings = warnings_of(self.row, job.slide, heatmap, models)
            self.files.write(heatmap, picture.result(), notes, warnings)
            status: Status = "no_tissue" if not heatmap.run["tiles"] else "suspect" if heatmap.warnings else "ok"
            record = _record(self, heatmap, status, warnings)
            record = self._with_state(record)
            return record.model_copy(update={"waiting_share": share, "written": self.files.written()})

        self.attempt(step)
        wait([picture])  # nobody reads the slide any more
        job.slide.close()
        progress.detail(f"{name}: written in {time.monotonic() - began:.1f} s")


def records(rows: Sequence[CohortSlide], setting: Setting) -> Iterator[SlideRecord]:
    """Map slides one after the other; the next are opened and read, and the last are written meanwhile."""
    writing: deque[Future[SlideRecord]] = deque()
    # What one process has taken others cannot map: no more than keeps the device at work.
    lanes = 1 if {model.provider for model in setting.models} <= _ONE_AT_A_TIME else _LANES
    with ThreadPoolExecutor(_AT_ONCE, "opener") as opener, ThreadPoolExecutor(_AT_ONCE, "writer") as writer:
        feed = Feed(lanes, lambda seconds: setting.progress.advance("", 0, seconds), start_zarr)
        for work in feed.run(_arriving(deque(rows), setting, opener, lanes)):
            writing.append(writer.submit(work.finish))
            while len(writing) > _AT_ONCE or (writing and writing[0].done()):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()


def planned(rows: Sequence[CohortSlide], setting: Setting) -> Iterator[SlideRecord]:
    """Say of slides what mapping them would do: tiles that would be asked about, and nothing is asked or written."""
    asked = [model for model in setting.models if model.card.input != "features"]  # a head takes no time
    speed = min((model.tiles_per_s() for model in asked), default=math.inf)
    for row in rows:
        work = _Work(setting, row, setting.files(row), record=setting.unchanged(row))
        if work.record is None:
            work.attempt(partial(work.plan, speed))
        yield work.finish()


def _arriving(
    waiting: deque[CohortSlide], setting: Setting, opener: ThreadPoolExecutor, ahead: int
) -> Iterator[_Work | None]:
    """Yield the slides in the order in which they were taken; None while the next is not open."""
    opening: deque[tuple[_Work, Future[None]]] = deque()
    config, progress = setting.config, setting.progress
    is_foretold = config.dask is not None or len(config.devices) > 1  # each process knows of some slides alone
    locks, look_again = SlideLocks(), 0.0
    while waiting or opening:
        while waiting and len(opening) < ahead and time.monotonic() >= look_again:
            row = waiting.popleft()
            files = setting.files(row)
            taken = locks.take(files.lock, *([lock_of(row.path.parent)] if row.address else []))
            if taken is None:  # another works on it: look again after the others
                waiting.append(row)
                look_again = time.monotonic() + _LOOK_AGAIN_S / len(waiting)
                continue
            work = _Work(setting, row, files, taken)
            opening.append((work, opener.submit(work.open, opener)))
        if not opening or not opening[0][1].done():
            if not opening:
                locks.tell(progress.note)
            yield None
            continue
        work, opened = opening.popleft()
        opened.result()
        if not is_foretold and work.askings and work.job is not None and work.job.tiles:
            work.foretells, is_foretold = (time.monotonic(), 1 + len(opening) + len(waiting)), True
        yield work


def _record(work: _Work, heatmap: Heatmap, status: Status, warnings: tuple[str, ...]) -> SlideRecord:
    called = {name: int(cells.sum()) for name, cells in heatmap.called.items()}
    tissue, unknown = int(heatmap.tissue.sum()), int(heatmap.unknown.sum())
    cells = {"tissue": tissue, "unknown": unknown, "tumor": called[heatmap.positive_class]}
    share, mm2 = {name: round(count / max(1, tissue), 6) for name, count in called.items()}, heatmap.cell_mm2
    classes = {name: {"mm2": round(count * mm2, 6), "share": share[name]} for name, count in called.items()}
    values = heatmap.probabilities[heatmap.judged]
    numbers = {f"{name}_mm2": count * mm2 for name, count in cells.items()}
    numbers["largest_focus_mm2"] = float((foci := heatmap.foci_mm2).max(initial=0))
    if values.size:
        numbers |= {"mean_probability": float(values.mean()), "max_probability": float(values.max())}
    return SlideRecord(
        slide=work.row.slide,
        path=str(work.row.path),
        status=status,
        outputs={kind: str(path) for kind, path in work.files.outputs.items()},
        mpp=heatmap.slide.mpp,
        mpp_source=heatmap.slide.mpp_source,
        mpp_raw=heatmap.slide.mpp_raw,
        fingerprint=heatmap.slide.fingerprint,
        **work.row.known,
        model=f"{heatmap.model.get('name', '')} {heatmap.model.get('version', '')}".strip(),
        provider=heatmap.run.get("provider"),
        foci=len(foci),
        tumor_share=share[heatmap.positive_class] if values.size else None,
        classes=classes if [*called] != ["tumor"] else {},
        unknown_share=round(unknown / tissue, 6) if tissue else None,
        tiles=heatmap.run["tiles"],
        bad_tiles=heatmap.run["bad_tiles"],
        warnings=warnings,
        suspect=bool(heatmap.warnings),  # where the status says that it is up to date
        **{name: round(value, 6) for name, value in numbers.items()},
    )
