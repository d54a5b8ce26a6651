import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision import models, transforms

from wsiseg.config.export import ExportConfig
from wsiseg.exporting.export import export
from wsiseg.exporting.from_others import PAPER_MEAN, PAPER_STD
from wsiseg.exporting.from_wsinfer import Prepare
from wsiseg.model_file.model_file import ModelFile
from wsiseg.network.network import IMAGENET_MEAN, IMAGENET_STD
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.slides.slide import Slide

Images = NDArray[np.uint8]
TILE_PX, RESIZED_PX = 175, 112
TRANSFORM = [
    {"name": "Resize", "arguments": {"size": RESIZED_PX}},
    {"name": "ToTensor"},
    {"name": "Normalize", "arguments": {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}},
]
_SPREAD = 3  # of logits, as after training: where answers hardly differ, changed layers cannot be told
CONFIG = {
    "spec_version": "1.0",
    "architecture": "resnet18",
    "num_classes": 2,
    "patch_size_pixels": TILE_PX,
    "spacing_um_px": 0.25,
    "class_names": ["notumor", "tumor"],
    "transform": TRANSFORM,
}


def real_tiles(data: Path, side: int, mpp: float, count: int = 12) -> Images:
    with Slide(data / "slides" / "CMU-1-Small-Region.svs") as slide:
        places = np.random.default_rng(0).integers(300, 1500, (count, 2))
        return np.stack([slide.read(int(x), int(y), (side, side), mpp) for x, y in places])


def settled_network(arch: str, classes: int, images: torch.Tensor, spread: float = _SPREAD) -> nn.Module:
    """Make a seeded network of torchvision whose statistics and logits are those of trained ones."""
    torch.manual_seed(0)
    return settled(models.get_model(arch, weights=None, num_classes=classes), images, spread)


@torch.no_grad()
def settled(network: nn.Module, images: torch.Tensor, spread: float = _SPREAD) -> nn.Module:
    """Fit the statistics of normalisation to images, and scale the head so that the answers to them spread."""
    network.train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    network(images)
    network.eval()
    head = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    head.weight.mul_(spread / network(images).std(0).mean())
    head.bias.sub_(network(images).mean(0))
    return network


