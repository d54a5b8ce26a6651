"""What an evaluation shows of its curves: plots, and the counts behind the threshold slider."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wsiseg.evaluation.comparison import Compared
from wsiseg.evaluation.froc import froc
from wsiseg.evaluation.measures import MODES, pooled_curves
from wsiseg.evaluation.metrics_file import Report
from wsiseg.mathematics.metrics import Curve
from wsiseg.pages.drawing import Drawing
from wsiseg.pages.plots import Line, plot, thinned

NAMES = {"without_background": "without background", "with_background": "with background"}
_STEPS = 200  # of the slider
_FROC_WIDEST = 8.0


def evaluation_plots(report: Report, slides: Sequence[Compared]) -> dict[str, Drawing]:
    """Draw the curves of an evaluation, by the name of their file."""
    curves = {mode: counts for mode, counts in pooled_curves(slides).items() if counts.positive * counts.negative > 0}
    found = {
        "roc": plot(
            "ROC curve",
            ("false alarms / normal pixels", "recall"),
            [_roc(report, mode, counts) for mode, counts in curves.items()],
            reference=((0, 0), (1, 1)),
        ),
        "precision_recall": plot(
            "Precision and recall",
            ("recall", "precision"),
            [_precision_recall(report, mode, counts) for mode, counts in curves.items()],
        ),
    }
    found["reliability"] = plot(
        "Reliability",
        ("mean probability of the cells", "share of tumour"),
        list(_reliability(report.reliability or {})),
        reference=((0, 0), (1, 1)),
    )
    lesions = froc([one.lesions for one in slides if one.lesions is not None])
    if lesions is not None:
        line = Line(f"score {lesions.score:.3f}", lesions.alarms_per_slide, lesions.sensitivity)
        axes = ("false alarms a slide", "lesions found")
        found["froc"] = plot("Free-response ROC", axes, [line], widest=_FROC_WIDEST)
    return found


def slider_counts(slides: Sequence[Compared], threshold: float) -> dict[str, Any]:
    """Count hits and false alarms at evenly spaced thresholds and at the one of the report, for the slider.

    Returns:
        `thresholds`, where among them to `begin`, and by mode `hits`, `false_alarms`, `positive` and `negative`.
    """
    thresholds = np.unique(np.append(np.arange(_STEPS + 1, dtype=np.float32) / _STEPS, np.float32(threshold)))
    counts = [one.tissue.at_or_above(thresholds) for one in slides]
    hits, alarms = (np.sum([count[side] for count in counts], axis=0) for side in (0, 1))
    curves = pooled_curves(slides)
    by_mode = {}
    for mode in MODES:
        totals = {"positive": float(curves[mode].positive), "negative": float(curves[mode].negative)}
        # At a threshold of 0 all is called, also where nobody looked.
        called = {"hits": [totals["positive"], *hits[1:]], "false_alarms": [totals["negative"], *alarms[1:]]}
        by_mode[mode] = totals | {name: [round(float(one), 3) for one in values] for name, values in called.items()}
    begin = int(np.searchsorted(thresholds, np.float32(threshold)))
    return {"thresholds": [round(float(one), 6) for one in thresholds], "begin": begin, **by_mode}


def _roc(report: Report, mode: str, counts: Curve) -> Line:
    x, y = np.append(0.0, counts.false_alarms / counts.negative), np.append(0.0, counts.hits / counts.positive)
    return Line(f"{NAMES[mode]}, {_value(report, mode, 'auc')}", *thinned(x, y))


def _precision_recall(report: Report, mode: str, counts: Curve) -> Line:
    called = counts.hits + counts.false_alarms
    kept = called > 0
    x, y = counts.hits[kept] / counts.positive, counts.hits[kept] / called[kept]
    return Line(f"{NAMES[mode]}, AP {_value(report, mode, 'average_precision')}", *thinned(x, y))


def _value(report: Report, mode: str, name: str) -> str:
    value = getattr(report, mode)[name]["value"]
    return "-" if value is None else f"{value:.3f}"


def _reliability(found: Mapping[str, Sequence[float | None]]) -> Iterator[Line]:
    pairs = zip(found.get("mean_score", ()), found.get("tumor_share", ()), strict=True)
    points = np.array([pair for pair in pairs if None not in pair], np.float64).reshape(-1, 2)
    if len(points):
        yield Line("cells of the tissue", points[:, 0], points[:, 1])
