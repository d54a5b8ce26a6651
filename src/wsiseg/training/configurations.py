"""The paper's benchmark: the settings of its configurations of alpha and beta, and their table."""

from collections.abc import Iterator, Sequence
from typing import Any

from wsiseg.config.train import TrainConfig
from wsiseg.pages.configurations import ALPHAS, BETAS, MEASURES, Configured


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
