"""The measures of a model on PatchCamelyon."""

from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation.comparison import Compared
from wsiseg.evaluation.intervals import Resamples, single_curve
from wsiseg.evaluation.measures import Estimate, number
from wsiseg.evaluation.metrics_file import Report, Threshold
from wsiseg.evaluation.pcam import PcamResult, run_protocol
from wsiseg.mathematics import metrics
from wsiseg.mathematics.metrics import Curve, Pixels
from wsiseg.model_file.model_file import ModelFile
from wsiseg.run.errors import UsageError
from wsiseg.run.record import Progress
from wsiseg.slides.cohort import CohortSlide
from wsiseg.tiles.pcam_files import Split

_SPLITS: dict[str, Split] = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}


def evaluate_pcam(
    config: EvaluateConfig, folder: Path, model_path: Path, progress: Progress
) -> tuple[Report, Compared]:
    """Run the protocol and measure what comes out.

    Args:
        config: The settings.
        folder: Where the files lie.
        model_path: The model file.
        progress: Who watches.

    Returns:
        The report, with the same figures without and with background as a patch has none; and the patches as one slide.

    Raises:
        UsageError: There is no such split, file or extra.
        WsisegError: A file cannot be read.
    """
    split = _SPLITS.get(config.split or "test")
    if split is None:
        raise UsageError(f"PatchCamelyon has no split {config.split}", "its splits are train, val and test")
    with ModelFile.open(model_path, config.device) as model:
        kept = config.out / f"pcam-{split}.npz" if config.out else None
        result = run_protocol(folder, model, split, progress, kept)
        source = "model" if config.threshold is None else "option"
        threshold = Threshold(
            value=model.card.threshold if config.threshold is None else config.threshold, source=source
        )
        name, sha256 = model.card.name, model.sha256
    pixels = _pixels(result, slice(None))
    curve = metrics.curve([pixels], [threshold.value])
    resampled, unit = _resampled(config, result, threshold.value)
    again = metrics.measures(resampled, threshold.value)
    measures = metrics.measures(curve, threshold.value)
    block: dict[str, Any] = {name: Estimate(float(value), again[name]).as_json() for name, value in measures.items()}
    block["brier"] = {"value": number(metrics.squared_error(pixels) / pixels.total), "ci95": None}
    block |= {"tumor_px": float(curve.positive), "other_px": float(curve.negative), "slides": len(result.labels)}
    block["cases"] = len(set(result.slides or ())) or len(result.labels)
    found = metrics.reliability([pixels])
    report = Report(
        run=str(folder),
        unit="patch",
        split=split,
        without_background=block,
        with_background=block,
        reliability={one: [number(value) for value in getattr(found, one)] for one in found.__dataclass_fields__},
        threshold=threshold,
        settings={
            "resamples": config.resamples,
            "resampled": unit,
            "seed": config.seed,
            "model": name,
            "sha256": sha256,
        },
        notes=result.notes,
    )
    row = CohortSlide(slide=f"pcam-{split}", path=folder, case=f"pcam-{split}")
    return report, Compared(row, threshold.value, None, pixels, (0.0, 0.0), None, None, ())


def _pixels(result: PcamResult, chosen: slice | np.ndarray) -> Pixels:
    labels = result.labels[chosen].astype(np.float64)
    return Pixels.of(result.probabilities[chosen], labels, 1 - labels)


def _resampled(config: EvaluateConfig, result: PcamResult, threshold: float) -> tuple[Curve, str]:
    """Draw slides where it is known which patch is of which, otherwise patches."""
    if result.slides is None:
        return single_curve(_pixels(result, slice(None)), config.resamples, config.seed, [threshold]), "patch"
    slides = np.array(result.slides)
    names = sorted(set(result.slides))
    items = [_pixels(result, np.flatnonzero(slides == name)) for name in names]
    return Resamples.of(names, config.resamples, config.seed).curve(items, [threshold]), "slide"
