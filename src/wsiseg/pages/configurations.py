"""The paper's benchmark: configurations of alpha and beta, what came out of each, and the picture of them."""

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsiseg.pages.drawing import INK, Drawing, Rectangle, Text

STEPS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ALPHAS, BETAS = STEPS[1:], STEPS[:-1]
_RANKING = {"auc": "pixel AUC", "slide_auc": "slide AUC"}  # what ranks, the first one first
MEASURES = ("auc", "auc_background", "precision", "recall", "f1", "slide_auc")
_NAMES = {"auc": "pixel AUC", "auc_background": "pixel AUC with background", "f1": "F1", "slide_auc": "AUC of slides"}
_CELL_W, _CELL_H, _LEFT, _TOP = 58, 34, 50, 66
_SIDES = (BETAS, _CELL_W), (ALPHAS, _CELL_H)
_COLUMNS = 3
# From dark violet over green to yellow, told apart without red and green too.
_STOPS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_PLACES = np.linspace(0, 1, len(_STOPS))
_DARK = 0.55
ALL = "all"


@dataclass(frozen=True)
class Configured:
    """What came out of one configuration."""

    alpha: float | None  # None for the supervised one, as beta
    beta: float | None
    out: Path  # its folder
    threshold: float  # probability from which a tile is tumour
    figures: Mapping[str, Mapping[str, Mapping[str, float | None]]]  # measures by split and site

    def measure(self, name: str, split: str, sites: Sequence[str] = (ALL,)) -> float | None:
        """Return a measure over all sites of a split, or its mean over some of them; None where it is undefined."""
        values = [self.figures.get(split, {}).get(site, {}).get(name) for site in sites]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def in_distribution(self, split: str) -> tuple[str, ...]:
        """Return the sites of a split to draw: where some are of no validation slide, the paper keeps these apart."""
        here, trained = (set(self.figures.get(name, {})) - {ALL} for name in (split, "val"))
        return tuple(sorted(here & trained)) if here & trained and here - trained else (ALL,)


def best_first(configured: Sequence[Configured]) -> list[Configured]:
    """Rank by the validation slides: by the pixel AUC where there is truth, then by the AUC of slides.

    The configuration that has seen true labels comes last, whatever its measures.
    """

    def rank(one: Configured) -> tuple[bool, list[float]]:
        return (one.alpha is not None, [one.measure(name, "val") or 0.0 for name in _RANKING])

    return sorted(configured, key=rank, reverse=True)


def ranking(configured: Sequence[Configured]) -> list[list[str]]:
    """Return heads and rows of a table, best first: of both measures that rank, validation beside test."""
    columns = [
        (name, split)
        for name in _RANKING
        for split in ("val", "test")
        if any(one.measure(name, split) is not None for one in configured)
    ]
    rows = [["", "configuration", *(f"{split} {_RANKING[name]}" for name, split in columns)]]
    for number, one in enumerate(best_first(configured), 1):
        values = [one.measure(*column) for column in columns]
        rows.append([f"{number}.", one.out.name, *("" if value is None else f"{value:.3f}" for value in values)])
    return rows


def export_command(one: Configured) -> str:
    """Return the command that makes a model file of a configuration, to be pasted into a shell."""
    return shlex.join(["wsiseg", "export", str(one.out), "--out", f"{one.out.name}.onnx"])


def known_measures(configured: Sequence[Configured], split: str, sites: Sequence[str] = (ALL,)) -> list[str]:
    """Return the measures that are known of any configuration."""
    return [name for name in MEASURES if any(one.measure(name, split, sites) is not None for one in configured)]


def picture(
    configured: Sequence[Configured], split: str, sites: Sequence[str] = (ALL,), names: Sequence[str] | None = None
) -> Drawing:
    """Draw a matrix for each of some measures, or all that are known, alpha down and beta across, as the paper does."""
    shown = known_measures(configured, split, sites) if names is None else names
    columns = min(_COLUMNS, max(1, len(shown)))
    width, height = _LEFT + _CELL_W * len(BETAS) + 24, _TOP + _CELL_H * len(ALPHAS) + 40
    drawing = Drawing(columns * width, -(-len(shown) // columns) * height, f"Configurations on the {split} split")
    for place, name in enumerate(shown):
        corner = (place % columns * width, place // columns * height)
        drawing.shapes += _matrix(configured, name, split, sites, corner)
    return drawing


def _matrix(
    configured: Sequence[Configured], name: str, split: str, sites: Sequence[str], corner: tuple[float, float]
) -> Iterator[Rectangle | Text]:
    head, left, top = corner[0] + 10, corner[0] + _LEFT, corner[1] + _TOP
    over = split if tuple(sites) == (ALL,) else f"in-distribution {split}"
    values = {(one.alpha, one.beta): one.measure(name, split, sites) for one in configured}
    known = [value for value in values.values() if value is not None]
    low, high = min(known), max(known)
    yield Text(head, top - 48, f"{_NAMES.get(name, name)}, {over} split", 14)
    yield Text(left + _CELL_W * len(BETAS) / 2, top - 28, "beta", 12, "middle")
    yield Text(head, top + _CELL_H * len(ALPHAS) / 2, "alpha", 12, "middle", is_upright=True)
    across, down = ([(one, size * (k + 0.5)) for k, one in enumerate(steps)] for steps, size in _SIDES)
    yield from (Text(left + x, top - 12, f"{beta:g}", 11, "middle") for beta, x in across)
    yield from (Text(left - 8, top + y, f"{alpha:g}", 11, "end") for alpha, y in down)
    for (alpha, y), (beta, x) in itertools.product(down, across):
        value = values.get((alpha, beta))
        if value is not None:
            share = (value - low) / (high - low) if high > low else 1.0
            color = bytes(round(float(np.interp(share, _PLACES, channel))) for channel in zip(*_STOPS, strict=True))
            corner = (left + x - _CELL_W / 2 + 1, top + y - _CELL_H / 2 + 1)
            yield Rectangle(*corner, _CELL_W - 2, _CELL_H - 2, f"#{color.hex()}")
            ink = INK if share > _DARK else "#ffffff"
            yield Text(left + x, top + y, f"{value:.3f}", 12, "middle", color=ink)
    best = values.get((None, None))
    if best is not None:
        yield Text(left, top + _CELL_H * len(ALPHAS) + 18, f"true labels of tiles: {best:.3f}", 12)
