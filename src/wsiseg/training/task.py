"""What is trained, on what: the classifier on tiles, or its head on features."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.config.train import TrainConfig
from wsiseg.mathematics.mil import LEFT_OUT, NORMAL, TUMOR
from wsiseg.network.checkpoint import Checkpoint, ClassFit
from wsiseg.network.network import ENCODER, LICENCE, TileClassifier, build
from wsiseg.network.stage import Stage, stage_layer
from wsiseg.network.weights import Note
from wsiseg.run.errors import UsageError
from wsiseg.run.pace import Pace
from wsiseg.run.record import Progress, in_words
from wsiseg.run.version import __version__
from wsiseg.training.bags import Source
from wsiseg.training.cautions import cost
from wsiseg.training.colors import Colors
from wsiseg.training.features import Compute, FeatureBank, fill, fingerprint, standard_of
from wsiseg.training.processes import Processes
from wsiseg.training.scoring import Scored, scored
from wsiseg.training.slides import LabelledSlide, TileLabels
from wsiseg.training.step import hold
from wsiseg.training.truths import TileTruth


class PartView(nn.Module):
    """The logits [n, classes] of a part of each crop, `tile_px` wide: in training a random one if `is_random`.

    Else it is the middle. The part is pooled from the map of the whole crop, so that what lies around it is seen, as in
    a dense prediction, where a tile cut out would end in zero padding.
    """

    def __init__(self, classifier: TileClassifier, tile_px: int, *, is_random: bool = True) -> None:
        super().__init__()
        self.classifier = classifier
        self.tile_px = tile_px
        self.is_random = is_random

    def forward(self, crops: Tensor) -> Tensor:
        """Return the logits of uint8 crops [n, side, side, 3], whose side exceeds the tile's."""
        logits = self.classifier.logit_map(crops)
        cells = max(1, round(self.tile_px * logits.shape[2] / crops.shape[1]))
        pooled = functional.avg_pool2d(logits, cells, stride=1)
        parts = pooled.shape[2]
        if not (self.training and self.is_random):
            return pooled[:, :, parts // 2, parts // 2]
        row, column = torch.randint(parts, (2, len(crops))).to(logits.device, non_blocking=True)
        return pooled[torch.arange(len(crops), device=logits.device), :, row, column]


Truths = Sequence[Mapping[str, TileTruth]]
"""What is truly of a class in the tiles of slides, by slide, for each class."""


@dataclass(frozen=True)
class Task:
    """What is trained, on what."""

    classifier: TileClassifier
    network: nn.Module  # what gives logits of the source's tiles: the classifier, a view of it, or its head alone
    source: Source
    slides: tuple[LabelledSlide, ...]  # all slides with a label
    truths: Truths  # what is truly of each class, by slide; empty where nobody knows
    # What is learned of each tile by slide: true labels where training is supervised, or what a teacher said.
    labels: Mapping[str, TileLabels] | None
    device: torch.device

    def split(self, name: str) -> list[LabelledSlide]:
        """Return the slides of a split; of the training split, those that can be learned from."""
        slides = [slide for slide in self.slides if slide.split == name]
        if name == "train" and self.labels is not None:
            return [slide for slide in slides if slide.slide in self.labels]
        return slides

    def scores(
        self, network: nn.Module, names: Sequence[str], config: TrainConfig, processes: Processes
    ) -> list[Scored]:
        """Score the slides of some splits, `config.validation_tiles` tiles of each at most."""
        slides = [slide for name in names for slide in self.split(name)]
        most, bfloat16 = config.validation_tiles, config.precision == "bfloat16"
        network = network.eval()
        return list(scored(network, self.source, slides, self.device, processes, most_tiles=most, bfloat16=bfloat16))

    def weights(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """Return the weights of the whole classifier, also where `network` is only a head on standardised features."""
        inner = next((module for module in network.modules() if isinstance(module, TileClassifier)), self.classifier)
        tensors = {key: value.detach().cpu().clone() for key, value in inner.state_dict().items()}
        if isinstance(self.source, FeatureBank) and self.source.standard is not None:
            weight, bias = (value.detach().cpu() for value in network.state_dict().values())
            tensors |= self.source.standard.folded(weight, bias)
        return tensors

    def checkpoint(self, network: nn.Module, config: TrainConfig, row: dict[str, Any]) -> Checkpoint:
        """Make the checkpoint of an epoch."""
        counts = {
            name: {"slides": len(self.split(name)), "tiles": sum(slide.tiles for slide in self.split(name))}
            for name in ("train", "val", "test")
        }
        origin = {LICENCE: self.classifier.licence, ENCODER: self.classifier.encoder}
        return Checkpoint(
            state_dict=self.weights(network),
            arch=config.arch,
            tile_px=self.slides[0].tile_px,
            mpp=self.slides[0].mpp,
            alpha=None if self.labels is not None else config.alpha,
            beta=None if self.labels is not None else config.beta,
            classes=tuple(map(ClassFit, config.classes)),
            trained_on={
                "cohort": config.cohort.name,
                **counts,
                **{name: text for name, text in origin.items() if text},
                "settings": config.model_dump(mode="json"),
            },
            figures={"epoch": row},
            sites=tuple(sorted({slide.site for slide in self.split("train") if slide.site})),
            version=__version__,
        )

    def best(self, checkpoint: Checkpoint) -> "Task":
        """Return the same task with the weights of a checkpoint, for scoring."""
        self.classifier.load_state_dict(checkpoint.state_dict)
        if not isinstance(self.source, FeatureBank):
            return self
        # The head of a checkpoint takes features as they are.
        head = nn.Sequential(self.classifier.head)
        return replace(self, network=head, source=replace(self.source, standard=None))


def started(
    config: TrainConfig, tile_px: int, colors: Colors | None, device: torch.device, note: Note
) -> TileClassifier:
    """Build the classifier that training starts from, standardised by `colors`, or as its weights were.

    Raises:
        UsageError: There is no such network, or it does not fit the tiles or the settings.
    """
    torch.manual_seed(config.seed)
    classifier = build(config.arch, config.init, note, tile_px=tile_px, classes=config.classes)
    if classifier.window_px is not None and (config.context is not None or config.size_jitter):
        raise UsageError(f"{config.arch}: takes only whole tiles", "leave out context and size-jitter")
    return standardised(classifier, colors).to(device).to(memory_format=torch.channels_last)


def standardised(classifier: TileClassifier, colors: Colors | None) -> TileClassifier:
    """Return a classifier that standardises tiles by `colors`, where they were measured."""
    if colors is not None:
        classifier.mean.copy_(colors.mean)
        classifier.std.copy_(colors.std)
    return classifier


def task_of(
    config: TrainConfig,
    classifier: TileClassifier,
    slides: tuple[LabelledSlide, ...],
    truths: Truths,
    source: Source,
    taught: Mapping[str, TileLabels] | None = None,
) -> Task:
    """Set up the training of one configuration; with a bank of features a new head is trained alone.

    What a teacher said of tiles is learned where it is given (`taught`).
    """
    labels = taught and {name: targets[:, None] for name, targets in taught.items()}  # of the only class
    labels = true_labels(slides, truths) if config.supervised else labels
    device = classifier.head.weight.device
    if isinstance(source, FeatureBank):
        torch.manual_seed(config.seed)
        classifier.head.reset_parameters()
        return Task(classifier, nn.Sequential(classifier.head), source, slides, truths, labels, device)
    hold(classifier, config.train_last)
    network: nn.Module = classifier
    if config.context is not None:
        # The true label of a tile holds for that tile alone.
        network = PartView(classifier, slides[0].tile_px, is_random=not config.supervised)
    return Task(classifier, network, source, slides, truths, labels, device)


def true_labels(slides: Sequence[LabelledSlide], truths: Truths) -> dict[str, NDArray[np.int8]]:
    """Return the true labels of the tiles of every slide that has a truth or is without a class: [tiles, classes]."""
    found = {}
    for slide in slides:
        known = [_true_labels(one, truth) for one, truth in zip(slide.by_class, truths, strict=True)]
        if any(labels is not None for labels in known):
            nothing = np.full(slide.tiles, LEFT_OUT, np.int8)
            found[slide.slide] = np.stack([nothing if labels is None else labels for labels in known], 1)
    return found


def check_true_labels(slides: Sequence[LabelledSlide], truths: Truths, classes: Sequence[str]) -> None:
    """Refuse truth that shows no training tile of a class, or none without it.

    Raises:
        UsageError: Nothing could be learned from it.
    """
    found = true_labels([slide for slide in slides if slide.split == "train"], truths)
    for place, name in enumerate(classes):
        known = {int(label) for labels in found.values() for label in np.unique(labels[:, place])} - {LEFT_OUT}
        for label, what in ((TUMOR, "to be"), (NORMAL, "not to be")):
            if label not in known:
                text = f"no training tile is known {what} {in_words(name)}"
                raise UsageError(text, "supervised needs ground truth of training slides with both")


def _true_labels(slide: LabelledSlide, truths: Mapping[str, TileTruth]) -> NDArray[np.int8] | None:
    if slide.slide in truths:
        return truths[slide.slide].labels
    return np.zeros(slide.tiles, np.int8) if slide.label == 0 else None


def filled_bank(
    config: TrainConfig,
    classifier: TileClassifier,
    slides: Sequence[LabelledSlide],
    source: Source,
    processes: Processes,
    progress: Progress,
) -> FeatureBank:
    """Compute the features of all slides, each process its share, and measure their mean and deviation.

    Those that an earlier run left in `config.out` for the same weights and tiles are used.
    """
    own = processes.share(sorted(slides, key=lambda slide: slide.tiles))  # for each alike many tiles
    bank = computed_bank(config, classifier, own, source, progress)
    processes.wait()
    return replace(bank, standard=standard_of(bank, [slide for slide in slides if slide.split == "train"]))


def computed_bank(
    config: TrainConfig, classifier: TileClassifier, own: Sequence[LabelledSlide], source: Source, progress: Progress
) -> FeatureBank:
    """Compute the features of some slides, where they are not there."""
    how = (config.context and (config.context, config.views > 1), config.stain_jitter, config.seed, config.precision)
    bank = FeatureBank(config.out / "features" / fingerprint(classifier, how), config.views)
    tiles = {slide: slide.tiles * bank.copies(slide) for slide in own}
    pace = Pace(sum(tiles.values()))

    def advance(count: int) -> None:
        pace.advance(count)
        if pace.is_due():
            progress.note(f"features: {pace.done:.0f} of {pace.total} tiles, {pace.left()}")

    tile_px = next((slide.tile_px for slide in own), 1)  # of no slide where there are more processes
    compute = Compute(classifier, config.context and tile_px, config.precision == "bfloat16")
    missing = sum(count for slide, count in tiles.items() if not bank.path(slide).exists())
    for sentence in cost(missing, compute, config.context or tile_px, f"features of {missing} tiles"):
        progress.note(f"{sentence}; a lower max-tiles in the --config file saves time")
    layer = stage_layer(classifier)
    is_alike = compute.middle_px is None and not compute.bfloat16  # as what describes known tissue
    with Stage(classifier.backbone, layer) if layer and is_alike else nullcontext() as stage:
        fill(bank, own, replace(compute, stage=stage), source, advance, config.seed)
    rate = pace.done / pace.seconds
    progress.note(f"features: {pace.done:.0f} tiles in {pace.seconds:.0f} s, {rate:.1f} tiles/s")
    return bank
