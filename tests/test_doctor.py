import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tifffile

from making.models import write_color_filter_model
from wsiseg.cli import examine
from wsiseg.config.doctor import DoctorConfig
from wsiseg.doctor import doctor
from wsiseg.model_file.onnx_session import available_providers, has_fast_int8
from wsiseg.run.errors import ModelFileError, NotASlideError, SlideError

MakeSlide = Callable[..., Path]


def test_the_installation_is_described() -> None:
    facts = doctor(DoctorConfig()).facts["installation"]
    assert {"wsiseg", "OpenSlide library", "ONNX Runtime providers", "cores", "memory", "training"} <= set(facts)
    assert "CPUExecutionProvider" in facts["ONNX Runtime providers"]


def test_it_is_told_where_8_bit_models_are_slow(tmp_path: Path) -> None:
    said = {True: "fast", False: "no instructions", None: "unknown"}[has_fast_int8()]
    assert said in doctor(DoctorConfig()).facts["installation"]["8-bit products"]
    path = write_color_filter_model(tmp_path / "m.onnx", precision="int8")
    assert said in doctor(DoctorConfig(model=str(path))).facts["model"]["8-bit products"]
    path = write_color_filter_model(tmp_path / "m.onnx")
    assert "8-bit products" not in doctor(DoctorConfig(model=str(path))).facts["model"]


def test_it_is_told_how_a_gpu_that_is_not_used_can_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("wsiseg.doctor._NVIDIA", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor(DoctorConfig()).facts["installation"]["NVIDIA GPU"] == "none"
    program = tmp_path / ("nvidia-smi.exe" if sys.platform == "win32" else "nvidia-smi")
    program.write_text("")
    program.chmod(0o755)
    if "CUDAExecutionProvider" not in available_providers():
        said = doctor(DoctorConfig()).facts["installation"]["NVIDIA GPU"]
        assert said.startswith("not used: ")
        assert 'pip install "onnxruntime-gpu[cuda,cudnn]"' in said


def test_the_speed_of_a_model_is_told(tmp_path: Path) -> None:
    path = write_color_filter_model(tmp_path / "m.onnx")
    assert doctor(DoctorConfig(model=str(path))).facts["model"]["tiles per second"]["cpu"] > 0


def test_what_is_missing_for_training_is_named() -> None:
    """In an interpreter that cannot see torch."""
    code = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "from wsiseg.config.doctor import DoctorConfig\n"
        "from wsiseg.doctor import doctor\n"
        "print(doctor(DoctorConfig()).facts['installation']['training'])\n"
        "assert 'torch' not in sys.modules"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch: pip install 'wsiseg[train]'" in said


def test_a_slide_is_described(make_slide: MakeSlide) -> None:
    path = make_slide("a.scn", levels=[(512, 384)], frame=(300, 900, 2000, 3000), compression="jpeg")
    findings = doctor(DoctorConfig(slide=path))
    facts = findings.facts["slide"]
    assert findings.exit_code == 0
    assert facts["vendor"] == "leica"
    assert facts["size"] == "2000 x 3000 px, 1.0 x 1.5 mm"
    assert facts["levels"] == ["2000 x 3000 (1:1)", "1000 x 1500 (1:2)"]
    assert facts["pixel size"] == "0.5 x 0.5 um"
    assert facts["pixel size from"] == "openslide.mpp-x"
    assert facts["bounds"] == (300, 900, 1024, 768)
    assert facts["colour profile"] == "none"


def test_a_slide_without_a_pixel_size_is_described_all_the_same(data: Path) -> None:
    findings = doctor(DoctorConfig(slide=data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"))
    assert findings.exit_code == 1
    assert "no pixel size in the file; give --slide-mpp" in findings.problems[0]
    assert findings.facts["slide"]["pixel size"] == "none that can be used"
    assert findings.facts["slide"]["size"] == "4443 x 3567 px"
    assert "pixel size from" not in findings.facts["slide"]
    assert findings.facts["slide"]["colour profile"] == "in the file, not applied"


@pytest.mark.parametrize("given", [None, 900.0])
def test_a_pixel_size_that_nobody_gave_is_never_shown(make_slide: MakeSlide, given: float | None) -> None:
    """Also for an objective that fits no stand-in, and where what the user gives cannot be true."""
    slide = make_slide("a.tiff", size=(700, 500), mpp=None)
    findings = doctor(DoctorConfig(slide=slide, slide_mpp=given))
    assert findings.exit_code == 1
    facts = findings.facts["slide"]
    assert (facts["size"], facts["pixel size"], facts["warnings"]) == ("700 x 500 px", "none that can be used", [])
    assert "pixel size from" not in facts


def test_deep_names_the_tiles_that_cannot_be_read(make_slide: MakeSlide, data: Path) -> None:
    path = make_slide("a.tiff", size=(1024, 1024), levels=[(512, 512)], compression="jpeg")
    assert doctor(DoctorConfig(slide=path, deep=True)).problems == ()
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        begin, length = page.dataoffsets[6], page.databytecounts[6]
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(b"\xff" * length)
    findings = doctor(DoctorConfig(slide=path, deep=True))
    assert findings.exit_code == 1
    (problem,) = findings.problems
    assert problem.startswith("a.tiff: the 256x256 pixels at (512, 256) of level 0 cannot be read")
    assert findings.facts["slide"]["unreadable tiles"] == 1
    unreadable = DoctorConfig(slide=data / "slides" / "openslide_unreadable.svs", deep=True)
    assert doctor(unreadable).facts["slide"]["unreadable tiles"] == 1


def test_a_model_file_prints_its_card(tmp_path: Path) -> None:
    path = write_color_filter_model(tmp_path / "m.onnx", mpp=0.25)
    found = doctor(DoctorConfig(model=str(path)))
    facts = found.as_json()["model"]
    assert facts["mpp"] == 0.25
    assert facts["self-test"] == "passed"
    page = "\n".join(examine._findings_lines(found))
    assert "| input | RGB at 0.25 um per pixel" in page
    assert "self_test" not in page
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelFileError, match=r"m\.onnx"):
        doctor(DoctorConfig(model=str(path)))


def test_what_is_no_slide_is_an_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(NotASlideError):
        doctor(DoctorConfig(slide=data / "slides" / "dicom_highdicom" / "sm_annotations.dcm"))
    with pytest.raises(SlideError):
        doctor(DoctorConfig(slide=tmp_path / "missing.svs"))


def test_the_command_prints_lines_or_json(data: Path) -> None:
    slide = str(data / "slides" / "CMU-1-Small-Region.svs")
    command = [sys.executable, "-m", "wsiseg", "doctor", slide]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "vendor: aperio" in lines
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert found["problems"] == []
    assert found["slide"]["vendor"] == "aperio"
