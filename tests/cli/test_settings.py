"""Command line and TOML file give the same settings, and refuse the same values with the same sentence."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import tomli_w
import typer
from typer.testing import CliRunner

from wsiseg.cli import loaded
from wsiseg.cli.shell import command, is_flag, kind_of, scalar_of, shown_as
from wsiseg.cli.streams import Streams
from wsiseg.config import doctor, evaluate, export, fetch, predict, tile, train
from wsiseg.config.predict import ConvertConfig
from wsiseg.config.settings import Config
from wsiseg.run.errors import UsageError

ALL: dict[str, type[Config]] = {
    "tile": tile.TileConfig,
    "train": train.TrainConfig,
    "export": export.ExportConfig,
    "predict": predict.PredictConfig,
    "view": predict.ViewConfig,
    "evaluate": evaluate.EvaluateConfig,
    "doctor": doctor.DoctorConfig,
    "fetch example": fetch.FetchExampleConfig,
    "fetch demo": fetch.FetchDemoConfig,
    "fetch tcga": fetch.FetchTcgaConfig,
    "fetch pcam": fetch.FetchPcamConfig,
    "fetch tumor-maps": fetch.FetchTumorMapsConfig,
    "fetch model": fetch.FetchModelConfig,
}
MOST_FLAGS = {"train": 19, "export": 14, "predict": 20, "evaluate": 14, "fetch tcga": 12}
FIELDS = [(name, field) for name, settings in ALL.items() for field in settings.model_fields]
NEEDED = {
    "inputs": ["a.svs"],
    "out": "out",
    "cohort": "cohort.csv",
    "run": "run",
    "predictions": ["maps"],
    "truth": "t",
}


def outcome(settings: type[Config], words: list[str]) -> Config | str:
    """Run a command that takes some settings; return what it took, or the sentence of refusal."""
    taken: list[Config] = []
    group = typer.Typer()

    @command(group, settings, "take")
    def take(_streams: Streams, config: Config) -> None:
        """Take the settings."""
        taken.append(config)

    done = CliRunner().invoke(group, words)
    if isinstance(done.exception, UsageError):
        return done.exception.message
    assert done.exit_code == 0, done.output
    return taken[0]


def samples(settings: type[Config], name: str) -> Iterator[Any]:
    """Yield values for a field, right and wrong ones."""
    field = settings.model_fields[name]
    kind = scalar_of(field)
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    many = get_origin(kind_of(field)) is tuple
    if kind is bool:
        yield True
        return
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    values: tuple[Any, ...] = (*choices, "nonsense") if choices else (1, 3, 0.25, -5, 10**9, "nonsense", "1/2")
    values = tuple(map(str, values)) if kind in (str, Path, export.CardFacts) else values  # a file holds text there
    yield from ([value] for value in values) if many else values


@pytest.mark.parametrize(("command_name", "name"), FIELDS)
def test_a_value_means_the_same_in_a_file_and_on_the_command_line(tmp_path: Path, command_name: str, name: str) -> None:
    settings = ALL[command_name]
    shown = shown_as(settings.model_fields[name])
    needed = {key: value for key, value in NEEDED.items() if key in settings.model_fields and key != name}
    for value in samples(settings, name):
        (tmp_path / "file.toml").write_text(tomli_w.dumps({**needed, name.replace("_", "-"): value}))
        from_file = outcome(settings, ["--config", str(tmp_path / "file.toml")])
        assert isinstance(from_file, str) or getattr(from_file, name) is not None
        if shown.place == "file":
            continue
        (tmp_path / "rest.toml").write_text(tomli_w.dumps(needed))
        words = [str(one) for one in (value if isinstance(value, list) else [value])]
        option = shown.name or f"--{name.replace('_', '-')}"
        typed = [option] if is_flag(settings.model_fields[name]) else [part for one in words for part in (option, one)]
        typed = ["--", *words] if shown.place == "argument" else typed
        assert outcome(settings, ["--config", str(tmp_path / "rest.toml"), *typed]) == from_file


@pytest.mark.parametrize(("command_name", "name"), FIELDS)
def test_what_stands_in_the_file_alone_is_no_option_and_says_so(command_name: str, name: str) -> None:
    settings = ALL[command_name]
    if shown_as(settings.model_fields[name]).place == "file":
        words = [f"--{name.replace('_', '-')}", *([] if is_flag(settings.model_fields[name]) else ["1"])]
        assert "can be set only in the --config file" in str(outcome(settings, words))


@pytest.mark.parametrize(
    ("command_name", "name"), [(one, gone) for one, settings in ALL.items() for gone in settings.gone]
)
def test_what_earlier_versions_had_is_refused_with_advice(tmp_path: Path, command_name: str, name: str) -> None:
    settings = ALL[command_name]
    words = [f"--{name}", *([] if settings.gone[name].is_flag else ["1"])]
    assert settings.gone[name].advice in str(outcome(settings, words))
    (tmp_path / "file.toml").write_text(f"{name} = 1\n")
    assert settings.gone[name].advice in str(outcome(settings, ["--config", str(tmp_path / "file.toml")]))


def test_a_name_that_is_not_known_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "file.toml").write_text("\ufeffmin-tisue = 0.5\n", encoding="utf-8")  # as Notepad saves it
    said = outcome(tile.TileConfig, ["a.svs", "--out", "o", "--config", str(tmp_path / "file.toml")])
    assert said == "min-tisue: no such setting; did you mean min-tissue?"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (r'roi = "a\u0000"', "roi: holds NUL, as nothing that can be named does"),
        (r'model = ["a", "\u0000"]', "model: holds NUL, as nothing that can be named does"),
        ('model = "a.onnx"', "model: must be a list, as [1, 2] (got 'a.onnx')"),
    ],
)
def test_a_value_that_no_file_can_have_or_no_list_is_a_sentence(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "file.toml").write_text(line)
    assert outcome(predict.PredictConfig, ["a.svs", "--config", str(tmp_path / "file.toml")]) == sentence


def test_of_a_wrong_value_in_a_list_that_must_not_be_empty_one_thing_is_said() -> None:
    said = str(outcome(ConvertConfig, ["maps", "--to", "nonsense"]))
    assert said.startswith("to.0: Input should be 'dicom-seg'")
    assert "Tuple" not in said


def test_every_setting_has_a_help_text_and_no_command_has_too_many_flags() -> None:
    for name, settings in ALL.items():
        assert all(settings.meanings().values())
        flags = [field for field in settings.model_fields.values() if shown_as(field).place == "option"]
        assert len(flags) <= MOST_FLAGS.get(name, 16), name


def test_what_a_setting_means_stands_under_it_also_where_others_share_it() -> None:
    assert fetch.FetchPcamConfig.meanings()["jobs"] == "Number of parallel downloads."


@pytest.mark.parametrize(("is_there", "told"), [(True, "Pixels."), (False, "")])
def test_commands_run_without_their_sources_too(tmp_path: Path, told: str, is_there: bool) -> None:  # noqa: FBT001  a case
    source = tmp_path / "made_settings.py"
    source.write_text("from wsiseg.config.settings import Config\n\nclass Own(Config):\n    side: int\n    'Pixels.'\n")
    gone = "" if is_there else "import os; os.remove(made_settings.__file__); "
    code = f"import made_settings; {gone}print(made_settings.Own.meanings())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{{'side': {told!r}}}\n"


def test_the_commands_take_these_settings() -> None:
    group = typer.main.get_command(loaded())
    for name, settings in ALL.items():
        found: Any = group
        for word in name.split():
            found = found.commands[word]
        shown = {parameter.name for parameter in found.params}
        assert {field for field, one in settings.model_fields.items() if shown_as(one).place != "file"} <= shown


def test_a_variable_gives_a_setting_without_an_option_and_comes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.toml").write_text('s3-mirror = "https://file"\npaper-mirror = "https://file"\n')
    monkeypatch.setenv("WSISEG_MIRROR_S3", "https://variable")
    monkeypatch.delenv("WSISEG_MIRROR_PAPER", raising=False)
    taken = outcome(fetch.FetchTcgaConfig, ["--config", str(tmp_path / "s.toml")])
    assert isinstance(taken, fetch.FetchTcgaConfig)
    assert (taken.s3_mirror, taken.paper_mirror) == ("https://variable", "https://file")
