import csv
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch import nn

from making.models import with_card, with_changed_card
from making.progress import Heard
from making.tiled import TILE_PX, write_tiled_cohort
from making.trained import description, settled, tiles_of, write_run
from wsiseg.config.export import CardFacts, ExportConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.exporting.dilation import exportable
from wsiseg.exporting.export import Exported, export
from wsiseg.exporting.onnx_graph import DenseGraph, to_onnx
from wsiseg.exporting.origin import of_classifier
from wsiseg.exporting.parity import Answers, OnnxGraph, compared
from wsiseg.exporting.precision import to_int8
from wsiseg.exporting.sample_tiles import Sample, Samples, from_cohort, from_folder
from wsiseg.exporting.self_test_images import self_test_side, unseen_layers
from wsiseg.model_file.model_card import METADATA_KEY, read_card
from wsiseg.model_file.model_file import ModelFile, model_path
from wsiseg.model_file.onnx_session import has_fast_int8
from wsiseg.model_file.self_test import largest_difference
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.network.network import TileClassifier, build
from wsiseg.network.stage import Stage
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.errors import GateError, ModelFileError, UsageError, WsisegError
from wsiseg.slides.cohort import Cohort

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiled_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def tiles(cohort: Path) -> Images:
    return tiles_of(cohort)


@pytest.fixture(scope="module")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TileClassifier]:
    run = tmp_path_factory.mktemp("run")
    return run, write_run(run, cohort)


