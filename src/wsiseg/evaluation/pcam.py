"""PatchCamelyon: patches of 96 x 96 pixels at 0.972 um/px, tumour if any pixel of the central 32 x 32 is.

A model of about 1 um/px sees them as they are. The protocol of Lerousseau et al. 2020, for models of about 0.5 um/px,
doubles them by bilinear interpolation and pads them with zeros to the model's tile.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.config.evaluate import EvaluateConfig, PcamScale
from wsiseg.evaluation.comparison import Compared
from wsiseg.evaluation.measures import MODES, Judging, pooled_measures, reliability_table
from wsiseg.evaluation.metrics_file import Report, Threshold
from wsiseg.mathematics.metrics import Pixels
from wsiseg.model_file.answer import of_views
from wsiseg.model_file.model_file import ModelFile, model_path
from wsiseg.run.errors import UsageError, WsisegError, counted
from wsiseg.run.outputs import load_arrays, save_arrays
from wsiseg.run.record import Progress
from wsiseg.slides.cohort import CohortSlide
from wsiseg.slides.table import is_missing
from wsiseg.tiles import pcam_files
from wsiseg.tiles.pcam_files import MPP, SIDE_PX

_SPLITS: dict[str, pcam_files.Split] = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}
_PATCHES_AT_A_TIME = 64
_SAVED_EVERY = 1024  # patches, which take a minute or so
_KEPT = ("probabilities", "distances")


@dataclass(frozen=True)
class Patches:
    """What a model says of patches, beside their labels."""

    probabilities: NDArray[np.float32]  # float32[n]
    labels: NDArray[np.bool_]  # bool[n]
    unknown: NDArray[np.bool_] | None  # bool[n], the patches of unknown tissue; None where the model cannot tell
    slides: NDArray[np.str_] | None  # str[n], the slide of every patch; None where no file beside the others says so

    def without(self, left_out: NDArray[np.bool_]) -> list[Compared]:
        """Return the patches as the pixels of their slides, or of one where nobody knows these; some are not judged."""
        names = np.full(len(self.labels), "pcam") if self.slides is None else self.slides
        slides = []
        for name in np.unique(names).tolist():
            kept, out = (np.flatnonzero((names == name) & (left_out == is_out)) for is_out in (False, True))
            labels = self.labels[kept].astype(np.float64)
            pixels, tumor = Pixels.of(self.probabilities[kept], labels, 1 - labels), int(self.labels[out].sum())
            unknown = float(tumor), float(len(out) - tumor)
            row = CohortSlide(slide=name, path=Path(), case=name)
            slides.append(Compared(row, 0.0, None, pixels, (0.0, 0.0), unknown, None, ()))
        return slides


def evaluate_pcam(config: EvaluateConfig, progress: Progress) -> tuple[Report, list[Compared]]:
    """Ask a model for all patches of a split and measure its answers; the patches come as the pixels of slides.

    A patch has no background: the figures without and with it are the same. What is raised is that of `evaluate`.
    """
    assert config.pcam is not None  # noqa: S101  the settings were checked
    assert config.model is not None  # noqa: S101  the settings were checked
    folder, split = config.pcam, _SPLITS.get(config.split or "test")
    if split is None:
        raise UsageError(f"PatchCamelyon has no split {config.split}", "choose train, val or test")
    place = model_path(config.model)
    with ModelFile.open(place, config.device) as model:
        if model.card.thresholds:
            raise UsageError(f"{place}: gives {', '.join(model.card.given)}", "PatchCamelyon is for one class")
        view = View.of(model, config.pcam_scale, config.views)
        kept = config.out / f"pcam-{split}.npz" if config.out else None
        patches = _answers(folder, split, model, view, progress, kept)
    own, asked = Threshold(value=model.card.threshold, source="model"), config.threshold
    threshold = own if asked is None else Threshold(value=asked, source="option")
    count, full = len(patches.labels), pcam_files.PATCHES[split]
    part = f"the {split} split has {counted(count, 'patch')}, the published one {full:,}"
    how = {"native": "as they are", "doubled": "doubled, as in the paper"}[view.scale]
    size = f"in images of {view.side_px} px, to a model of {model.card.mpp:g} um/px"
    turns = "" if view.turns == 1 else f", the mean over {view.turns} views of each"
    shown = f"patches of {MPP} um/px shown {how}, {size}{turns}"
    whole = patches.without(np.zeros(count, np.bool_))
    report = Report(
        run=str(folder),
        unit="patch",
        split=split,
        threshold=threshold,
        settings={
            "resamples": config.resamples, "resampled": "patch" if patches.slides is None else "slide",
            "seed": config.seed, "model": model.card.name, "sha256": model.sha256,
            "scale": view.scale, "image_px": view.side_px, "views": view.turns,
        },
        notes=(shown, *((part,) if count != full else ())),
        reliability=reliability_table([one.tissue for one in whole]),
        **_figures(config, patches, whole, threshold),
    )  # fmt: skip
    return report, whole


@dataclass(frozen=True)
class View:
    """How a model sees patches."""

    scale: PcamScale  # `native` or `doubled`
    side_px: int  # side of the images; what is beyond the patch is zero
    turns: int = 1  # turned and mirrored views of each image, whose answers are averaged

    @classmethod
    def of(cls, model: ModelFile, scale: PcamScale | None, turns: int = 1) -> Self:
        """Choose the scale that is nearer to the model's um/px, unless one is asked for, and the side.

        A dense model sees native patches without padding, which would be most of what it sees.
        """
        card = model.card
        scale = scale or ("native" if card.mpp > MPP / 2**0.5 else "doubled")
        is_dense = card.output_stride is not None and card.window_px is None
        patch_px = SIDE_PX * (1 + (scale == "doubled"))
        if card.tile_px < patch_px and not is_dense:
            advice = {"doubled": "set pcam-scale to native in the --config file"}
            text = f"{model.path}: its tiles of {card.tile_px} pixels are smaller than a patch of {patch_px}"
            raise UsageError(text, advice.get(scale, "use a model of larger tiles"))
        return cls(scale, patch_px if is_dense and scale == "native" else max(patch_px, card.tile_px), turns)

    def images(self, patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Double patches, if that is asked for, and pad them with zeros: uint8[n, side_px, side_px, 3]."""
        shown = patches if self.scale == "native" else np.floor(doubled(patches) + 0.5).astype(np.uint8)
        before = (self.side_px - shown.shape[1]) // 2
        margin = (before, self.side_px - shown.shape[1] - before)
        return np.pad(shown, ((0, 0), margin, margin, (0, 0)))


