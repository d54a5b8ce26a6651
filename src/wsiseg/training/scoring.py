"""How well a network tells the slides and the pixels of a split apart, and what its probabilities are worth."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from wsiseg.mathematics.metrics import Floats, Pixels, auc, best_threshold, curve, measures_at, reliability, slide_score
from wsiseg.run.errors import WsisegError
from wsiseg.training.bags import Source, ahead, at_once
from wsiseg.training.processes import Processes
from wsiseg.training.slides import Indices, LabelledSlide, TileLabels, evenly, in_parts
from wsiseg.training.truths import TileTruth

Measures = dict[str, float | None]
Risk = Callable[[Tensor, LabelledSlide, Tensor | None], Tensor]
"""Logits, their slide and true labels of tiles, where they are known -> the risk; see `Stepper.risk`."""
_STEEPEST, _PENALTY, _LEAST_WEIGHT = 50.0, 5e-7, 1e-12
_TILES_READ = 128


@dataclass(frozen=True)
class Scored:
    """Tiles of one slide, by their indices int[n], with their logits float32[n, classes], or [n] of one class."""

    slide: LabelledSlide
    indices: Indices
    logits: NDArray[np.float32]

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """float32[n] in 0..1."""
        probabilities: NDArray[np.float32] = torch.from_numpy(self.logits).sigmoid().numpy()
        return probabilities


def by_class(slides: Sequence[Scored], count: int) -> list[list[Scored]]:
    """Return slides as each of so many classes sees them, with logits [n]."""
    return [
        [replace(one, slide=one.slide.by_class[place], logits=one.logits[:, place]) for one in slides]
        for place in range(count)
    ]


def mean_of(measures: Sequence[Measures]) -> Measures:
    """Average measures over classes; None where one is undefined for all."""
    every = {name: [value for one in measures if (value := one[name]) is not None] for name in measures[0]}
    return {name: float(np.mean(values)) if values else None for name, values in every.items()}


@torch.inference_mode()
def scored(
    network: nn.Module,
    source: Source,
    slides: Sequence[LabelledSlide],
    device: torch.device,
    processes: Processes,
    *,
    most_tiles: int,
    bfloat16: bool = False,
) -> Iterator[Scored]:
    """Yield the logits of slides, one slide after the other, by a network in eval mode on a device.

    Of a slide `most_tiles` tiles are looked at, evenly spread. Each process computes its share and gets all logits.

    Raises:
        WsisegError: A logit is NaN or infinite, by which no epoch can be ranked; or a slide cannot be read.
    """
    chosen = [in_parts(evenly(slide.tiles, most_tiles), _TILES_READ) for slide in slides]
    every = [(slide, part) for slide, parts in zip(slides, chosen, strict=True) for part in parts]
    tasks = [partial(source.read, *one) for one in processes.share(every)]
    size = source.bytes_of(slides[0]) if slides else 1
    most = at_once(device, size)
    half = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)
    with closing(ahead(tasks, _TILES_READ * size)) as reading, half:
        outputs = [torch.cat([network(some.to(device)).float() for some in tiles.split(most)]) for tiles in reading]
    # They leave the device when all is computed, as it would wait for each.
    found = iter(processes.gathered([one.cpu().numpy() for one in outputs]))
    for slide, parts in zip(slides, chosen, strict=True):
        logits = np.concatenate(list(islice(found, len(parts))))
        if not np.isfinite(logits).all():
            raise WsisegError(f"{slide.slide}: NaN or infinity in its logits", "lower --lr; what was saved is kept")
        yield Scored(slide, np.concatenate(parts), logits)


def slide_measures(slides: Sequence[Scored], risk: Risk, labels: Mapping[str, TileLabels] | None) -> Measures:
    """Return `slide_auc` and the mean `risk` of slides; None where undefined.

    Where training is supervised by the true `labels` of tiles, slides without them have no risk.
    """
    risks = [
        float(risk(torch.from_numpy(one.logits), one.slide, known)) for one in slides for known in _known(one, labels)
    ]
    areas = [{"slide_auc": _slide_auc(seen)} for seen in by_class(slides, slides[0].logits.shape[1])] if slides else []
    area = mean_of(areas) if areas else {"slide_auc": None}
    return {**area, "risk": float(np.mean(risks)) if risks else None}


def _known(one: Scored, labels: Mapping[str, TileLabels] | None) -> list[Tensor | None]:
    if labels is None:
        return [None]
    return [torch.from_numpy(labels[one.slide.slide][one.indices])] if one.slide.slide in labels else []


def _slide_auc(slides: Sequence[Scored]) -> float | None:
    """Return the AUC of the slides' labels by the mean of each slide's most probable tiles."""
    known, scores = [one for one in slides if one.slide.label is not None], []
    for one in known:
        ones = np.ones(len(one.indices))
        scores.append(slide_score(Pixels.of(one.probabilities, ones, ones)))
    labels = np.array([float(one.slide.label or 0) for one in known])
    return _number(auc(curve([Pixels.of(np.array(scores, np.float32), labels, 1 - labels)])))


def pixels_of(slides: Sequence[Scored], truths: Mapping[str, TileTruth]) -> list[Pixels]:
    """Return the pixels of those slides that have a truth."""
    known = [one for one in slides if one.slide.slide in truths]
    return [Pixels.of(one.probabilities, *_weights(one, truths[one.slide.slide])) for one in known]


def _weights(one: Scored, truth: TileTruth) -> tuple[Floats, Floats]:
    """Count tumour and other pixels, float64[n] each; the tiles that were looked at stand for all of the slide's."""
    each = max(one.slide.stored, one.slide.tiles) / len(one.indices)
    return each * truth.tumor[one.indices], each * truth.rest[one.indices]


