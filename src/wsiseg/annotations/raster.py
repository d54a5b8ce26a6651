"""Truth as images: PNG and TIFF masks, NGFF labels (heatmaps of wsiseg among them), and the paper's published maps."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.classes import AnnotationError, Classes, ZeroedMapError, unknown_classes
from wsiseg.annotations.coverage import Mask
from wsiseg.annotations.published_maps import THRESHOLD, is_published_map, is_zeroed, probabilities
from wsiseg.run.errors import SlideError
from wsiseg.slides.slide import Slide, SlideFacts

_MOST_PIXELS = 89_000_000  # of a mask held in memory, Pillow's own limit; pyramids are read from a coarser level
_BLOCK_PX = 4096
_SAME_SHAPE = 1.5  # a mask may miss the slide's proportions by so many of its own pixels
_SAME_SIZE = 0.01  # pixel sizes may differ by this share


def read_mask(path: Path, slide: SlideFacts, classes: Classes, mpp: float | None) -> Mask:
    """Read a mask image.

    Args:
        path: A PNG or TIFF file with one channel, 0 where there is nothing.
        slide: The slide that it belongs to.
        classes: Which values mean tumour; without it there may be only one besides 0.
        mpp: Micrometers per mask pixel; where it is not given, the mask covers the whole slide.

    Raises:
        AnnotationError: No such image, the wrong proportions, colours, or several values and nothing said of them.
    """
    values = image_values(path, slide)
    is_colored = values.ndim > 2  # noqa: PLR2004  channels
    tumor = _published(path.name, values) if is_colored else _tumor_values(path.name, values, classes, {})
    rows, columns = tumor.shape
    step = (mpp / slide.mpp[0], mpp / slide.mpp[1]) if mpp else whole_slide_step(path.name, slide, (columns, rows))
    return Mask(tumor, step)


def whole_slide_step(name: str, slide: SlideFacts, size: tuple[int, int]) -> tuple[float, float]:
    """Give the level-0 pixels per pixel along x and y of an image that covers a whole slide.

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
        raise AnnotationError(f"{name}: its {what}", "give --truth-mpp, the um per pixel of the masks")
    return across, down


def read_labels(path: Path, slide: SlideFacts, classes: Classes) -> tuple[Mask, tuple[str, ...]]:
    """Read an NGFF label image, or the labels inside an NGFF image such as a heatmap of wsiseg.

    Returns:
        The tumour, and what a person should know.

    Raises:
        AnnotationError: There are no labels, or nothing says which mean tumour.
        ZeroedMapError: It is the published map of a normal slide.
    """
    import zarr  # noqa: PLC0415  heavy: only where NGFF is read

    try:
        root = zarr.open_group(str(path), mode="r")
        group, own = _label_group(root), cast("dict[str, Any]", root.attrs.get("wsiseg", {}))
        about = cast("dict[str, Any]", group.attrs.get("ome", group.attrs.asdict()))
        image = about["multiscales"][0]
        level = next(one for one in image["datasets"] if group[one["path"]].size <= _MOST_PIXELS)
        stored = np.asarray(group[level["path"]][...])
        rows, columns = stored.shape[-2:]
        values = stored.reshape(rows, columns)
        names = {
            int(one["label-value"]): str(one.get("class", "")) for one in about["image-label"].get("properties", [])
        }
        step, offset = _place(image["axes"], level, slide, (columns, rows)) or (
            whole_slide_step(path.name, slide, (columns, rows)),
            (0.0, 0.0),
        )
    except StopIteration as error:
        raise AnnotationError(f"{path.name}: its labels are too large", "add smaller levels") from error
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise AnnotationError(f"{path.name}: no NGFF labels: {error}", "give a folder with labels") from error
    if own.get("model", {}).get("zeroed_by_hand"):
        raise _zeroed(path.name)
    return Mask(_tumor_values(path.name, values, classes, names), step, offset), _differences(path.name, own, slide)


def _label_group(root: Any) -> Any:  # noqa: ANN401  zarr groups
    """Give the label image: the group itself, or `segmentation` or the first of those that it lists."""
    about = root.attrs.get("ome", root.attrs.asdict())
    if "image-label" in about:
        return root
    listed = root["labels"].attrs
    names = listed.get("ome", listed.asdict())["labels"]
    return root["labels"]["segmentation" if "segmentation" in names else names[0]]