def doubled(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Double height and width by bilinear interpolation, as PyTorch does with `align_corners=False`; as float32."""
    from PIL import Image  # noqa: PLC0415  only here

    count, height, width, _ = patches.shape
    planes = np.moveaxis(patches.astype(np.float32), -1, 1).reshape(-1, height, width)
    size = 2 * width, 2 * height
    larger = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR)) for one in planes]
    return np.moveaxis(np.stack(larger).reshape(count, 3, 2 * height, 2 * width), 1, -1)


def _figures(
    config: EvaluateConfig, patches: Patches, whole: Sequence[Compared], threshold: Threshold
) -> dict[str, dict[str, Any] | None]:
    """Measure all patches, as the protocol has it, and those of known tissue; the fields of a report."""
    singly = patches.slides is None
    judging = Judging(threshold, {}, config.resamples, config.seed, singly=singly)
    everything, known, share = _block(whole, judging), None, None
    if patches.unknown is not None:
        known = _block(patches.without(patches.unknown), judging)
        share = known["unknown_share"]
    for name in ("unknown_share", "unknown_tumor_share", "unknown_other_share"):
        del everything[name]
    everything |= {} if share is None else {"unknown_share": share}
    judged = known if known is not None and known["slides"] else None
    return {"without_background": everything, "with_background": everything, "judged": judged, "unknown_share": share}


def _block(slides: Sequence[Compared], judging: Judging) -> dict[str, Any]:
    """Measure patches as the pixels of slides; what is counted is patches."""
    block = pooled_measures(slides, judging)[MODES[0]]
    count = round(block["tumor_px"] + block["other_px"])
    return block | {"slides": count, "expected_slides": count, "cases": count if judging.singly else block["cases"]}


def _answers(
    folder: Path, split: pcam_files.Split, model: ModelFile, view: View, progress: Progress, kept: Path | None
) -> Patches:
    """Ask for every patch of a split; what was done before an interruption, and is in `kept`, is not done again."""
    with pcam_files.opened(folder, split, "y") as stored:
        labels = np.asarray(stored[...]).reshape(-1) > 0
    with pcam_files.opened(folder, split, "x") as images:
        if images.shape != (len(labels), SIDE_PX, SIDE_PX, 3) or images.dtype != np.uint8:
            raise WsisegError(f"{folder}: the {split} split is not laid out as PatchCamelyon", "get the files again")
        probabilities, distances = _asked(images, model, view, progress, kept).T
    unknown = None if model.limit is None else distances > model.limit
    return Patches(probabilities, labels, unknown, _slides(folder, split, len(labels)))


def _asked(images: Any, model: ModelFile, view: View, progress: Progress, kept: Path | None) -> NDArray[np.float32]:  # noqa: ANN401  a data set of h5py
    """Ask for all images of a data set, by slices, from where an interrupted run stopped.

    The answers, float32[n, 2], are probabilities and distances; the latter are NaN where the model cannot tell.
    """
    file, count = Path(images.file.filename), len(images)
    key = f"{model.sha256} {view} {file.name} {file.stat().st_size} {count}"
    known = load_arrays(kept, key) if kept is not None else None
    answers = np.empty((0, 2), np.float32) if known is None else np.stack([known[name] for name in _KEPT], axis=1)
    progress.begin(1)
    progress.slide(file.stem, count)
    progress.advance(file.stem, len(answers))
    while len(answers) < count:
        part = np.asarray(images[len(answers) : len(answers) + _PATCHES_AT_A_TIME])
        found, distances, _ = of_views(model.answer, view.images(part), view.turns)
        more = np.stack([found, np.full_like(found, np.nan) if distances is None else distances], axis=1)
        answers = np.concatenate([answers, more])
        progress.advance(file.stem, len(part))
        if kept is not None and (len(answers) % _SAVED_EVERY == 0 or len(answers) == count):
            save_arrays(kept, key, **dict(zip(_KEPT, answers.T, strict=True)))
    return answers


def _slides(folder: Path, split: pcam_files.Split, count: int) -> NDArray[np.str_] | None:
    """Read which slide every patch came from, if the file that says so is there."""
    path = folder / f"camelyonpatch_level_2_split_{split}_meta.csv"
    if not path.exists():
        return None
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = [str(row.get("wsi") or "") for row in csv.DictReader(file)]
    return np.array(names) if len(names) == count and not any(map(is_missing, names)) else None