def chosen_threshold(slides: Sequence[Scored], truths: Mapping[str, TileTruth]) -> float | None:
    """Return the probability with the highest F1 over the pixels of slides; None where there is no tumour."""
    return best_threshold(curve(pixels_of(slides, truths)))


def pixel_measures(slides: Sequence[Scored], truths: Mapping[str, TileTruth], threshold: float) -> Measures:
    """Return `auc`, `auc_background`, `precision`, `recall`, `f1` over pixels, and `slide_auc`; None if undefined."""
    counts = curve(pixels_of(slides, truths), [threshold])
    outside = [truths[one.slide.slide].background for one in slides if one.slide.slide in truths]
    with_background = counts.with_zeros(*(sum(part) for part in zip(*outside, strict=True))) if outside else counts
    errors = measures_at(counts, threshold)
    return {
        "auc": _number(auc(counts)),
        "auc_background": _number(auc(with_background)),
        **{name: _number(errors[name]) for name in ("precision", "recall", "f1")},
        "slide_auc": _slide_auc(slides) if slides else None,
    }


def _number(value: float | NDArray[np.float64]) -> float | None:
    return None if np.isnan(value) else float(value)


@dataclass(frozen=True)
class Calibration:
    """What becomes of a logit: it is divided by `temperature`, then `offset` is added.

    Neither changes the order of tiles, nor therefore any AUC. Source: Platt, Probabilistic outputs for support vector
    machines, 1999; Guo et al., On calibration of modern neural networks, ICML 2017.
    """

    temperature: float = 1.0
    offset: float = 0.0

    def applied(self, slides: Sequence[Scored]) -> list[Scored]:
        """Return slides with calibrated logits."""
        temperature, offset = np.float32(self.temperature), np.float32(self.offset)
        return [replace(one, logits=one.logits / temperature + offset) for one in slides]


def fitted(slides: Sequence[Scored], truths: Mapping[str, TileTruth]) -> Calibration:
    """Find the calibration under which the truth of slides is most likely, each tile weighted by its pixels.

    Returns:
        No change where there is no truth of both kinds, or where tumour does not have the higher logits.
    """
    known = [one for one in slides if one.slide.slide in truths]
    if not known:
        return Calibration()
    logits = np.concatenate([one.logits for one in known]).astype(np.float64)
    weights = [_weights(one, truths[one.slide.slide]) for one in known]
    tumor, rest = (np.concatenate(part) for part in zip(*weights, strict=True))
    if not tumor.any() or not rest.any():
        return Calibration()
    slope, offset = _logistic(logits, tumor, rest)
    return Calibration(1 / min(slope, _STEEPEST), offset) if slope > 1 / _STEEPEST else Calibration()


def _logistic(logits: Floats, tumor: Floats, rest: Floats) -> tuple[float, float]:
    """Fit slope and offset of a logistic curve."""
    weights = torch.from_numpy((tumor + rest) * len(logits) / (tumor + rest).sum())
    x, share = torch.from_numpy(logits), torch.from_numpy(tumor / np.maximum(tumor + rest, _LEAST_WEIGHT))
    line = torch.tensor([1 / max(float(logits.std()), 1 / _STEEPEST), 0.0], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([line], max_iter=1000, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        error = binary_cross_entropy_with_logits(x * line[0] + line[1], share, weights, reduction="sum")
        # Hardly any penalty: just enough for an end where a threshold parts the two without error.
        penalised: Tensor = error + _PENALTY * line[0].square()
        penalised.backward()
        return penalised

    search.step(loss)
    slope, offset = line.tolist()
    return slope, offset


def calibration_error(slides: Sequence[Scored], truths: Mapping[str, TileTruth]) -> float | None:
    """Return the expected calibration error over ten ranges of probability; None where there is no truth."""
    pixels = pixels_of(slides, truths)
    if not pixels:
        return None
    found = reliability(pixels)
    share = found.pixels / found.pixels.sum()
    return float(np.nansum(share * np.abs(found.mean_score - found.tumor_share)))
