import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from making.tiled import write_tiled_cohort
from wsiseg.config.train import TrainConfig
from wsiseg.network.network import TileClassifier, build
from wsiseg.network.texture import Stage, described, texture_layer, textures, tissue_weights, weighted
from wsiseg.training.augment import augmented
from wsiseg.training.bags import TileSource
from wsiseg.training.known_tissue import tumor_texture
from wsiseg.training.processes import Processes
from wsiseg.training.slides import LabelledSlide, evenly, labelled_slides
from wsiseg.training.task import Task


@pytest.fixture(scope="module")
def classifier() -> TileClassifier:
    return build("resnet18", "none").eval()


@pytest.mark.parametrize(
    ("arch", "layer"),
    [
        ("resnet18", "layer3"),
        ("timm:tf_efficientnet_lite0", "blocks.3"),
        ("convnext_tiny", "features.4"),
        # Its maps have their channels last.
        ("swin_t", None),
    ],
)
def test_the_first_stage_with_a_cell_per_16_pixels_is_found(arch: str, layer: str | None) -> None:
    assert texture_layer(build(arch, "none").eval()) == layer


def test_a_stage_is_let_go_of(classifier: TileClassifier) -> None:
    images = torch.zeros(1, 3, 96, 64)
    with Stage(classifier.backbone, "layer3") as stage:
        with pytest.raises(RuntimeError, match="not been asked"):
            _ = stage.map
        classifier.feature_map(images)
        assert stage.map.shape == (1, 256, 6, 4)
    before = stage.map
    classifier.feature_map(images + 1)
    assert stage.map is before


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 9), columns=st.integers(1, 9), shift=st.floats(-3, 3))
def test_textures_are_means_and_deviations(seed: int, rows: int, columns: int, shift: float) -> None:
    stage = np.random.default_rng(seed).normal(shift, 1, (2, 5, rows, columns)).astype(np.float32)
    found = textures(torch.from_numpy(stage), torch.ones(2, 1, rows, columns)).numpy()
    expected = np.concatenate([stage.mean((2, 3)), stage.std((2, 3))], 1)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_glass_does_not_count() -> None:
    random = np.random.default_rng(0)
    stage = torch.from_numpy(random.normal(size=(1, 5, 4, 6)).astype(np.float32))
    image = random.integers(60, 210, (1, 64, 96, 3), np.uint8)
    image[:, :, 32:] = 243
    image[:, :, 32:40] = 100  # half of a cell
    weights = tissue_weights(torch.from_numpy(image))
    torch.testing.assert_close(weights, tissue_weights(torch.from_numpy(image), (4, 6)))
    assert weights[0, 0].round().tolist() == [[1, 1, 1, 0, 0, 0]] * 4
    tissue = stage[:, :, :, :3]
    expected = np.concatenate([tissue.mean((2, 3)), tissue.std((2, 3), correction=0)], 1)
    np.testing.assert_allclose(textures(stage, weights).numpy(), expected, atol=2e-3)
    glass = tissue_weights(torch.full((1, 64, 96, 3), 243, dtype=torch.uint8))
    torch.testing.assert_close(textures(stage, glass), textures(stage, torch.ones(1, 1, 4, 6)), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelledSlide, ...]:
    return labelled_slides(write_tiled_cohort(tmp_path_factory.mktemp("cohort")))


@pytest.mark.parametrize("context", [None, 96])
def test_the_surer_half_of_what_training_took_for_tumour_is_measured(
    classifier: TileClassifier, slides: tuple[LabelledSlide, ...], context: int | None
) -> None:
    config = TrainConfig(cohort="c.csv", out="out", arch="resnet18", init="none", alpha=1, beta=0, context=context)
    task = Task(classifier, classifier, TileSource(augmented), slides, {}, None, torch.device("cpu"))
    found = tumor_texture(task, config, Processes())
    assert found is not None
    layer, known = found
    tumor = [slide for slide in task.split("train") if slide.label]
    each = [int(0.5 * min(slide.tiles, 64)) for slide in tumor]
    assert (layer, known.slides, known.mean.shape) == ("layer3", len(tumor), (512,))
    assert known.tiles == sum(each) * (1 if context is None else 2)


def test_with_true_labels_all_tiles_of_tumour_are_measured(
    classifier: TileClassifier, slides: tuple[LabelledSlide, ...]
) -> None:
    labels = {slide.slide: np.zeros(slide.tiles, np.int8) for slide in slides}
    tumor = [slide for slide in slides if slide.split == "train" and slide.label]
    for slide in tumor:
        labels[slide.slide][:50] = 1
    config = TrainConfig(cohort="c.csv", out="out", arch="resnet18", init="none", supervised=True, truth="truth")
    task = Task(classifier, classifier, TileSource(augmented), slides, {}, labels, torch.device("cpu"))
    found = tumor_texture(task, config, Processes())
    assert found is not None
    assert found[1].tiles == sum(int(labels[slide.slide][evenly(slide.tiles, 64)].sum()) for slide in tumor)


def test_heads_on_frozen_features_have_no_textures(
    classifier: TileClassifier, slides: tuple[LabelledSlide, ...]
) -> None:
    config = TrainConfig(cohort="c.csv", out="out", arch="resnet18", init="none", freeze=True)
    task = Task(classifier, classifier, TileSource(augmented), slides, {}, None, torch.device("cpu"))
    assert tumor_texture(task, config, Processes()) is None


def test_parts_of_equal_size_average_to_the_whole() -> None:
    random = np.random.default_rng(0)
    stage = torch.from_numpy(random.normal(size=(3, 4, 6, 8)).astype(np.float32))
    weights = torch.from_numpy(random.uniform(0.1, 1, (3, 1, 6, 8)).astype(np.float32))
    parts = torch.stack([part.mean((2, 3)) for part in weighted(stage, weights).split(4, 3)])
    torch.testing.assert_close(described(parts.mean(0)), textures(stage, weights))


def test_the_validation_slides_set_the_limit(classifier: TileClassifier, slides: tuple[LabelledSlide, ...]) -> None:
    config = TrainConfig(cohort="c.csv", out="out", arch="resnet18", init="none", alpha=1, beta=0)
    limits = []
    for splits in (("train",), ("train", "val")):
        seen = tuple(slide for slide in slides if slide.split in splits)
        task = Task(classifier, classifier, TileSource(augmented), seen, {}, None, torch.device("cpu"))
        found = tumor_texture(task, config, Processes())
        assert found is not None
        limits.append(found[1].tile_limit)
    assert any(slide.label for slide in slides if slide.split == "val")
    assert limits[1] > limits[0]
