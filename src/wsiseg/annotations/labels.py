"""Truth as NGFF label images, heatmaps of wsiseg among them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from wsiseg.annotations.classes import Classes
from wsiseg.annotations.coverage import NOTHING, Mask, Truth
from wsiseg.annotations.masks import chosen, whole_slide_step, zeroed
from wsiseg.annotations.outlines import AnnotationError
from wsiseg.run.errors import DAMAGED
from wsiseg.slides.slide import SlideFacts

_MOST_BYTES = 2**30  # of labels held in memory; larger ones are read from a coarser level, or every nth
_SAME_SIZE = 0.01  # pixel sizes may differ by this share
_NOISE = 1e-6


def read_labels(path: Path, slide: SlideFacts, classes: Classes) -> Truth:
    """Read an NGFF label image, or the labels inside an NGFF image such as a heatmap of wsiseg.

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
        levels = [(level, group[level["path"]]) for level in image["datasets"]]
        level, array = next((one for one in levels if one[1].nbytes <= _MOST_BYTES), levels[-1])
        every = math.ceil(math.sqrt(max(1, array.nbytes / _MOST_BYTES)))
        values = _every(array, every)
        size = (values.shape[1], values.shape[0])
        properties = about["image-label"].get("properties", [])
        names = {int(one["label-value"]): str(one.get("class", "")) for one in properties}
        place, notes = _place(image["axes"], level, slide, size, every), _differences(path.name, own, slide)
        is_zeroed = own.get("model", {}).get("zeroed_by_hand")
    except DAMAGED as error:
        raise AnnotationError(f"{path.name}: no NGFF labels: {error}", "give a folder with labels") from error
    if is_zeroed:
        raise zeroed(path.name)
    step, offset = place or (whole_slide_step(path.name, slide, size), (0.0, 0.0))
    *areas, known = chosen(path.name, values, classes, names)
    tumor, ignored = (Mask(area, step, offset) for area in areas)
    if level is not image["datasets"][0] or every > 1:
        notes += (f"{path.name}: its labels were read at {size[0]}x{size[1]} pixels",)
    return Truth(tumor, ignored if ignored.pixels.any() else NOTHING, notes, known)


def _every(array: Any, every: int) -> Any:  # noqa: ANN401  zarr and NumPy arrays
    if math.prod(array.shape[:-2]) != 1:
        raise ValueError(f"{array.shape} labels are not of one plane")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{array.dtype} is not a type of labels")
    steps = slice(None, None, every)
    return array[(*(0,) * (array.ndim - 2), steps, steps)]


def _label_group(root: Any) -> Any:  # noqa: ANN401  zarr groups
    """Return the label image: the group itself, or `segmentation` or the first of those that it lists."""
    about = root.attrs.get("ome", root.attrs.asdict())
    if "image-label" in about:
        return root
    listed = root["labels"].attrs
    names = listed.get("ome", listed.asdict())["labels"]
    return root["labels"]["segmentation" if "segmentation" in names else names[0]]


def _place(
    axes: Sequence[Mapping[str, Any]], level: Mapping[str, Any], slide: SlideFacts, size: tuple[int, int], every: int
) -> tuple[Any, ...] | None:
    """Return step and offset in level-0 pixels of a level of an NGFF image; None where it has no unit of length.

    A translation is that of the first pixel's centre; without one the image begins at the slide's corner.
    """
    if any(axis.get("unit") != "micrometer" for axis in axes[-2:]):
        return None
    steps = {one["type"]: one[one["type"]] for one in level["coordinateTransformations"]}
    mpp = np.array(slide.mpp)
    step = np.array(steps["scale"], np.float64)[[-1, -2]] / mpp
    offset = np.zeros(2)
    if "translation" in steps:
        offset = np.array(steps["translation"])[[-1, -2]] / mpp - step / 2 + 0.5
        offset[np.abs(offset) < _NOISE * step * size] = 0  # is only there because numbers were written with few digits
    return tuple((step * every).tolist()), tuple(offset.tolist())


def _differences(name: str, own: Mapping[str, Any], slide: SlideFacts) -> tuple[str, ...]:
    """Say where another heatmap's slide is not that of the prediction."""
    stored = own.get("slide", {})
    notes = []
    if stored and list(stored["size_px"]) != list(slide.size_px):
        notes.append(f"{name}: its slide has {stored['size_px']} pixels, that of the prediction {list(slide.size_px)}")
    if stored and abs(stored["mpp"][0] / slide.mpp[0] - 1) > _SAME_SIZE:
        notes.append(f"{name}: its slide has {stored['mpp'][0]:g} um/px, that of the prediction {slide.mpp[0]:g}")
    return tuple(notes)
