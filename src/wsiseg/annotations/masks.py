"""Masks as images: what a person sees as marked is marked, however a program stored it.

Black, and what is transparent, is background. Where a picture can be meant in two ways it is refused, or a note says
how it was read. `docs/reference/inputs.md` has the rule for every kind of image.

Among them are the tumour maps that Lerousseau et al. 2020 published (https://github.com/marvinler/tcga_segmentation,
folder `results`): one PNG a slide, one pixel a tile. Red is floor(255 p), green 0, blue 255 on tissue and 0 elsewhere.
In the thresholded twins red is 255 where p > 0.3. A pixel is 448 level-0 pixels whatever the magnification. The maps of
normal slides (sample codes 10-14) were set to zero by hand, so they say nothing about false alarms.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.classes import Classes, unknown_classes
from wsiseg.annotations.coverage import NOTHING, Mask, Truth
from wsiseg.annotations.mask_files import COLORED, MOST_VALUES, PAINT, Stored, bands, counted, stored
from wsiseg.annotations.outlines import AnnotationError
from wsiseg.run.errors import UsageError, shortened
from wsiseg.slides import barcode
from wsiseg.slides.slide import SlideFacts

_TISSUE = 255  # the blue of tissue
STEP_PX = 448
"""Level-0 pixels per pixel of a published map."""
THRESHOLD = 0.3
"""The authors called tumour what lies above it."""

Booleans = NDArray[np.bool_]
_SAME_SHAPE = 1.5  # a mask may miss the slide's proportions by so many of its own pixels
_SOFT_FROM, _SOFT_VALUES, _EDGE = 100, 8, 0.1  # of soft edges: brightest value, distinct values, what is near an end
_SHOWN = 6


class ZeroedMapError(AnnotationError):
    """A published map of normal tissue, set to zero by hand: it is left out, not failed."""


def read_mask(path: Path, slide: SlideFacts, classes: Classes, mpp: float | None) -> Truth:
    """Read what a mask image says of tumour.

    Args:
        path: A PNG or TIFF file.
        slide: The slide that it belongs to.
        classes: Which values mean tumour; without it there may be only one besides 0.
        mpp: Micrometers per mask pixel; where it is not given, the mask covers the whole slide.

    Raises:
        AnnotationError: No such image, the wrong proportions, or it is not clear what is marked.
    """
    image = stored(path)
    step = _step(path.name, slide, image, mpp)
    published = _published(path.name, image)
    if published is not None:
        return Truth(Mask(published, step), notes=tuple(f"{path.name}: {note}" for note in image.notes))
    labels, notes = _labels(path.name, image, is_named=bool(classes.tumor or classes.ignored))
    tumor, ignored, names = chosen(path.name, labels, classes, {})
    return Truth(Mask(tumor, step), Mask(ignored, step) if ignored.any() else NOTHING, notes, names)


def read_region(path: Path, slide: SlideFacts, mpp: float | None = None) -> tuple[Mask, tuple[str, ...]]:
    """Read a region from a mask image: every label in it counts; arguments and errors as those of `read_mask`."""
    image = stored(path)
    labels, notes = _labels(path.name, image, is_named=False)
    return Mask(labels > 0, _step(path.name, slide, image, mpp)), notes


def _step(name: str, slide: SlideFacts, image: Stored, mpp: float | None) -> tuple[float, float]:
    rows, columns = image.values.shape
    if mpp is None:
        return whole_slide_step(name, slide, (columns, rows))
    return mpp * image.reduced / slide.mpp[0], mpp * image.reduced / slide.mpp[1]


def whole_slide_step(name: str, slide: SlideFacts, size: tuple[int, int]) -> tuple[float, float]:
    """Return the level-0 pixels per pixel along x and y of an image that covers a whole slide.

    Whole steps that explain both sides of the image, the last pixel being cut, come before stretched ones.

    Raises:
        AnnotationError: The image has other proportions than the slide.
    """
    sides = list(zip(slide.size_px, size, strict=True))
    least = max(-(-full // part) for full, part in sides)
    most = min((full - 1) // (part - 1) if part > 1 else full for full, part in sides)
    if least <= most:
        # Of several, programs choose those that are rounder in binary: 448 rather than 443.
        step = max(range(least, most + 1), key=lambda step: (step & -step, -step))
        return float(step), float(step)
    across, down = (full / part for full, part in sides)
    if abs(across - down) > _SAME_SHAPE * max(across / size[0], down / size[1]):
        what = f"{size[0]}x{size[1]} pixels do not cover the slide's {slide.size_px[0]}x{slide.size_px[1]}"
        raise AnnotationError(f"{name}: its {what}", "give a mask of the whole slide, or for truth its truth-mpp")
    return across, down


def chosen(
    name: str, labels: NDArray[Any], classes: Classes, names: Mapping[int, str]
) -> tuple[Booleans, Booleans, frozenset[str]]:
    """Choose the labels that mean tumour and those that are ignored, by their names or as numbers.

    Returns:
        Where they are, and the names of all labels that are there or have one.

    Raises:
        AnnotationError: Nothing says which mean tumour.
    """
    present = [int(value) for value in counted(labels)[0] if value]
    meanings = {value: classes.meaning(names.get(value, str(value))) for value in present}
    left = [value for value, meaning in meanings.items() if meaning != "ignored"]
    if not classes.tumor and not names and len(left) == 1:
        meanings[left[0]] = "tumor"
    unknown = [names.get(value, str(value)) for value, meaning in meanings.items() if meaning == "unknown"]
    if unknown and "tumor" not in meanings.values():
        raise unknown_classes(name, unknown)
    tumor, ignored = np.zeros((2, *labels.shape), np.bool_)
    for area, wanted in ((tumor, "tumor"), (ignored, "ignored")):
        values = [value for value, meaning in meanings.items() if meaning == wanted]
        for band in bands(labels) if values else ():
            area[band] = np.isin(labels[band], values)
    return tumor, ignored, frozenset([*names.values(), *(names.get(value, str(value)) for value in present)])


def _published(name: str, image: Stored) -> Booleans | None:
    """Return the tumour of a published map, as the authors cut the raw ones; None for other images."""
    if image.colors is None or not is_published_map(image.colors[None, :, :3]):
        return None
    if not (image.colors[:, 0].any() or ".svs" in name):
        return None  # blue on black, as anybody may paint
    values = probabilities(image.colors[:, :3][image.values])
    if is_zeroed(name, values):
        raise zeroed(name)
    tumor: Booleans = np.nan_to_num(values) > THRESHOLD
    return tumor


def is_published_map(pixels: NDArray[np.uint8]) -> bool:
    """Tell whether an image (uint8[rows, columns, 3]) is laid out as a published map, with red on blue only."""
    red, green, blue = np.moveaxis(pixels, 2, 0)
    return not green.any() and bool((blue[red > 0] == _TISSUE).all() and np.isin(blue, (0, _TISSUE)).all())


def probabilities(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities of a published map: float32[rows, columns], NaN off the tissue."""
    values: NDArray[np.float32] = np.where(pixels[..., 2] > 0, pixels[..., 0] / np.float32(255), np.nan)
    return values.astype(np.float32)


