"""Slides shared among processes: of this machine, each with a device and a share of the cores of its own, or of Dask.

Here they are handed out a few at a time. Where a process dies another takes its place and its slides are handed out
again, one by one; a slide that ends three processes has failed.
"""

import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Lock
from typing import TYPE_CHECKING, Any

from wsiseg.model_file.onnx_session import runtime
from wsiseg.run.errors import UsageError, WsisegError, counted
from wsiseg.run.machine import CORES, cores
from wsiseg.run.record import Progress, SlideRecord
from wsiseg.slides.cohort import CohortSlide

if TYPE_CHECKING:
    from distributed import Client, Future

Work = Callable[[Sequence[CohortSlide], Progress, str], Iterator[SlideRecord]]
"""Maps slides on a device, in one of the processes."""

_MOST_AT_ONCE = 16
_MOST_DEATHS = 3
_PATIENCE_S = 20.0
_CONNECT_S = 30
_PACKAGES = ("wsiseg", "numpy", "zarr", "openslide-python")


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
        except WsisegError as error:
            told.send("error", error)


def on_cluster(address: str, work: Work, device: str, rows: Sequence[CohortSlide]) -> Iterator[SlideRecord]:
    """Map slides on a Dask cluster, one a task; one whose worker dies is done again by another, up to three times.

    The address is that of a scheduler, or `local:N` for N processes on this machine.

    Raises:
        UsageError: Dask is not installed, the address is wrong, or workers run other versions than this process.
        WsisegError: A task killed its workers again and again.
    """
    try:
        from distributed import KilledWorker, as_completed  # noqa: PLC0415  an extra
    except ImportError as error:
        raise UsageError("--dask needs Dask, which is not installed", "pip install 'wsiseg[dask]'") from error
    with ExitStack() as stack:
        client = _client(address, stack)
        _compare_versions(client)
        alone = partial(_alone, work=work, device=device)
        futures: list[Future[SlideRecord]] = client.map(alone, rows, pure=False, retries=0)
        try:
            for future in as_completed(futures):  # type: ignore[no-untyped-call]  # it has no types
                yield future.result()
        except KilledWorker as error:
            text = f"a slide ended its worker {_MOST_DEATHS} times: {error}"
            raise WsisegError(text, "give it more memory") from error


def _alone(row: CohortSlide, work: Work, device: str) -> SlideRecord:
    (record,) = work([row], Progress(), device)
    return record


def _client(address: str, stack: ExitStack) -> "Client":
    import dask  # noqa: PLC0415  an extra
    from distributed import Client, LocalCluster  # noqa: PLC0415  an extra

    stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": _MOST_DEATHS}))
    kind, _, count = address.partition(":")
    if kind == "local":
        if not count.isdigit() or int(count) < 1:
            raise UsageError(f"--dask {address}: not a number of processes", "give local:N, as local:4")
        settings = {"n_workers": int(count), "threads_per_worker": 1, "dashboard_address": None}
        address = stack.enter_context(LocalCluster(**settings))  # type: ignore[no-untyped-call]  # it has no types
    try:
        client: Client = stack.enter_context(Client(address, timeout=_CONNECT_S))  # type: ignore[no-untyped-call]  # too
    except (OSError, ValueError) as error:
        raise UsageError(f"--dask {address}: no scheduler answers: {error}", "check address and firewall") from error
    return client


def _versions() -> dict[str, str]:
    from importlib.metadata import version  # noqa: PLC0415  also runs on the workers

    # ONNX Runtime has packages of several names.
    return {**{name: version(name) for name in _PACKAGES}, "onnxruntime": runtime().__version__}


def _compare_versions(client: "Client") -> None:
    """Refuse workers that have another version of something that results depend on."""
    mine = _versions()
    for worker, theirs in client.run(_versions).items():
        other = [f"{name} {theirs[name]} instead of {mine[name]}" for name in mine if theirs[name] != mine[name]]
        if other:
            raise UsageError(f"worker {worker} has {', '.join(other)}", "install the same versions everywhere")
