"""With less memory than a command needs it ends in a sentence, and what it has written is whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from making.models import write_color_filter_model
from making.predictions import digest
from making.tiled import SMALL, TILE_PX, write_tiled_cohort

# What is loaded before the limit counts is not what a command needs for its slides.
LIMITED = """
import resource, sys
import numpy, openslide, PIL.Image, scipy.ndimage, zarr
from wsiseg.cli import main
more = int(sys.argv.pop(1))
if sys.argv[1] == "predict": import onnxruntime
if sys.argv[1] == "train": import timm, torch
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + more * 10**6,) * 2)
main()
"""
ENDED_BY_A_LIBRARY = {127, -5, -6}
"""Exit codes where a library in C finds no memory: it ends the process itself."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a tiled cohort, a model, and maps of the cohort."""
    folder = tmp_path_factory.mktemp("little")
    write_tiled_cohort(folder)
    write_color_filter_model(folder / "m.onnx", tile_px=TILE_PX)
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


def run(arguments: list[str], more: int | None = None) -> "subprocess.CompletedProcess[str]":
    start = ["-m", "wsiseg"] if more is None else ["-c", LIMITED, str(more)]
    done = subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no other system bounds the memory of a process so")
@pytest.mark.parametrize("verb", ["predict", "tile", "train", "evaluate"])
def test_too_little_memory_is_a_sentence_and_nothing_is_corrupt(verb: str, folder: Path, tmp_path: Path) -> None:
    out, codes = tmp_path / "out", set[int]()
    for more in (30, 60, 120, 250, 500):
        done = run(command(verb, folder, out), more)
        codes.add(done.returncode)
        said = "memory" in done.stderr.splitlines()[-1] or "failed" in done.stderr
        assert done.returncode == 0 or said, done.stderr
        for path in out.rglob("*.json"):
            json.loads(path.read_text())
    assert codes <= {0, 1, *ENDED_BY_A_LIBRARY}
    assert codes & {1, *ENDED_BY_A_LIBRARY}, "the least was too little"
    for place in (out, tmp_path / "quiet"):
        done = run(command(verb, folder, place))
        assert done.returncode == 0, done.stderr
    if verb == "train":
        figures = [
            (place / "metrics.csv").read_text().splitlines()[-1].split(",")[1:4] for place in (out, tmp_path / "quiet")
        ]
        assert figures[0] == figures[1]
    else:
        assert digest(out) == digest(tmp_path / "quiet")
