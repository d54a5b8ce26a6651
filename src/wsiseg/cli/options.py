"""The options of a command, made from its settings, so that each name, default and help text exists once."""

import inspect
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from wsiseg.config.settings import Config, Shown
from wsiseg.run.errors import UsageError

_METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}


def parameters(settings: type[Config]) -> list[inspect.Parameter]:
    """Return a parameter for each setting that has a place on the command line, as Typer reads them.

    Every value is taken as text: the settings alone decide what fits, in one sentence for command line and file.
    What is given in the file alone, and what earlier versions had, is a hidden option that is refused with advice.
    """
    found = []
    for name, field in settings.model_fields.items():
        if shown_as(field).place == "file":
            sentence = f"stands in the TOML file of --config alone, as {_typed(name)} ="
            found.append(_refused(name, sentence, takes_nothing=is_flag(field)))
        else:
            found.append(_shown(name, field))
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


def _shown(name: str, field: FieldInfo) -> inspect.Parameter:
    shown, takes_nothing, many = shown_as(field), is_flag(field), get_origin(kind_of(field)) is tuple
    text = " ".join((field.description or "").replace("`", "").split()) + _default(field)
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
