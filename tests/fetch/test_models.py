import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from making.servers import Server, made_file
from wsiseg.config.fetch import FetchModelConfig
from wsiseg.fetch.models import ZOO, fetch_model, zoo_model
from wsiseg.run.connection import Patience
from wsiseg.run.errors import DownloadError, UsageError

QUICK = Patience(tries=3, first_wait_s=0.001, longest_wait_s=0.004, read_s=20)
MODEL = zoo_model("lung-tumor-resnet34.tcga-luad")
WEIGHTS = made_file(0, 50_000).content
FILES = {"config.json": b'{"num_classes": 2}', "torchscript_model.pt": WEIGHTS, "README.md": b"license: cc-by-4.0"}


def serve(server: Server, **facts: Any) -> None:
    """Serve a repository as Hugging Face does: large files by a redirect, with their sha256 in the list."""
    base = f"/{MODEL.repository}/resolve/{MODEL.revision}"
    siblings: list[dict[str, Any]] = [{"rfilename": ".gitattributes", "size": 5}, {"rfilename": "../../x", "size": 1}]
    for name, content in FILES.items():
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "x"}
        if name.endswith(".pt"):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        siblings.append(entry)
        give(server, f"/cdn/{name}", content)
        server.pages[f"{base}/{name}"] = lambda handler, name=name: handler.answer(
            302, b"", {"Location": f"/cdn/{name}"}
        )  # type: ignore[misc]  # a default binds it
    answer = json.dumps({"id": MODEL.repository, "sha": MODEL.revision, "siblings": siblings} | facts).encode()
    give(server, f"/api/models/{MODEL.repository}/revision/{MODEL.revision}", answer, "application/json")


def give(server: Server, path: str, body: bytes, kind: str = "application/octet-stream") -> None:
    server.pages[path] = lambda handler: handler.answer(200, body, {"Content-Type": kind})


def fetch(server: Server, cache: Path) -> Path:
    return fetch_model(FetchModelConfig(name=MODEL.name, cache=cache, mirror=server.url), patience=QUICK)


def test_a_model_is_fetched_once_at_its_pinned_revision(server: Server, tmp_path: Path) -> None:
    serve(server)
    folder = fetch(server, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "origin.json"} == FILES
    origin = json.loads((folder / "origin.json").read_text())
    assert (origin["license"], origin["revision"]) == ("CC-BY-4.0", MODEL.revision)
    asked = sum(server.requests.values())
    assert fetch(server, tmp_path) == folder
    assert sum(server.requests.values()) == asked


def test_what_is_in_the_cache_needs_no_network(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server)
    folder = fetch(server, tmp_path)
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    assert fetch(server, tmp_path) == folder
    with pytest.raises(DownloadError, match="WSISEG_OFFLINE"):
        fetch(server, tmp_path / "empty")


def test_spoiled_weights_are_refused(server: Server, tmp_path: Path) -> None:
    serve(server)
    give(server, "/cdn/torchscript_model.pt", WEIGHTS[::-1])
    with pytest.raises(DownloadError, match="wrong sha256"):
        fetch(server, tmp_path)
    assert not list(tmp_path.rglob("origin.json"))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"sha": "0" * 40}, "the pinned revision is not there"),
        ({"siblings": []}, "config.json and torchscript_model.pt and README.md is not there"),
        (
            {"siblings": [{"rfilename": "x", "lfs": {"sha256": "../x", "size": 1}}]},
            "something else than a list of files",
        ),
        ({"siblings": 3}, "something else than a list of files"),
    ],
)
def test_another_answer_is_refused(server: Server, tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    serve(server, **facts)
    with pytest.raises(DownloadError, match=message):
        fetch(server, tmp_path)


def test_every_model_of_the_list_is_pinned_and_licensed() -> None:
    for model in ZOO:
        assert len(model.revision) == 40
        assert model.license
        assert zoo_model(model.name) is model
    with pytest.raises(UsageError, match="no such model"):
        zoo_model("mine")


def test_the_command_line_lists_fetches_and_says_what_conversion_needs(server: Server, tmp_path: Path) -> None:
    serve(server)
    environment = {**os.environ, "HF_ENDPOINT": server.url}

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "wsiseg", "fetch", "model", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert MODEL.name in run("--list").stdout
    assert len(json.loads(run("--list", "--json").stdout)["models"]) == len(ZOO)
    done = run(MODEL.name, "--cache", str(tmp_path))
    assert Path(done.stdout.strip()) == tmp_path / MODEL.name / MODEL.revision
    (tmp_path / "there.onnx").write_bytes(b"")
    refused = run(MODEL.name, "--cache", str(tmp_path), "--out", str(tmp_path / "there.onnx"))
    assert refused.returncode == 2
    assert "there.onnx: exists already" in refused.stderr
