"""Features of tiles that are computed once, kept on disk and shared by every head that is trained on them."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsiseg.network.network import TileClassifier
from wsiseg.network.stage import Stage, summary
from wsiseg.run.errors import WsisegError
from wsiseg.run.outputs import written_whole
from wsiseg.training.bags import Source, ahead, at_once
from wsiseg.training.slides import Indices, LabelledSlide, evenly, in_parts

DESCRIBED = 64
"""Tiles of a slide, at equal distances, that say what its tissue is like."""

_TILES_READ = 128
_STAGE = ".stage.npy"
_SMALLEST_SHARE, _SMALLEST_DEVIATION = 0.01, 1e-6


@dataclass(frozen=True)
class Standard:
    """Mean and deviation of features over the training tiles, float32[channels] each."""

    mean: Tensor
    std: Tensor

    def folded(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """Return the weights of a classifier's head that do to raw features what these do to standardised ones."""
        raw = weight / self.std
        return {"head.weight": raw, "head.bias": bias - raw @ self.mean}


@dataclass(frozen=True)
class FeatureBank:
    """A folder of features, one file float16[views, tiles, channels] for each slide.

    The first view is the tile as it is, the others are augmented copies. It is a `Source` of standardised features.
    """

    folder: Path
    views: int = 1
    standard: Standard | None = None

    def copies(self, slide: LabelledSlide) -> int:
        """Return how many views of a slide there are; slides of other splits than training have one."""
        return self.views if slide.split == "train" else 1

    def path(self, slide: LabelledSlide) -> Path:
        """Return the place of a slide's features; another place where its pixels or tiles are others."""
        return self.folder / f"{slide.slide}.{slide.fingerprint}.{self.copies(slide)}.npy"

    def raw(self, slide: LabelledSlide) -> NDArray[np.float16]:
        """Open the features of a slide without loading them."""
        features: NDArray[np.float16] = np.load(self.path(slide), mmap_mode="r", allow_pickle=False)
        return features

    def save(self, features: NDArray[np.float16], slide: LabelledSlide) -> None:
        """Write the features of a slide; they must be finite in 16 bits."""
        if not np.isfinite(features).all():
            raise WsisegError(f"{slide.slide}: NaN or infinity in its features", "check what computes them (--init)")
        _save(features, self.path(slide))

    def save_stage(self, stage: NDArray[np.float32], slide: LabelledSlide) -> None:
        """Write what an early stage is like in the described tiles of a slide, float32[tiles, channels]."""
        _save(stage, self.path(slide).with_suffix(_STAGE))

    def stage(self, slide: LabelledSlide) -> NDArray[np.float32] | None:
        """Return what `save_stage` wrote, if it did."""
        path = self.path(slide).with_suffix(_STAGE)
        return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None

    def draw(self, slide: LabelledSlide, indices: Indices, random: np.random.Generator) -> Tensor:
        """Return standardised features [n, channels], each of a view drawn at random."""
        features = self.raw(slide)
        views = random.integers(len(features), size=len(indices))
        return self._standardised(features[views, indices])

    def read(self, slide: LabelledSlide, indices: Indices) -> Tensor:
        """Return standardised features [n, channels] of the tiles as they are."""
        return self._standardised(self.raw(slide)[0, indices])

    def bytes_of(self, slide: LabelledSlide) -> int:
        """Return the size of the features of a tile."""
        return 4 * int(self.raw(slide).shape[2])

    def _standardised(self, features: NDArray[np.float16]) -> Tensor:
        tensor = torch.from_numpy(features.astype(np.float32))
        return tensor if self.standard is None else (tensor - self.standard.mean) / self.standard.std


