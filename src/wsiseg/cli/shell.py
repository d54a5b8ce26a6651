"""What all commands share: options made from settings, so that each name, default and help text exists once; errors.

Beside its own, every command has the options `--config --json --quiet --verbose --no-progress`.
"""

import codecs
import importlib
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from wsiseg.cli.streams import Streams, Words, fitted
from wsiseg.config.settings import Config, Shown, read_toml
from wsiseg.run.errors import OutputError, UsageError, WsisegError, is_out_of_memory, no_memory
from wsiseg.run.version import __version__

C = TypeVar("C", bound=Config)

app = typer.Typer(
    name="wsiseg",
    no_args_is_help=True,
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
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


_METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}


def parameters(settings: type[Config]) -> list[inspect.Parameter]:
    """Return a parameter for each setting that has a place on the command line, as Typer reads them.

    Every value is taken as text: the settings alone decide what fits, in one sentence for command line and file.
    What is given in the file alone, and what earlier versions had, is a hidden option that is refused with advice.
    """
    found, meanings = [], settings.meanings()
    for name, field in settings.model_fields.items():
        if shown_as(field).place == "file":
            sentence = f"can be set only in the --config file, as {_typed(name)} ="
            found.append(_refused(name, sentence, takes_nothing=is_flag(field)))
        else:
            found.append(_shown(name, field, meanings[name]))
    for name, one in settings.gone.items():
        found.append(_refused(name, f"is no longer an option: {one.advice}", takes_nothing=one.is_flag))
    return found


def given(settings: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what command line and environment gave of some settings, as the values that a TOML file would hold."""
    found: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        value = values.get(name)
        if value in (None, []):  # it was not typed
            value = next(filter(None, map(os.environ.get, shown_as(field).variables)), None)
        if value is not None:
            found[name] = [_value(one, field) for one in value] if isinstance(value, list) else _value(value, field)
    return found


def _shown(name: str, field: FieldInfo, meaning: str) -> inspect.Parameter:
    shown, takes_nothing, many = shown_as(field), is_flag(field), get_origin(kind_of(field)) is tuple
    text = meaning.replace("`", "") + _default(field)
    metavar = shown.metavar or (name.upper() if shown.place == "argument" else metavar_of(field))
    more: dict[str, Any] = {"help": escaped(text), "metavar": None if takes_nothing else metavar, "show_default": False}
    if shown.place == "argument":
        info = typer.Argument(**more)
    else:
        info = typer.Option(shown.name or f"--{_typed(name)}", **more)
    return optional(name, bool if takes_nothing else list[str] if many else str, info)


def _refused(name: str, sentence: str, *, takes_nothing: bool) -> inspect.Parameter:
    option = f"--{_typed(name)}"

    def refuse(value: Any) -> None:  # noqa: ANN401  any value
        if value is not None:
            raise UsageError(f"{option} {sentence}")

    info = typer.Option(option, hidden=True, callback=refuse)
    return optional(f"refused_{name.replace('-', '_')}", bool if takes_nothing else str, info)


def optional(name: str, kind: Any, info: Any) -> inspect.Parameter:  # noqa: ANN401  a type, and what Typer makes of it
    """Return a parameter that is None unless it is given."""
    annotation = Annotated[kind | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _typed(name: str) -> str:
    """Return a name as a user types it."""
    return name.replace("_", "-")


def shown_as(field: FieldInfo) -> Shown:
    """Return how a setting stands on the command line."""
    return next((one for one in field.metadata if isinstance(one, Shown)), Shown())


def kind_of(field: FieldInfo) -> Any:  # noqa: ANN401  any type
    """Return the type of a setting, without its None."""
    kind = field.annotation
    is_union = get_origin(kind) in (Union, UnionType)
    return next(one for one in get_args(kind) if one is not NoneType) if is_union else kind


def scalar_of(field: FieldInfo) -> Any:  # noqa: ANN401  any type
    """Return the type of a setting, or of one of its values where it takes several."""
    kind = kind_of(field)
    return get_args(kind)[0] if get_origin(kind) is tuple else kind


def is_flag(field: FieldInfo) -> bool:
    """Return True for a setting that is on or off."""
    return scalar_of(field) is bool


def metavar_of(field: FieldInfo) -> str:
    """Return what stands for the value of a setting: its choices, or the kind of value."""
    kind = scalar_of(field)
    return "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else _METAVARS.get(kind, "TEXT")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return " [required]"
    values = field.default if isinstance(field.default, tuple) else (field.default,)
    shown = ", ".join(str(value) for value in values if value is not None and value is not False)
    variables = shown_as(field).variables
    return (f" [env: {', '.join(variables)}]" if variables else "") + (f" [default: {shown}]" if shown else "")


def escaped(text: str) -> str:
    """Return a help text whose brackets are not taken for markup."""
    return text.replace("[", "\\[")


def _value(value: Any, field: FieldInfo) -> Any:  # noqa: ANN401  what Typer gives
    """Turn text into the number that a TOML file would hold, where the setting is one."""
    kind = scalar_of(field)
    if isinstance(value, str) and (kind in (int, float) or any(isinstance(one, int) for one in get_args(kind))):
        for number in (int, float):
            with suppress(ValueError):
                return number(value)
    return value


_FLAGS = {
    "json": typer.Option("--json", help="Print the result as JSON and nothing else."),
    "quiet": typer.Option("--quiet", "-q", help="Print errors only."),
    "verbose": typer.Option("--verbose", "-v", help="Print details."),
    "no_progress": typer.Option("--no-progress", help="Do not draw progress bars."),
}
_CONFIG = optional("config", Path, typer.Option(metavar="PATH", help="TOML file of settings; options override it."))


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
        text = _help(inspect.getdoc(function) or "")
        group.command(name or function.__name__, help=text)(run)
        return run

    return register


def _help(text: str) -> str:
    """Return a docstring for Typer, which leaves lines as they are: a paragraph becomes one, examples stay so."""
    said, _, examples = escaped(text).partition("Examples:\n")
    paragraphs = "\n\n".join(" ".join(one.split()) for one in said.split("\n\n"))
    return f"{paragraphs}\b\nExamples:\n{examples}" if examples else paragraphs


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
        if is_out_of_memory(error):  # which has other errors for a consequence, as that a network cannot be made
            _fail(no_memory(error), WsisegError.exit_code)
        _fail(str(error), error.exit_code)
    except StoppedError as stopped:
        number = stopped.args[0]
        how = "interrupted" if number == signal.SIGINT else "terminated"
        _fail(f"{how}; the same command again goes on from here", 128 + number)
    except BrokenPipeError:  # whoever read our output has gone; there is nobody left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            _fail(no_memory(error), WsisegError.exit_code)
        if not isinstance(error, OSError):
            raise
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
        own = io.BufferedWriter(Words(os.dup(sys.stderr.fileno()), "w"))
        sys.stderr = io.TextIOWrapper(own, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def _as_found(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode characters that stand for the bytes of a file name as these bytes, and others by their numbers."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


class StoppedError(BaseException):
    """The run was interrupted or terminated; unwinds the stack so that reports are finished."""


def _stop(number: int, _frame: FrameType | None) -> None:
    raise StoppedError(number)  # not a KeyboardInterrupt, for which Typer would leave without a word


def _fail(sentence: str, code: int) -> NoReturn:
    typer.echo(fitted(f"wsiseg: {sentence}", sys.stderr), err=True)
    sys.exit(code)