def normalised(tiles: Images, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    step = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    return torch.stack([step(Image.fromarray(tile)) for tile in tiles])


def as_wsinfer(tiles: Images) -> torch.Tensor:
    """Prepare tiles as WSInfer does."""
    step = transforms.Compose(
        [transforms.Resize(RESIZED_PX), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )
    return torch.stack([step(Image.fromarray(tile)) for tile in tiles])


def write_wsinfer(folder: Path, network: nn.Module | None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if network is not None:
        torch.jit.script(network).save(str(folder / "torchscript_model.pt"))
    return folder


@pytest.fixture(scope="module")
def tiles(data: Path) -> Images:
    return real_tiles(data, TILE_PX, 0.25)


@pytest.fixture(scope="module")
def network(tiles: Images) -> nn.Module:
    return settled_network("resnet18", 2, as_wsinfer(tiles))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_wsinfer_model_gives_the_same_probabilities(network: nn.Module, tiles: Images, tmp_path: Path) -> None:
    folder = write_wsinfer(tmp_path / "breast-tumor", network)
    (tmp_path / "tiles").mkdir()
    for number, tile in enumerate(tiles):
        Image.fromarray(tile).save(tmp_path / "tiles" / f"{number}.png")
    found = export(ExportConfig(from_wsinfer=folder, out=tmp_path / "m.onnx", calibration=tmp_path / "tiles"))
    assert (found.card.name, found.card.tile_px, found.card.mpp) == ("breast-tumor", TILE_PX, 0.25)
    assert (found.card.classes, found.card.positive_class) == (("notumor", "tumor"), "tumor")
    assert found.card.output_stride is None
    assert found.card.parity[0].passed
    with torch.no_grad():
        expected = torch.softmax(network(as_wsinfer(tiles)), 1)[:, 1].numpy()
    assert expected.std() > 0.05
    with ModelFile.open(found.path) as model:
        np.testing.assert_allclose(model.answer(tiles).probabilities, expected, atol=1e-4)
        np.testing.assert_allclose(model.answer(tiles[:1]).probabilities, expected[:1], atol=1e-4)
        with pytest.raises(UsageError, match="no map"):
            model.answer_map(tiles[:, :160, :160])


def test_tiles_are_resized_as_pillow_does(data: Path) -> None:
    for before, after in ((350, 224), (100, 224), (512, 224), (224, 224)):
        tiles = np.concatenate(
            [
                real_tiles(data, before, 0.5, 2),
                np.random.default_rng(0).integers(0, 256, (2, before, before, 3), dtype=np.uint8),
            ]
        )
        prepared = Prepare(before, after, (0, 0, 0), (1, 1, 1))(torch.from_numpy(tiles)) * 255
        expected = np.stack(
            [np.asarray(Image.fromarray(tile).resize((after, after), Image.Resampling.BILINEAR)) for tile in tiles]
        )
        np.testing.assert_array_equal(prepared.permute(0, 2, 3, 1).round().to(torch.uint8).numpy(), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_one_of_many_classes_is_chosen_by_name(tiles: Images, tmp_path: Path) -> None:
    names = ["lepidic", "acinar", "solid"]
    network = settled_network("resnet18", 3, normalised(tiles, (0, 0, 0), (1, 1, 1)))
    folder = write_wsinfer(
        tmp_path / "lung", network, num_classes=3, class_names=names, transform=[{"name": "ToTensor"}]
    )
    config = ExportConfig(from_wsinfer=folder, out=tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"lepidic, acinar, solid.*--positive-class"):
        export(config)
    with pytest.raises(UsageError, match="no class is called cat"):
        export(config.model_copy(update={"positive_class": "cat"}))
    found = export(config.model_copy(update={"positive_class": "solid"}))
    with torch.no_grad():
        expected = torch.softmax(network(normalised(tiles, (0, 0, 0), (1, 1, 1))), 1)[:, 2].numpy()
    with ModelFile.open(found.path) as model:
        np.testing.assert_allclose(model.answer(tiles).probabilities, expected, atol=1e-4)


def test_safetensors_weights_of_timm(tiles: Images, tmp_path: Path) -> None:
    import timm  # noqa: PLC0415  heavy: only here
    from safetensors.torch import save_file  # noqa: PLC0415  only here

    torch.manual_seed(0)
    # As timm starts a network, the last normalisation of every block is 0, and most layers have no effect.
    network = settled(timm.create_model("resnet18", num_classes=1, zero_init_last=False), as_wsinfer(tiles))
    folder = write_wsinfer(tmp_path / "x", None, num_classes=1, class_names=["tumor"])
    save_file(network.state_dict(), folder / "model.safetensors")
    found = export(ExportConfig(from_wsinfer=folder, out=tmp_path / "m.onnx"))
    assert found.card.classes == ("not tumor", "tumor")
    with torch.no_grad():
        expected = torch.sigmoid(network(as_wsinfer(tiles)))[:, 0].numpy()
    with ModelFile.open(found.path) as model:
        np.testing.assert_allclose(model.answer(tiles).probabilities, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_folders_that_are_no_wsinfer_model(network: nn.Module, tmp_path: Path) -> None:
    def refusal(**config: Any) -> str:
        folder = write_wsinfer(tmp_path / "x", None, **config)
        with pytest.raises(WsisegError) as caught:
            export(ExportConfig(from_wsinfer=folder, out=tmp_path / "m.onnx"))
        assert str(folder) in str(caught.value)
        return str(caught.value)

    assert "holds no weights" in refusal()
    write_wsinfer(tmp_path / "x", network)
    assert "classes are not known" in refusal(class_names=[])
    assert "classes are not known" in refusal(num_classes=3, class_names=["a", "b", "tumor"])
    assert "num_classes" in refusal(num_classes="many")
    assert "transform" in refusal(transform=[{"name": "Crop"}])
    assert "not known in this order" in refusal(transform=TRANSFORM[::-1])
    assert "transform.1.arguments.mean" in refusal(
        transform=[TRANSFORM[1], {"name": "Normalize", "arguments": {"mean": [1]}}]
    )
    assert "interpolation" in refusal(
        transform=[{"name": "Resize", "arguments": {"size": RESIZED_PX, "interpolation": "nearest"}}, TRANSFORM[1]]
    )
    (tmp_path / "x" / "torchscript_model.pt").write_bytes(b"no TorchScript")
    assert "cannot be read as TorchScript" in refusal()
    (tmp_path / "x" / "config.json").write_text("no JSON")
    with pytest.raises(UsageError, match="not a WSInfer configuration"):
        export(ExportConfig(from_wsinfer=tmp_path / "x", out=tmp_path / "m.onnx"))
    with pytest.raises(UsageError, match="cannot be read"):
        export(ExportConfig(from_wsinfer=tmp_path / "missing", out=tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("arch", "classes", "is_dense"),
    [
        pytest.param("resnet18", 1, True, marks=pytest.mark.slow),
        pytest.param("densenet121", 2, True, marks=pytest.mark.slow),
        ("mobilenet_v3_small", 1, False),
        pytest.param("resnet18", 4, False, marks=pytest.mark.slow),
    ],
)
def test_a_plain_state_dict(data: Path, tmp_path: Path, arch: str, classes: int, is_dense: bool) -> None:  # noqa: FBT001  a case
    tiles = real_tiles(data, 224, 0.5)
    images = normalised(tiles, IMAGENET_MEAN, IMAGENET_STD)
    network = settled_network(arch, classes, images)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pt")
    positive = "class 2" if classes > 2 else None
    config = ExportConfig(
        from_torch=tmp_path / "weights.pt", arch=arch, out=tmp_path / "m.onnx", positive_class=positive
    )
    found = export(config)
    with torch.no_grad():
        logits = network(images)
        rows = torch.sigmoid(logits)[:, 0] if classes == 1 else torch.softmax(logits, 1)[:, min(classes - 1, 2)]
    assert (found.card.output_stride is not None) == is_dense
    with ModelFile.open(found.path) as model:
        np.testing.assert_allclose(model.answer(tiles).probabilities, rows.numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_checkpoint_of_the_papers_own_code(data: Path, tmp_path: Path) -> None:
    tiles = real_tiles(data, 224, 0.5)
    images = normalised(tiles, PAPER_MEAN, PAPER_STD)
    # Rounding grows through fifty layers of random weights: the parity gate sees it in logits as far apart as others'.
    network = settled_network("resnet50", 1, images, spread=1.0)
    tensors = {f"instance_model.{name}": value for name, value in network.state_dict().items()}
    torch.save({**tensors, "loss_function.pos_weight": torch.ones(1)}, tmp_path / "weights.pt")
    found = export(ExportConfig(from_torch=tmp_path / "weights.pt", arch="resnet50", out=tmp_path / "m.onnx"))
    assert found.card.output_stride == 32
    with torch.no_grad():
        expected = torch.sigmoid(network(images))[:, 0].numpy()
    with ModelFile.open(found.path) as model:
        np.testing.assert_allclose(model.answer(tiles).probabilities, expected, atol=1e-4)


def test_state_dicts_that_do_not_fit(tmp_path: Path) -> None:
    network = models.resnet18(weights=None, num_classes=3)

    def refusal(arch: str = "resnet18", **settings: Any) -> str:
        with pytest.raises(WsisegError) as caught:
            export(ExportConfig.checked(from_torch=tmp_path / "w.pt", arch=arch, out=tmp_path / "m.onnx", **settings))
        return str(caught.value)

    assert "cannot be read" in refusal()
    torch.save(network, tmp_path / "w.pt")
    assert "not a file of plain tensors" in refusal()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    assert "class 0, class 1, class 2" in refusal()
    assert "does not fit resnet34" in refusal("resnet34", positive_class="class 1")
    assert "no such classifier" in refusal("resnet19", positive_class="class 1")
    assert "cannot be dense" in refusal(positive_class="class 1", output_stride=16)
    torch.save({"conv.weight": torch.zeros(1, 1, 3, 3)}, tmp_path / "w.pt")
    assert "no linear layer" in refusal()


def test_weights_never_run_code(tmp_path: Path) -> None:
    code = (
        "import pickle, sys\n"
        "class Evil:\n"
        "    def __reduce__(self):\n"
        "        return (open, (sys.argv[2], 'w'))\n"
        "pickle.dump({'fc.weight': Evil()}, open(sys.argv[1], 'wb'), protocol=2)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "w.pt", tmp_path / "harm"], check=True, timeout=300)
    with pytest.raises(WsisegError, match="not a file of plain tensors"):
        export(ExportConfig(from_torch=tmp_path / "w.pt", arch="resnet18", out=tmp_path / "m.onnx"))
    assert not (tmp_path / "harm").exists()
