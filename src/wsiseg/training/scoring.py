"""How well a network tells the slides and the pixels of a split apart."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsiseg.mathematics.metrics import Pixels, auc, best_threshold, confusion, curve, slide_score
from wsiseg.mathematics.mil import risk
from wsiseg.training.bags import Indices, LabelledSlide, Source, ahead
from wsiseg.training.tile_truth import TileTruth

Measures = dict[str, float | None]


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
    at_once: int = 16,
    bfloat16: bool = False,
) -> Iterator[Scored]:
    """Give the logits of slides, one slide after the other.

    Args:
        network: In eval mode, on `device`; logits [n], or maps of them, whose mean counts.
        source: Gives the tiles.
        slides: Which slides.
        device: Where it computes.
        most_tiles: Look at so many tiles of a slide at most, evenly spread; None for all.
        at_once: Tiles that go through the network together.
        bfloat16: Compute most of the network in bfloat16.
    """
    for slide in slides:
        indices = np.arange(slide.tiles)
        if most_tiles is not None and slide.tiles > most_tiles:
            indices = np.linspace(0, slide.tiles - 1, most_tiles).round().astype(np.int64)
        logits = []
        for tiles in ahead([partial(source.read, slide, part) for part in _parts(indices, 8 * at_once)]):
            for part in tiles.split(at_once):
                with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                    out = network(part.to(device)).float().cpu()
                logits.append(out.flatten(1).mean(1) if out.dim() > 1 else out)
        yield Scored(slide, indices, torch.cat(logits).numpy())


def _parts(indices: Indices, size: int) -> list[Indices]:
    return [indices[begin : begin + size] for begin in range(0, len(indices), size)]


def slide_measures(slides: Sequence[Scored], alpha: float, beta: float) -> Measures:
    """Give `slide_auc` and the mean `risk` of slides, for which no outline is needed; None where undefined."""
    if not slides:
        return {"slide_auc": None, "risk": None}
    risks = [float(risk(torch.from_numpy(one.logits), one.slide.label, alpha, beta)) for one in slides]
    return {"slide_auc": _slide_auc(slides), "risk": float(np.mean(risks))}


def _slide_auc(slides: Sequence[Scored]) -> float | None:
    """Give the AUC of the slides' labels by the mean of each slide's most probable tiles."""
    scores = []
    for one in slides:
        ones = np.ones(len(one.indices))
        scores.append(slide_score(Pixels.of(one.probabilities, ones, ones)))
    labels = np.array([float(one.slide.label) for one in slides])
    return _number(auc(curve([Pixels.of(np.array(scores, np.float32), labels, 1 - labels)])))


def pixels_of(slides: Sequence[Scored], truths: Mapping[str, TileTruth]) -> list[Pixels]:
    """Give the pixels of those slides that have a truth."""
    known = [(one, truths[one.slide.slide]) for one in slides if one.slide.slide in truths]
    return [Pixels.of(one.probabilities, truth.tumor[one.indices], truth.rest[one.indices]) for one, truth in known]


def chosen_threshold(slides: Sequence[Scored], truths: Mapping[str, TileTruth]) -> float | None:
    """Give the probability with the highest F1 over the pixels of slides; None where there is no tumour."""
    return best_threshold(curve(pixels_of(slides, truths)))


def pixel_measures(slides: Sequence[Scored], truths: Mapping[str, TileTruth], threshold: float) -> Measures:
    """Give `auc`, `auc_background`, `precision`, `recall` and `f1` over pixels, and `slide_auc`; None if undefined."""
    counts = curve(pixels_of(slides, truths), [threshold])
    outside = [truths[one.slide.slide].background for one in slides if one.slide.slide in truths]
    with_background = counts.with_zeros(*(sum(part) for part in zip(*outside, strict=True))) if outside else counts
    errors = confusion(counts, threshold).measures()
    return {
        "auc": _number(auc(counts)),
        "auc_background": _number(auc(with_background)),
        **{name: _number(errors[name]) for name in ("precision", "recall", "f1")},
        "slide_auc": _slide_auc(slides) if slides else None,
    }


def _number(value: float | NDArray[np.float64]) -> float | None:
    return None if np.isnan(value) else float(value)
