"""What all commands share: the options `--config --json --quiet --verbose --no-progress`, errors and exit codes."""

import codecs
import importlib
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from wsiseg.cli.options import escaped, given, optional, parameters
from wsiseg.cli.streams import Streams
from wsiseg.config.settings import Config, read_toml
from wsiseg.run.errors import OutputError, UsageError, WsisegError
from wsiseg.run.version import __version__

C = TypeVar("C", bound=Config)

app = typer.Typer(
    name="wsiseg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Segment tumour in whole-slide histology images, learned from one yes/no label per slide.

    For research, not for diagnosis.

    Start with `wsiseg fetch example` and `wsiseg predict example/slides`.""",
)


@app.callback(invoke_without_command=True)
def _root(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


_FLAGS = {
    "json": typer.Option("--json", help="Print the result as JSON and nothing else."),
    "quiet": typer.Option("--quiet", "-q", help="Say nothing but errors."),
    "verbose": typer.Option("--verbose", "-v", help="Say more."),
    "no_progress": typer.Option("--no-progress", help="Draw no progress bars."),
}
_CONFIG = optional("config", Path, typer.Option(metavar="PATH", help="TOML file with any of the settings."))


def command(
    group: typer.Typer, settings: type[C], name: str | None = None
) -> Callable[[Callable[[Streams, C], int | None]], Callable[..., None]]:
    """Register a command that takes `Streams` and its settings and returns its exit code, or None for 0.

    Its options are made from the settings; those that every command has are added. A user types `name`, or else the
    function's name.
    """

    def register(function: Callable[[Streams, C], int | None]) -> Callable[..., None]:
        def run(config: Path | None, **values: Any) -> None:  # noqa: ANN401  whatever the options take
            in_file = read_toml(config) if config else {}
            streams = Streams(**{flag: bool(in_file.pop(flag, False) or values[flag]) for flag in _FLAGS})
            try:
                checked = settings.checked(**{**in_file, **given(settings, values)})
            except UsageError as error:
                raise UsageError(error.message, f"see --help and {config}" if config else "see --help") from error
            with streams:
                code = function(streams, checked)
            raise typer.Exit(code or 0)

        shared = [_CONFIG, *(optional(flag, bool, option) for flag, option in _FLAGS.items())]
        run.__signature__ = inspect.Signature([*parameters(settings), *shared])  # type: ignore[attr-defined]  # what Typer reads
        text = escaped(inspect.getdoc(function) or "").replace("Examples:\n", "Examples:\n\n\b\n")  # line by line
        group.command(name or function.__name__, help=text)(run)
        return run

    return register


def needing_torch(verb: str, module: str) -> Callable[..., Any]:
    """Load a function from a module that needs the extra `train`.

    Raises:
        WsisegError: It is not installed.
    """
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(f"wsiseg.{module}"), verb)
    except ModuleNotFoundError as error:
        text = f"{verb} needs {error.name}, which is not installed"
        raise WsisegError(text, "pip install 'wsiseg[train]'") from error
    return function


def main() -> NoReturn:
    """Run the command line; every expected error becomes one sentence and its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is for jobs in the background
            signal.signal(number, _stop)
    _prepare_streams()
    try:
        app()
    except WsisegError as error:
        _fail(str(error), error.exit_code)
    except _StoppedError as stopped:
        number = stopped.args[0]
        how = "interrupted" if number == signal.SIGINT else "terminated"
        _fail(f"{how}; the same command again goes on from here", 128 + number)
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(str(OutputError(f"{error.filename or 'output'}: {error.strerror or error}")), OutputError.exit_code)
    sys.exit(0)


def _prepare_streams() -> None:
    """Let file names of any bytes be printed, and let our own words reach standard error at any time.

    A path is printed as the bytes that the system knows it by. While a plain image is decoded, descriptor 2 is turned
    aside to keep what its decoder writes there to itself.
    """
    codecs.register_error("as-found", _as_found)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  closed by whoever called us
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  the same
    for stream, errors in ((sys.stdout, "as-found"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    if os.name == "posix" and isinstance(sys.stderr, io.TextIOWrapper):
        own = os.dup(sys.stderr.fileno())
        sys.stderr = open(own, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")  # noqa: PTH123, SIM115  a descriptor, open until the end


def _as_found(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode characters that stand for the bytes of a file name as these bytes, and others by their numbers."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


class _StoppedError(BaseException):
    """The run was interrupted or terminated; unwinds the stack so that reports are finished."""


def _stop(number: int, _frame: FrameType | None) -> None:
    # Not a KeyboardInterrupt, for which Typer would leave without a word.
    raise _StoppedError(number)


def _fail(sentence: str, code: int) -> NoReturn:
    typer.echo(f"wsiseg: {sentence}", err=True)
    sys.exit(code)
