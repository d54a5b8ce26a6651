"""Where a command's words go: results to standard output, everything else to standard error."""

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer

from wsiseg.run import Run, SlideRecord

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_LINE_EVERY_S = 60.0


class Streams:
    """The streams of one command; also the `Progress` that its verb reports to.

    On a terminal progress is a bar; elsewhere it is one line a slide, and one a minute on long work.

    Args:
        json: Standard output carries JSON and nothing else.
        quiet: Say nothing but errors.
        verbose: Say more.
        bars: Draw bars where standard error is a terminal.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False, bars: bool = True) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose
        self._bars = bars and not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._rich: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._slides = self._done = self._tiles = 0
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

    @property
    def draws_bars(self) -> bool:
        """True where progress is drawn rather than told in lines."""
        return self._bars

    def result(self, value: Mapping[str, Any], lines: Iterable[str]) -> None:
        """Print the result: `value` as JSON where that is asked for, else `lines`."""
        if self.json:
            typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))
        else:
            for line in lines:
                typer.echo(line)

    def note(self, text: str) -> None:
        """Say something on standard error."""
        if self.quiet:
            return
        if self._rich is not None:
            self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text, err=True)

    def detail(self, text: str) -> None:
        """Say something on standard error with `--verbose`."""
        if self.verbose:
            self.note(text)

    def begin(self, slides: int) -> None:
        """Begin a run over so many slides."""
        self._slides, self._began = slides, time.monotonic()
        if self._bars:
            self._rich = _bars()
            self._rich.start()
            self._tasks[""] = self._rich.add_task("slides", total=slides)

    def slide(self, slide: str, tiles: int) -> None:
        """Begin a slide of so many tiles."""
        if self._rich is not None:
            self._tasks[slide] = self._rich.add_task(slide, total=tiles)

    def advance(self, slide: str, tiles: int) -> None:
        """Count tiles that are done."""
        self._tiles += tiles
        if self._rich is not None and slide in self._tasks:
            self._rich.advance(self._tasks[slide], tiles)
        elif self._rich is None and time.monotonic() - self._spoke > _LINE_EVERY_S:
            self._spoke = time.monotonic()
            rate = self._tiles / (self._spoke - self._began)
            self.note(f"{self._done}/{self._slides} slides, {self._tiles} tiles, {rate:.1f} tiles/s{self._left()}")

    def done(self, record: SlideRecord) -> None:
        """Count a slide that is done and say what became of it."""
        self._done += 1
        self._spoke = time.monotonic()
        if self._rich is not None:
            self._rich.advance(self._tasks[""])
            if record.slide in self._tasks:
                self._rich.remove_task(self._tasks.pop(record.slide))
        if record.status == "failed" and self.quiet:
            typer.echo(_outcome(record), err=True)
        self.note(f"[{self._done}/{self._slides}] {_outcome(record)}")
        for warning in record.warnings:
            self.note(f"  warning: {warning}")

    def _left(self) -> str:
        if not self._done:
            return ""
        seconds = (time.monotonic() - self._began) / self._done * (self._slides - self._done)
        return f", about {seconds / 60:.0f} min left"


def _outcome(record: SlideRecord) -> str:
    if record.error is not None:
        hint = f"; {record.error.hint}" if record.error.hint else ""
        # The sentence begins with the file's name.
        return f"{record.status}: {record.error.message}{hint}"
    parts = [f"{record.slide}: {record.status}"]
    if record.tissue_mm2 is not None:
        parts.append(f"{record.tissue_mm2:.1f} mm2 of tissue")
    if record.tumor_share is not None:
        parts.append(f"{record.tumor_share:.0%} tumour")
    if record.tiles:
        parts.append(f"{record.tiles} tiles")
    return ", ".join([*parts, f"{record.seconds:.1f} s"])


def run_lines(run: Run) -> list[str]:
    """Give the paths that a run wrote, one a line."""
    return [path for record in run.slides for path in record.outputs.values()]


def _bars() -> "RichProgress":
    from rich.console import Console  # noqa: PLC0415  only where bars are drawn
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
