#!/usr/bin/env python3
"""Write docs/reference/cli.md from what `--help` says of every command."""

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
FETCH = ("demo", "tcga", "pcam", "tumor-maps", "model")
COMMANDS = (
    *(("fetch", source) for source in FETCH),
    *((name,) for name in ("tile", "train", "export", "predict", "evaluate", "doctor")),
)
INTRODUCTION = """# Commands

This page is what `--help` says, written by `scripts/write_cli_reference.py`.

Every option can also stand in a TOML file that is given with `--config`; the command line comes before the file, the
file before the defaults, and a name that is no option is an error.
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


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
