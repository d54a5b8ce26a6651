"""How well a network tells the slides and the tiles of a split apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsiseg.bags import Indices, LabelledSlide, Source, ahead
from wsiseg.metrics import Pixels, auc, curve
from wsiseg.mil import risk, slide_score


@dataclass(frozen=True)
class Scored:
    """The tiles of one slide with their logits.

    Attributes:
        slide: The slide.
        indices: int[n], which of its tiles.
        logits: float32[n].
    """

    slide: LabelledSlide
    indices: Indices
    logits: NDArray[np.float32]

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """float32[n] in 0..1."""
        probabilities: NDArray[np.float32] = torch.from_numpy(self.logits).sigmoid().numpy()
        return probabilities


@torch.inference_mode()
def scored(
    network: nn.Module,
    source: Source,
    slides: Sequence[LabelledSlide],
    device: torch.device,
    *,
    most_tiles: int | None = None,
    at_once: int = 32,
) -> Iterator[Scored]:
    """Give the logits of slides, one slide after the other.

    Args:
        network: In eval mode, on `device`.
        source: Gives the tiles.
        slides: Which slides.
        device: Where it computes.
        most_tiles: Look at so many tiles of a slide at most, evenly spread; None for all.
        at_once: Tiles that go through the network together.
    """
    for slide in slides:
        indices = np.arange(slide.tiles)
        if most_tiles is not None and slide.tiles > most_tiles:
            indices = np.linspace(0, slide.tiles - 1, most_tiles).round().astype(np.int64)
        parts = np.array_split(indices, -(-len(indices) // at_once))
        logits = [
            network(tiles.to(device)).float().cpu()
            for tiles in ahead([partial(source.read, slide, part) for part in parts])
        ]
        yield Scored(slide, indices, torch.cat(logits).numpy())


def slide_measures(slides: Sequence[Scored], alpha: float, beta: float) -> dict[str, float | None]:
    """Give `slide_auc` (by the mean of the alpha most probable tiles) and the mean `risk`; None without slides.

    No outline is needed.
    """
    if not slides:
        return {"slide_auc": None, "risk": None}
    scores = [slide_score(torch.from_numpy(one.probabilities), alpha) for one in slides]
    labels = np.array([float(one.slide.label) for one in slides])
    risks = [float(risk(torch.from_numpy(one.logits), one.slide.label, alpha, beta)) for one in slides]
    area = auc(curve(Pixels(np.array(scores, np.float32), labels, 1 - labels)))
    return {"slide_auc": area, "risk": float(np.mean(risks))}
