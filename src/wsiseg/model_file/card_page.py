"""The model card as a page of Markdown."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wsiseg.model_file.model_card import ModelCard, Parity

_TASK = "image-segmentation"
_METRICS = ("auc", "average_precision", "precision", "recall", "f1", "iou")
_LICENCES = r"(cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-\d\.\d|apache-2\.0|mit|bsd-[23]-clause)(?![\w-])"


def written_page(card: ModelCard, file: str, sha256: str) -> str:
    """Return the page that stands beside a model file of this name and SHA-256."""
    parts = [
        f"# {card.name}, version {card.version}",
        f"{card.intended_use}",
        "## The file",
        _table(("", ""), _file_rows(card, file, sha256)),
        "## What it was trained on",
        _facts(card.trained_on) or "Nothing is recorded.",
        "## Figures",
        _figures(card.figures) or "Nothing was measured yet. Evaluate it on slides of your own before you use it.",
        "## How closely the file follows the trained network",
        "\n".join(f"- {parity_line(row)}" for row in card.parity),
        "AUC is over the labels of the slides that the tiles came from.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in card.limits),
        "## Licence and citation",
        f"Licence: {card.licence}.",
        card.citation
        or "Cite the file by its name, version and SHA-256, and the method as Lerousseau et al., "
        "*Weakly supervised multiple instance learning histopathological tumor segmentation*, MICCAI 2020.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(card: ModelCard) -> str:
    """Return what hubs of models read above the page, as YAML between dashes: each value is JSON, which YAML holds.

    The keys are those of Hugging Face's model cards. A licence that they have no name for is `other`.
    """
    known = re.match(_LICENCES, re.sub(r"\s+", "-", card.licence.lower()))
    evaluation = card.figures.get("evaluation")
    block = evaluation.get("without_background") if isinstance(evaluation, Mapping) else None
    measures = block if isinstance(block, Mapping) else {}
    found = {name: one.get("value") for name, one in measures.items() if isinstance(one, Mapping)}
    metrics = [{"type": name, "value": found[name]} for name in _METRICS if found.get(name) is not None]
    split = evaluation.get("split") if isinstance(evaluation, Mapping) else None
    result: dict[str, Any] = {
        "task": {"type": _TASK},
        "dataset": {"type": "histology", "name": str(card.trained_on.get("data", "slides")), "split": split or "all"},
        "metrics": metrics,
    }
    lines: dict[str, Any] = {
        "license": known[0] if known else "other",
        **({} if known else {"license_name": card.licence}),
        "library_name": "wsiseg",
        "pipeline_tag": _TASK,
        "tags": ["onnx", "histopathology", "whole-slide-images", "multiple-instance-learning"],
        "metrics": [one["type"] for one in metrics],
        "model-index": [{"name": card.name, "results": [result]}] if metrics else [],
    }
    told = (f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in lines.items() if value)
    return f"---\n{''.join(told)}---\n\n"


def parity_line(row: Parity) -> str:
    """Return how a comparison came out."""
    cells = "" if row.map_mean_difference is None else f" (cells {row.map_mean_difference:.2g})"
    area = "" if row.auc is None else f", AUC {row.auc:.4f} against {row.auc_reference:.4f}"
    verdict = "passed" if row.passed else "too different"
    return (
        f"{row.graph} against {row.reference} on {row.tiles} {row.source}: difference at most "
        f"{row.max_difference:.2g}, {row.mean_difference:.2g} on average{cells}{area}: {verdict}"
    )


def _file_rows(card: ModelCard, file: str, sha256: str) -> list[tuple[str, str]]:
    stride = card.output_stride
    window = "" if card.window_px is None else f", in windows of {card.window_px} px"
    shares = "not trained so" if card.alpha is None else f"{card.alpha:g} and {card.beta:g}"
    return [
        ("file", f"`{file}`"),
        ("SHA-256", f"`{sha256}`"),
        ("network", f"{card.architecture}, {card.precision}"),
        ("input", f"RGB at {card.mpp:g} um per pixel, tiles of {card.tile_px} px ({card.tile_px * card.mpp:g} um)"),
        ("output", _output(card)),
        ("dense map", "none" if stride is None else f"one cell per {stride} px ({stride * card.mpp:g} um){window}"),
        ("map by default", card.map),
        ("threshold", ", ".join(f"{one:g}" + f" ({name})" * bool(card.thresholds) for name, one in card.given.items())),
        ("alpha and beta", shares),
        ("made with", ", ".join(f"{name} {text}" for name, text in card.made_with.items())),
    ]


def _output(card: ModelCard) -> str:
    given, among = (", ".join(f"`{name}`" for name in names) for names in (card.given, card.classes))
    return f"probability of each of {given}, by itself" if card.thresholds else f"probability of {given} among {among}"


def _figures(figures: Mapping[str, Any]) -> str:
    """Show the validation of the training, and the evaluation where there is one."""
    parts = []
    validation = {name: value for name, value in figures.get("validation", {}).items() if value is not None}
    splits = validation.pop("splits", {})
    if validation:
        parts.append("On the validation slides, while training:\n\n" + _facts(validation))
    if splits:
        found = [(split, site, *_measures(block)) for split, sites in splits.items() for site, block in sites.items()]
        head = "On the slides that training set aside, over the pixels of tissue:\n\n"
        parts.append(head + _table(("split", "site", "AUC", "precision", "recall", "F1"), found))
    evaluation = figures.get("evaluation")
    if evaluation:
        head = f"On the {evaluation['split']} split" if evaluation.get("split") else "On all slides that were evaluated"
        rows = [
            ("all", *_measures(evaluation.get("without_background", {}))),
            *((f"class {name}", *_measures(block)) for name, block in evaluation.get("per_class", {}).items()),
            *((site, *_measures(block)) for site, block in evaluation.get("per_site", {}).items()),
        ]
        names = ("site", "AUC", "precision", "recall", "F1")
        parts.append(f"{head}, over the pixels of tissue, with 95 % intervals:\n\n" + _table(names, rows))
        parts += _reliability(evaluation.get("reliability") or {})
    return "\n\n".join(parts)


def _reliability(found: Mapping[str, Sequence[float | None]]) -> list[str]:
    """Show what became of pixels with some probability, if that was measured."""
    columns = [found.get(name, ()) for name in ("mean_score", "tumor_share", "pixels")]
    known = [row for row in zip(*columns, strict=False) if None not in row and row[2]]
    total = sum(row[2] or 0 for row in known)
    rows = [(f"{mean:.2f}", f"{share:.2f}", f"{pixels / total:.1%}") for mean, share, pixels in known]
    head = "What the probabilities were worth there:\n\n"
    return [head + _table(("mean probability", "share that was tumour", "share of pixels"), rows)] if rows else []


def _measures(block: Mapping[str, Any]) -> list[str]:
    inner = block.get("without_background", block)
    measured = inner if isinstance(inner, Mapping) else {}
    return [_measure(measured.get(name)) for name in ("auc", "precision", "recall", "f1")]


def _measure(measure: Any) -> str:  # noqa: ANN401  a number, a value with its interval, or nothing
    if isinstance(measure, Mapping):
        value, interval = measure.get("value"), measure.get("ci95")
        ends = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval and None not in interval else ""
        return "" if value is None else f"{value:.3f}{ends}"
    return f"{measure:.3f}" if isinstance(measure, (int, float)) else ""


def _facts(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name.replace('_', ' ')}: {_said(value)}" for name, value in facts.items())


def _said(value: Any) -> str:  # noqa: ANN401  any JSON value
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_said(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list):
        return ", ".join(_said(item) for item in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
