"""How downloads look: on a terminal one bar a file and one for all, elsewhere one line a file and one a minute."""

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer

from wsiseg.cli.streams import Streams

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from wsiseg.fetch.batch import Outcome

_LINE_EVERY_S = 60.0
_ALL = ""


class Transfers:
    """Watches downloads and tells a person how they go; use it in a `with` block.

    Args:
        streams: Where to.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._lock = threading.Lock()
        self._rich: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._there: dict[str, int] = {}
        self._files = self._done = self._size = self._came = 0
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def begin(self, files: int, size: int) -> None:
        """Begin to fetch so many files and bytes."""
        self._files, self._size, self._began = files, size, time.monotonic()
        if self._streams.draws_bars:
            self._rich = _bars()
            self._rich.start()
            self._tasks[_ALL] = self._rich.add_task(f"{files} files", total=size or None)

    def arriving(self, name: str, size: int | None, there: int) -> None:
        """Count the bytes of a file that have arrived; what an earlier run left counts as arrived, not as speed."""
        with self._lock:
            before = self._there.get(name, 0)
            self._came += max(0, there - before) if name in self._there else 0
            self._there[name] = there
            if self._rich is not None:
                if name not in self._tasks:
                    self._tasks[name] = self._rich.add_task(name, total=size)
                self._rich.update(self._tasks[name], completed=there)
                self._rich.advance(self._tasks[_ALL], there - before)
            elif time.monotonic() - self._spoke > _LINE_EVERY_S:
                self._spoke = time.monotonic()
                self._streams.note(self._standing())

    def done(self, outcome: "Outcome") -> None:
        """Say what became of a file."""
        with self._lock:
            self._done += 1
            self._spoke = time.monotonic()
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
        seconds = time.monotonic() - self._began
        speed = self._came / seconds
        left = max(0, self._size - sum(self._there.values()))
        text = f"{self._done}/{self._files} files, {size_text(sum(self._there.values()))}, {size_text(speed)}/s"
        return f"{text}, about {time_text(left / speed)} left" if speed and self._size else text


def size_text(size: float) -> str:
    """Give a number of bytes for a person, as `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:  # noqa: PLR2004  the next unit
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def time_text(seconds: float) -> str:
    """Give a time for a person, as `3 h 20 min`."""
    minutes = max(1, round(seconds / 60))
    hours = minutes // 60
    if hours >= 48:  # noqa: PLR2004  days say more
        return f"{hours / 24:.1f} days"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


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
