"""What the Dockerfiles promise, as far as no engine is needed: a read-only root, no HOME, no network, no root."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from making.models import write_color_filter_model
from making.slides import write_slide

ROOT = Path(__file__).resolve().parents[1]
_ALL_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind / && shift && exec "$@"'
_IN_NAMESPACE = ("unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", _ALL_READ_ONLY, "sh")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_an_image_runs_wsiseg_without_root(name: str) -> None:
    text = (ROOT / name).read_text()
    assert re.search(r"^USER (?!root|0)\d+:\d+$", text, re.MULTILINE)
    assert 'ENTRYPOINT ["wsiseg"]' in text
    asked = re.findall(r"^#.*\n#? .* wsiseg(?:-gpu)? (predict .*)$", text, re.MULTILINE)
    assert asked == ["predict /slides --out /maps"]
    assert "--read-only" in text


def test_predict_needs_no_home_and_writes_nowhere_but_to_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if (
        shutil.which("unshare") is None
        or subprocess.run([*_IN_NAMESPACE, str(out), "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs the right to make a mount namespace")
    slide = write_slide(tmp_path / "slides" / "a.tiff", compression="jpeg")
    model = write_color_filter_model(tmp_path / "m.onnx")
    refused = subprocess.run(
        [*_IN_NAMESPACE, str(out), "touch", str(tmp_path / "file")], check=False, capture_output=True, text=True
    )
    assert "Read-only" in refused.stderr
    command = [sys.executable, "-m", "wsiseg", "predict", str(slide.parent), "--model", str(model), "--out", str(out)]
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run([*_IN_NAMESPACE, str(out), *command], env=kept, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a: ok" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"out", "slides", "m.onnx"}
