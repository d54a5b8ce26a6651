"""What messages advise can be typed: an option that stands in the --config file alone is not called an option."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from wsiseg import config
from wsiseg.config.settings import Config, Shown

SOURCE = Path(config.__file__).parents[1]


def settings() -> Iterator[tuple[str, str]]:
    """Yield every setting of every command as an option, and its place."""
    for module in pkgutil.iter_modules(config.__path__):
        for kind in vars(importlib.import_module(f"{config.__name__}.{module.name}")).values():
            if inspect.isclass(kind) and issubclass(kind, Config):
                for name, field in kind.model_fields.items():
                    shown = next((one for one in field.metadata if isinstance(one, Shown)), Shown())
                    yield shown.name or f"--{name.replace('_', '-')}", shown.place


def test_no_message_names_an_option_that_is_refused() -> None:
    options = {name for name, place in settings() if place != "file"}
    refused = {name for name, place in settings() if place == "file"} - options
    assert "--max-bad-tiles" in refused
    wrong = [
        f"{path.name}:{node.lineno}: {option}"
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", node.value)
        if option in refused
    ]
    assert wrong == []
