"""Networks whose features are tokens: built, trained, exported, and mapped densely in windows of a tile."""

from pathlib import Path

import numpy as np
import pytest
import torch

from making.progress import Heard
from making.tiled import TILE_PX, write_tiled_cohort
from making.trained import tiles_of, write_run
from wsiseg.config.export import ExportConfig
from wsiseg.config.train import TrainConfig
from wsiseg.exporting.export import Exported, export
from wsiseg.exporting.onnx_graph import TileGraph, to_onnx
from wsiseg.model_file.model_file import ModelFile
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.network.network import TileClassifier, build, load_classifier
from wsiseg.network.tokens import TokenMap
from wsiseg.prediction.predict import predict
from wsiseg.run.errors import UsageError
from wsiseg.slides.cohort import Cohort
from wsiseg.training.train import train

VIT = "timm:test_vit"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiled_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TileClassifier]:
    run = tmp_path_factory.mktemp("run")
    return run, write_run(run, cohort, VIT)


@pytest.fixture(scope="module")
def exported(trained: tuple[Path, TileClassifier], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(ExportConfig(run=trained[0], out=tmp_path_factory.mktemp("model") / "model.onnx"))


def count_weights(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("arch", [VIT, "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"])
@torch.inference_mode()
def test_the_mean_over_patch_tokens_is_the_tile_s_logit(arch: str) -> None:
    classifier = build(arch, "none", tile_px=224).eval()
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    maps = classifier.logit_map(images)
    assert maps.shape[2:] == ((7, 7) if "swin" in arch else (14, 14))
    torch.testing.assert_close(maps.mean((2, 3)), classifier(images), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_class_and_register_tokens_are_no_part_of_the_map() -> None:
    backbone = build("timm:vit_small_patch14_reg4_dinov2", "none", tile_px=28).eval().backbone
    assert isinstance(backbone, TokenMap)
    images = torch.rand(1, 3, 28, 28)
    tokens = backbone.network(images)
    assert tokens.shape[1] == 1 + 4 + 4
    patches = tokens[0, 5:].reshape(2, 2, -1).permute(2, 0, 1)
    torch.testing.assert_close(backbone(images)[0], patches)


def test_position_embeddings_are_resampled_and_that_is_said(tmp_path: Path) -> None:
    import timm  # noqa: PLC0415  only here

    told: list[str] = []
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    with torch.inference_mode():
        assert build(VIT, str(tmp_path / "weights.pth"), told.append, tile_px=96).eval().window_px == 96
    assert told == [f"{VIT}: was made for tiles of 160 px; its position embeddings are resampled for 96 px"]


def test_tiles_that_are_no_multiple_of_a_patch_are_refused() -> None:
    with pytest.raises(UsageError, match=r"patches of 16 px, and tiles of 100 px") as caught:
        build(VIT, "none", tile_px=100)
    assert "--tile 96" in (caught.value.hint or "")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_transformer_becomes_a_checked_file(
    trained: tuple[Path, TileClassifier], cohort: Path, tmp_path: Path, precision: str
) -> None:
    # Layers of random weights have too little effect for the coarse self-test of int8.
    config = ExportConfig(
        run=trained[0], out=tmp_path / "model.onnx", precision=precision, allow_loss=precision == "int8"
    )
    file = export(config)
    card = file.card
    assert all(row.passed for row in card.parity)
    share = {"fp32": 1, "fp16": 0.5, "int8": 0.25}[precision]
    assert file.path.stat().st_size == pytest.approx(share * 4 * count_weights(trained[1]), rel=0.5)
    assert (card.output_stride, card.window_px, card.map, card.map_cells) == (16, TILE_PX, "dense", "pixels")
    assert card.parity[0].max_difference <= 1e-4
    assert "class and register tokens count for nothing" in file.page.read_text()
    tiles = tiles_of(cohort, 2)
    with ModelFile.open(file.path) as model, torch.no_grad():
        expected = torch.sigmoid(trained[1](torch.from_numpy(tiles)))[:, 0].numpy()
        assert expected.std() > 0.05
        off = {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.1}[precision]
        np.testing.assert_allclose(model.answer(tiles).probabilities, expected, atol=off)
        cells = model.answer_map(tiles).probabilities.astype(np.float64)
        logits = np.log(cells / (1 - cells)).mean((1, 2))
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected, atol=off)
        with pytest.raises(UsageError, match=rf"nothing but images of {TILE_PX}x{TILE_PX}"):
            model.answer_map(np.zeros((1, 2 * TILE_PX, TILE_PX, 3), np.uint8))


def test_nobody_is_told_to_export_it_anew_as_it_never_tells_what_is_unknown(exported: Exported) -> None:
    with ModelFile.open(exported.path) as model:
        assert model.warnings == ("model.onnx: cannot recognise unknown tissue",)


def test_its_dense_map_is_that_of_its_tiles(exported: Exported, cohort: Path) -> None:
    slide = Cohort.read(cohort).slides[0].path
    dense, tiles = (predict(slide, exported.path, map=kind, tissue="none") for kind in ("dense", "tile"))
    cells = TILE_PX // 16
    assert dense.cell_um == tiles.cell_um / cells
    first = dense.probabilities[:cells, :cells].astype(np.float64)
    logit = np.log(first / (1 - first)).mean()
    assert 1 / (1 + np.exp(-logit)) == pytest.approx(float(tiles.probabilities[0, 0]), abs=1e-4)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_transformer_is_trained(cohort: Path, tmp_path: Path, *, freeze: bool) -> None:
    config = TrainConfig(
        cohort=cohort, out=tmp_path, arch=VIT, init="none", freeze=freeze, epochs=1, bag=4, max_tiles=8
    )
    begin = build(VIT, "none", tile_px=TILE_PX).state_dict().keys()
    train(config)
    checkpoint = Checkpoint.load(tmp_path / "best.pt")
    assert checkpoint.state_dict.keys() == begin
    assert load_classifier(checkpoint).window_px == TILE_PX
    assert checkpoint.known_tissue is None


def test_a_network_beyond_two_gigabytes_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with torch.device("meta"):
        graph = TileGraph(torch.nn.Linear(30_000, 20_000), torch.nn.Identity())
    with pytest.raises(UsageError, match=r"2\.4 GB of weights, and a model file holds 2 GB"):
        to_onnx(graph, TILE_PX, tmp_path)


def test_what_the_licence_of_weights_forbids_is_said_by_every_file(
    trained: tuple[Path, TileClassifier], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.load(trained[0] / "best.pt")
    checkpoint.trained_on["weights_licence"] = "cc-by-nc-nd-4.0"
    checkpoint.save(tmp_path / "best.pt")
    heard = Heard()
    file = export(ExportConfig(run=tmp_path / "best.pt", out=tmp_path / "model.onnx"), heard)
    said = [
        f"the licence of its weights (cc-by-nc-nd-4.0) forbids {what}"
        for what in ("commercial use", "models derived from it")
    ]
    assert [note for note in heard.notes if "forbids" in note] == [f"warning: {text}" for text in said]
    with ModelFile.open(file.path) as model:
        assert [warning for warning in model.warnings if "forbids" in warning] == [f"model.onnx: {one}" for one in said]
    assert load_classifier(Checkpoint.load(tmp_path / "best.pt")).licence == "cc-by-nc-nd-4.0"


def test_settings_that_show_other_images_than_tiles_are_refused(cohort: Path, tmp_path: Path) -> None:
    config = TrainConfig(cohort=cohort, out=tmp_path, arch=VIT, init="none", context=2 * TILE_PX)
    with pytest.raises(UsageError, match="takes only whole tiles"):
        train(config)
