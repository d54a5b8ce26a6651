"""Heads that changes by a scanner hardly move, and probabilities that are right on the maps that a file ships.

Nothing here sees a label but `calibrated`, which sees the truth of validation slides.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from open_cohort import ORGANS
from robustness import SCANNER
from torch.nn import functional

from wsiseg.annotations.truth import Reading, open_truth, truth_files
from wsiseg.exporting.onnx_graph import around_cells
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.network.checkpoint import Checkpoint, ClassFit
from wsiseg.network.network import load_classifier
from wsiseg.slides.cohort import Cohort
from wsiseg.training.slides import LabelledSlide, evenly, labelled_slides

Floats = NDArray[np.float64]
HEAD = ("head.weight", "head.bias")
CHANGES = tuple(name for name in SCANNER if name not in {"as it is", "blur of 2 px"})  # a blur becomes unknown
CELL_PX = 32
# Whose moves count: at a size of x0.8 its recall falls by more than .1, that of the colon by .05.
COUNTED = ORGANS["node"]
SLIDES = 30  # of each site
TILES_WIDE = 20 / 3  # of what is changed: a whole number of cells at all sizes
POINTS = np.linspace(0.15, 0.85, 9)  # of a window, along both axes, whose tiles are compared
GLASS = 225  # what is brighter is no tissue
RIDGE = 0.05  # of the mean variance, added to every feature's
SHIFT = 10.0  # what it costs that a change of size moves the mean logit
STEPS, LEAST = 50, 1e-6


def steadied(run: Path, seen: Path, out: Path, penalty: float) -> Path:
    """Write a run anew with a head that changes of training tissue by a scanner move less."""
    checkpoint = Checkpoint.load(run / "best.pt")
    by_site: dict[str, list[LabelledSlide]] = {}
    for slide in labelled_slides(seen):
        if slide.split == "train":
            by_site.setdefault(slide.site, []).append(slide)
    found = []
    for site, some in by_site.items():
        features, moves = moved(checkpoint, [some[place] for place in evenly(len(some), SLIDES)])
        found.append((features, moves if site == COUNTED else moves[:0]))
    (old,), bias = (checkpoint.state_dict[name].double().numpy() for name in HEAD)
    new, shift = steady(old, found, penalty)
    parts = torch.tensor(new[None]).float(), torch.tensor(bias + shift).float()
    said = {**checkpoint.trained_on, "steadied": f"against {', '.join(CHANGES)}; penalty {penalty:g}, shift {SHIFT:g}"}
    head = dict(zip(HEAD, parts, strict=True))
    return _anew(run, out, replace(checkpoint, state_dict=checkpoint.state_dict | head, trained_on=said))


def steady(old: Floats, sites: Sequence[tuple[Floats, Floats]], penalty: float) -> tuple[Floats, float]:
    """Return a head that changes move less, and what its bias gains so that the mean logit stays.

    The features f of a tile become f + d under a change. Of all heads w' this one has the least
    E[((w' - w) f)^2] + penalty * E[(w' d)^2] + shift * (w' E[d])^2, where f has mean 0, w is the head as it was, and
    the last is of changes of size alone: (S + penalty M + shift D) w' = S w with S = E[f f^T], to which some of its
    trace is added, M the sum of E[d d^T], and D that of E[d] E[d]^T, over changes and sites.

    Args:
        old: The head, [channels].
        sites: Features of each site, [n, channels], and how changes move them, [changes, n, channels].
        penalty: See above.
    """
    mean = np.mean([first.mean(0) for first, _ in sites], 0)
    spread = np.mean([(first - mean).T @ (first - mean) / len(first) for first, _ in sites], 0)
    spread += RIDGE * np.trace(spread) / len(spread) * np.eye(len(spread))
    cost = np.zeros_like(spread)
    for one, change in ((one, change) for _, moves in sites for one, change in zip(moves, CHANGES, strict=False)):
        cost += penalty * one.T @ one / len(one)
        if change.startswith("size"):
            cost += SHIFT * np.outer(one.mean(0), one.mean(0))
    new: Floats = np.linalg.solve(spread + cost, spread @ old)
    return new, float(mean @ (old - new))


@torch.inference_mode()
def moved(checkpoint: Checkpoint, slides: Sequence[LabelledSlide]) -> tuple[Floats, Floats]:
    """Return features of tiles, [n, channels], and how changes move them, [changes, n, channels]."""
    classifier, side = load_classifier(checkpoint), round(TILES_WIDE * checkpoint.tile_px)
    y, x = (2 * axis - 1 for axis in np.meshgrid(POINTS, POINTS, indexing="ij"))
    grid = torch.tensor(np.stack([x, y], -1)[None]).float()
    found = []
    for slide in slides:
        (window,) = slide.read(np.array([slide.tiles // 2]), side)
        places = (POINTS * side).astype(int)
        is_tissue = window[np.ix_(places, places)].min(-1).ravel() < GLASS
        shown = (SCANNER[name](window) for name in ("as it is", *CHANGES))
        with torch.autocast("cpu", torch.bfloat16):
            maps = [classifier.backbone(classifier.normalised(torch.tensor(one)[None])).float() for one in shown]
        tiles = (around_cells(one, checkpoint.tile_px // CELL_PX) for one in maps)
        points = [functional.grid_sample(one, grid, align_corners=False)[0].flatten(1).T for one in tiles]
        found.append([one.double().numpy()[is_tissue] for one in points])
    first, *others = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, np.stack([other - first for other in others])


def calibrated(run: Path, maps: Path, cohort: Path, truth: Path, out: Path) -> Path:
    """Write a run anew, calibrated on the cells of maps that an export of it made; every site weighs the same."""
    checkpoint = Checkpoint.load(run / "best.pt")
    (fit,) = checkpoint.classes
    by_site: dict[str, list[Floats]] = {}
    truths = truth_files(truth)
    for row in Cohort.read(cohort).slides:
        if not (maps / f"{row.slide}.ome.zarr").exists():
            continue
        heatmap = Heatmap.open(maps / f"{row.slide}.ome.zarr")
        with row.open() as slide:
            area = open_truth(truths[row.slide][0], slide.facts, Reading()).tumor
        (wide, high), (rows, columns) = heatmap.cell_level0, heatmap.shape
        share = area.covered(np.arange(columns + 1) * wide, np.arange(rows + 1) * high) / (wide * high)
        cells = np.stack([heatmap.probabilities, share], -1)[heatmap.tissue].astype(float)
        by_site.setdefault(row.site or "", []).append(cells)
    sites = [np.concatenate(some) for some in by_site.values()]
    cells, weights = np.concatenate(sites), np.concatenate([np.full(len(some), 1 / len(some)) for some in sites])
    odds = np.clip(cells[:, 0], LEAST, 1 - LEAST)
    logits = (np.log(odds / (1 - odds)) - fit.offset) * fit.temperature
    slope, offset = logistic(logits, cells[:, 1], weights)
    classes = (ClassFit(fit.name, temperature=1 / slope, offset=offset),)
    return _anew(run, out, replace(checkpoint, classes=classes))


def logistic(logits: Floats, shares: Floats, weights: Floats) -> tuple[float, float]:
    """Return slope and offset of the logistic curve under which shares are most likely, by Newton's steps."""
    middle, scale = logits.mean(), logits.std()
    inputs = np.stack([(logits - middle) / scale, np.ones_like(logits)], 1)
    line = np.zeros(2)
    for _ in range(STEPS):
        found = 1 / (1 + np.exp(-inputs @ line))
        curvature = (inputs * (weights * found * (1 - found))[:, None]).T @ inputs
        line -= np.linalg.solve(curvature, inputs.T @ (weights * (found - shares)))
    slope = line[0] / scale
    return float(slope), float(line[1] - slope * middle)


def _anew(run: Path, out: Path, checkpoint: Checkpoint) -> Path:
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("features"), dirs_exist_ok=True)
    replace(checkpoint, figures={}).save(out / "best.pt")
    return out
