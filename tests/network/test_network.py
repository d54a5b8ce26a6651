"""The tile classifier, its starting weights and its checkpoints."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsiseg.network.checkpoint import Checkpoint, ClassFit
from wsiseg.network.known_tissue import KnownTissue
from wsiseg.network.network import TileClassifier, build, load_classifier
from wsiseg.run.errors import DownloadError, UsageError, WsisegError

SMALL = "timm:test_resnet"


def tiles(count: int = 3, side: int = 96, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.manual_seed(seed))


@pytest.fixture
def classifier() -> TileClassifier:
    torch.manual_seed(0)
    return build(SMALL, "none").eval()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.mark.parametrize(
    "arch",
    ["resnet18", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "regnet_y_400mf",
     "convnext_tiny", "swin_t", "googlenet", SMALL, "timm:test_efficientnet"],
)  # fmt: skip
@torch.inference_mode()
def test_the_mean_of_the_logit_map_is_the_tile_s_logit(arch: str) -> None:
    classifier = build(arch, "none").eval()
    images = tiles(2)
    logits, maps = classifier(images), classifier.logit_map(images)
    assert logits.shape == (2, 1)
    assert maps.dim() == 4
    torch.testing.assert_close(maps.mean((2, 3)), logits, rtol=1e-4, atol=1e-4)


def test_images_are_normalised_by_the_classifier_s_own_colors(classifier: TileClassifier) -> None:
    classifier.mean.copy_(torch.tensor([0.1, 0.2, 0.3]))
    classifier.std.copy_(torch.tensor([0.5, 1.0, 2.0]))
    white = classifier.normalised(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8))
    assert white.shape == (1, 3, 2, 2)
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor([1.8, 0.8, 0.35]))


@pytest.mark.parametrize(
    ("arch", "reason"),
    [("nonsense", "no such classifier"), ("timm:nonsense", "no such classifier"), ("vit_b_16", "no feature map"),
     ("fasterrcnn_resnet50_fpn", "no such classifier")],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_by_name(arch: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        build(arch, "none")
    assert arch in caught.value.message


def test_a_state_dict_is_used_by_name_and_the_rest_is_listed(tmp_path: Path, told: list[str]) -> None:
    from torchvision import models  # noqa: PLC0415  only here

    tensors = models.get_model("resnet18", weights=None).state_dict()
    tensors["module.extra"] = torch.zeros(3)
    del tensors["layer4.1.conv2.weight"]
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "r.pth")
    classifier = build("resnet18", str(tmp_path / "r.pth"), told.append)
    torch.testing.assert_close(classifier.backbone.get_submodule("conv1").weight, tensors["conv1.weight"])
    assert told == [f"{tmp_path}/r.pth: not used: module.extra",
                    f"{tmp_path}/r.pth: not in it, begun at random: layer4.1.conv2.weight"]  # fmt: skip


def test_names_with_a_wrapper_s_prefix_match(tmp_path: Path, told: list[str]) -> None:
    from torchvision import models  # noqa: PLC0415  only here

    tensors = models.get_model("resnet18", weights=None).state_dict()
    save_file({f"module.{key}": value.contiguous() for key, value in tensors.items()}, tmp_path / "r.safetensors")
    classifier = build("resnet18", str(tmp_path / "r.safetensors"), told.append)
    torch.testing.assert_close(classifier.backbone.get_submodule("bn1").weight, tensors["bn1.weight"])
    assert told == []


def test_tensors_of_another_shape_are_listed_with_both(tmp_path: Path, told: list[str]) -> None:
    from torchvision import models  # noqa: PLC0415  only here

    tensors = models.get_model("resnet18", weights=None).state_dict()
    tensors["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(tensors, tmp_path / "r.pth")
    build("resnet18", str(tmp_path / "r.pth"), told.append)
    assert told == [f"{tmp_path}/r.pth: not used, of another shape: conv1.weight 64x3x3x3 for 64x3x7x7",
                    f"{tmp_path}/r.pth: not in it, begun at random: conv1.weight"]  # fmt: skip


def test_foreign_names_are_mapped_in_order_with_a_warning(tmp_path: Path, told: list[str]) -> None:
    tensors = build_full().state_dict()
    renamed = {f"_layer_{k}": value for k, value in enumerate(tensors.values())}
    torch.save(renamed, tmp_path / "f.pth")
    classifier = build(SMALL, str(tmp_path / "f.pth"), told.append)
    first = next(iter(tensors))
    torch.testing.assert_close(classifier.backbone.state_dict()[first], tensors[first])
    assert len(told) == 1
    assert "tensors are used in their order" in told[0]
    torch.save(dict(list(renamed.items())[:-1]), tmp_path / "short.pth")
    with pytest.raises(UsageError, match="do not have the shapes"):
        build(SMALL, str(tmp_path / "short.pth"))


def build_full() -> nn.Module:
    import timm  # noqa: PLC0415  only here

    network: nn.Module = timm.create_model(SMALL.removeprefix("timm:"))
    return network


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    from torchvision import models  # noqa: PLC0415  only here

    tensors = models.get_model("densenet121", weights=None).state_dict()
    torch.save(tensors, tmp_path / "d.pth")
    with pytest.raises(UsageError, match=r"d\.pth.*check --arch"):
        build("vgg11", str(tmp_path / "d.pth"))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.mkdir, (Path("/tmp/evil"),))  # type: ignore[return-value]  # noqa: S108  what an attacker writes


def test_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "evil.pth").read_bytes()[:100])
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("evil.pth", "raw.pth", "cut.pth", "empty.pth", "missing.pth"):
        with pytest.raises(WsisegError, match=name):
            build("resnet18", str(tmp_path / name))
        with pytest.raises(WsisegError, match=name):
            Checkpoint.load(tmp_path / name)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "t.pth")
    with pytest.raises(WsisegError, match="holds no tensors"):
        build("resnet18", str(tmp_path / "t.pth"))


@pytest.mark.parametrize("arch", ["resnet18", "timm:resnet18"])
def test_offline_names_the_file_to_place(arch: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DownloadError, match="--init FILE") as caught:
        build(arch, "imagenet")
    assert caught.value.exit_code == 6
    if arch == "resnet18":
        assert "resnet18-f37072fd.pth" in caught.value.message


FITS = (ClassFit("tumor", 0.4, 2.0, -1.0),)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, classifier: TileClassifier) -> None:
    figures = {"splits": {"val": {"all": {"auc": 0.5, "f1": None}}}}
    tensors = classifier.state_dict()
    checkpoint = Checkpoint(tensors, SMALL, 64, 0.5, 0.2, None, FITS, {"cohort": "c"}, figures, ("colon",), "1")
    checkpoint.save(tmp_path / "best.pt")
    again = Checkpoint.load(tmp_path / "best.pt")
    assert {**vars(again), "state_dict": 0} == {**vars(checkpoint), "state_dict": 0}
    images = tiles()
    torch.testing.assert_close(load_classifier(again)(images), classifier(images))
    torch.testing.assert_close(build(SMALL, str(tmp_path / "best.pt")).eval()(images), classifier(images))
    with pytest.raises(UsageError, match="is a checkpoint of timm:test_resnet, not of resnet18"):
        build("resnet18", str(tmp_path / "best.pt"))


def test_a_checkpoint_keeps_the_known_tissue_that_this_version_measures(
    tmp_path: Path, classifier: TileClassifier
) -> None:
    known = KnownTissue.of("layer2", [("colon", np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32))])
    assert known is not None
    Checkpoint(classifier.state_dict(), SMALL, 64, 0.5, 0.2, 0.2, known_tissue=known).save(tmp_path / "best.pt")
    again = Checkpoint.load(tmp_path / "best.pt").known_tissue
    assert again is not None
    for name, value in vars(known).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    earlier = {"mean": torch.zeros(8), "limit": 2.0, "tile_limit": 1.0}
    content |= {"known_tissue": earlier, "tumor_texture": earlier, "texture_layer": "layer3"}
    torch.save(content, tmp_path / "earlier.pt")
    assert Checkpoint.load(tmp_path / "earlier.pt").known_tissue is None


def test_a_plain_state_dict_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(WsisegError, match="not a checkpoint of wsiseg train"):
        Checkpoint.load(tmp_path / "a.pt")


@torch.inference_mode()
def test_the_mean_of_a_map_is_the_logit(classifier: TileClassifier) -> None:
    images = tiles()
    maps = classifier.logit_map(images)
    assert maps.shape == (3, 1, 3, 3)
    torch.testing.assert_close(maps.mean((2, 3)), classifier(images))