def is_zeroed(name: str, values: NDArray[np.float32]) -> bool:
    """Tell whether a map is that of a normal slide, set to zero by hand."""
    try:
        is_normal = barcode.label(name) == 0
    except UsageError:
        return False
    return is_normal and not np.nan_to_num(values).any()


def zeroed(name: str) -> ZeroedMapError:
    """Make the error for a map that was set to zero by hand."""
    return ZeroedMapError(f"{name}: a map of normal tissue that was set to zero by hand is not truth")


def _labels(name: str, image: Stored, *, is_named: bool) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return the label of every pixel, 0 where nothing is marked, and how the image was read.

    Labels that the user names (`is_named`) stay as they are.
    """
    notes = list(image.notes)
    values = image.values if image.colors is None else _by_colors(name, image, image.colors, notes, is_named=is_named)
    labels = _settled(name, values, notes, is_named=is_named)
    return labels, tuple(f"{name}: {note}" for note in notes)


def _by_colors(
    name: str, image: Stored, colors: NDArray[np.uint8], notes: list[str], *, is_named: bool
) -> NDArray[Any]:
    """Return grey values or labels of an image of few colours; what is transparent in it is black."""
    index, used, is_shown = image.values, counted(image.values)[0], colors[:, 3] > 0
    shown = used[is_shown[used]]
    if not len(shown):
        raise AnnotationError(f"{name}: is transparent everywhere", PAINT)
    if len(shown) < len(used):
        if (colors[shown, :3] == colors[shown[0], :3]).all():
            notes.append("what is opaque in it is marked")
            return np.asarray(is_shown[index])
        notes.append("what is transparent in it is background")
    shades = np.where(is_shown[:, None], colors[:, :3], 0).astype(np.uint8)
    has_hue = np.ptp(shades.astype(np.int16), axis=1) > COLORED
    if not has_hue[used].any():
        notes += ["was read by the colours of its palette, not by their order"] if image.has_palette else []
        return np.asarray(shades[:, 1][index])
    texts = {f"#{bytes(shades[number]).hex()}": bool(has_hue[number]) for number in used}
    if sorted(texts.values()) == [False, True]:  # a colour and its background
        notes.append(f"what has the colour {max(texts, key=lambda text: texts[text])} is marked")
        return np.asarray(has_hue[index])
    if image.has_palette and (is_named or not has_hue[0]) and (len(shown) == len(used) or 0 not in shown):
        notes.append("its labels are the numbers of its palette's colours")
        return np.asarray(np.where(is_shown, np.arange(len(colors), dtype=np.uint8), 0)[index])
    listed = ", ".join(shortened(sorted(texts), _SHOWN))
    raise AnnotationError(f"{name}: its colours do not say what is marked: {listed}", PAINT)


def _settled(name: str, values: NDArray[Any], notes: list[str], *, is_named: bool) -> NDArray[Any]:
    """Return labels of grey values; where these are soft edges, what is at least half as bright as the brightest."""
    found, counts = counted(values)
    is_whole = np.issubdtype(values.dtype, np.integer)
    if found[0] < 0:
        raise AnnotationError(f"{name}: has values below 0", PAINT)
    if len(found) <= 2 and found[0] == 0 and not is_named:  # noqa: PLR2004  nothing and one label
        return values > 0
    if not _is_soft(found, counts, is_whole=is_whole):
        if (found % 1).any() or len(found) == MOST_VALUES:
            raise AnnotationError(f"{name}: has many different values", PAINT)
        return values if is_whole else values.astype(np.int32)
    if is_named:
        raise AnnotationError(f"{name}: has soft edges, so its values are not classes", "store it without loss")
    notes.append("has soft edges; what is at least half as bright as its brightest pixel is marked")
    return np.asarray(values >= found[-1] / 2)


def _is_soft(values: NDArray[Any], counts: NDArray[np.int64], *, is_whole: bool) -> bool:
    """Tell soft edges between two values from labels by the values, ascending, and their numbers of pixels."""
    top = float(values[-1])
    low, high = values <= _EDGE * top, values >= (1 - _EDGE) * top
    between = ~low & ~high
    if is_whole and top < _SOFT_FROM:
        return False
    if not between.any():
        return bool(high.sum() > 1)
    return len(values) >= _SOFT_VALUES and bool(counts[between].sum() <= counts[high].sum())
