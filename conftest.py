"""Runs every block of code in README.md and docs as a test: ```python blocks, and ```sh blocks line by line.

A ```toml block becomes a file of the name in its first line, as `# card.toml`.

Each page has an empty folder of its own, and no network: what it needs it makes, mostly by `wsiseg fetch example`.
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

# Threads that wait for others keep their core busy, which the tests of another process need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell lets what it starts in the background ignore Ctrl-C, and that is passed on to every program that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST_S = 600
LONG_PAGES = ("first-map.md", "notebook.md", "encoders.md", "evaluate.md", "export.md", "train.md")
"""Of whose blocks the tests are slow."""


def run_shell(example: Example) -> None:
    """Run the lines of a block, which a reader copies as they stand."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "WSISEG_OFFLINE": "1", "PATH": path}
    for line in str(example.parsed).splitlines():
        done = subprocess.run(
            ["bash", "-c", line],  # noqa: S607  the reader's own shell
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
    os.chdir(namespace["folder"])


def leave_folder(namespace: dict[str, Any]) -> None:
    """Remove the folder of a page."""
    os.chdir(namespace["before"])
    shutil.rmtree(namespace["folder"])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of long pages before the slow ones are left out."""
    for item in items:
        if item.path.name in LONG_PAGES:
            item.add_marker(pytest.mark.slow)


class ShellParser(CodeBlockParser):
    """Finds ```sh blocks."""

    def __init__(self) -> None:
        super().__init__("sh", run_shell)


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
    parsers=[PythonCodeBlockParser(), ShellParser(), TomlParser(), SkipParser()],
    patterns=["*.md"],
    excludes=["CHANGELOG.md", "CONTRIBUTING.md"],
    setup=enter_folder,
    teardown=leave_folder,
).pytest()