@pytest.fixture(scope="module")
def exported(trained: tuple[Path, TileClassifier], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("model") / "model.onnx"
    return export(ExportConfig(run=trained[0], out=out, card=CardFacts(licence="CC0-1.0", data="Squares on pink.")))


@torch.no_grad()
def by_torch(classifier: TileClassifier, images: Images) -> NDArray[np.float32]:
    return torch.sigmoid(classifier(torch.from_numpy(images)))[:, 0].numpy()


def test_the_file_gives_the_probabilities_of_the_network(
    trained: tuple[Path, TileClassifier], exported: Exported, tiles: Images
) -> None:
    expected = by_torch(trained[1], tiles)
    assert expected.std() > 0.1
    with ModelFile.open(exported.path) as model:
        np.testing.assert_allclose(model.answer(tiles).probabilities, expected, atol=1e-5)
        np.testing.assert_allclose(model.answer(tiles[:1]).probabilities, expected[:1], atol=1e-5)


def test_the_file_tells_how_far_tiles_are_from_those_of_training(
    trained: tuple[Path, TileClassifier], exported: Exported, tiles: Images
) -> None:
    known = Checkpoint.load(trained[0] / "best.pt").known_tissue
    assert known is not None
    strange = np.random.default_rng(0).integers(0, 255, tiles[:8].shape, np.uint8)
    with ModelFile.open(exported.path) as model:
        for some in (tiles, strange):
            expected = known.distances(description(trained[1], torch.from_numpy(some), "layer2"))
            assert model.answer(some).distances == pytest.approx(expected, rel=1e-3)
            assert np.mean(expected < 1) > 0.9 if some is tiles else (expected > 1).all()
        assert model.card.known_tissue is not None
        assert model.card.known_tissue.sites == ("colon", "lung")
        assert model.limit == 1
        assert model.warnings == ()
        assert model.card.calibration is not None
        assert model.card.calibration.temperature == pytest.approx(1.25)


def test_the_limit_of_known_tissue_may_be_given(trained: tuple[Path, TileClassifier], tmp_path: Path) -> None:
    file = export(ExportConfig(run=trained[0], out=tmp_path / "model.onnx", known_limit=1.5)).path
    with ModelFile.open(file) as model:
        assert model.limit == 1.5


def test_the_distance_of_a_cell_is_that_of_the_tile_around_it(
    trained: tuple[Path, TileClassifier], exported: Exported, tiles: Images
) -> None:
    known = Checkpoint.load(trained[0] / "best.pt").known_tissue
    assert known is not None
    strange = np.random.default_rng(0).integers(0, 255, tiles[0].shape, np.uint8)
    image = np.block([[[tiles[0]], [tiles[9]], [tiles[3]]], [[tiles[17]], [strange], [tiles[40]]]])[None]
    with torch.no_grad(), Stage(trained[1].backbone, "layer2") as stage, ModelFile.open(exported.path) as model:
        trained[1](torch.from_numpy(image))
        cells = stage.map[0].numpy().astype(float).reshape(-1, 4, 4, 6, 4)
        mean, squares = (np.stack([_over_tiles(one) for one in part.mean((2, 4))]) for part in (cells, cells**2))
        described = np.concatenate([mean, np.sqrt(squares - mean**2)]).reshape(2 * len(mean), -1).T
        expected = known.distances(described.astype(np.float32)).reshape(4, 6)
        assert model.answer_map(image).distances == pytest.approx(expected[None], rel=1e-3)
    assert expected[2:, 2:4].min() > 2 * np.median(expected), "what is strange is farther"


@pytest.mark.parametrize("change", ["head of other sign", "first layer 0", "middle layer 0", "last layer 0"])
def test_a_file_with_a_changed_layer_fails_its_self_test(exported: Exported, tmp_path: Path, change: str) -> None:
    model = onnx.load(exported.path)
    card = {prop.key: prop.value for prop in model.metadata_props}[METADATA_KEY]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [tensors[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
    assert (len(layers), layers[-1].dims[0]) == (22, 1)  # pixels, those of the network, its head
    tensor = layers[{"first layer 0": 1, "middle layer 0": 10}.get(change, -1)]
    weights = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(-weights if "sign" in change else 0 * weights, tensor.name))
    path = tmp_path / "changed.onnx"
    path.write_bytes(with_card(model, card.replace(exported.card.sha256, "0" * 64)))
    with pytest.raises(ModelFileError, match="fails its self-test"):
        ModelFile.open(path)


def test_the_self_test_of_the_bundled_model_sees_every_layer() -> None:
    model = onnx.load(model_path("default"))
    card = read_card(model_path("default").read_bytes())
    assert unseen_layers(model, card.self_test) == []
    loose = card.self_test.model_copy(update={"tolerance": 0.5})
    assert unseen_layers(model, loose)


def test_the_bundled_model_passes_its_self_test_where_nothing_is_optimised() -> None:
    model = onnx.load(model_path("default"))
    test = read_card(model_path("default").read_bytes()).self_test
    plain = OnnxGraph(model, is_optimized=False)
    assert 0 < largest_difference(test, plain.one) <= test.tolerance  # integers are rounded otherwise


def test_a_network_with_a_layer_that_no_answer_shows_is_refused(
    trained: tuple[Path, TileClassifier], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.load(trained[0] / "best.pt")
    dead = {**checkpoint.state_dict, "backbone.layer4.1.bn2.weight": torch.zeros(512)}
    replace(checkpoint, state_dict=dead).save(tmp_path / "best.pt")
    config = ExportConfig(run=tmp_path / "best.pt", out=tmp_path / "m.onnx", calibration=_cohort_of(trained[0]))
    with pytest.raises(GateError, match=r"does not see layer .*layer4\.1/conv1"):
        export(config)
    assert not config.out.exists()


def test_distances_are_part_of_the_self_test(exported: Exported, tmp_path: Path) -> None:
    file = exported.path.read_bytes()
    test = exported.card.self_test.model_dump(mode="json")
    assert all(image["distance"] > 0 for image in test["images"])
    for factor, is_good in ((1.005, True), (1.05, False)):
        images = [{**image, "distance": factor * image["distance"]} for image in test["images"]]
        path = tmp_path / f"{factor}.onnx"
        path.write_bytes(with_changed_card(file, self_test={**test, "images": images}))
        with nullcontext() if is_good else pytest.raises(ModelFileError, match="fails its self-test"):
            ModelFile.open(path).close()


def _sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-logits)), np.float64)


