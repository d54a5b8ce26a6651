"""Many files at a time: what is there is left alone, what fails is named, and the rest arrives."""

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Literal

from wsiseg.run.connection import Client, GoneError
from wsiseg.run.download import Wanted, download
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


def fetch_all(
    client: Client, wanted: Sequence[Wanted], jobs: int, progress: Progress, *, by_size: bool = True
) -> list[Outcome]:
    """Fetch files, no two of them at the same place, and return what became of each, in the same order.

    So many `jobs` arrive at a time; with `by_size` files that are there are believed by their size rather than hashed.

    Raises:
        OutputError: The disk has no room for them; nothing was started.
    """
    outcomes = {one.path: Outcome(one.path, "up_to_date") for one in wanted}
    missing = [one for one in wanted if not one.is_complete(by_size=by_size)]
    if missing:
        _check_room(missing)
        progress.begin(len(missing), sum(one.rest for one in missing))
        outcomes |= {outcome.path: outcome for outcome in _fetched(client, missing, jobs, progress)}
    return list(outcomes.values())


def _check_room(missing: Sequence[Wanted]) -> None:
    folder = next(parent for parent in missing[0].path.absolute().parents if parent.exists())
    needed, free = sum(one.rest for one in missing), shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        text = f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
        raise OutputError(text, "choose another --out, or fetch less with --limit")


def _fetched(client: Client, missing: Sequence[Wanted], jobs: int, progress: Progress) -> Iterator[Outcome]:
    """Yield what becomes of files as they arrive; give up where none of them does."""
    stop, telling, in_a_row = threading.Event(), threading.Lock(), 0
    fetch = partial(_one, client, progress, telling, stop)
    try:
        # Its threads never make the program wait, neither after an interrupt nor for a silent server.
        with ThreadPool(min(jobs, len(missing))) as pool:
            for outcome in pool.imap_unordered(fetch, missing):
                is_network = isinstance(outcome.error, DownloadError) and not isinstance(outcome.error, GoneError)
                in_a_row = in_a_row + 1 if is_network else 0
                if in_a_row >= _MOST_IN_A_ROW or isinstance(outcome.error, OutputError):
                    stop.set()
                yield outcome
    finally:
        stop.set()


def _one(client: Client, progress: Progress, telling: threading.Lock, stop: threading.Event, wanted: Wanted) -> Outcome:
    name, path, began = wanted.name, wanted.path, time.monotonic()

    def told(count: int) -> None:
        with telling:
            progress.advance(name, count)

    with telling:
        progress.slide(name, wanted.rest)
    try:
        download(client, wanted, told, stop)
    except WsisegError as error:
        outcome = Outcome(path, "failed", error)
        record = SlideRecord.of_error(name, path, error, must_be_slide=True)
    else:
        outcome = Outcome(path, "ok")
        record = SlideRecord(slide=name, path=str(path), status="ok", seconds=time.monotonic() - began)
    with telling:
        progress.done(record)
    return outcome
