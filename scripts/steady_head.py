"""Heads that changes by a scanner hardly move, and probabilities that are right on the maps that a file ships.

Nothing here sees a label but `calibrated`, which sees the truth of validation slides.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from robustness import SCANNER
from torch.nn import functional

from wsiseg.annotations.truth import Reading, open_truth, truth_files
from wsiseg.exporting.onnx_graph import around_cells
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.network.checkpoint import Checkpoint, ClassFit
from wsiseg.network.network import load_classifier
from wsiseg.slides.cohort import Cohort
from wsiseg.slides.slide import Slide
from wsiseg.training.slides import LabelledSlide, labelled_slides

Floats = NDArray[np.float64]
Moves = dict[str, Floats]
HEAD = ("head.weight", "head.bias")
CHANGES = tuple(name for name in SCANNER if name not in {"as it is", "blur of 2 px"})  # a blur becomes unknown
CELL_PX = 32
WINDOWS = 2  # of each slide
WIDE = 5  # tiles of a window, along both axes: a whole number of cells at all sizes
GLASS = 225  # a tile that is brighter is no tissue
RIDGE = 0.05  # of the mean variance, added to every feature's
STEPS, LEAST = 50, 1e-6


@dataclass(frozen=True)
class Steady:
    """What it costs a head that changes by a scanner move it; see `steady`.

    Attributes:
        penalty: That they move the logit of a tile.
        shift: That those of size move the mean logit.
        changes: Which changes.
        site: The only one whose moves count; all where it is not given.
    """

    penalty: float
    shift: float = 0.0
    changes: tuple[str, ...] = CHANGES
    site: str | None = None


def steadied(run: Path, seen: Path, out: Path, cost: Steady) -> Path:
    """Write a run anew with a head that changes of training tissue by a scanner move less."""
    checkpoint = Checkpoint.load(run / "best.pt")
    by_site: dict[str, list[LabelledSlide]] = {}
    for slide in labelled_slides(seen):
        if slide.split == "train":
            by_site.setdefault(slide.site, []).append(slide)
    found = []
    for site, slides in by_site.items():
        changes = cost.changes if cost.site in {None, site} else ()
        found.append(moved(checkpoint, slides, changes))
    (old,), bias = (checkpoint.state_dict[name].double().numpy() for name in HEAD)
    new, gain = steady(old, found, cost)
    parts = torch.tensor(new[None]).float(), torch.tensor(bias + gain).float()
    how = f"against {', '.join(cost.changes)}; penalty {cost.penalty:g}, shift {cost.shift:g}"
    head = dict(zip(HEAD, parts, strict=True))
    trained_on = {**checkpoint.trained_on, "steadied": how}
    return _anew(run, out, replace(checkpoint, state_dict=checkpoint.state_dict | head, trained_on=trained_on))


def steady(old: Floats, sites: Sequence[tuple[Floats, Moves]], cost: Steady) -> tuple[Floats, float]:
    """Return a head that changes move less, and what its bias gains so that the mean logit stays.

    The features f of a tile become f + d under a change. Of all heads w' this one has the least
    E[((w' - w) f)^2] + penalty * E[(w' d)^2] + shift * E[w' d]^2, where f has mean 0, w is the head as it was, and the
    last is of changes of size alone: (S + penalty M + shift D) w' = S w with S = E[f f^T], to which some of its trace
    is added, M the sum of E[d d^T], and D that of E[d] E[d]^T, over changes and sites.

    Args:
        old: The head, [channels].
        sites: Features of each site, [n, channels], and how changes move them, [n, channels] by the change.
        cost: Penalty and shift.
    """
    mean = np.mean([features.mean(0) for features, _ in sites], 0)
    spread = np.mean([_squared(features - mean) for features, _ in sites], 0)
    spread += RIDGE * np.trace(spread) / len(spread) * np.eye(len(spread))
    costs = spread.copy()
    for change, moves in ((change, moves) for _, by_change in sites for change, moves in by_change.items()):
        costs += cost.penalty * _squared(moves)
        if change.startswith("size"):
            costs += cost.shift * _squared(moves.mean(0, keepdims=True))
    new: Floats = np.linalg.solve(costs, spread @ old)
    return new, float(mean @ (old - new))


def _squared(rows: Floats) -> Floats:
    return rows.T @ rows / len(rows)


@torch.inference_mode()
def moved(checkpoint: Checkpoint, slides: Sequence[LabelledSlide], changes: Sequence[str]) -> tuple[Floats, Moves]:
    """Return features of tiles as training cuts them, [n, channels], and how changes move them.

    Pixels are changed as the slide holds them, as a scanner would, before they are shown as the network sees them.
    """
    classifier, side = load_classifier(checkpoint), WIDE * checkpoint.tile_px
    y, x = np.meshgrid(*[(2 * np.arange(WIDE) + 1) / WIDE - 1] * 2, indexing="ij")
    grid = torch.tensor(np.stack([x, y], -1)[None]).float()

    def features(pixels: NDArray[np.uint8], side: int) -> Floats:
        with torch.autocast("cpu", torch.bfloat16):
            cells = classifier.backbone(classifier.normalised(torch.tensor(_shown(pixels, side))[None])).float()
        tiles = around_cells(cells, checkpoint.tile_px // CELL_PX)
        found: Floats = functional.grid_sample(tiles, grid, align_corners=False)[0].flatten(1).T.double().numpy()
        return found

    first: list[Floats] = []
    moves: dict[str, list[Floats]] = {change: [] for change in changes}
    for window in (window for slide in slides for window in _windows(slide, checkpoint)):
        tiles = _shown(window, side).reshape(WIDE, checkpoint.tile_px, WIDE, checkpoint.tile_px, 3)
        is_tissue = (tiles.mean((1, 3)).min(-1) < GLASS).ravel()
        first.append(features(window, side)[is_tissue])
        for change in changes:
            changed = SCANNER[change](window)
            moves[change].append(features(changed, round(side * len(changed) / len(window)))[is_tissue] - first[-1])
    return np.concatenate(first), {change: np.concatenate(some) for change, some in moves.items()}


def _windows(slide: LabelledSlide, checkpoint: Checkpoint) -> Iterator[NDArray[np.uint8]]:
    """Yield some windows around tiles of a slide, in its own pixels."""
    corners = slide.open().tiles.corners[slide.places]
    with Slide(slide.path) as source:
        tile = checkpoint.tile_px * checkpoint.mpp / source.mpp[0]
        for number in range(1, WINDOWS + 1):
            x, y = corners[number * len(corners) // (WINDOWS + 1)] - WIDE // 2 * tile
            yield source.read_level(0, (round(x), round(y)), (round(WIDE * tile),) * 2)


def _shown(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


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
