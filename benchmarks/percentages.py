"""Measure what percentages of tumour teach beside labels: pixel AUC on the test split, heads on frozen features.

The same network, slides, tiles and number of steps for every arm; only what is said of the training and validation
slides with tumour differs. Their true share of tumour is known from the truth; a percentage is off by up to ten points
at random, and taken to be. Intervals (95 %) are drawn over the test slides, of the mean over the seeds.

    python benchmarks/percentages.py tiles/cohort.csv truth out --init efficientnet_lite0.pth

Writes OUT/percentages.json, a table as OUT/percentages.md, and prints the table.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.config.train import TrainConfig
from wsiseg.evaluation.intervals import Resamples, interval
from wsiseg.mathematics.metrics import Pixels, auc, curve
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.run.outputs import write_json, write_text
from wsiseg.run.record import Progress
from wsiseg.training.bags import TileSource
from wsiseg.training.features import FeatureBank, standard_of
from wsiseg.training.fit import fit
from wsiseg.training.processes import device_of, joined_processes
from wsiseg.training.run_folder import RunFolder
from wsiseg.training.scoring import by_class, pixels_of
from wsiseg.training.slides import LabelledSlide, labelled_slides, with_normal
from wsiseg.training.task import filled_bank, started, task_of
from wsiseg.training.truths import TileTruth, tile_truths

ARMS = {
    "yes or no": "",
    "percentages, 10 points": "about",
    "exact shares": "exact",
    "true labels of tiles": "true",
    "percentages, 10 points; a third wrong by 20": "wrong",
    "percentages, 10 points; no normal slides": "about alone",
    "exact shares; no normal slides": "exact alone",
}
POINTS, WRONG_POINTS, RESAMPLES = 0.1, 0.2, 1000


def main() -> None:
    """Train every arm with every seed, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cohort", "truth", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--init", default="imagenet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="test")
    parser.add_argument("--arms", nargs="*", default=[*ARMS], choices=[*ARMS])
    parser.add_argument("--set", type=json.loads, default={}, help="other settings of training, as JSON")
    given = parser.parse_args()
    usual = {"arch": "timm:tf_efficientnet_lite0", "freeze": True, "lr": 1e-3, "max_tiles": 200, "precision": "float32"}
    usual |= {"schedule": "cosine", "weight_decay": 10.0}
    config = TrainConfig(cohort=given.cohort, out=given.out, init=given.init, **{**usual, **given.set})
    slides = labelled_slides(config.cohort, most_tiles=config.max_tiles)
    truths = tile_truths(given.truth, slides, print)
    bank = features(config, slides)
    found = {}
    for arm in given.arms:
        runs = [trained(config.model_copy(update={"seed": seed}), arm, slides, truths, bank, given.split)
                for seed in range(given.seeds)]  # fmt: skip
        found[arm] = measured(runs)
        print(arm, round(found[arm]["auc"], 4), flush=True)
    write_json(given.out / "percentages.json", {arm: {**one, "again": None} for arm, one in found.items()})
    text = table(found)
    write_text(given.out / "percentages.md", text)
    print(text)


def features(config: TrainConfig, slides: tuple[LabelledSlide, ...]) -> FeatureBank:
    """Compute the features of all slides, or find them."""
    classifier = started(config, slides[0].tile_px, None, device_of("cpu"), print)
    with joined_processes() as processes:
        return filled_bank(config, classifier, slides, TileSource(), processes, Progress())


def shares(truths: Mapping[str, TileTruth]) -> dict[str, float]:
    """Return the true share of tumour in the tiles of slides."""
    return {name: float(one.tumor.sum() / (one.tumor + one.rest).sum()) for name, one in truths.items()}


def said(arm: str, slides: Sequence[LabelledSlide], shares: Mapping[str, float], seed: int) -> list[LabelledSlide]:
    """Return slides with what an arm says of them."""
    random, told, kind = np.random.default_rng(seed), [], ARMS[arm]
    for slide in slides:
        error, is_wrong, sign = random.uniform(-POINTS, POINTS), random.random() < 1 / 3, random.choice([-1, 1])
        if slide.label == 0:
            told += [] if "alone" in kind and slide.split != "test" else [slide]
            continue
        about = shares[slide.slide] + (sign * WRONG_POINTS if is_wrong and kind == "wrong" else error)
        bounds = max(0.0, about - POINTS), float(np.clip(about + POINTS, 0.01, 1))
        stated = (shares[slide.slide],) * 2 if "exact" in kind else bounds if kind not in {"", "true"} else (None, None)
        told.append(replace(slide, stated=stated))
    return with_normal(told)


def trained(
    config: TrainConfig,
    arm: str,
    slides: Sequence[LabelledSlide],
    truths: Mapping[str, TileTruth],
    bank: FeatureBank,
    split: str,
) -> list[Pixels]:
    """Train an arm; return the pixels of the slides of a split."""
    told = tuple(said(arm, slides, shares(truths), config.seed))
    is_true = ARMS[arm] == "true"
    out = config.out / f"{arm.replace(' ', '-')}-{config.seed}"
    config = config.model_copy(update={"out": out, "supervised": is_true, "overwrite": True})
    config.out.mkdir(parents=True, exist_ok=True)
    bank = replace(bank, standard=standard_of(bank, [slide for slide in told if slide.split == "train"]))
    with joined_processes() as processes:
        task = task_of(
            config, started(config, slides[0].tile_px, None, device_of("cpu"), lambda _: None), told, [truths], bank
        )
        folder = RunFolder(config, {})
        fit(task, config, folder, processes, Progress())
        best = task.best(Checkpoint.load(folder.best))
        (scores,) = by_class(best.scores(best.network, [split], config, processes), 1)
        return pixels_of(scores, truths)


def measured(runs: Sequence[Sequence[Pixels]]) -> dict[str, Any]:
    """Return the AUC of every seed, their mean, and the mean of each resample of the slides."""
    resamples = Resamples.of([str(number) for number in range(len(runs[0]))], RESAMPLES, 0)
    values = [float(auc(curve(pixels))) for pixels in runs]
    again: NDArray[np.float64] = np.mean([auc(resamples.curve(pixels)) for pixels in runs], axis=0)
    return {"auc": float(np.mean(values)), "seeds": values, "ci95": interval(again), "again": again}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the arms with their differences from labels alone, and how much of the way to true labels they go."""
    low, high = (found.get(arm, {}).get("auc") for arm in ("yes or no", "true labels of tiles"))
    heads = ("what is said", "pixel AUC", "seeds", "more than yes or no", "of the way to true labels")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|"]
    for arm, one in found.items():
        seeds = " ".join(f"{value:.3f}" for value in one["seeds"])
        gain = share = ""
        if low is not None and arm != "yes or no":
            bounds = interval(one["again"] - found["yes or no"]["again"]) or (np.nan, np.nan)
            gain = f"{one['auc'] - low:+.3f} ({bounds[0]:+.3f} to {bounds[1]:+.3f})"
            share = f"{(one['auc'] - low) / (high - low):.0%}" if high is not None else ""
        area = f"{one['auc']:.3f} ({one['ci95'][0]:.3f} to {one['ci95'][1]:.3f})"
        lines.append(f"| {arm} | {area} | {seeds} | {gain} | {share} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
