import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from making.maps import write_run
from making.models import color_filter_graph, model_file, write_color_filter_model

ROOT = Path(__file__).resolve().parents[2]


def steps() -> list[str]:
    """Return the commands of the gate's workflow, without the one that installs."""
    text = (ROOT / ".github" / "workflows" / "gate.yml").read_text()
    return [line for line in re.findall(r"^ +run: (.+)$", text, re.MULTILINE) if "pip install" not in line]


def run_workflow(folder: Path, model: Path) -> tuple[int, str]:
    """Run the commands one after the other as GitHub does; give the first exit code that is not 0, and its errors."""
    (folder / "tests").symlink_to(ROOT / "tests")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MODEL": str(model)}
    for command in steps():
        shell = ["bash", "-e", "-c", command]
        done = subprocess.run(
            shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            break
    return done.returncode, done.stderr


def broken_model(path: Path) -> Path:
    """Write a valid model file that calls pale tissue tumour: dark is what is *not* below the threshold."""
    graph = color_filter_graph()
    (node,) = [node for node in graph.graph.node if node.op_type == "Less"]
    node.op_type = "Greater"
    card = {"name": "broken", "mpp": 0.5, "map": "dense", "architecture": "none", "tile_px": 224, "output_stride": 32}
    path.write_bytes(model_file(graph, **card))
    return path


def test_the_workflow_makes_maps_and_measures_them() -> None:
    text = " && ".join(steps())
    assert len(steps()) == 3
    assert re.search(r"wsiseg predict .*wsiseg evaluate .*--fail-under auc=", text)


@pytest.mark.slow
def test_the_gate_is_green_for_a_good_model(tmp_path: Path) -> None:
    code, said = run_workflow(tmp_path, write_color_filter_model(tmp_path / "good.onnx"))
    assert code == 0, said
    stored = json.loads((tmp_path / "gate" / "evaluation" / "metrics.json").read_text())
    assert stored["without_background"]["auc"]["value"] > 0.95


@pytest.mark.slow
def test_the_gate_is_red_for_a_model_broken_on_purpose(tmp_path: Path) -> None:
    code, said = run_workflow(tmp_path, broken_model(tmp_path / "broken.onnx"))
    assert code == 3
    assert "gate not met" in said
    assert "<failure" in (tmp_path / "gate" / "junit.xml").read_text()


def test_evaluate_loads_no_training_library(tmp_path: Path) -> None:
    write_run(tmp_path, slides=2)
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "wsiseg",
        "evaluate",
        "maps",
        "--truth",
        "truth",
        "--out",
        "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "wsiseg.mathematics.metrics" in loaded
    assert not loaded & {"torch", "sklearn", "timm", "onnx", "onnxruntime", "openslide", "h5py"}