def _save(array: NDArray[np.floating], path: Path) -> None:
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def fingerprint(classifier: TileClassifier, how: object) -> str:
    """Return 16 hexadecimal digits that stand for everything in a classifier but its head, and how it is used."""
    digest = hashlib.sha256(repr(how).encode())
    for key, value in classifier.state_dict().items():
        if not key.startswith("head."):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def standard_of(bank: FeatureBank, slides: Sequence[LabelledSlide]) -> Standard:
    """Measure mean and deviation of the features of slides, one slide in memory at a time."""
    count, total, squares = 0, 0.0, 0.0
    for slide in slides:
        features = bank.raw(slide).astype(np.float64)
        count += features.shape[0] * features.shape[1]
        total = total + features.sum((0, 1))
        squares = squares + (features**2).sum((0, 1))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    # A channel that hardly varies must not count for more than others by being divided by nearly nothing.
    std = np.maximum(std, max(_SMALLEST_SHARE * float(np.mean(std)), _SMALLEST_DEVIATION))
    return Standard(torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32))


@dataclass(frozen=True)
class Compute:
    """How features are computed: with a classifier, put into eval mode, most of it in bfloat16 where that is asked for.

    They are pooled over the middle `middle_px` of larger crops, or over whole tiles.
    """

    classifier: TileClassifier
    middle_px: int | None = None
    bfloat16: bool = False
    stage: Stage | None = None

    def __post_init__(self) -> None:
        self.classifier.eval()  # in training mode statistics of batch norm would move

    @torch.inference_mode()
    def features(self, tiles: Tensor) -> NDArray[np.float32]:
        """Compute features of uint8 tiles [n, side, side, 3]; any number, some at a time.

        Returns:
            float32[n, channels], followed by what describes the `stage` where there is one.
        """
        size = at_once(self.device, max(1, tiles[:1].numel()))
        return np.concatenate([self._features(some) for some in tiles.split(size)])

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.classifier.head.weight.device

    def _features(self, tiles: Tensor) -> NDArray[np.float32]:
        device = self.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            maps = self.classifier.backbone(self.classifier.normalised(tiles.to(device)))
        cells = maps.shape[2] if self.middle_px is None else round(self.middle_px * maps.shape[2] / tiles.shape[1])
        begin = (maps.shape[2] - cells) // 2
        middle = maps[:, :, begin : begin + cells, begin : begin + cells]
        found = [middle.float().mean((2, 3))]
        if self.stage is not None:
            found.append(summary(self.stage.map))
        features: NDArray[np.float32] = torch.cat(found, 1).cpu().numpy()
        return features


def fill(
    bank: FeatureBank,
    slides: Sequence[LabelledSlide],
    compute: Compute,
    source: Source,
    advance: Callable[[int], None],
    seed: int,
) -> None:
    """Compute the features of slides, of training slides in several views, unless they are there.

    The first view is what `source` reads, the others are drawn from it by `seed`. `advance` is told how many further
    tiles are done.

    Raises:
        WsisegError: A feature is NaN or infinite.
    """
    missing = [slide for slide in slides if not bank.path(slide).exists()]
    advance(sum(bank.copies(slide) * slide.tiles for slide in set(slides) - set(missing)))
    tasks = [partial(_view, source, slide, *part, seed) for slide in missing for part in _parts(bank, slide)]
    size = source.bytes_of(missing[0]) if missing else 1
    with closing(ahead(tasks, _TILES_READ * size)) as reading:
        for slide in missing:
            channels, stage = compute.classifier.head.in_features, []
            out = np.empty((bank.copies(slide), slide.tiles, channels), np.float16)
            for view, indices in _parts(bank, slide):
                found = compute.features(next(reading))
                out[view, indices] = found[:, :channels]
                if view == 0:
                    stage.append(found[:, channels:])
                advance(len(indices))
            if compute.stage is not None:
                bank.save_stage(np.concatenate(stage)[evenly(slide.tiles, DESCRIBED)], slide)
            bank.save(out, slide)


def _parts(bank: FeatureBank, slide: LabelledSlide) -> Iterator[tuple[int, Indices]]:
    """Yield the numbers of views and the tiles of each that are read at a time."""
    return (
        (view, part) for view in range(bank.copies(slide)) for part in in_parts(np.arange(slide.tiles), _TILES_READ)
    )


def _view(source: Source, slide: LabelledSlide, view: int, indices: Indices, seed: int) -> Tensor:
    """Return tiles as they are for view 0, else an augmented copy that is always the same."""
    if view == 0:
        return source.read(slide, indices)
    return source.draw(slide, indices, np.random.default_rng([seed, view, int(indices[0])]))
