"""The workflows in examples/ give what one command gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from making.models import write_color_filter_model
from making.predictions import command, digest, write_slides

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_snakemake_maps_shards_and_joins_them(tmp_path: Path) -> None:
    slides, model = write_slides(tmp_path / "slides", 4), write_color_filter_model(tmp_path / "colors.onnx")
    subprocess.run(command(slides, model, tmp_path / "alone"), check=True, capture_output=True)
    settings = {"slides": slides, "model": model, "out": tmp_path / "maps", "shards": 2}
    settings |= {"more": "--tissue none --csv", "wsiseg": f"{sys.executable} -m wsiseg"}
    snakemake = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(EXAMPLES / "snakemake" / "Snakefile"),
        "--cores",
        "2",
        "--config",
    ]
    run = [*snakemake, *(f"{name}={value}" for name, value in settings.items())]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    ours = {name: one for name, one in digest(tmp_path / "maps").items() if not name.startswith(".shards")}
    assert ours == digest(tmp_path / "alone")
    record = json.loads((tmp_path / "maps" / "run.json").read_text())
    assert record["totals"] == {"ok": 4, "failed": 0}
