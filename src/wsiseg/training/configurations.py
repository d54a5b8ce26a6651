"""The paper's benchmark: the settings of its configurations of alpha and beta, their table and their page."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from wsiseg.config.train import TrainConfig
from wsiseg.pages.configurations import (
    ALPHAS,
    BETAS,
    MEASURES,
    Configured,
    best_first,
    export_command,
    known_measures,
    picture,
    ranking,
)
from wsiseg.pages.page import page
from wsiseg.pages.page import table as rows_table
from wsiseg.run.outputs import write_text
from wsiseg.training.page import NOTE, facts_table, measures_table
from wsiseg.training.run_folder import RunFolder, as_csv


def settings_of_grid(config: TrainConfig) -> Iterator[TrainConfig]:
    """Yield the settings of each configuration, in folders of their own; the supervised one last, where asked for."""
    alone = config.model_copy(update={"grid": False, "supervised": False})
    for alpha in ALPHAS:
        for beta in BETAS:
            if alpha + beta <= 1 + 1e-9:
                out = config.out / f"alpha-{alpha:g}-beta-{beta:g}"
                yield alone.model_copy(update={"alpha": alpha, "beta": beta, "out": out})
    if config.supervised:
        yield alone.model_copy(update={"supervised": True, "out": config.out / "supervised"})


def table(configured: Sequence[Configured]) -> list[dict[str, Any]]:
    """Return the rows of `grid.csv`: one per configuration, split and site, `all` for all sites."""
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


def write_grid(config: TrainConfig, configured: Sequence[Configured]) -> None:
    """Write `grid.csv`, `grid.png` and the page of a grid."""
    folder = RunFolder(config, {})
    folder.write_settings()
    rows = table(configured)
    if rows:
        write_text(config.out / "grid.csv", as_csv(rows))
    split = "test" if any("test" in one.figures for one in configured) else "val"
    drawing = picture(configured, split, configured[0].in_distribution(split))
    drawing.save(config.out / "grid")
    ranked, (heads, *figures) = best_first(configured), ranking(configured)
    title = f"Training of {config.out.name}"
    parts = [f"<h1>{escape(title)}</h1>", facts_table({"network": config.arch, "use": NOTE})]
    parts += ["<h2>Configurations, best first by validation</h2>", rows_table(heads, figures)]
    parts += ["<p>A model file of the best one:</p>", f"<pre>{escape(export_command(ranked[0]))}</pre>"]
    parts += [f'<div class="row">{"".join(_figures(configured, split))}</div>', "<h2>All measures</h2>"]
    parts += [f"<h3>{one.out.name}</h3>{measures_table(one.figures)}" for one in ranked]
    write_text(config.out / "report.html", page(title, "\n".join(parts)))
    folder.seal()


def _figures(configured: Sequence[Configured], split: str) -> Iterator[str]:
    """Yield a figure for each measure, which stand as a page has room for them."""
    sites = configured[0].in_distribution(split)
    for name in known_measures(configured, split, sites):
        yield f"<figure>{picture(configured, split, sites, [name]).svg()}</figure>"
