"""Networks of a hub: found in its cache, refused in a sentence where they are not, their licence carried along."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from making.servers import Handler, Server, serving
from wsiseg.network.network import build, whole
from wsiseg.run.errors import DownloadError, UsageError

NAME = "timm:hf-hub:lab/encoder"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay an encoder into a cache of the hub; return the folder of its files."""
    folder = tmp_path / "models--lab--encoder" / "snapshots" / "0"
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("0")
    shown = {"input_size": [3, 64, 64], "mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.2]}
    config = {"architecture": "test_vit", "model_args": {"img_size": 64, "reg_tokens": 2}, "pretrained_cfg": shown}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(whole("timm:test_vit", img_size=64, reg_tokens=2).state_dict(), folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-nd-4.0\ntags:\n- pathology\n---\n")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    return folder


def test_a_network_of_the_hub_comes_from_the_cache_with_its_colors_and_licence(cache: Path) -> None:
    told: list[str] = []
    classifier = build(NAME, "imagenet", told.append, tile_px=64)
    assert told == []
    assert classifier.licence == "cc-by-nc-nd-4.0"
    assert classifier.mean.tolist() == pytest.approx([0.7, 0.6, 0.7])
    assert classifier.backbone.prefix == 3
    own = whole(NAME, img_size=64).state_dict()
    assert "reg_token" in own
    (cache / "model.safetensors").rename(cache / "pytorch_model.bin")
    torch.save(own, cache / "pytorch_model.bin")
    begun = build(NAME, "imagenet", told.append, tile_px=64).state_dict()
    assert all(torch.equal(begun[f"backbone.network.{key}"], own[key]) for key in own if not key.startswith("head"))


def test_init_hub_means_the_weights_of_the_page_and_is_refused_of_other_networks(cache: Path) -> None:
    own = whole(NAME, img_size=64).state_dict()
    save_file({key: value + 1 for key, value in own.items()}, cache / "model.safetensors")
    begun = build(NAME, "hub", tile_px=64).state_dict()
    assert torch.equal(begun["backbone.network.reg_token"], own["reg_token"] + 1)
    for arch in ("resnet18", "timm:test_vit"):
        with pytest.raises(UsageError, match=f"{arch}: is not a network of a hub"):
            build(arch, "hub")


def test_what_is_not_in_the_cache_names_the_file_to_bring(cache: Path) -> None:
    (cache / "model.safetensors").unlink()
    with pytest.raises(DownloadError, match=r"hf-hub:lab/encoder: pytorch_model.bin is not in the cache") as caught:
        build(NAME, "imagenet", tile_px=64)
    assert "hf download lab/encoder" in (caught.value.hint or "")
    with pytest.raises(DownloadError, match=r"config\.json is not in the cache"):
        build("timm:hf-hub:lab/other", "none")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve a hub on this machine, with an empty cache."""
    monkeypatch.setattr(Handler, "do_HEAD", Handler.do_GET, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with serving() as server:
        pattern = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", pattern)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        yield server


def test_a_network_is_downloaded_once_and_then_comes_from_the_cache(
    cache: Path, hub: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(content: bytes, handler: Handler) -> None:
        known = {"ETag": hashlib.sha256(content).hexdigest(), "X-Repo-Commit": "0" * 40}
        if handler.command == "HEAD":
            handler.answer(200, b"", {**known, "Content-Length": str(len(content))})
        else:
            handler.answer(200, content, known)

    for path in cache.iterdir():
        hub.pages[f"/lab/encoder/resolve/main/{path.name}"] = partial(give, path.read_bytes())
        hub.pages[f"/lab/encoder/resolve/{'0' * 40}/{path.name}"] = partial(give, path.read_bytes())
    with pytest.raises(DownloadError, match="WSISEG_OFFLINE forbids"):
        build(NAME, "hub", tile_px=64)
    assert not hub.requests
    monkeypatch.delenv("WSISEG_OFFLINE")
    downloaded = build(NAME, "hub", tile_px=64)
    own = downloaded.state_dict()["backbone.network.reg_token"]
    assert downloaded.licence == "cc-by-nc-nd-4.0"
    count = sum(hub.requests.values())
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    assert torch.equal(build(NAME, "hub", tile_px=64).state_dict()["backbone.network.reg_token"], own)
    assert sum(hub.requests.values()) == count


def test_terms_that_must_be_accepted_are_said_with_page_and_command(
    hub: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handler: Handler) -> None:
        handler.answer(403, b"", {"X-Error-Code": "GatedRepo"})

    hub.pages["/lab/encoder/resolve/main/config.json"] = refuse
    monkeypatch.delenv("WSISEG_OFFLINE", raising=False)
    with pytest.raises(DownloadError, match="requires you to accept terms") as caught:
        build(NAME, "hub")
    assert caught.value.hint == "accept them on https://huggingface.co/lab/encoder, then run hf auth login"