def test_a_slide_of_unknown_tissue_is_told(exported: Exported, cohort: Path, tmp_path: Path) -> None:
    slides = Cohort.read(cohort).slides
    strange = tmp_path / "strange.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)).save(strange)
    for path, tissue, is_unknown in ((slides[0].path, "auto", False), (strange, "none", True)):
        config = PredictConfig(
            inputs=(str(path),),
            model=(str(exported.path),),
            out=tmp_path / "out",
            slide_mpp=0.5,
            tissue=tissue,
            map="tile",
        )
        for _ in range(2):  # the second time the results are there already
            (record,) = predict_slides(config).slides
            assert ((record.unknown_share or 0) > 0.5) == is_unknown


def test_a_cell_of_the_map_is_the_tile_around_it(
    trained: tuple[Path, TileClassifier], exported: Exported, tiles: Images
) -> None:
    image = np.block([[[tiles[0]], [tiles[9]], [tiles[3]]], [[tiles[17]], [tiles[25]], [tiles[40]]]])[None]
    assert image.shape == (1, 2 * TILE_PX, 3 * TILE_PX, 3)
    with torch.no_grad():
        cells = trained[1].logit_map(torch.from_numpy(image)).numpy()[0, 0].astype(float)
        whole = float(trained[1](torch.from_numpy(image)))
    assert cells.mean() == pytest.approx(whole, abs=1e-4)
    expected = _sigmoid(_over_tiles(cells))
    assert exported.card.map_cells == "tiles"
    with ModelFile.open(exported.path) as model:
        np.testing.assert_allclose(model.answer_map(image).probabilities[0], expected, atol=1e-4)


