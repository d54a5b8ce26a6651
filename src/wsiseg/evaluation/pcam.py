"""PatchCamelyon with the protocol of Lerousseau et al. 2020.

The patches are 96 x 96 pixels at 10x (0.97 um/px); they are doubled by bilinear interpolation to 192 pixels and padded
with zeros to the model's tile, so that the model sees them at its own magnification. A patch is tumour if any pixel of
its central 32 x 32 is.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation.comparison import Compared
from wsiseg.evaluation.intervals import Resamples, single_curve
from wsiseg.evaluation.measures import Estimate, number, reliability_table
from wsiseg.evaluation.metrics_file import Report, Threshold
from wsiseg.mathematics import metrics
from wsiseg.mathematics.metrics import Curve, Pixels
from wsiseg.model_file.model_file import ModelFile, default_model_path
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.outputs import written_whole
from wsiseg.run.record import Progress
from wsiseg.slides.cohort import CohortSlide
from wsiseg.slides.table import is_missing
from wsiseg.tiles import pcam_files

SIDE_PX = 96
_SPLITS: dict[str, pcam_files.Split] = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}
_PATCHES_AT_A_TIME = 64
_SAVED_EVERY = 1024  # patches, which take a minute or so


@dataclass(frozen=True)
class Patches:
    """Probabilities beside labels.

    Attributes:
        probabilities: float32[n].
        labels: bool[n].
        slides: The slide of every patch, where the file that says so lies beside the others.
    """

    probabilities: NDArray[np.float32]
    labels: NDArray[np.bool_]
    slides: tuple[str, ...] | None

    def pixels(self, chosen: slice | NDArray[np.intp] = slice(None)) -> Pixels:
        """Return some of the patches, each as one pixel."""
        labels = self.labels[chosen].astype(np.float64)
        return Pixels.of(self.probabilities[chosen], labels, 1 - labels)


def evaluate_pcam(config: EvaluateConfig, progress: Progress) -> tuple[Report, Compared]:
    """Run the protocol and measure what comes out.

    Args:
        config: The settings.
        progress: Who watches.

    Returns:
        The report, with the same figures without and with background as a patch has none; and the patches as one slide.

    Raises:
        UsageError: There is no such split, file or extra.
        WsisegError: A file cannot be read.
    """
    assert config.pcam is not None  # noqa: S101  the settings were checked
    assert config.model is not None  # noqa: S101  the settings were checked
    folder, split = config.pcam, _SPLITS.get(config.split or "test")
    if split is None:
        raise UsageError(f"PatchCamelyon has no split {config.split}", "its splits are train, val and test")
    place = default_model_path() if str(config.model) == "default" else config.model
    with ModelFile.open(place, config.device) as model:
        kept = config.out / f"pcam-{split}.npz" if config.out else None
        patches = run_protocol(folder, model, split, progress, kept)
    source = "model" if config.threshold is None else "option"
    value = model.card.threshold if config.threshold is None else config.threshold
    block, unit = _measured(config, patches, value)
    pixels, count, full = patches.pixels(), len(patches.labels), pcam_files.PATCHES[split]
    report = Report(
        run=str(folder),
        unit="patch",
        split=split,
        without_background=block,
        with_background=block,
        reliability=reliability_table([pixels]),
        threshold=Threshold(value=value, source=source),
        settings={
            "resamples": config.resamples, "resampled": unit, "seed": config.seed,
            "model": model.card.name, "sha256": model.sha256,
        },
        notes=() if count == full else (f"the {split} split has {count} patches, the published one {full}",),
    )  # fmt: skip
    row = CohortSlide(slide=f"pcam-{split}", path=folder, case=f"pcam-{split}")
    return report, Compared(row, value, None, pixels, (0.0, 0.0), None, None, ())


def _measured(config: EvaluateConfig, patches: Patches, threshold: float) -> tuple[dict[str, Any], str]:
    """Measure patches; also return what was resampled."""
    pixels = patches.pixels()
    curve = metrics.curve([pixels], [threshold])
    resampled, unit = _resampled(config, patches, threshold)
    again, measures = metrics.measures(resampled, threshold), metrics.measures(curve, threshold)
    count = len(patches.labels)
    return {
        **{name: Estimate(float(value), again[name]).as_json() for name, value in measures.items()},
        "brier": {"value": number(metrics.squared_error(pixels) / pixels.total), "ci95": None},
        "tumor_px": float(curve.positive),
        "other_px": float(curve.negative),
        "slides": count,
        "expected_slides": count,
        "cases": len(set(patches.slides or ())) or count,
    }, unit


def _resampled(config: EvaluateConfig, patches: Patches, threshold: float) -> tuple[Curve, str]:
    """Draw slides where it is known which patch is of which, otherwise patches."""
    if patches.slides is None:
        return single_curve(patches.pixels(), config.resamples, config.seed, [threshold]), "patch"
    slides, names = np.array(patches.slides), sorted(set(patches.slides))
    items = [patches.pixels(np.flatnonzero(slides == name)) for name in names]
    return Resamples.of(names, config.resamples, config.seed).curve(items, [threshold]), "slide"


def model_tiles(patches: NDArray[np.uint8], tile_px: int) -> NDArray[np.uint8]:
    """Double patches by bilinear interpolation and pad them with zeros, as PyTorch does with `align_corners=False`.

    Args:
        patches: uint8[n, side, side, 3].
        tile_px: Side of the result.

    Returns:
        uint8[n, tile_px, tile_px, 3].
    """
    doubled = upsampled(patches)
    before = (tile_px - doubled.shape[1]) // 2
    after = tile_px - doubled.shape[1] - before
    margins = ((0, 0), (before, after), (before, after), (0, 0))
    return np.pad(np.floor(doubled + 0.5).astype(np.uint8), margins)


def upsampled(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Double height and width by bilinear interpolation: float32[n, 2 height, 2 width, 3]."""
    values = patches.astype(np.float32)
    for axis in (1, 2):
        values = np.moveaxis(_doubled(np.moveaxis(values, axis, 0)), 0, axis)
    return values


