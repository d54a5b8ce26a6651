import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MakeSlide = Callable[..., Path]


def wsiseg(*arguments: str | Path, **more: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "wsiseg", *(str(argument) for argument in arguments)]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **more)  # type: ignore[call-overload, no-any-return]  # whatever run takes


def test_the_shell_loads_nothing_heavy() -> None:
    heavy = ("torch", "onnxruntime", "openslide", "sklearn", "zarr", "scipy")
    code = f"import sys; from wsiseg.cli import loaded; loaded(); print([one for one in {heavy} if one in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("typed", "settings"), [("predict", {"predict"}), ("fetch", {"fetch", "export"}), ("--help", {"predict", "train"})]
)
def test_the_settings_of_other_commands_are_not_loaded(typed: str, settings: set[str]) -> None:
    code = (
        "import sys; from wsiseg.cli import loaded; loaded(*sys.argv[1:])\n"
        "print(*(name.rpartition('.')[2] for name in sys.modules if name.startswith('wsiseg.config.')))"
    )
    done = subprocess.run([sys.executable, "-c", code, typed], capture_output=True, text=True, check=True)
    found = set(done.stdout.split()) - {"settings"}
    assert found >= settings if typed == "--help" else found == settings


def test_version_and_help() -> None:
    assert wsiseg("--version").stdout.count(".") == 2
    assert wsiseg("-V").stdout == wsiseg("--version").stdout
    shown = wsiseg("tile", "--help")
    assert shown.returncode == 0
    assert all(option in shown.stdout for option in ("--slide-mpp", "--config", "--json", "--quiet", "--jobs"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tile", "missing.csv", "--out", "o"], "missing.csv: cannot be read as a cohort"),
        (["tile", ".", "--out", "o"], "no slides in ."),
        (["tile", "a.svs", "--out", "o", "--mpp", "0"], "mpp"),
        (["tile", "a.svs", "--out", "o", "--stride", "500"], "a stride of 500 leaves gaps"),
        (["tile", "a.svs", "--out", "o", "--jobs", "0"], "jobs"),
        (["tile", "a.svs", "--out", "o", "--tissue", "gone.png"], "gone.png"),
        (["tile", "a.svs", "--out", "o", "--config", "gone.toml"], "gone.toml: cannot be read as settings"),
        (["tile"], "inputs must be given; out must be given"),
        (["tile", "", "--out", "o"], "inputs: is empty"),
        (["tile", "a.svs", "--out", ""], "out: is empty"),
        (["export", "run", "--out", "."], "out is the model file"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_exits_2_and_starts_nothing(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    done = wsiseg(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_settings_may_stand_in_a_file_and_the_command_line_counts_more(make_slide: MakeSlide, tmp_path: Path) -> None:
    slide = make_slide("a.tiff")
    (tmp_path / "s.toml").write_text("min-tissue = 0.1\ntile = 112\njson = true\n")
    done = wsiseg("tile", slide, "--out", tmp_path / "o", "--config", tmp_path / "s.toml", "--tile", "128")
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert (settings["min_tissue"], settings["tile"]) == (0.1, 128)
    (tmp_path / "s.toml").write_text("nonsense = 1\n")
    done = wsiseg("tile", slide, "--out", tmp_path / "o", "--config", tmp_path / "s.toml")
    assert done.returncode == 2
    assert "nonsense: no such setting" in done.stderr


def test_results_go_to_one_stream_and_words_to_the_other(make_slide: MakeSlide, tmp_path: Path) -> None:
    slide = make_slide("a.tiff")
    done = wsiseg("tile", slide, "--out", tmp_path / "o")
    page, cohort, said = done.stdout.splitlines()
    assert (Path(page).name, Path(cohort).name) == ("report.html", "cohort.csv")
    assert said.startswith("a: ok, ")
    assert done.stderr.startswith("[1/1] a: ok")
    quiet = wsiseg("tile", slide, "--out", tmp_path / "o", "--quiet")
    assert quiet.stderr == ""
    shown = json.loads(wsiseg("tile", slide, "--out", tmp_path / "o", "--json").stdout)
    assert shown["slides"][0]["status"] == "up_to_date"
    failed = wsiseg("tile", tmp_path / "gone.svs", "--out", tmp_path / "o", "--quiet")
    assert failed.returncode == 1
    assert "gone.svs: no such file" in failed.stderr


def test_paths_may_come_on_standard_input(make_slide: MakeSlide, tmp_path: Path) -> None:
    lines = "".join(f"{make_slide(name)}\n" for name in ("a.tiff", "b c.tiff"))
    done = wsiseg("tile", "-", "--out", tmp_path / "o", "--json", input="\ufeff" + lines, encoding="utf-8")
    slides = json.loads(done.stdout)["slides"]
    assert [(one["slide"], one["status"]) for one in slides] == [("a", "ok"), ("b c", "ok")]


def test_an_output_folder_that_cannot_be_is_a_sentence(make_slide: MakeSlide, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = wsiseg("tile", make_slide("a.tiff"), "--out", tmp_path / "file" / "o")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "file" in done.stderr


@pytest.mark.parametrize("name", ["größe µm.tiff".encode(), b"a\xff.tiff", "\u65e5.tiff".encode()])
def test_names_survive_any_locale(make_slide: MakeSlide, tmp_path: Path, name: bytes) -> None:
    if os.name != "posix":
        pytest.skip("file names are bytes on POSIX alone")
    slide = make_slide("plain.tiff").rename(tmp_path / os.fsdecode(name))
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "wsiseg", "tile", str(slide), "--out", str(tmp_path / "o")]
    environment = {**os.environ, **ascii_only, "NO_COLOR": "1"}
    lines = subprocess.run(command, capture_output=True, check=True, env=environment).stdout.splitlines()
    assert [Path(os.fsdecode(line)).exists() for line in lines[:2]] == [True, True]
    assert lines[2].startswith(Path(os.fsdecode(name)).stem.encode(errors="surrogateescape") + b": ok, ")
    shown = subprocess.run([*command, "--json"], capture_output=True, check=True, env=environment).stdout
    assert os.fsencode(json.loads(shown.decode("utf-8"))["slides"][0]["path"]).endswith(name)


def test_names_turn_no_line_and_no_colour_of_a_terminal(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("Windows has no such names")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "new\nline\x1b[31m\r.svs").write_text("no slide")
    done = wsiseg("tile", tmp_path / "in", "--out", tmp_path / "o", "--quiet")
    shown = "failed: new\\nline\\x1b[31m\\r.svs: not a slide"
    assert [line.startswith(shown) for line in (done.stdout.splitlines()[2], done.stderr.splitlines()[0])] == [
        True,
        True,
    ]


@pytest.mark.parametrize("place", ["/dev/full", "a pipe that nobody reads"])
def test_words_that_cannot_be_written_end_no_work(make_slide: MakeSlide, tmp_path: Path, place: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    reader, writer = os.pipe()
    os.close(reader)
    if place == "/dev/full":
        os.dup2(full := os.open(place, os.O_WRONLY), writer)
        os.close(full)
    codes = [
        subprocess.run(
            [sys.executable, "-m", "wsiseg", *command], check=False, stdout=subprocess.DEVNULL, stderr=writer
        ).returncode
        for command in (["tile", str(make_slide("a.tiff")), "--out", str(tmp_path / "o")], ["tile", "gone.csv"])
    ]
    os.close(writer)
    assert codes == [0, 2]
    assert (tmp_path / "o" / "a.png").exists()


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_closed_stream_is_no_disaster(make_slide: MakeSlide, tmp_path: Path, stream: str) -> None:
    if os.name != "posix":
        pytest.skip("needs a POSIX shell")
    line = f"{sys.executable} -m wsiseg tile '{make_slide('a.tiff')}' --out '{tmp_path / 'o'}' {stream}>&-"
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "o" / "a.png").exists()


@pytest.mark.parametrize(
    "error",
    [
        "MemoryError()",
        "RuntimeError('[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can\\'t allocate memory')",
        "RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')",
        "OSError(12, 'Cannot allocate memory')",
        "RuntimeError('cannot join thread before it is started') from RuntimeError('can\\'t start new thread')",
        "shell.UsageError('resnet18: has no feature map') from RuntimeError('can\\'t allocate memory')",
    ],
)
def test_too_little_memory_is_a_sentence(error: str) -> None:
    code = f"from wsiseg.cli import shell\ndef app(): raise {error}\nshell.app = app\nshell.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("wsiseg: out of memory")
    assert "; give it more memory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_other_errors_keep_their_traceback() -> None:
    code = "from wsiseg.cli import shell\ndef app(): raise RuntimeError('a fault')\nshell.app = app\nshell.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("RuntimeError: a fault\n")
