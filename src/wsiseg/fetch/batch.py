"""Many files at a time: what is there is left alone, what fails is named, and the rest arrives."""

import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from wsiseg.fetch.connection import GoneError
from wsiseg.fetch.http import Remote, download, is_complete
from wsiseg.fetch.patience import Patience, StoppedError
from wsiseg.run.errors import DownloadError, OutputError, WsisegError

_SPARE_BYTES = 100 << 20  # what a disk should have left when all is there
_MOST_IN_A_ROW = 8  # so many failures without a success between them, and the server or the network is down
_STOP_S = 2.0


@dataclass(frozen=True)
class Wanted:
    """A file to fetch and where it goes."""

    remote: Remote
    path: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        name: What it is called.
        path: Where it goes.
        status: `fetched`, `up_to_date` (it was there) or `failed`.
        error: Why it failed.
    """

    name: str
    path: Path
    status: Literal["fetched", "up_to_date", "failed"]
    error: WsisegError | None = None


class Watcher:
    """Whoever a fetch tells how it goes: nobody, unless a subclass listens; calls come from several threads."""

    def begin(self, files: int, size: int) -> None:
        """Tell how many files and bytes there are to fetch."""

    def arriving(self, name: str, size: int | None, there: int) -> None:
        """Tell that `there` bytes of a file have arrived."""

    def done(self, outcome: Outcome) -> None:
        """Tell what became of a file."""

    def note(self, text: str) -> None:
        """Tell something a person should know."""


@dataclass(frozen=True)
class Batch:
    """How files are fetched.

    Attributes:
        client: Of `open_client`.
        patience: How often and how long to try each.
        jobs: Files at a time.
        watcher: Is told how it goes.
        moved: Returns a file's new place when its old one is gone, or None.
        by_size: Believe the size of files that are there rather than hash them.
    """

    client: httpx.Client
    patience: Patience
    jobs: int
    watcher: Watcher
    moved: Callable[[Wanted], Wanted | None] = lambda _: None
    by_size: bool = True

    def fetch(self, wanted: Sequence[Wanted]) -> list[Outcome]:
        """Fetch files.

        Args:
            wanted: The files; no two at the same place.

        Returns:
            What became of each, in the same order.

        Raises:
            OutputError: The disk has no room for them; nothing was started.
        """
        there = {item.path for item in wanted if is_complete(item.remote, item.path, by_size=self.by_size)}
        missing = [item for item in wanted if item.path not in there]
        outcomes = {path: Outcome(path.name, path, "up_to_date") for path in there}
        if missing:
            _check_room(missing)
            self.watcher.begin(len(missing), sum(item.remote.size or 0 for item in missing))
            for outcome in self._arriving(missing):
                outcomes[outcome.path] = outcome
                self.watcher.done(outcome)
        return [outcomes[item.path] for item in wanted]

    def _arriving(self, missing: Sequence[Wanted]) -> Iterator[Outcome]:
        """Yield what becomes of the files as they arrive; give up where nothing does."""
        stop = threading.Event()
        in_a_row = 0
        with _workers(lambda item: self._one(item, stop), missing, self.jobs, stop) as results:
            for _ in missing:
                outcome = results.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                is_network = isinstance(outcome.error, DownloadError) and not isinstance(outcome.error, GoneError)
                in_a_row = in_a_row + 1 if is_network else 0
                if in_a_row >= _MOST_IN_A_ROW or isinstance(outcome.error, OutputError):
                    stop.set()
                yield outcome

    def _one(self, item: Wanted, stop: threading.Event) -> Outcome:
        try:
            self._download(item, stop)
        except StoppedError:
            error = DownloadError(f"{item.path.name}: not tried any more", "run it again later")
            return Outcome(item.path.name, item.path, "failed", error)
        except WsisegError as problem:
            return Outcome(item.path.name, item.path, "failed", problem)
        return Outcome(item.path.name, item.path, "fetched")

    def _download(self, item: Wanted, stop: threading.Event) -> None:
        def told(there: int) -> None:
            self.watcher.arriving(item.path.name, item.remote.size, there)

        def take(remote: Remote) -> None:
            download(self.client, remote, item.path, self.patience, told=told, stop=stop)

        try:
            take(item.remote)
        except GoneError:
            found = self.moved(item)
            if found is None:
                raise
            take(found.remote)


Results = queue.SimpleQueue[Outcome | BaseException]


@contextmanager
def _workers(
    work: Callable[[Wanted], Outcome],
    items: Sequence[Wanted],
    jobs: int,
    stop: threading.Event,
) -> Iterator[Results]:
    """Work on items in threads that neither an interrupt nor a silent server can make the program wait for."""
    tasks: queue.SimpleQueue[Wanted] = queue.SimpleQueue()
    results: Results = queue.SimpleQueue()
    for item in items:
        tasks.put(item)

    def loop() -> None:
        while True:
            try:
                results.put(work(tasks.get_nowait()))
            except queue.Empty:
                return
            except BaseException as error:  # noqa: BLE001  the main thread raises it
                results.put(error)
                return

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(min(jobs, len(items)))]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        stop.set()
        for thread in threads:
            thread.join(_STOP_S)


def _check_room(wanted: Sequence[Wanted]) -> None:
    """Refuse to begin where the disk has no room for the files."""
    folder = next(parent for parent in wanted[0].path.absolute().parents if parent.exists())
    parts = [(item.remote.size or 0, item.path.with_name(f"{item.path.name}.part")) for item in wanted]
    needed = sum(max(0, size - (part.stat().st_size if part.exists() else 0)) for size, part in parts)
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        text = f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
        raise OutputError(text, "choose another --out, or fetch less with --limit")
