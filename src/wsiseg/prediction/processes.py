"""Slides shared among processes of this machine, each with a device and a share of the cores of its own.

They are handed out a few at a time. Where a process dies another takes its place and its slides are handed out
again, one by one; a slide that ends three processes has failed.
"""

import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Lock
from typing import Any

from wsiseg.run.errors import DeviceError, WsisegError, counted
from wsiseg.run.machine import CORES, cores
from wsiseg.run.record import Progress, SlideRecord
from wsiseg.slides.cohort import CohortSlide

Work = Callable[[Sequence[CohortSlide], Progress, str], Iterator[SlideRecord]]
"""Maps slides on a device, in one of the processes."""

_MOST_AT_ONCE = 16
_MOST_DEATHS = 3
_PATIENCE_S = 20.0


@dataclass
class _Worker:
    """A process and where it computes."""

    device: str
    process: SpawnProcess
    pipe: Connection
    rows: dict[str, CohortSlide] = field(default_factory=dict)  # that it has and that nothing is known of yet
    has_begun: bool = False
    is_idle: bool = False

    def stop(self) -> None:
        """End the process, as it stands."""
        self.process.terminate()
        self.process.join(_PATIENCE_S)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def in_processes(
    devices: Sequence[str], work: Work, rows: Sequence[CohortSlide], progress: Progress
) -> Iterator[SlideRecord]:
    """Map slides in one process for each of these devices.

    Raises:
        WsisegError: A process cannot begin, as where its device is not available.
    """
    shared = _Shared(work, deque(rows), progress, max(1, cores() // len(devices)))
    try:
        for device in devices:
            shared.start(device)
        yield from shared.records()
    finally:
        for worker in shared.workers:
            worker.stop()


class _Shared:
    """The slides that are left, and the processes that they are handed out to."""

    def __init__(self, work: Work, waiting: deque[CohortSlide], progress: Progress, share: int) -> None:
        self.work, self.waiting, self.progress, self.share = work, waiting, progress, share
        self.workers: list[_Worker] = []
        self._deaths = Counter[str]()

    def start(self, device: str) -> None:
        """Start a process."""
        context = get_context("spawn")  # what CUDA and threads leave behind in a fork cannot be used
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.work, device, self.share))
        process.start()
        theirs.close()
        self.workers.append(_Worker(device, process, ours))

    def records(self) -> Iterator[SlideRecord]:
        """Hand out slides until all are done."""
        while self.waiting or any(worker.rows for worker in self.workers):
            ready = connection.wait([worker.pipe for worker in self.workers])
            for worker in [worker for worker in self.workers if worker.pipe in ready]:
                try:
                    kind, values = worker.pipe.recv()
                except (EOFError, OSError):
                    yield from self._lost(worker)
                    continue
                if kind == "record":
                    worker.rows.pop(values[0].slide, None)
                    yield values[0]
                elif kind == "idle":
                    worker.has_begun = worker.is_idle = True
                elif kind == "error":
                    raise values[0]
                elif kind == "advance":
                    slide, tiles, waited_s = values
                    self.progress.advance(slide, tiles, waited_s / len(self.workers))
                else:
                    getattr(self.progress, kind)(*values)
            for worker in self.workers:
                if worker.is_idle and self.waiting:
                    self._hand_out(worker)

    def _hand_out(self, worker: _Worker) -> None:
        """Hand some slides to a process: fewer towards the end, and those that may have ended another one by one."""
        most = min(_MOST_AT_ONCE, len(self.waiting) // (2 * len(self.workers)))
        rows = [self.waiting.popleft()]
        while len(rows) < most and not self._deaths[rows[0].slide] and not self._deaths[self.waiting[0].slide]:
            rows.append(self.waiting.popleft())
        worker.rows, worker.is_idle = {row.slide: row for row in rows}, False
        with suppress(OSError):  # it has died: the next look at its pipe finds that out
            worker.pipe.send(rows)

    def _lost(self, worker: _Worker) -> Iterator[SlideRecord]:
        """Start a process in place of a dead one, and hand out its slides again, but for one that ended too many."""
        worker.process.join()
        self.workers.remove(worker)
        ended = f"the process on {worker.device} ended with exit code {worker.process.exitcode}"
        if not worker.has_begun:
            raise WsisegError(f"{ended} before it began", "try --jobs 1")
        self.progress.note(f"{ended}: {counted(len(worker.rows), 'slide')} handed out again")
        for row in reversed(worker.rows.values()):
            self._deaths[row.slide] += 1
            if self._deaths[row.slide] < _MOST_DEATHS:
                self.waiting.appendleft(row)
            else:
                error = WsisegError(f"{row.path.name}: ended its process {_MOST_DEATHS} times", "give it more memory")
                yield SlideRecord.of_error(row.slide, row.path, error, must_be_slide=row.must_be_slide)
        self.start(worker.device)


class _Told(Progress):
    """What watches in a process: all that matters is told to the process that prints."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, Lock()

    def send(self, kind: str, *values: Any) -> None:  # noqa: ANN401  the arguments of a method of Progress
        """Tell something; leave at once where nobody listens any more."""
        try:
            with self._lock:
                self._pipe.send((kind, values))
        except OSError:
            os._exit(1)

    def slide(self, slide: str, tiles: int) -> None:
        self.send("slide", slide, tiles)

    def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:
        self.send("advance", slide, tiles, waited_s)

    def note(self, text: str) -> None:
        self.send("note", text)

    def detail(self, text: str) -> None:
        self.send("detail", text)


def _serve(pipe: Connection, work: Work, device: str, share: int) -> None:
    """Ask for slides and map them, until there are no more or the process that started this one stops it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.environ[CORES] = str(share)
    told = _Told(pipe)
    with suppress(EOFError):
        try:
            while True:
                told.send("idle")
                for record in work(pipe.recv(), told, device):
                    told.send("record", record)
                    if record.error is not None and record.error.type == DeviceError.__name__:
                        sys.exit(1)  # the device may work again in a fresh process, and would fail all slides in this
        except WsisegError as error:
            told.send("error", error)
