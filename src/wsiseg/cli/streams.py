"""Where a command's words go: results to standard output, everything else to standard error."""

import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import typer

from wsiseg.run.errors import NotASlideError, counted, percent, shortened
from wsiseg.run.pace import Pace, spoken_size
from wsiseg.run.record import Progress, Run, SlideRecord, in_words

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.progress import Progress as RichProgress

_NO_WORK = ("up_to_date", "skipped")
_MOST_NAMED = 5
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Words(io.FileIO):
    """Standard error: what nobody can hear, as its disk is full or its terminal gone, ends no work."""

    def write(self, words: "ReadableBuffer", /) -> int:
        """Write some bytes, or say so where that cannot be."""
        try:
            return super().write(words)
        except OSError:
            return memoryview(words).nbytes


class Streams(Progress):
    """The streams of one command; also the `Progress` that its verb reports to.

    On a terminal progress is a bar; elsewhere it is one line a slide or file, and one a minute on long work.

    Args:
        json: Standard output carries JSON and nothing else.
        quiet: Say nothing but errors.
        verbose: Say more.
        no_progress: Draw no bar, also where standard error is a terminal.
    """

    def __init__(
        self, *, json: bool = False, quiet: bool = False, verbose: bool = False, no_progress: bool = False
    ) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose
        self._is_seen = not quiet and sys.stderr.isatty()
        self._draws = self._is_seen and not no_progress and os.environ.get("TERM") != "dumb"
        self._bar: RichProgress | None = None
        self._pace, self._begun = Pace(0), dict[str, Pace]()
        self._of_files = False
        self._total = self._done = self._tiles = 0
        self._waited_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def result(self, value: Mapping[str, Any], lines: Iterable[str]) -> None:
        """Print the result: `value` as JSON where that is asked for, else `lines`."""
        self._end_bar()
        if self.json:
            if isinstance(sys.stdout, io.TextIOWrapper):
                # JSON is UTF-8 whatever the locale; a byte of a file name that is no text becomes an escape of JSON.
                sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
            sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        else:
            for line in lines:
                sys.stdout.write(f"{line}\n")  # Typer would replace what an ASCII locale cannot write
        sys.stdout.flush()

    def run(self, run: Run, pages: Iterable[Path] | None = None) -> int:
        """Print the record of a run and return its exit code.

        That is JSON, or where the pages are and what became of each slide, which a terminal has shown already; without
        `pages` it is what the run wrote, one path a line.
        """
        told = [] if self._done >= len(run.slides) and self._is_seen and sys.stdout.isatty() else run.slides
        paths = [path for record in run.slides for path in record.outputs.values()]
        lines = paths if pages is None else [*map(str, pages), *(fitted(outcome(one), sys.stdout) for one in told)]
        self.result(run.as_json(), lines)
        if run.has_no_slide:
            names = shortened([Path(record.path).name for record in run.slides], _MOST_NAMED)
            text = f"none of the files can be read as a slide: {', '.join(names)}"
            raise NotASlideError(text, "name slides; the reference lists the formats that can be read")
        return run.exit_code

    def note(self, text: str) -> None:
        """Say something on standard error."""
        if self.quiet:
            return
        text = fitted(text, sys.stderr)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text, err=True)

    def detail(self, text: str) -> None:
        """Say something on standard error with `--verbose`."""
        if self.verbose:
            self.note(text)

    def begin(self, slides: int, size: int | None = None) -> None:
        """Begin a run over so many slides, or to fetch so many files and bytes; one command may do several."""
        self._end_bar()
        self._of_files = size is not None
        self._total, self._done, self._pace = slides, 0, Pace(slides if size is None else size)
        if self._draws:
            self._bar = _bar(of_files=self._of_files)
            self._bar.start()
            self._bar.add_task(counted(slides, "file") if self._of_files else "slides", total=None, pace="")

    def slide(self, slide: str, tiles: int) -> None:
        """Begin a slide of so many tiles, or a file of so many bytes."""
        self._begun[slide] = Pace(tiles)

    def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:
        """Count tiles that are done and the seconds that were waited for them to be read; or bytes that arrived."""
        self._tiles += tiles
        self._waited_s += waited_s
        if slide in self._begun:
            self._begun[slide].advance(tiles)
            self._pace.advance(tiles if self._of_files else tiles / max(1, self._begun[slide].total))
        if self._bar is None and self._pace.is_due():
            tiles_or_bytes = spoken_size(self._tiles) if self._of_files else counted(self._tiles, "tile")
            what = f"{'files' if self._of_files else 'slides'}, {tiles_or_bytes}"
            self.note(f"{self._done}/{self._total} {what}, {self._speed()}")
        self._draw()

    def done(self, record: SlideRecord) -> None:
        """Count a slide or file that is done and say what became of it."""
        self._done += 1
        begun = self._begun.pop(record.slide, Pace(1))
        if self._of_files:
            self._pace.total -= max(0, begun.total - begun.done)  # of a file that failed the rest will not come
        elif record.status in _NO_WORK:
            self._pace.total -= 1
        else:
            self._pace.advance(1 - begun.done / max(1, begun.total))
        self._pace.spoke()
        self._draw()
        if record.status == "failed" and self.quiet:
            typer.echo(fitted(outcome(record), sys.stderr), err=True)
        self.note(f"[{self._done}/{self._total}] {outcome(record)}")
        for warning in record.warnings:
            self.note(f"  warning: {warning}")

    def _draw(self) -> None:
        if self._bar is not None:
            (task,) = self._bar.task_ids
            work, done = self._pace.total, self._pace.done
            self._bar.update(task, total=work or None, completed=done, pace=self._speed())

    def _speed(self) -> str:
        """Say how fast it goes, how much of the time is spent waiting for slides to be read, and how long it takes."""
        speed = max(0, self._tiles) / self._pace.seconds
        said = [f"{spoken_size(speed)}/s" if self._of_files else f"{speed:.1f} tiles/s"] if self._tiles else []
        if self._waited_s:
            said.append(f"{self._waited_s / self._pace.seconds:.0%} waiting for reading")
        return ", ".join([*said, *filter(None, [self._pace.left()])])


