"""How downloads look: on a terminal one bar a file and one for all, elsewhere one line a file and one a minute."""

import threading
from typing import TYPE_CHECKING, Self

import typer

from wsiseg.cli.streams import Streams
from wsiseg.fetch.batch import Outcome, Watcher
from wsiseg.run.pace import Pace, spoken_size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_ALL = ""


class Transfers(Watcher):
    """Tells a person how downloads go; use it in a `with` block.

    Args:
        streams: Where to.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams, self._lock = streams, threading.Lock()
        self._rich: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._there: dict[str, int] = {}
        self._files = self._done = 0
        self._pace = Pace(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rich is not None:
            self._rich.stop()

    def begin(self, files: int, size: int) -> None:
        """Begin to fetch so many files and bytes."""
        self._files, self._pace = files, Pace(size)
        if self._streams.draws_bars:
            self._rich = _bars()
            self._rich.start()
            self._tasks[_ALL] = self._rich.add_task(f"{files} files", total=size or None)

    def arriving(self, name: str, size: int | None, there: int) -> None:
        """Count the bytes of a file that have arrived; what an earlier run left counts as arrived, not as speed."""
        with self._lock:
            before = self._there.get(name, 0)
            if name in self._there:
                self._pace.advance(there - before)
            else:
                self._pace.total -= there
            self._there[name] = there
            if self._rich is not None:
                if name not in self._tasks:
                    self._tasks[name] = self._rich.add_task(name, total=size)
                self._rich.update(self._tasks[name], completed=there)
                self._rich.advance(self._tasks[_ALL], there - before)
            elif self._pace.is_due():
                self._streams.note(self._standing())

    def done(self, outcome: Outcome) -> None:
        """Say what became of a file."""
        with self._lock:
            self._done += 1
            self._pace.spoke()
            if self._rich is not None and outcome.name in self._tasks:
                self._rich.remove_task(self._tasks.pop(outcome.name))
        if outcome.error is not None:
            text = f"[{self._done}/{self._files}] failed: {outcome.error}"
            if self._streams.quiet:
                typer.echo(text, err=True)
            self.note(text)
        elif self._rich is None:
            self._streams.note(f"[{self._done}/{self._files}] {outcome.name}")

    def note(self, text: str) -> None:
        """Say something on standard error."""
        if self._rich is not None and not self._streams.quiet:
            self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._streams.note(text)

    def _standing(self) -> str:
        speed = spoken_size(max(0.0, self._pace.done) / self._pace.seconds)
        said = [f"{self._done}/{self._files} files", spoken_size(sum(self._there.values())), f"{speed}/s"]
        return ", ".join([*said, self._pace.left()] if self._pace.total > 0 else said).rstrip(", ")


def _bars() -> "Progress":
    from rich.console import Console  # noqa: PLC0415  only where bars are drawn
    from rich.progress import (  # noqa: PLC0415  the same
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
