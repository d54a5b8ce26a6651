"""A run or a model file passes for signed where one of those who may sign has signed it as it is, and never else."""

import shutil
import subprocess
from pathlib import Path

import pytest

from making.models import write_color_filter_model
from wsiseg.config.doctor import DoctorConfig
from wsiseg.doctor import doctor
from wsiseg.prediction.verify import verify
from wsiseg.run.errors import UsageError
from wsiseg.run.proof import signer
from wsiseg.run.record import Run, RunFile

PROGRAM = shutil.which("ssh-keygen") or ""
pytestmark = pytest.mark.skipif(not PROGRAM, reason="needs OpenSSH")


def signed(path: Path, key: Path, namespace: str = "wsiseg") -> Path:
    """Sign a file, with a key that is made where there is none, and return a list in which its owner may sign."""
    if not key.exists():
        subprocess.run([PROGRAM, "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    path.with_name(f"{path.name}.sig").unlink(missing_ok=True)
    subprocess.run([PROGRAM, "-q", "-Y", "sign", "-n", namespace, "-f", key, path], check=True)
    allowed = key.with_suffix(".allowed")
    allowed.write_text(f'{key.name}@lab.example,other namespaces="wsiseg" {key.with_suffix(".pub").read_text()}')
    return allowed


@pytest.fixture
def record(tmp_path: Path) -> Path:
    RunFile(tmp_path / "out" / "run.json", Run(command="predict", started="2026-01-01T00:00:00Z")).finish()
    return tmp_path / "out" / "run.json"


def problems(record: Path, allowed: Path) -> str:
    findings = verify(DoctorConfig(slide=record.parent, signed_by=allowed))
    assert findings.exit_code == bool(findings.problems)
    return "\n".join(findings.problems)


def test_what_one_of_them_signed_passes(record: Path, tmp_path: Path) -> None:
    allowed = signed(record, tmp_path / "me")
    assert signer(record, allowed) == "me@lab.example"
    findings = verify(DoctorConfig(slide=record.parent, signed_by=allowed))
    assert (findings.problems, findings.facts["run"]["signed by"]) == ((), "me@lab.example")


def test_everything_else_does_not(record: Path, tmp_path: Path) -> None:
    strangers = signed(record, tmp_path / "stranger")
    allowed = signed(record, tmp_path / "me")
    assert "is not signed by one of stranger.allowed" in problems(record, strangers)
    content = record.read_bytes()
    record.write_bytes(content.replace(b"2026-01-01", b"2026-01-02"))
    assert "run.json: is not signed by one of me.allowed" in problems(record, allowed)
    record.write_bytes(content)
    assert problems(record, allowed) == ""
    signed(record, tmp_path / "me", namespace="file")
    assert "is not signed by one of" in problems(record, allowed)
    record.with_name("run.json.sig").write_bytes(b"\xff\xfe-----BEGIN SSH SIGNATURE-----")
    assert "is not signed by one of" in problems(record, allowed)
    record.with_name("run.json.sig").unlink()
    assert "run.json: is not signed, as there is no run.json.sig" in problems(record, allowed)
    with pytest.raises(UsageError, match="no such file of allowed signers"):
        problems(record, tmp_path / "nobody")


def test_a_model_file_is_signed_too(tmp_path: Path) -> None:
    model = write_color_filter_model(tmp_path / "m.onnx")
    allowed = signed(model, tmp_path / "me")
    findings = doctor(DoctorConfig(model=str(model), signed_by=allowed))
    assert (findings.exit_code, findings.facts["model"]["signed by"]) == (0, "me@lab.example")
    strangers = signed(tmp_path / "me.pub", tmp_path / "stranger")
    assert doctor(DoctorConfig(model=str(model), signed_by=strangers)).exit_code == 1
    with pytest.raises(UsageError, match="signed-by is for runs and for model files"):
        doctor(DoctorConfig(signed_by=allowed))


def test_without_ssh_keygen_it_says_what_is_missing(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = signed(record, tmp_path / "me")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="checking signatures needs ssh-keygen, which was not found; install OpenSSH"):
        signer(record, allowed)