def fitted(text: str, stream: TextIO) -> str:
    """Break lines between words where a terminal would break them anywhere; commands stay whole, to be copied.

    Control characters, which names of files may hold and terminals obey, are written as escapes.
    """
    text = _CONTROLS.sub(_escape, text)
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(line if line.startswith("wsiseg ") else _broken(line, width) for line in text.split("\n"))


def _escape(character: re.Match[str]) -> str:
    return ascii(character[0])[1:-1]


def _broken(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    lines = textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def outcome(record: SlideRecord) -> str:
    """Say in one line what became of a slide."""
    if record.error is not None:
        hint = f"; {record.error.hint}" if record.error.hint else ""
        # The sentence begins with the file's name, in which lines may break.
        return f"{record.status}: {record.error.message}{hint}".replace("\n", "\\n")
    parts = [f"{record.slide}: {record.status}"]
    if record.status == "planned" and record.mpp is not None:
        parts.append(f"{record.mpp[0]:.4g} um/px ({record.mpp_source})")
    if record.tissue_mm2 is not None:
        parts.append(f"{record.tissue_mm2:.1f} mm2 of tissue")
    shares = {in_words(name): area["share"] for name, area in record.by_class.items()}
    parts += [f"{percent(share)} {word}" for word, share in shares.items() if share is not None]
    if record.unknown_share:
        parts.append(f"{percent(record.unknown_share)} unknown")
    if record.tiles:
        parts.append(f"{record.tiles} {'tiles' if record.tumor_mm2 is None else 'cells'}")
    about = "about " if record.status == "planned" else ""
    return ", ".join([*parts, f"{about}{record.seconds:.1f} s"])


def _bar(*, of_files: bool) -> "RichProgress":
    from rich import progress  # noqa: PLC0415  only where a bar is drawn
    from rich.console import Console  # noqa: PLC0415  the same

    name, pace = (progress.TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[pace]}"))
    count = progress.DownloadColumn() if of_files else progress.MofNCompleteColumn()
    console = Console(stderr=True)
    # What is printed to standard output is not for standard error.
    return progress.Progress(
        name, progress.BarColumn(), count, pace, console=console, transient=True, redirect_stdout=False
    )