def _over_tiles(cells: NDArray[np.floating]) -> NDArray[np.float64]:
    """Average each cell and half of its neighbours, as far as there are any: tiles are two cells wide."""
    window = np.outer([0.5, 1, 0.5], [0.5, 1, 0.5])
    averaged = np.empty(cells.shape)
    for row, column in np.ndindex(*cells.shape):
        places = [(row + i, column + j, window[i + 1, j + 1]) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        inside = [(cells[i, j], w) for i, j, w in places if 0 <= i < cells.shape[0] and 0 <= j < cells.shape[1]]
        averaged[row, column] = sum(value * w for value, w in inside) / sum(w for _, w in inside)
    return averaged


def test_the_card_says_what_the_run_knows(exported: Exported) -> None:
    card = exported.card
    assert (card.mpp, card.tile_px, card.output_stride, card.map) == (0.5, TILE_PX, 32, "dense")
    assert (card.alpha, card.beta, card.threshold, card.licence) == (0.2, 0.4, 0.6, "CC0-1.0")
    assert card.trained_on["data"] == "Squares on pink."
    assert card.trained_on["settings"] == {"teacher": ["maps"], "lr": 1e-4}, "places on the machine stay out of it"
    assert card.figures["validation"] == {"val_slide_auc": 0.75, "val_risk": None}
    assert [(row.graph, row.reference, row.passed) for row in card.parity] == [("fp32", "torch", True)]
    assert "val" in card.parity[0].source
    assert any("colon only" in limit for limit in card.limits)
    page = exported.page.read_text()
    for fact in (
        exported.sha256,
        "CC0-1.0",
        "0.2 and 0.4",
        "val slide auc: 0.75",
        "colon only",
        "fp32 against torch",
        "Cite",
    ):
        assert fact in page


@pytest.mark.slow
def test_a_card_takes_the_figures_of_an_evaluation_the_kind_of_map_and_what_a_person_says(
    trained: tuple[Path, TileClassifier], cohort: Path, tmp_path: Path
) -> None:
    measures = {"auc": {"value": 0.8, "ci95": [0.7, 0.9]}, "precision": 0.5, "recall": None, "f1": 0.6}
    metrics = {"schema": "wsiseg.metrics/1", "split": "test", "without_background": measures}
    metrics["per_site"] = {"colon": {"without_background": measures}}
    metrics["reliability"] = {"mean_score": [0.1, None], "tumor_share": [0.25, None], "pixels": [10.0, 0.0]}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    said = {"name": "squares", "version": "7", "licence": "MIT", "intended_use": "Tests.", "citation": "Nobody."}
    lines = [f'{name} = "{text}"' for name, text in said.items()]
    lines += ['limits = ["It calls muscle tumour."]', 'figures = "metrics.json"']
    (tmp_path / "card.toml").write_text("\n".join(lines))
    assert list(cohort.parent.glob("*.png")), "pictures that are no tiles, beside the stores"
    settings = {"run": trained[0], "calibration": cohort.parent, "map": "tile", "card": tmp_path / "card.toml"}
    config = ExportConfig.checked(out=tmp_path / "m.onnx", **settings)
    exported = export(config)
    assert exported.card.parity[0].source.startswith("tiles of")
    assert (exported.card.map, exported.card.output_stride) == ("tile", 32)
    assert exported.card.model_dump(include=set(said)) == said
    assert exported.card.limits[-1:] == ("It calls muscle tumour.",)
    assert len(exported.card.limits) > 1
    assert "| colon | 0.800 (0.700 to 0.900) | 0.500 |  | 0.600 |" in exported.page.read_text()
    assert "| 0.10 | 0.25 | 100.0% |" in exported.page.read_text()
    for text, words in (
        ("[]", "not the metrics"),
        (json.dumps({**metrics, "threshold": {"value": 0.3}}), "0.3; the model"),
    ):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(UsageError, match=words):
            export(config)


@pytest.mark.slow
def test_an_export_is_done_once_in_the_folder_of_its_run_too(
    trained: tuple[Path, TileClassifier], tmp_path: Path
) -> None:
    for name in ("best.pt", "last.pt", "config.toml"):
        (tmp_path / name).write_bytes((trained[0] / name).read_bytes())
    config = ExportConfig(run=tmp_path, out=tmp_path / "m.onnx")
    first = export(config)
    assert export(config) == replace(first, status="up_to_date")
    heard = Heard()
    again = export(config.model_copy(update={"card": CardFacts(name="other")}), heard)
    assert (again.status, again.card.name) == ("ok", "other")
    assert any("exported again" in line for line in heard.notes)
    config.out.write_bytes(b"something else")
    with pytest.raises(UsageError, match="--overwrite"):
        export(config)
    assert export(config.model_copy(update={"overwrite": True})).sha256 == first.sha256, "the same bytes every time"


@pytest.mark.slow
def test_the_same_training_in_another_place_and_time_makes_the_same_file(
    trained: tuple[Path, TileClassifier], tmp_path: Path
) -> None:
    sums = set()
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        checkpoint = Checkpoint.load(trained[0] / "best.pt")
        row = {"epoch": 2, "risk": 0.5, "tiles_per_s": 10.0 + number, "waiting": 0.1 * number, "seconds": 5.0 + number}
        settings = {"out": f"/home/{name}", "lr": 1e-4}
        trained_on = {**checkpoint.trained_on, "settings": settings}
        replace(checkpoint, figures={"epoch": row}, trained_on=trained_on).save(tmp_path / name / "best.pt")
        for file in ("last.pt", "config.toml"):
            (tmp_path / name / file).write_bytes((trained[0] / file).read_bytes())
        (tmp_path / name / "metrics.csv").write_text(f"epoch,seconds\n2,{5 + number}\n")
        (tmp_path / name / "metrics.json").write_text('{"schema": "wsiseg.metrics/1"}')
        card = CardFacts(figures=tmp_path / name / "metrics.json")
        made = export(ExportConfig(run=tmp_path / name, out=tmp_path / f"{name}.onnx", card=card))
        validation: Any = made.card.figures["validation"]
        assert validation["epoch"] == {"epoch": 2, "risk": 0.5}
        sums.add(made.sha256)
    assert len(sums) == 1


def test_stride_16_refines_the_map_and_keeps_the_probability(
    trained: tuple[Path, TileClassifier], tiles: Images, tmp_path: Path
) -> None:
    found = export(ExportConfig(run=trained[0], out=tmp_path / "m.onnx", output_stride=16))
    assert [row.graph for row in found.card.parity] == ["output stride 16", "fp32"]
    with ModelFile.open(found.path) as model:
        np.testing.assert_allclose(model.answer(tiles).probabilities, by_torch(trained[1], tiles), atol=1e-5)
        assert model.answer_map(tiles[:2]).probabilities.shape == (2, TILE_PX // 16, TILE_PX // 16)


@pytest.mark.parametrize(
    "arch",
    ["resnet18", pytest.param("densenet121", marks=pytest.mark.slow), "timm:tf_efficientnet_lite0", "convnext_tiny"],
)
@torch.no_grad()
def test_every_second_cell_of_stride_16_is_that_of_stride_32(arch: str) -> None:
    images = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classifier = settled(arch, images)
    expected = classifier.logit_map(images)
    torch.testing.assert_close(exportable(classifier, 32).logit_map(images), expected)
    torch.testing.assert_close(
        exportable(classifier, 16).logit_map(images)[..., ::2, ::2], expected, rtol=1e-3, atol=1e-3
    )


def test_networks_without_a_regular_map_give_tiles_only(cohort: Path, tmp_path: Path, tiles: Images) -> None:
    run = tmp_path / "run"
    classifier = write_run(run, cohort, "squeezenet1_1")
    found = export(ExportConfig(run=run, out=tmp_path / "m.onnx"))
    assert (found.card.output_stride, found.card.map) == (None, "tile")
    with ModelFile.open(found.path) as model:
        np.testing.assert_allclose(model.answer(tiles).probabilities, by_torch(classifier, tiles), atol=1e-5)
    with pytest.raises(UsageError, match="no map of output stride 16"):
        export(ExportConfig(run=run, out=tmp_path / "n.onnx", output_stride=16))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_fewer_bits_follow_closely(
    trained: tuple[Path, TileClassifier], tiles: Images, tmp_path: Path, precision: str, exported: Exported
) -> None:
    heard = Heard()
    config = ExportConfig.checked(run=trained[0], out=tmp_path / "m", precision=f"{precision},fp32")
    found = export(config, heard)
    path = found.path / f"{precision}.onnx"
    row = found.card.parity[-1]
    assert (row.graph, row.reference, row.passed) == (precision, "fp32", True)
    assert any("tiles/s" in line for line in heard.notes)
    is_slow = precision == "int8" and has_fast_int8() is False
    assert any("no instructions for 8-bit products" in line for line in heard.notes) == is_slow
    share = {"fp16": 0.55, "int8": 0.8}[precision]
    assert path.stat().st_size < share * exported.path.stat().st_size
    assert (found.path / "fp32.onnx").stat().st_size > 0.9 * exported.path.stat().st_size
    assert export(config).status == "up_to_date"
    with ModelFile.open(path) as model:
        assert np.abs(model.answer(tiles).probabilities - by_torch(trained[1], tiles)).mean() <= 0.02
        assert model.answer_map(tiles[:1]).probabilities.dtype == np.float32


@pytest.mark.slow
def test_int8_needs_real_tiles(trained: tuple[Path, TileClassifier], tmp_path: Path, tiles: Images) -> None:
    from PIL import Image  # noqa: PLC0415  only here

    run = tmp_path / "moved"
    run.mkdir()
    (run / "best.pt").write_bytes((trained[0] / "best.pt").read_bytes())
    config = ExportConfig(run=run / "best.pt", out=tmp_path / "m.onnx", precision="int8")
    with pytest.raises(UsageError, match="--calibration"):
        export(config)
    heard = Heard()
    found = export(config.model_copy(update={"allow_loss": True}), heard)
    assert found.card.parity[-1].source == "seeded textures"
    assert any("made-up" in line for line in heard.notes)
    (tmp_path / "images").mkdir()
    for number, tile in enumerate(tiles):
        Image.fromarray(tile).save(tmp_path / "images" / f"{number}.png")
    found = export(config.model_copy(update={"calibration": tmp_path / "images"}))
    assert found.card.parity[-1].source == "images of images"
    assert found.card.parity[-1].passed


def test_tiles_of_another_size_are_refused(trained: tuple[Path, TileClassifier], tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(trained[0] / "best.pt")
    replace(checkpoint, tile_px=96).save(tmp_path / "best.pt")
    cohort = ExportConfig(run=tmp_path / "best.pt", out=tmp_path / "m.onnx", calibration=_cohort_of(trained[0]))
    with pytest.raises(UsageError, match="the model takes 96 px"):
        export(cohort)
    with pytest.raises(UsageError, match="at least 64x64"):
        export(ExportConfig(run=trained[0], out=tmp_path / "m.onnx", calibration=tmp_path))


def _cohort_of(run: Path) -> Path:
    return Path(next(line for line in (run / "config.toml").read_text().splitlines() if "cohort" in line).split('"')[1])


def test_a_network_that_went_wrong_is_refused(trained: tuple[Path, TileClassifier], tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(trained[0] / "best.pt")
    broken = {**checkpoint.state_dict, "head.bias": torch.full((1,), torch.nan)}
    replace(checkpoint, state_dict=broken).save(tmp_path / "best.pt")
    config = ExportConfig(run=tmp_path / "best.pt", out=tmp_path / "m.onnx", calibration=_cohort_of(trained[0]))
    with pytest.raises(GateError, match="too different"):
        export(config)
    assert not config.out.exists()


def test_runs_that_cannot_be_exported(trained: tuple[Path, TileClassifier], tmp_path: Path) -> None:
    def refusal(run: Path) -> str:
        with pytest.raises(WsisegError) as caught:
            export(ExportConfig(run=run, out=tmp_path / "m.onnx"))
        assert str(run) in str(caught.value)
        return str(caught.value)

    assert "no such run" in refusal(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "not a training run" in refusal(tmp_path / "empty")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("best.pt", "config.toml"):
        (run / name).write_bytes((trained[0] / name).read_bytes())
    assert "interrupted" in refusal(run)
    torch.save({"schema": "wsiseg.training/1", "epoch": 1}, run / "last.pt")
    assert "--resume" in refusal(run)
    torch.save({"schema": "wsiseg.training/1", "epoch": 2, "finished": False}, run / "last.pt")
    assert "--resume" in refusal(run), "its best epoch is neither calibrated nor has it a threshold"
    torch.save({"schema": "wsiseg.training/1", "epoch": 2}, run / "last.pt")
    (run / "best.pt").unlink()
    assert "no best checkpoint" in refusal(run)
    (run / "best.pt").write_bytes(b"no checkpoint")
    assert "best.pt" in refusal(run)
    checkpoint = Checkpoint.load(trained[0] / "best.pt")
    classes = {**checkpoint.state_dict, "head.weight": torch.zeros(3, 512), "head.bias": torch.zeros(3)}
    replace(checkpoint, state_dict=classes).save(run / "best.pt")
    assert "an output a class" in refusal(run)
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "grid.csv").write_text("alpha,beta\n")
    assert "several configurations" in refusal(tmp_path / "grid")


@pytest.mark.parametrize(
    ("tile_px", "stride", "side"), [(224, 32, 128), (224, 16, 128), (64, 32, 64), (2048, 32, 256), (350, None, 350)]
)
def test_the_images_of_the_self_test_are_small(tile_px: int, stride: int | None, side: int) -> None:
    assert self_test_side(tile_px, stride) == side


def test_the_model_card_does_not_replace_the_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model card"):
        ExportConfig.checked(run="a", out=tmp_path / "model.md")


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    for settings in ({}, {"run": "a", "from_torch": "b"}, {"from_torch": "b"}, {"run": "a", "arch": "resnet18"}):
        with pytest.raises(UsageError, match="from-torch"):
            ExportConfig.checked(out=out, **settings)


@pytest.mark.slow
def test_command_line(trained: tuple[Path, TileClassifier], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wsiseg", "export", str(trained[0]), "--out", str(tmp_path / "m.onnx")]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=300)
    result = json.loads(done.stdout)
    assert result["outputs"] == {"model": str(tmp_path / "m.onnx"), "card": str(tmp_path / "m.md")}
    assert result["model"]["parity"][0]["passed"] is True
    assert done.stderr.strip().endswith("passed"), "no warnings of others"
    done = subprocess.run([*command, "--precision", "int4"], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, "precision" in done.stderr) == (2, True)


def test_without_torch_the_way_to_get_it_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['wsiseg', 'export', 'run', '--out', sys.argv[1]];"
        "from wsiseg.cli import main; main()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "pip install 'wsiseg[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_run_of_a_cohort_that_is_gone_is_exported_with_a_warning(
    trained: tuple[Path, TileClassifier], tmp_path: Path
) -> None:
    (tmp_path / "best.pt").write_bytes((trained[0] / "best.pt").read_bytes())
    heard = Heard()
    found = export(ExportConfig(run=tmp_path / "best.pt", out=tmp_path / "m.onnx"), heard)
    assert found.card.parity[0].source == "seeded textures"
    assert any("made-up" in line for line in heard.notes)


def test_the_splits_of_a_cohort_are_kept_apart(cohort: Path) -> None:
    samples = from_cohort(cohort, TILE_PX, 0.5, (64, 64))
    assert samples is not None
    assert "train" in samples.calibration.source
    assert "val" in samples.held_out.source
    assert "test" not in samples.held_out.source
    splits = {slide.split for slide in Cohort.read(cohort).slides}
    assert splits == {"train", "val", "test"}
    assert set(samples.held_out.labels) == {0, 1}


def test_a_graph_with_one_changed_weight_is_caught(
    tmp_path: Path, trained: tuple[Path, TileClassifier], tiles: Images
) -> None:
    classifier = build("resnet18", "none").eval()
    classifier.load_state_dict(trained[1].state_dict())
    nn.init.constant_(classifier.head.bias, classifier.head.bias.item() + 0.01)
    graph = OnnxGraph(to_onnx(DenseGraph(exportable(classifier, 32), 32, TILE_PX), TILE_PX, tmp_path))
    sample = Sample(tiles, np.full(len(tiles), -1, np.int8), "tiles")
    expected = Answers(by_torch(trained[1], tiles), None)
    assert not compared(("fp32", "torch"), graph.answers(tiles), expected, sample, is_same=True).passed


@pytest.mark.parametrize("is_same", [False, True])
def test_nan_in_a_map_is_too_different(is_same: bool) -> None:  # noqa: FBT001  a case
    sample = Sample(np.zeros((2, 8, 8, 3), np.uint8), np.full(2, -1, np.int8), "tiles")
    good = Answers(np.full(2, 0.5, np.float32), np.full((2, 1, 1), 0.5, np.float32))
    assert compared(("a", "b"), good, good, sample, is_same=is_same).passed
    wrong = good._replace(maps=np.full((2, 1, 1), np.nan, np.float32))
    assert not compared(("a", "b"), wrong, good, sample, is_same=is_same).passed


@torch.no_grad()
def test_convolutions_pad_themselves(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classifier = settled("timm:tf_efficientnet_lite0", images)
    graph = of_classifier(classifier, {"tile_px": 64}, None).graph
    assert isinstance(graph, DenseGraph)
    model = to_onnx(graph, 64, tmp_path)
    assert "Pad" not in {node.op_type for node in model.graph.node}, "runtimes leave their fastest layout for it"
    found = OnnxGraph(model).answers(images.numpy()).probabilities
    np.testing.assert_allclose(found, by_torch(classifier, images.numpy()), atol=1e-4)


def test_a_network_without_a_map_cannot_be_told_to_make_one(cohort: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", cohort, "squeezenet1_1")
    with pytest.raises(UsageError, match="no dense map"):
        export(ExportConfig(run=tmp_path / "run", out=tmp_path / "m.onnx", map="dense"))


def test_a_card_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text('name = "squares"\nintended-use = "Tests."\nlimits = ["None known."]\nfigures = "metrics.json"\n')
    card = ExportConfig.checked(run="run", out="m.onnx", card=str(path)).card
    expected = CardFacts(
        name="squares", intended_use="Tests.", limits=("None known.",), figures=path.with_name("metrics.json")
    )
    assert card == expected
    assert ExportConfig.checked(run="run", out="m.onnx", card={"licence": "MIT"}).card == CardFacts(licence="MIT")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('license = "MIT"', "license: no such setting; did you mean licence?"),
        ("limits = 3", "limits: "),
        ("licence =", "cannot be read as settings"),
    ],
)
def test_a_wrong_card_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "card.toml"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        ExportConfig.checked(run="run", out="m.onnx", card=path)
    assert sentence in str(caught.value)
    assert "card.toml" in str(caught.value)


@pytest.mark.parametrize("name", ["name", "model-version", "licence", "data", "limit", "figures"])
def test_what_stands_in_the_card_is_no_longer_an_option(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is no longer a setting: put it into the --card file"):
        ExportConfig.checked(run="run", out="m.onnx", **{name: "x"})


def test_every_fact_of_a_card_is_explained() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
    assert [name for name in CardFacts.model_fields if f"`{name.replace('_', '-')}`" not in page] == []


@pytest.mark.parametrize("source", ["splits", "no splits", "folder"])
def test_no_tile_is_both_for_calibration_and_held_out(cohort: Path, tiles: Images, tmp_path: Path, source: str) -> None:
    counts = (1000, 1000)
    if source == "folder":
        for number, tile in enumerate(tiles):
            Image.fromarray(tile).save(tmp_path / f"{number}.png")
        samples = from_folder(tmp_path, TILE_PX, counts)
    else:
        table = cohort
        if source == "no splits":
            table = cohort.with_name("without-splits.csv")
            rows = list(csv.DictReader(cohort.read_text(encoding="utf-8").splitlines()))
            with table.open("w", newline="") as file:
                writer = csv.DictWriter(file, [name for name in rows[0] if name != "split"], extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
        found = from_cohort(table, TILE_PX, 0.5, counts)
        assert found is not None
        samples = found
    calibration, held_out = (
        {tile.tobytes() for tile in sample.tiles} for sample in (samples.calibration, samples.held_out)
    )
    assert len(calibration) > 10
    assert len(held_out) > 10
    assert not calibration & held_out


def test_int8_is_calibrated_on_the_calibration_tiles_alone(
    tmp_path: Path, trained: tuple[Path, TileClassifier], tiles: Images
) -> None:
    graph = OnnxGraph(to_onnx(DenseGraph(exportable(trained[1], 32), 32, TILE_PX), TILE_PX, tmp_path))
    halves = [Sample(some, np.full(len(some), -1, np.int8), "tiles") for some in (tiles[::2], tiles[1::2], 255 - tiles)]
    calibration, *held_out = halves
    files = [
        to_int8(graph, Samples(calibration, judge), lambda _: None, any_loss=True).graph.model.SerializeToString()
        for judge in held_out
    ]
    assert files[0] == files[1]
    other = to_int8(graph, Samples(held_out[1], calibration), lambda _: None, any_loss=True)
    assert other.graph.model.SerializeToString() != files[0]
