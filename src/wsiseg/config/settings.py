"""What all settings share: frozen, checked as they are made, written to and read from TOML.

A setting is written once, as a field: its type, default, limits and the docstring under it, which says its unit, are
what the command line, `--help`, the TOML file and the reference show.
"""

import ast
import difflib
import inspect
import sys
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import tomli_w
from pydantic import AfterValidator, BaseModel, Field, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, to_jsonable_python

from wsiseg.run.errors import UsageError

Share = Annotated[float, Field(ge=0, le=1)]
_DEVICES = ("cpu", "cuda", "coreml", "directml", "openvino")


def _known_device(name: str) -> str:
    kind, _, number = name.partition(":")
    if name != "auto" and (kind not in _DEVICES or (":" in name and not number.isdigit())):
        raise ValueError(f"unknown device {name!r}; choose one of auto, {', '.join(_DEVICES)}, cuda:1")
    return name


Device = Annotated[str, AfterValidator(_known_device)]
Devices = Annotated[str, AfterValidator(lambda names: ",".join(map(_known_device, names.split(","))))]


def _existing_shard(shard: str) -> str:
    number, count = map(int, shard.split("/"))
    if number > count:
        raise ValueError(f"there is no shard {shard}")
    return shard


Shard = Annotated[str, Field(pattern=r"^[1-9]\d*/[1-9]\d*$"), AfterValidator(_existing_shard)]
MapKind = Literal["auto", "dense", "tile"]


@dataclass(frozen=True)
class Shown:
    """How a setting stands on the command line; put it into the field's `Annotated`."""

    place: Literal["option", "argument", "file"] = "option"  # `file`: in the file alone, for what few need
    metavar: str = ""  # what stands for the value in `--help`; made from the type where it is empty
    name: str = ""  # the option, where it is not the field's name
    variables: tuple[str, ...] = ()  # of the environment, that give the value too


ARGUMENT, IN_FILE = Shown("argument"), Shown("file")


@dataclass(frozen=True)
class Gone:
    """A setting that earlier versions had."""

    advice: str  # what to use instead, or why it went
    is_flag: bool = False  # it took no value


class Described(BaseModel):
    """What has fields with a docstring under each, which says what it means; its JSON schema has them as well.

    They are read when somebody asks. pydantic can read them too, but does so for every class that is loaded, and goes
    through the source of its module again for each: a tenth of the time in which a command starts.
    """

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """Return what each field means, by its name, as one line; empty where the source is not there."""
        texts = dict.fromkeys(cls.model_fields, "")
        for kind in reversed(cls.__mro__):
            if issubclass(kind, Described):
                texts |= _docstrings(kind.__module__).get(kind.__name__, {})
        return texts

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        fields = handler.resolve_ref_schema(schema)["properties"]
        for name, text in cls.meanings().items():
            fields[cls.model_fields[name].alias or name] |= {"description": text} if text else {}
        return schema


class Config(Described, frozen=True, extra="forbid", defer_build=True):
    """Base of all settings; unknown names are refused."""

    gone: ClassVar[Mapping[str, Gone]] = {}  # by name; refused with what to do instead

    @classmethod
    def checked(cls, **values: Any) -> Self:  # noqa: ANN401  whatever the fields take
        """Make the settings.

        Raises:
            UsageError: A value does not fit its field; a person reads one sentence per wrong field.
        """
        cls._refuse_nameless(values)
        try:
            return cls(**values)
        except ValidationError as error:
            problems = error.errors()
            wrong = {problem["loc"][:-1] for problem in problems}  # what holds one; that too few are left comes of it
            said = [one for one in problems if one["type"] != "too_short" or one["loc"] not in wrong]
            raise UsageError("; ".join(map(cls._sentence, said))) from error

    @classmethod
    def _refuse_nameless(cls, values: Mapping[str, Any]) -> None:
        """Refuse NUL, and the empty text of a variable that is not set: as a path it means the folder one is in."""
        for name, value in values.items():
            field = cls.model_fields.get(name)
            every = value if isinstance(value, list | tuple) else [value]
            if field is not None and field.default != "" and any(one == "" for one in every):
                raise UsageError(f"{name.replace('_', '-')}: is empty; is a shell variable not set?")
            if any(isinstance(one, str) and "\0" in one for one in every):
                raise UsageError(f"{name.replace('_', '-')}: holds NUL, as nothing that can be named does")

    def to_toml(self) -> str:
        """Return the settings as TOML; a field that is None is left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def commented(cls) -> str:
        """Return TOML that sets nothing: each setting that need not be given, its meaning, and behind # its default."""
        lines, meanings = [], cls.meanings()
        for name, field in cls.model_fields.items():
            if not field.is_required():
                value = to_jsonable_python(field.get_default())
                typed = name.replace("_", "-")
                line = f"{typed} =" if value is None else tomli_w.dumps({typed: value}, indent=0)
                meaning = textwrap.wrap(meanings[name], 110)
                lines += ["", *(f"# {text}" for text in meaning), "#" + " ".join(line.split()).replace(", ]", " ]")]
        return "\n".join(lines) + "\n"

    @classmethod
    def _sentence(cls, problem: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails, a TypedDict of a private module
        where = ".".join(str(part) for part in problem["loc"]).replace("_", "-")
        if problem["type"] == "missing":
            return f"{where} must be given"
        if problem["type"] != "extra_forbidden":
            is_alone = problem["type"] == "tuple_type"
            what = "must be a list, as [1, 2]" if is_alone else str(problem["msg"]).removeprefix("Value error, ")
            return f"{where}: {what} (got {problem['input']!r})" if where else what
        if where in cls.gone:
            return f"{where} is no longer a setting: {cls.gone[where].advice}"
        alike = difflib.get_close_matches(where, [field.replace("_", "-") for field in cls.model_fields], n=1)
        return f"{where}: no such setting" + (f"; did you mean {alike[0]}?" if alike else "")


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """Return the docstrings under the fields of the classes of a module, by class and field, each as one line."""
    found: dict[str, dict[str, str]] = {}
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except OSError:  # only the compiled module is there
        return found
    for node in (one for one in ast.walk(tree) if isinstance(one, ast.ClassDef)):
        for both in pairwise(node.body):
            match both:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found.setdefault(node.name, {})[name] = " ".join(text.split())
    return found


def run_name(shard: str | None) -> str:
    """Return the name of the file that says what became of every slide of a run, or of its shard."""
    return "run.json" if shard is None else f"run.{shard.replace('/', '-of-')}.json"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings; their names may be written with `-` or `_`.

    Raises:
        UsageError: It is missing or not TOML.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # as Windows' Notepad writes it
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as settings: {error}") from error
    return {name.replace("-", "_"): value for name, value in values.items()}
