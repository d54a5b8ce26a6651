"""Features of tiles that are computed once, kept on disk and shared by every head that is trained on them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsiseg.bags import Indices, LabelledSlide, Source, ahead
from wsiseg.errors import WsisegError
from wsiseg.network import TileClassifier
from wsiseg.outputs import written_whole

_TILES_READ = 64
# Few enough for the caches of a processor: three times as fast as 64 at once.
_TILES_AT_ONCE = 8
_SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Standard:
    """Mean and deviation of features over the training tiles, float32[channels] each."""

    mean: Tensor
    std: Tensor

    def fold(self, head: nn.Linear) -> dict[str, Tensor]:
        """Give weight and bias that do to raw features what `head` does to standardised ones."""
        weight = head.weight.detach().cpu() / self.std
        bias = head.bias.detach().cpu() - weight @ self.mean
        return {"weight": weight, "bias": bias}


@dataclass(frozen=True)
class FeatureBank:
    """A folder of features, one file float16[views, tiles, channels] for each slide.

    The first view is the tile as it is, the others are augmented copies. It is a `Source` of standardised features.
    """

    folder: Path
    views: int = 1
    standard: Standard | None = None

    def path(self, slide: LabelledSlide) -> Path:
        """Give the place of a slide's features; another place where its pixels or tiles are others."""
        views = 1 if slide.split != "train" else self.views
        return self.folder / f"{slide.slide}.{slide.fingerprint}.{views}.npy"

    def raw(self, slide: LabelledSlide) -> NDArray[np.float16]:
        """Open the features of a slide without loading them."""
        features: NDArray[np.float16] = np.load(self.path(slide), mmap_mode="r", allow_pickle=False)
        return features

    def draw(self, slide: LabelledSlide, indices: Indices, random: np.random.Generator) -> Tensor:
        """Give standardised features [n, channels], each of a view drawn at random."""
        features = self.raw(slide)
        views = random.integers(len(features), size=len(indices))
        return self._standardised(features[views, indices])

    def read(self, slide: LabelledSlide, indices: Indices) -> Tensor:
        """Give standardised features [n, channels] of the tiles as they are."""
        return self._standardised(self.raw(slide)[0, indices])

    def _standardised(self, features: NDArray[np.float16]) -> Tensor:
        tensor = torch.from_numpy(features.astype(np.float32))
        return tensor if self.standard is None else (tensor - self.standard.mean) / self.standard.std


def fingerprint(classifier: TileClassifier) -> str:
    """Give 16 hexadecimal digits that stand for everything in a classifier but its head."""
    digest = hashlib.sha256()
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
    std = np.sqrt(np.maximum(squares / count - np.square(mean), _SMALLEST_DEVIATION**2))
    return Standard(torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32))


@torch.inference_mode()
def fill(
    bank: FeatureBank,
    slide: LabelledSlide,
    classifier: TileClassifier,
    source: Source,
    device: torch.device,
    advance: Callable[[int], Any],
    *,
    seed: int = 0,
) -> None:
    """Compute the features of a slide, of a training slide in several views, unless they are there.

    Args:
        bank: Gets the file.
        slide: Whose tiles.
        classifier: What computes them; on `device`, in eval mode.
        source: Gives the tiles; its random ones are the views after the first.
        device: Where it computes.
        advance: Is told how many tiles are done.
        seed: Of the random views.
    """
    path = bank.path(slide)
    if path.exists():
        return
    views = bank.views if slide.split == "train" else 1
    out = np.empty((views, slide.tiles, classifier.head.in_features), np.float16)
    parts = [(view, part) for view in range(views) for part in _parts(np.arange(slide.tiles), _TILES_READ)]
    for (view, indices), tiles in zip(
        parts, ahead([partial(_view, source, slide, *part, seed) for part in parts]), strict=True
    ):
        features = [classifier.features(some.to(device)).float().cpu() for some in tiles.split(_TILES_AT_ONCE)]
        out[view, indices] = torch.cat(features).numpy()
        advance(len(indices))
    if not np.isfinite(out).all():
        raise WsisegError(f"{slide.slide}: its features are no finite numbers", "check the weights given with --init")
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, out, allow_pickle=False)


def _parts(indices: Indices, size: int) -> list[Indices]:
    return [indices[begin : begin + size] for begin in range(0, len(indices), size)]


def _view(source: Source, slide: LabelledSlide, view: int, indices: Indices, seed: int) -> Tensor:
    """Give tiles as they are for view 0, else an augmented copy that is always the same."""
    if view == 0:
        return source.read(slide, indices)
    return source.draw(slide, indices, np.random.default_rng([seed, view, int(indices[0])]))
