"""Many files at a time: what is there is left alone, what fails is named, and the rest arrives."""

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Literal

from wsiseg.fetch.connection import Client, GoneError
from wsiseg.fetch.http import Wanted, download
from wsiseg.run.errors import DownloadError, OutputError, WsisegError
from wsiseg.run.record import Progress, SlideRecord

_SPARE_BYTES = 100 << 20  # what a disk should have left when all is there
_MOST_IN_A_ROW = 8  # so many failures without a success between them, and the server or the network is down


@dataclass(frozen=True)
class Outcome:
    """What became of a file; `up_to_date` means that it was there."""

    path: Path
    status: Literal["ok", "up_to_date", "failed"]
    error: WsisegError | None = None


@dataclass(frozen=True)
class Batch:
    """How files are fetched.

    Attributes:
        client: Of `open_client`.
        jobs: Files at a time.
        progress: Is told how it goes.
        by_size: Believe the size of files that are there rather than hash them.
    """

    client: Client
    jobs: int
    progress: Progress
    by_size: bool = True
    _stop: threading.Event = field(default_factory=threading.Event)
    _telling: threading.Lock = field(default_factory=threading.Lock)

    def fetch(self, wanted: Sequence[Wanted]) -> list[Outcome]:
        """Fetch files, no two of them at the same place, and return what became of each, in the same order.

        Raises:
            OutputError: The disk has no room for them; nothing was started.
        """
        missing = [one for one in wanted if not one.is_complete(by_size=self.by_size)]
        outcomes = {one.path: Outcome(one.path, "up_to_date") for one in wanted}
        if missing:
            _check_room(missing)
            self.progress.begin_files(len(missing), sum(map(_rest, missing)))
            outcomes |= self._fetched(missing)
        return [outcomes[one.path] for one in wanted]

    def _fetched(self, missing: Sequence[Wanted]) -> dict[Path, Outcome]:
        """Fetch files; give up where none of them arrives."""
        outcomes, in_a_row = {}, 0
        try:
            # Its threads never make the program wait, neither after an interrupt nor for a silent server.
            with ThreadPool(min(self.jobs, len(missing))) as pool:
                for outcome in pool.imap_unordered(self._one, missing):
                    outcomes[outcome.path] = outcome
                    is_network = isinstance(outcome.error, DownloadError) and not isinstance(outcome.error, GoneError)
                    in_a_row = in_a_row + 1 if is_network else 0
                    if in_a_row >= _MOST_IN_A_ROW or isinstance(outcome.error, OutputError):
                        self._stop.set()
        finally:
            self._stop.set()
        return outcomes

    def _one(self, wanted: Wanted) -> Outcome:
        name, path, began = wanted.name, wanted.path, time.monotonic()

        def told(count: int) -> None:
            with self._telling:
                self.progress.advance(name, count)

        with self._telling:
            self.progress.slide(name, _rest(wanted))
        try:
            download(self.client, wanted, told, self._stop)
        except WsisegError as error:
            outcome = Outcome(path, "failed", error)
            record = SlideRecord.of_error(name, path, error, must_be_slide=True)
        else:
            outcome, seconds = Outcome(path, "ok"), time.monotonic() - began
            record = SlideRecord(slide=name, path=str(path), status="ok", seconds=seconds)
        with self._telling:
            self.progress.done(record)
        return outcome


def _rest(wanted: Wanted) -> int:
    """Return how many bytes have still to come; 0 where nobody knows."""
    return max(0, (wanted.size or 0) - (wanted.part.stat().st_size if wanted.part.exists() else 0))


def _check_room(missing: Sequence[Wanted]) -> None:
    """Refuse to begin where the disk has no room for the files."""
    folder = next(parent for parent in missing[0].path.absolute().parents if parent.exists())
    needed, free = sum(map(_rest, missing)), shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        text = f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
        raise OutputError(text, "choose another --out, or fetch less with --limit")
