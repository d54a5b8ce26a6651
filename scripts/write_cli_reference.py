#!/usr/bin/env python3
"""Write docs/reference/cli.md from what `--help` says of every command, and settings.md from the settings."""

import os
import subprocess
import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from wsiseg.cli import shell
from wsiseg.config import doctor, evaluate, export, fetch, predict, tile, train
from wsiseg.config.settings import Config

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
CONFIGS: dict[tuple[str, ...], type[Config]] = {
    ("init",): doctor.InitConfig,
    ("fetch", "example"): fetch.FetchExampleConfig,
    ("fetch", "demo"): fetch.FetchDemoConfig,
    ("fetch", "tcga"): fetch.FetchTcgaConfig,
    ("fetch", "pcam"): fetch.FetchPcamConfig,
    ("fetch", "tumor-maps"): fetch.FetchTumorMapsConfig,
    ("fetch", "model"): fetch.FetchModelConfig,
    ("tile",): tile.TileConfig,
    ("train",): train.TrainConfig,
    ("export",): export.ExportConfig,
    ("predict",): predict.PredictConfig,
    ("view",): predict.ViewConfig,
    ("convert",): predict.ConvertConfig,
    ("evaluate",): evaluate.EvaluateConfig,
    ("doctor",): doctor.DoctorConfig,
}
COMMANDS = tuple(CONFIGS)
TABLE = ("| setting | value | default | option | meaning |", "|---|---|---|---|---|")
INTRODUCTION = """# Commands

This page is what `--help` says, written by `scripts/write_cli_reference.py`.

Every option can also stand in a TOML file that is given with `--config`, and some settings stand there alone: see
[settings](settings.md).
"""
SETTINGS = """# Settings

This page is made from the settings themselves, by `scripts/write_cli_reference.py`.

Options are for every day. Any setting, with or without an option, can stand in a TOML file that is given with
`--config`; the command line comes before the file, the file before the default. Names may be written with `-` or `_`. A
name that is not a setting is an error, and so is a value that does not fit, in both places with the same words.

```toml
# train.toml, for wsiseg train tiles/cohort.csv --out run --config train.toml
epochs = 10
weight-decay = 0.01
schedule = "cosine"
```
"""


def help_of(*command: str) -> str:
    """Give the help text of a command, 100 columns wide and without colours."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    arguments = [sys.executable, "-m", "wsiseg", *command, "--help"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    lines = [line.rstrip().replace("python -m wsiseg", "wsiseg") for line in done.stdout.splitlines()]
    return "\n".join(lines).strip("\n")


def page() -> str:
    """Give the whole page."""
    parts = [f"## wsiseg {' '.join(command)}\n\n```text\n{help_of(*command)}\n```\n" for command in COMMANDS]
    return "\n".join([INTRODUCTION, *parts])


def settings_page() -> str:
    """Return the page of settings."""
    parts = [SETTINGS]
    for command, settings in CONFIGS.items():
        parts += [f"## wsiseg {' '.join(command)}", "", *TABLE]
        meanings = settings.meanings()
        parts += [
            _row(name, field, meanings[name].replace("|", "\\|")) for name, field in settings.model_fields.items()
        ]
        gone = [f"`{name}` ({one.advice})" for name, one in settings.gone.items()]
        parts += ["", f"No longer settings: {'; '.join(gone)}."] if gone else []
        parts.append("")
    return "\n".join(parts)


def _row(name: str, field: FieldInfo, meaning: str) -> str:
    shown, typed = shell.shown_as(field), name.replace("_", "-")
    value = "true or false" if shell.is_flag(field) else shell.metavar_of(field).replace("|", ", ")
    places = {"option": f"`{shown.name or '--' + typed}`", "argument": "argument", "file": "file alone"}
    return f"| `{typed}` | {value} | {_default(field)} | {places[shown.place]} | {meaning} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    values = field.default if isinstance(field.default, tuple) else (field.default,)
    return ", ".join(str(value) for value in values if value is not None)


if __name__ == "__main__":
    (REFERENCE / "cli.md").write_text(page(), encoding="utf-8")
    (REFERENCE / "settings.md").write_text(settings_page(), encoding="utf-8")