def _place(
    axes: Sequence[Mapping[str, Any]],
    level: Mapping[str, Any],
    slide: SlideFacts,
    size: tuple[int, int],
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Give step and offset in level-0 pixels of a level of an NGFF image; None where it has no unit of length.

    A translation is that of the first pixel's centre; without one the image begins at the slide's corner.
    """
    if any(axis.get("unit") != "micrometer" for axis in axes[-2:]):
        return None
    steps = {one["type"]: one[one["type"]] for one in level["coordinateTransformations"]}
    scale = (float(steps["scale"][-1]), float(steps["scale"][-2]))
    step = (scale[0] / slide.mpp[0], scale[1] / slide.mpp[1])
    if "translation" not in steps:
        return step, (0.0, 0.0)
    centre = (float(steps["translation"][-1]) / slide.mpp[0], float(steps["translation"][-2]) / slide.mpp[1])
    offset = [_rounded(at - one / 2 + 0.5, one, count) for at, one, count in zip(centre, step, size, strict=True)]
    return step, (offset[0], offset[1])


def _rounded(offset: float, step: float, count: int) -> float:
    """Take an offset for 0 that is only there because numbers were written with few digits."""
    return 0.0 if abs(offset) < 1e-6 * step * count else offset


def _differences(name: str, own: Mapping[str, Any], slide: SlideFacts) -> tuple[str, ...]:
    """Say where another heatmap's slide is not that of the prediction."""
    stored = own.get("slide", {})
    notes = []
    if stored and list(stored["size_px"]) != list(slide.size_px):
        notes.append(f"{name}: its slide has {stored['size_px']} pixels, that of the prediction {list(slide.size_px)}")
    if stored and abs(stored["mpp"][0] / slide.mpp[0] - 1) > _SAME_SIZE:
        notes.append(f"{name}: its slide has {stored['mpp'][0]:g} um/px, that of the prediction {slide.mpp[0]:g}")
    return tuple(notes)


def _tumor_values(
    name: str,
    values: NDArray[Any],
    classes: Classes,
    names: Mapping[int, str],
) -> NDArray[np.bool_]:
    """Choose the values that mean tumour, by their names or as numbers.

    Raises:
        AnnotationError: Nothing says which they are.
    """
    present = [int(value) for value in np.unique(values) if value]
    signs = {value: classes.sign(names.get(value, str(value))) for value in present}
    if not classes.tumor and not names and len(present) == 1:
        signs = {present[0]: 1}
    unknown = [names.get(value, str(value)) for value, sign in signs.items() if sign is None]
    if unknown and 1 not in signs.values():
        raise unknown_classes(name, unknown)
    return np.isin(values, [value for value, sign in signs.items() if sign == 1])


def _published(name: str, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Give the tumour of a published map; of the raw ones as the authors cut them.

    Raises:
        AnnotationError: It is another coloured image, or the map of a normal slide.
    """
    if not is_published_map(pixels):
        raise AnnotationError(f"{name}: a mask has one channel, this has colours", "save it in grey levels")
    values = probabilities(pixels)
    if is_zeroed(name, values):
        raise _zeroed(name)
    tumor: NDArray[np.bool_] = np.nan_to_num(values) > THRESHOLD
    return tumor


def _zeroed(name: str) -> ZeroedMapError:
    return ZeroedMapError(f"{name}: a map of normal tissue that was set to zero by hand is no truth")


def image_values(path: Path, slide: SlideFacts) -> NDArray[np.uint8]:
    """Read a mask as it is stored: [rows, columns], or [rows, columns, 3] where it has colours.

    Raises:
        AnnotationError: It is no image, or too large.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  heavy: only where pixels are touched

    too_large = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            if image.mode in {"1", "I;16", "I", "L", "P"}:
                return np.asarray(image)
            values = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, *too_large) as error:
        if path.suffix.lower() in {".tif", ".tiff"}:
            return _coarser(path, slide)
        raise AnnotationError(f"{path.name}: cannot be read as a mask: {error}", "save it as PNG or TIFF") from error
    is_gray = bool((values == values[..., :1]).all())
    return values[..., 0] if is_gray else values


def _coarser(path: Path, slide: SlideFacts) -> NDArray[np.uint8]:
    """Read the finest level of a pyramidal TIFF mask that fits in memory, by blocks."""
    try:
        with Slide(path, mpp=slide.mpp[0]) as mask:
            levels = [mask.size_px[0] / width for width, _ in mask.level_sizes_px]
            down = next((one for one in levels if math.prod(mask.size_px) / one**2 <= _MOST_PIXELS), None)
            if down is None:
                raise AnnotationError(
                    f"{path.name}: too large for a mask without smaller levels", "store it at 4 um/px"
                )
            columns, rows = (math.ceil(side / down) for side in mask.size_px)
            values = np.empty((rows, columns), np.uint8)
            for row in range(0, rows, _BLOCK_PX):
                for column in range(0, columns, _BLOCK_PX):
                    part = values[row : row + _BLOCK_PX, column : column + _BLOCK_PX]
                    size = (part.shape[1], part.shape[0])
                    part[:] = mask.read(column * down, row * down, size, down * slide.mpp[0])[..., 0]
            return values
    except SlideError as error:
        raise AnnotationError(f"{path.name}: cannot be read as a mask: {error.message}", "save it as PNG") from error