def _doubled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Put two samples in place of each of the first axis, a quarter of the way to its neighbours; edges repeat."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    out = np.empty((2 * len(values), *values.shape[1:]), np.float32)
    out[0::2] = 0.75 * values + 0.25 * padded[:-2]
    out[1::2] = 0.75 * values + 0.25 * padded[2:]
    return out


def run_protocol(
    folder: Path,
    model: ModelFile,
    split: pcam_files.Split,
    progress: Progress,
    kept: Path | None,
) -> Patches:
    """Ask a model for every patch of a split; what was done before an interruption is not done again.

    Args:
        folder: Where the files lie, as published or unpacked.
        model: The model.
        split: `train`, `valid` or `test`.
        progress: Who watches.
        kept: A file for what is done so far; without it an interrupted run begins anew.

    Raises:
        UsageError: h5py is not installed, a file is missing, or the model's tiles are too small.
        WsisegError: A file cannot be read.
        ModelFileError: The model cannot compute.
    """
    tile = model.card.tile_px
    if tile < 2 * SIDE_PX:
        raise UsageError(f"{model.path}: its tiles of {tile} pixels are smaller than a doubled patch", "use 224 pixels")
    with _opened(folder, pcam_files.name(split, "y"), "y") as stored:
        labels = np.asarray(stored[...]).reshape(-1) > 0
    with _opened(folder, pcam_files.name(split, "x"), "x") as images:
        if images.shape != (len(labels), SIDE_PX, SIDE_PX, 3) or images.dtype != np.uint8:
            raise WsisegError(f"{folder}: the {split} split is not laid out as PatchCamelyon", "get the files again")
        probabilities = _asked(images, model, progress, kept)
    return Patches(probabilities, labels, _slides(folder, split, len(labels)))


