"""The page of a training run: curves, measures, and the tiles that it finds most and least like tumour."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from wsiseg.pages.page import TEXT, cell, page, picture_address, table
from wsiseg.pages.plots import Line, plot
from wsiseg.run.record import in_words
from wsiseg.tiles.packed import encoded
from wsiseg.training.scoring import Scored

NOTE = "For research, not for diagnosis."
_TILES, _PER_SLIDE = 12, 2
_CURVES = (
    ("Risk", {"risk": "training", "val_risk": "validation"}),
    ("AUC on the validation split", {"val_slide_auc": "slides", "val_pixel_auc": "pixels"}),
)
_SHOWN = {"auc": "pixel AUC", "auc_background": "with background", "precision": "precision", "recall": "recall",
          "f1": "F1", "slide_auc": "AUC of slides"}  # fmt: skip


def training_page(
    title: str,
    facts: Mapping[str, str],
    figures: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    history: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Sequence[Scored]],
) -> str:
    """Return the page of one configuration: facts and figures, curves by epoch, and tiles of the validation slides.

    The scores are by class.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        facts_table(facts),
        "<h2>Measures</h2>",
        measures_table(figures),
        f'<h2>Curves</h2><div class="row">{"".join(_curves(history))}</div>',
    ]
    for name, seen in scores.items():
        for highest, most in ((True, "Most"), (False, "Least")) if seen else ():
            tiles = "".join(_striking(seen, highest=highest))
            title = f"{most} {escape(in_words(name))}-like tiles of validation slides"
            parts.append(f'<h2>{title}</h2><div class="tiles">{tiles}</div>')
    return page(title, "\n".join(parts))


def facts_table(facts: Mapping[str, str]) -> str:
    """Return names and values as a table."""
    rows = "".join(f"<tr>{cell(escape(name), TEXT)}{cell(escape(value), TEXT)}</tr>" for name, value in facts.items())
    return f'<div class="wide"><table>{rows}</table></div>'


def measures_table(figures: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """Return measures by split and site as a table."""
    rows = (
        [escape(split), escape(site), *(_number(measures.get(name)) for name in _SHOWN)]
        for split, sites in figures.items()
        for site, measures in sites.items()
    )
    return table(("split", "site", *_SHOWN.values()), rows)


def _curves(history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    epochs = np.array([float(row["epoch"]) for row in history])
    # The axis has five steps, of whole epochs.
    widest = 5.0 * math.ceil(len(history) / 5)
    for title, names in _CURVES:
        lines = []
        for name, label in names.items():
            values = [row.get(name) for row in history]
            if values and all(value is not None for value in values):
                lines.append(Line(label, epochs, np.array(values, float)))
        if lines:
            highest = max(1.0, *(float(line.y.max()) for line in lines))
            drawing = plot(title, ("epoch", ""), lines, widest=widest, highest=highest, falls="risk" in names)
            yield f"<figure>{drawing.svg()}</figure>"


def _striking(scores: Sequence[Scored], *, highest: bool) -> Iterator[str]:
    """Yield figures of the tiles of highest or lowest probability, few of each slide."""
    found = []
    for place, one in enumerate(scores):
        strikes = -one.logits if highest else one.logits
        found += [(float(strikes[k]), place, int(k)) for k in np.argsort(strikes, kind="stable")[:_PER_SLIDE]]
    for _, place, k in sorted(found)[:_TILES]:
        one = scores[place]
        name = escape(one.slide.slide)
        address = picture_address("jpeg", encoded(one.slide.read(one.indices[k : k + 1])[0]))
        yield (
            f'<figure><img src="{address}" width="150" height="150" alt="tile of {name}">'
            f"<figcaption>{name}<br>{one.probabilities[k]:.3f}</figcaption></figure>"
        )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
