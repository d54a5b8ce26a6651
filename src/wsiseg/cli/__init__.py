"""The command line: options -> settings -> one call -> print. `main` is the only place that turns errors into exits."""

from wsiseg.cli.shell import app, main

from wsiseg.cli import doctor, evaluate, export, fetch, predict, tile, train  # isort: skip  they register themselves

__all__ = ["app", "doctor", "evaluate", "export", "fetch", "main", "predict", "tile", "train"]
