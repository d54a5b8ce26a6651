"""The documentation names everything that a user can do."""

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from wsiseg.cli import loaded

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "cli.md"


def commands() -> dict[str, typer.core.TyperCommand]:
    """Give every command by the words that a user types."""
    found = {}
    group = typer.main.get_command(loaded())
    for name, command in group.commands.items():  # type: ignore[attr-defined]  # it is a group
        inner = getattr(command, "commands", None)
        found.update({f"{name} {key}": value for key, value in inner.items()} if inner else {name: command})
    return found


@pytest.mark.parametrize("name", sorted(commands()))
def test_the_reference_names_every_option(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    part = page.partition(f"## wsiseg {name}\n")[2].partition("\n## ")[0]
    assert part, f"{name} is missing: run scripts/write_cli_reference.py"
    for parameter in commands()[name].params:
        for option in parameter.opts:
            if option.startswith("--") and not getattr(parameter, "hidden", False):
                assert option in part, f"{name} {option} is missing: run scripts/write_cli_reference.py"


def test_the_reference_of_settings_is_what_the_settings_say() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "write_cli_reference.py"))
    text = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    assert text == script["settings_page"](), "run scripts/write_cli_reference.py"


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_shows_what_stands_in_brackets(name: str) -> None:
    command = commands()[name]
    texts = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
    shown = CliRunner().invoke(loaded(), [*name.split(), "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    assert [
        word for text in texts for word in re.findall(r"\w+\[\w+\]", text.replace("\\", "")) if word not in shown
    ] == []
    assert name != "fetch model" or "pip install 'wsiseg[train]'" in shown


def test_every_command_gives_examples() -> None:
    for name, command in commands().items():
        assert "Examples:" in (command.help or ""), f"{name} --help has no examples"


def test_the_readme_opens_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    first = [line for line in lines if line.startswith(("make ", "pip ", "wsiseg "))][:2]
    assert [line.split("#")[0].strip() for line in first] == ["make demo", "make test"]


def test_the_readme_on_pypi_has_no_relative_link_and_here_no_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "hatchling.metadata.plugin.interface", SimpleNamespace(MetadataHookInterface=object)
    )
    script = runpy.run_path(str(ROOT / "scripts" / "readme_for_pypi.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert [link for link in links if not (link.startswith("https:") or (ROOT / link).exists())] == []
    there = re.findall(r"\]\(([^)]*)\)", script["absolute"](text, "https://github.com/a/b"))
    assert len(there) == len(links)
    assert [link for link in there if not link.startswith("https://")] == []
    assert "https://raw.githubusercontent.com/a/b/main/docs/demo.png" in there
    assert "https://github.com/a/b/blob/main/docs/index.md" in there


def test_blocks_are_copied_without_prompts() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert [page.name for page in pages if re.search(r"^(```console|\$ )", page.read_text("utf-8"), re.MULTILINE)] == []
