"""Compare heatmaps with truth: exact pixel measures of a cohort."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wsiseg.annotations import Classes, open_truth, truth_files
from wsiseg.cohort import Cohort, CohortSlide
from wsiseg.config import EvaluateConfig
from wsiseg.errors import OutputError, UsageError, WsisegError
from wsiseg.heatmap import Heatmap
from wsiseg.metrics import Pixels, auc, average_precision, best_threshold, confusion, curve
from wsiseg.outputs import write_json

_HEATMAP_SUFFIX = ".ome.zarr"


class Report(BaseModel):
    """What an evaluation found; the content of `metrics.json`."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_: str = Field(default="wsiseg.metrics/1", alias="schema")
    split: str | None
    without_background: dict[str, Any]
    with_background: dict[str, Any]
    per_site: dict[str, Any]
    per_split: dict[str, Any]
    slide_auc: dict[str, Any]
    threshold: dict[str, Any]
    slides: tuple[dict[str, Any], ...]
    failed: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 where every prediction could be compared, else 1."""
        return 1 if self.failed else 0


@dataclass(frozen=True)
class Compared:
    """One slide: its heatmap beside its truth.

    Attributes:
        row: What the cohort says of it.
        threshold: The heatmap's own.
        tissue: The cells that were looked at, weights in level-0 pixels.
        everything: The same with the rest of the slide, which has the score 0.
    """

    row: CohortSlide
    threshold: float
    tissue: Pixels
    everything: Pixels


def evaluate(config: EvaluateConfig) -> Report:
    """Compare the heatmaps of a folder with the truth of another.

    Args:
        config: The settings.

    Returns:
        The measures over the chosen split, and which slides could not be compared.

    Raises:
        UsageError: A folder or the cohort is missing, or nothing is left to compare.
    """
    rows = {row.slide: row for row in Cohort.read(config.cohort).slides} if config.cohort else {}
    heatmaps, truths = _heatmaps(config.predictions), _truths(config.truth)
    compared, failed, notes = [], [], []
    for slide, path in heatmaps.items():
        row = rows.get(slide) or CohortSlide(slide=slide, path=path, case=slide)
        try:
            one, said = _compare(row, path, truths.get(slide))
            compared.append(one)
            notes += said
        except WsisegError as error:
            failed.append({"slide": slide, "message": error.message, "hint": error.hint})
    notes += [f"{truths[slide].name}: truth without a prediction" for slide in sorted(set(truths) - set(heatmaps))]
    report = _report(config, compared, failed, notes)
    if config.out is not None:
        _write(config, report)
    return report


def _heatmaps(folder: Path) -> dict[str, Path]:
    found = {path.name.removesuffix(_HEATMAP_SUFFIX): path for path in sorted(folder.glob("*" + _HEATMAP_SUFFIX))}
    if not found:
        raise UsageError(f"{folder}: no heatmaps there", "give the folder that wsiseg predict wrote")
    return found


def _truths(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", "give the folder of outlines or masks with --truth")
    return truth_files(folder)


def _compare(row: CohortSlide, path: Path, truth_path: Path | None) -> tuple[Compared, tuple[str, ...]]:
    """Lay truth over a heatmap.

    Raises:
        WsisegError: The heatmap or the truth is missing or cannot be read.
    """
    if truth_path is None:
        raise WsisegError(f"{row.slide}: no truth for this slide", "an outline file without outlines means no tumour")
    heatmap = Heatmap.open(path)
    x_edges, y_edges = heatmap.edges()
    truth = open_truth(truth_path, heatmap.slide, Classes())
    cells = np.diff(y_edges)[:, None] * np.diff(x_edges)[None, :]
    tumor = truth.area(x_edges, y_edges)
    looked = heatmap.tissue
    tissue = Pixels(heatmap.probabilities[looked], tumor[looked], (cells - tumor)[looked])
    rest = Pixels(np.zeros(1, np.float32), *(area[~looked].sum(keepdims=True) for area in (tumor, cells - tumor)))
    return Compared(row, heatmap.threshold, tissue, Pixels.pooled([tissue, rest])), truth.notes


def _report(
    config: EvaluateConfig,
    compared: Sequence[Compared],
    failed: list[dict[str, str]],
    notes: list[str],
) -> Report:
    splits = {one.row.split for one in compared if one.row.split}
    split = config.split or ("test" if "test" in splits else None)
    chosen = [one for one in compared if split is None or one.row.split == split]
    if not chosen:
        problems = "; ".join(problem["message"] for problem in failed) or f"no slide of split {split}"
        raise UsageError(f"nothing to evaluate: {problems}", "see --truth, --cohort and --split")
    threshold, source = _threshold(config, compared)
    sites = sorted({one.row.site for one in chosen if one.row.site})
    return Report(
        split=split,
        **_both(chosen, threshold),
        per_site={site: _both([one for one in chosen if one.row.site == site], threshold) for site in sites},
        per_split={
            name: _both([one for one in compared if one.row.split == name], threshold) for name in sorted(splits)
        },
        slide_auc={"value": None},
        threshold={"value": threshold, "source": source},
        slides=tuple({"slide": one.row.slide, "split": one.row.split, **_both([one], threshold)} for one in compared),
        failed=tuple(failed),
        notes=tuple(notes),
    )


def _threshold(config: EvaluateConfig, compared: Sequence[Compared]) -> tuple[float, str]:
    if config.threshold is not None:
        return config.threshold, "option"
    validation = [one.tissue for one in compared if one.row.split == "val"]
    best = best_threshold(curve(Pixels.pooled(validation)))
    return (best, "validation") if best is not None else (compared[0].threshold, "model")


def _both(slides: Sequence[Compared], threshold: float) -> dict[str, dict[str, Any]]:
    return {
        "without_background": _measures(Pixels.pooled([one.tissue for one in slides]), threshold),
        "with_background": _measures(Pixels.pooled([one.everything for one in slides]), threshold),
    }


def _measures(pixels: Pixels, threshold: float) -> dict[str, Any]:
    counts, errors = curve(pixels), confusion(pixels, threshold)
    values = {
        "auc": auc(counts),
        "average_precision": average_precision(counts),
        "precision": errors.precision,
        "recall": errors.recall,
        "specificity": errors.specificity,
        "f1": errors.f1,
        "iou": errors.iou,
    }
    return {name: {"value": value, "ci95": None} for name, value in values.items()}


def _write(config: EvaluateConfig, report: Report) -> None:
    assert config.out is not None  # noqa: S101  the caller looked
    path = config.out / "metrics.json"
    if path.exists() and not config.overwrite:
        raise OutputError(f"{path}: is there already", "give --overwrite or another --out")
    write_json(path, report.model_dump(mode="json", by_alias=True))