def _asked(
    images: Any,  # noqa: ANN401  a data set of h5py, which has no types
    model: ModelFile,
    progress: Progress,
    kept: Path | None,
) -> NDArray[np.float32]:
    """Ask for all images of a data set, by slices, from where an interrupted run stopped."""
    file, count = Path(images.file.filename), len(images)
    key = f"{model.sha256} {file.name} {file.stat().st_size} {count}"
    probabilities = _restored(kept, key, count)
    progress.begin(1)
    progress.slide(file.stem, count)
    progress.advance(file.stem, len(probabilities))
    while len(probabilities) < count:
        part = np.asarray(images[len(probabilities) : len(probabilities) + _PATCHES_AT_A_TIME])
        probabilities = np.concatenate(
            [probabilities, model.answer(model_tiles(part, model.card.tile_px)).probabilities]
        )
        progress.advance(file.stem, len(part))
        if kept is not None and (len(probabilities) % _SAVED_EVERY == 0 or len(probabilities) == count):
            _keep(kept, key, probabilities)
    return probabilities


@contextmanager
def _opened(folder: Path, name: str, dataset: str) -> Iterator[Any]:
    """Open a data set of a file; links out of the file are refused."""
    try:
        import h5py  # noqa: PLC0415  an extra, and heavy
    except ImportError as error:
        raise UsageError("reading PatchCamelyon needs h5py", "pip install 'wsiseg[pcam]'") from error
    path = _unpacked(folder / name)
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get(dataset, getlink=True), h5py.HardLink):
                raise WsisegError(f"{path.name}: holds no data set {dataset}", "get the file again")
            found = file[dataset]
            if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
                raise WsisegError(f"{path.name}: {dataset} lies in other files", "get the file again")
            yield found
    except OSError as error:
        raise WsisegError(f"{path.name}: cannot be read as HDF5: {error}", "get the file again") from error


def _unpacked(path: Path) -> Path:
    """Unpack a published file beside itself, if only the packed one is there."""
    packed = path.with_name(path.name + ".gz")
    if path.exists():
        return path
    if not packed.exists():
        raise UsageError(f"{path}: no such file", "wsiseg fetch pcam gets it")
    with written_whole(path) as partial, gzip.open(packed) as source, partial.open("wb") as target:
        try:
            _copy(source, target)
        except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
            raise WsisegError(f"{packed.name}: cannot be unpacked: {error}", "get the file again") from error
    return path


def _copy(source: gzip.GzipFile, target: IO[bytes]) -> None:
    """Copy no more than the largest file of PatchCamelyon holds.

    Raises:
        ValueError: There is more.
    """
    most = max(pcam_files.PATCHES.values()) * SIDE_PX**2 * 3 + 2**26
    while block := source.read(2**20):
        target.write(block)
        if target.tell() > most:
            raise ValueError("it unpacks to more than PatchCamelyon holds")


def _restored(kept: Path | None, key: str, count: int) -> NDArray[np.float32]:
    """Read what an interrupted run of the same model on the same file left behind."""
    none = np.empty(0, np.float32)
    if kept is None or not kept.exists():
        return none
    try:
        with np.load(kept, allow_pickle=False) as stored:
            done, same = stored["probabilities"].astype(np.float32), str(stored["key"]) == key
    except (OSError, ValueError, KeyError, EOFError):
        return none
    return done[:count] if same else none


def _keep(kept: Path, key: str, probabilities: NDArray[np.float32]) -> None:
    with written_whole(kept) as partial, partial.open("wb") as file:
        np.savez(file, probabilities=probabilities, key=np.array(key))


def _slides(folder: Path, split: pcam_files.Split, count: int) -> tuple[str, ...] | None:
    """Read which slide every patch came from, if the file that says so is there."""
    import csv  # noqa: PLC0415  only where the file is there

    path = folder / f"camelyonpatch_level_2_split_{split}_meta.csv"
    if not path.exists():
        return None
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = tuple(str(row.get("wsi") or "") for row in csv.DictReader(file))
    return names if len(names) == count and not any(map(is_missing, names)) else None
