"""The paper's benchmark: configurations of alpha and beta, their table and its picture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsiseg.pages.drawing import INK, Drawing, Rectangle, Text
from wsiseg.training.config import TrainConfig

STEPS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ALPHAS, BETAS = STEPS[1:], STEPS[:-1]
MEASURES = ("auc", "auc_background", "precision", "recall", "f1", "slide_auc")
_NAMES = {"auc": "pixel AUC", "auc_background": "pixel AUC with background", "f1": "F1", "slide_auc": "AUC of slides"}
_CELL_W, _CELL_H, _LEFT, _TOP = 58, 34, 50, 66
_COLUMNS = 3
# From dark violet over green to yellow, told apart without red and green too.
_STOPS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_DARK = 0.55
ALL = "all"


@dataclass(frozen=True)
class Configured:
    """What came out of one configuration.

    Attributes:
        alpha: None for the supervised one.
        beta: None for the supervised one.
        out: Its folder.
        threshold: Probability from which a tile is tumour.
        figures: Measures by split and site.
    """

    alpha: float | None
    beta: float | None
    out: Path
    threshold: float
    figures: Mapping[str, Mapping[str, Mapping[str, float | None]]]

    def measure(self, name: str, split: str) -> float | None:
        """Give a measure over all sites of a split."""
        return self.figures.get(split, {}).get(ALL, {}).get(name)

    @property
    def rank(self) -> tuple[float, float]:
        """Rank by the validation slides: pixel AUC where there is truth, then the AUC of slides."""
        return (self.measure("auc", "val") or 0.0, self.measure("slide_auc", "val") or 0.0)


def settings_of_grid(config: TrainConfig) -> Iterator[TrainConfig]:
    """Give the settings of each configuration, in folders of their own; the supervised one last, where asked for."""
    alone = config.model_copy(update={"grid": False, "top": 0, "supervised": False})
    for alpha in ALPHAS:
        for beta in BETAS:
            if alpha + beta <= 1 + 1e-9:
                out = config.out / f"alpha-{alpha:g}-beta-{beta:g}"
                yield alone.model_copy(update={"alpha": alpha, "beta": beta, "out": out})
    if config.supervised:
        yield alone.model_copy(update={"supervised": True, "out": config.out / "supervised"})


def tuned_settings(config: TrainConfig, best: Configured) -> TrainConfig:
    """Give the settings that fine-tune a frozen configuration, starting from its head."""
    return config.model_copy(
        update={
            "grid": False, "top": 0, "supervised": False, "freeze": False, "views": 1,
            "init": str(best.out / "best.pt"), "colors": "weights", "alpha": best.alpha, "beta": best.beta,
            "out": best.out.with_name(f"{best.out.name}-tuned"), "lr": config.tune_lr, "epochs": config.tune_epochs,
        }
    )  # fmt: skip


def table(configured: Sequence[Configured]) -> list[dict[str, Any]]:
    """Give the rows of `grid.csv`: one per configuration, split and site, `all` for all sites."""
    return [
        {
            "alpha": one.alpha,
            "beta": one.beta,
            "split": split,
            "site": site,
            **{name: measures.get(name) for name in MEASURES},
            "threshold": one.threshold,
        }
        for one in configured
        for split, sites in one.figures.items()
        for site, measures in sites.items()
    ]


def picture(configured: Sequence[Configured], split: str) -> Drawing:
    """Draw a matrix for each measure that is known, alpha down and beta across, as the paper does."""
    shown = [name for name in MEASURES if any(one.measure(name, split) is not None for one in configured)]
    columns = min(_COLUMNS, max(1, len(shown)))
    width, height = _LEFT + _CELL_W * len(BETAS) + 24, _TOP + _CELL_H * len(ALPHAS) + 40
    drawing = Drawing(columns * width, -(-len(shown) // columns) * height, f"Configurations on the {split} split")
    for place, name in enumerate(shown):
        drawing.shapes += _matrix(configured, name, split, place % columns * width, place // columns * height)
    return drawing


def _matrix(
    configured: Sequence[Configured], name: str, split: str, left: float, top: float
) -> Iterator[Rectangle | Text]:
    values = {(one.alpha, one.beta): one.measure(name, split) for one in configured}
    known = [value for value in values.values() if value is not None]
    low, high = min(known), max(known)
    yield Text(left + 10, top + 18, f"{_NAMES.get(name, name)}, {split} split", 14)
    yield Text(left + _LEFT + _CELL_W * len(BETAS) / 2, top + 38, "beta", 12, "middle")
    yield Text(left + 10, top + _TOP + _CELL_H * len(ALPHAS) / 2, "alpha", 12, "middle", is_upright=True)
    for column, beta in enumerate(BETAS):
        yield Text(left + _LEFT + _CELL_W * (column + 0.5), top + _TOP - 12, f"{beta:g}", 11, "middle")
    for row, alpha in enumerate(ALPHAS):
        yield Text(left + _LEFT - 8, top + _TOP + _CELL_H * (row + 0.5), f"{alpha:g}", 11, "end")
        for column, beta in enumerate(BETAS):
            value = values.get((alpha, beta))
            if value is not None:
                x, y = left + _LEFT + _CELL_W * column, top + _TOP + _CELL_H * row
                yield from _cell(x, y, value, (value - low) / (high - low) if high > low else 1.0)
    best = values.get((None, None))
    if best is not None:
        below = top + _TOP + _CELL_H * len(ALPHAS) + 18
        yield Text(left + _LEFT, below, f"true labels of tiles: {best:.3f}", 12)


def _cell(x: float, y: float, value: float, share: float) -> Iterator[Rectangle | Text]:
    yield Rectangle(x + 1, y + 1, _CELL_W - 2, _CELL_H - 2, _color(share))
    color = INK if share > _DARK else "#ffffff"
    yield Text(x + _CELL_W / 2, y + _CELL_H / 2, f"{value:.3f}", 12, "middle", color=color)


def _color(share: float) -> str:
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    low = min(int(place), len(_STOPS) - 2)
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(_STOPS[low], _STOPS[low + 1], strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)
