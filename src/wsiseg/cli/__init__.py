"""The command line: options -> settings -> one call -> print. Of all commands only the one that is typed is loaded."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from wsiseg.run.memory import loading, look_for_garbage_seldom

if TYPE_CHECKING:
    import typer

_HOMES = {
    "init": "prepare",
    "tile": "prepare",
    "train": "train",
    "export": "train",
    "predict": "predict",
    "view": "predict",
    "convert": "predict",
    "doctor": "examine",
    "evaluate": "examine",
    "fetch": "fetch",
}  # the modules of the commands, which register themselves; in the order of `--help`


def loaded(command: str = "") -> "typer.Typer":
    """Return the command line with a command, and with all where none is called so."""
    for module in [_HOMES[command]] if command in _HOMES else dict.fromkeys(_HOMES.values()):
        import_module(f"wsiseg.cli.{module}")
    from wsiseg.cli.shell import app  # noqa: PLC0415  heavy: not before it is asked for

    return app


def main() -> NoReturn:
    """Run the command line; see `shell.main`."""
    with loading():
        loaded(*sys.argv[1:2])
        from wsiseg.cli.shell import main as run  # noqa: PLC0415  as above
    look_for_garbage_seldom()
    run()
