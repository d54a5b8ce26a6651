"""With less memory than a command needs it ends in a sentence, and what it has written is whole."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from making.models import write_color_filter_model
from making.predictions import digest
from making.tiled import SMALL, write_tiled_cohort

# What is loaded before the limit counts is not what a command needs for its slides.
LIMITED = """
import resource, sys
import numpy, openslide, PIL.Image, scipy.ndimage, zarr
from wsiseg.cli import loaded, main
loaded()
more = int(sys.argv.pop(1))
if sys.argv[1] == "predict": import onnxruntime
if sys.argv[1] == "train": import timm, torch
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + more * 10**6,) * 2)
main()
"""
LONGEST_S, LONGEST_ALONE_S = 60, 600
"""With little memory, when a library may wait for a thread that is none, and with enough."""
OF_TIME = {"seconds", "tiles_per_s", "waiting"}
ENDED_BY_A_LIBRARY = {127, -5, -6, -11}
"""Exit codes where a library in C finds no memory: it ends the process itself."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a tiled cohort, a model, and maps of the cohort."""
    folder = tmp_path_factory.mktemp("little")
    write_tiled_cohort(folder)
    write_color_filter_model(folder / "m.onnx")
    run(command("predict", folder, folder / "maps"))
    return folder


def command(verb: str, folder: Path, out: Path) -> list[str]:
    cohort = folder / "cohort" / "cohort.csv"
    more: dict[str, list[object]] = {
        "predict": [cohort, "--model", folder / "m.onnx", "--tissue", "none"],
        "tile": [cohort, "--pixels", "--tissue", "none", "--tile", 224],
        "train": [folder / "tiles" / "cohort.csv", "--arch", SMALL, "--init", "none", "--epochs", 2, "--resume"],
        "evaluate": [folder / "maps", "--truth", folder / "cohort" / "truth", "--cohort", cohort],
    }
    return [verb, *map(str, more[verb]), "--out", str(out)]


def run(arguments: list[str], more: int | None = None) -> tuple[int | None, str]:
    """Run a command with so many MB more than its libraries; give its exit code, None if it did not end, and words."""
    start = ["-m", "wsiseg"] if more is None else ["-c", LIMITED, str(more)]
    command = [sys.executable, *start, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, said = process.communicate(timeout=LONGEST_ALONE_S if more is None else LONGEST_S)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            code, said = None, process.communicate()[1]
    assert "Traceback" not in said, said
    return code, said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no other system bounds the memory of a process so")
@pytest.mark.parametrize("verb", ["predict", "tile", "train", "evaluate"])
def test_too_little_memory_is_a_sentence_and_nothing_is_corrupt(verb: str, folder: Path, tmp_path: Path) -> None:
    out, codes = tmp_path / "out", set[int | None]()
    for more in (30, 60, 120, 250):
        code, said = run(command(verb, folder, out), more)
        codes.add(code)
        assert code in {0, None, *ENDED_BY_A_LIBRARY} or re.search("memory|failed|new thread", said), said
        for path in out.rglob("*.json"):
            json.loads(path.read_text())
    assert codes <= {0, 1, None, *ENDED_BY_A_LIBRARY}
    assert codes != {0}, "the least was too little"
    for place in (out, tmp_path / "quiet"):
        assert run(command(verb, folder, place))[0] == 0
    if verb in {"predict", "tile"}:
        assert digest(out) == digest(tmp_path / "quiet")
        return
    name = {"train": "metrics.csv", "evaluate": "slides.csv"}[verb]
    tables = [list(csv.DictReader((place / name).read_text().splitlines())) for place in (out, tmp_path / "quiet")]
    last = [{key: text for key, text in table[-1].items() if key not in OF_TIME} for table in tables]
    assert last[0] == last[1]
