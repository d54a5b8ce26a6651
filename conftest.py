"""Runs every block of code in README.md and docs as a test: ```python blocks, and the `$` lines of ```console blocks.

A ```toml block becomes a file of the name in its first line, as `# card.toml`.

Each page has a folder of its own with what its readers have: `slides/` with a `cohort.csv` and `truth/` beside it, and
the real sample slide where it is to be had.
"""

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from sybil import Example, Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser

from making.cohorts import write_cohort

# Threads that wait for others keep their core busy, which the tests of another process need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell lets what it starts in the background ignore Ctrl-C, and that is passed on to every program that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent
LONGEST_S = 600


def run_console(example: Example) -> None:
    """Run the lines of a block that begin with `$`; the others show what a reader sees."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in str(example.parsed).splitlines():
        if line.startswith("$ "):
            done = subprocess.run(
                ["bash", "-c", line[2:]],  # noqa: S607  the reader's own shell
                cwd=example.namespace["folder"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=LONGEST_S,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"  # noqa: S101  this is a test


def enter_folder(namespace: dict[str, Any]) -> None:
    """Make the folder of a page and go there."""
    namespace["folder"] = Path(mkdtemp(prefix="page-"))
    namespace["before"] = Path.cwd()
    write_cohort(namespace["folder"])
    sample = Path(os.environ.get("WSISEG_TEST_DATA", ROOT.parent / "shared" / "data")) / "slides"
    if not sample.is_dir():
        pytest.skip(f"needs the real sample slide; {sample} is absent, WSISEG_TEST_DATA may name another folder")
    shutil.copy(sample / "CMU-1-Small-Region.svs", namespace["folder"])
    os.chdir(namespace["folder"])


def leave_folder(namespace: dict[str, Any]) -> None:
    """Remove the folder of a page."""
    os.chdir(namespace["before"])
    shutil.rmtree(namespace["folder"])


class ConsoleParser(CodeBlockParser):
    """Finds ```console blocks."""

    def __init__(self) -> None:
        super().__init__("console", run_console)


def write_toml(example: Example) -> None:
    """Write a block of TOML into the folder of the page."""
    text = str(example.parsed)
    name = text.partition("\n")[0].removeprefix("# ").partition(",")[0]
    tomllib.loads(text)
    if name.endswith(".toml"):
        (example.namespace["folder"] / name).write_text(text, encoding="utf-8")


class TomlParser(CodeBlockParser):
    """Finds ```toml blocks."""

    def __init__(self) -> None:
        super().__init__("toml", write_toml)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), ConsoleParser(), TomlParser(), SkipParser()],
    patterns=["*.md"],
    excludes=["CHANGELOG.md", "CONTRIBUTING.md"],
    setup=enter_folder,
    teardown=leave_folder,
).pytest()
