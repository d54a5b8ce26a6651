"""OME-NGFF 0.4 and 0.5 on disk: a pyramid of probabilities with its segmentation label.

Specification: https://ngff.openmicroscopy.org/0.4 and /0.5 (multiscales, omero, labels). Version 0.4 lies on zarr 2 and
is what QuPath reads; 0.5 lies on zarr 3. All transformations stand at the data sets, where every viewer looks.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from wsiseg.pages import pictures
from wsiseg.run.record import in_words

T = TypeVar("T", bound=np.generic)
NgffVersion = Literal["0.4", "0.5"]
TUMOR, UNKNOWN = 2, 3
"""Labels of the cells of the first class, which is tumour unless another was trained, and of unknown ones."""
_COLORS = {0: (0, 0, 0, 0), 1: (*pictures.NORMAL, 96), UNKNOWN: (128, 128, 128, 192)}
_NAMES = {0: "background", 1: "tissue", UNKNOWN: "unknown"}
_WINDOW = {"min": 0.0, "start": 0.0}
_CHUNK = 256
_MOST_CELLS = 100_000_000  # of 16 um on 160 mm x 160 mm
_SMALLEST_LEVEL = 64  # the pyramid ends where a level is no larger


def label_of(place: int) -> int:
    """Return the label of a class, by its place among all."""
    return UNKNOWN + place if place else TUMOR


def labels_of(classes: Sequence[str]) -> dict[int, str]:
    """Return what each label means: 0 to 3, and from 4 on the second class and those behind it."""
    own = {label_of(place): name for place, name in enumerate(classes)}
    return dict(sorted({**_NAMES, **own}.items()))


def color_of(place: int) -> tuple[int, int, int]:
    """Return the colour of a class, by its place among all."""
    return pictures.FURTHER[(place - 1) % len(pictures.FURTHER)] if place else pictures.TUMOR


def _image_label(classes: Sequence[str]) -> dict[str, Any]:
    names = labels_of(classes)
    own = {label_of(place): (*color_of(place), 160) for place in range(len(classes))}
    colors = sorted({**_COLORS, **own}.items())
    return {
        "colors": [{"label-value": value, "rgba": list(color)} for value, color in colors],
        "properties": [{"label-value": value, "class": text} for value, text in names.items()],
        "source": {"image": "../../"},
    }


def write_levels(  # noqa: PLR0913  one argument for each thing the format states
    path: Path,
    values: NDArray[np.float32],  # [channels, rows, columns], without NaN; a channel a class, perhaps the disagreement
    labels: NDArray[np.uint8],  # [rows, columns], as `labels_of` has them
    *,
    classes: Sequence[str],
    cell_um: float,  # side of a cell in micrometers
    mpp: tuple[float, float],  # micrometers per level-0 pixel of the slide along x and y
    name: str,  # what a viewer calls the image
    own: dict[str, Any],  # what stands under the key `wsiseg`
    ngff: NgffVersion,
    is_scaled: bool = True,  # False where nobody knows the micrometers: then all is in level-0 pixels, without a unit
) -> None:
    """Write pyramid, labels, metadata and OME-XML to a folder that does not exist yet."""
    import zarr  # noqa: PLC0415  heavy: only where a heatmap is written

    images, masks = halved(values), _pyramid(labels[None], lambda level: level[:, ::2, ::2])
    cell, pixel = (cell_um, mpp) if is_scaled else (cell_um / mpp[0], (1.0, 1.0))
    placed = [_placed(cell * 2**level, pixel) for level in range(len(images))]
    unit = {"unit": "micrometer"} if is_scaled else {}
    image = {
        "multiscales": [_multiscale(placed, f"{'_'.join(classes)}_probability", "mean", unit)],
        "omero": _omero(name, classes, len(values)),
    }
    label = {
        "multiscales": [_multiscale(placed, "segmentation", "nearest", unit)],
        "image-label": _image_label(classes),
    }
    stated = {**_versioned(image, ngff), "wsiseg": own}
    root = zarr.create_group(str(path), zarr_format=2 if ngff == "0.4" else 3, attributes=stated)
    listed = root.create_group("labels", attributes=_versioned({"labels": ["segmentation"]}, ngff))
    segmentation = listed.create_group("segmentation", attributes=_versioned(label, ngff))
    for group, levels in ((root, images), (segmentation, masks)):
        _write_arrays(group, levels, ngff)
    root.create_group("OME")
    _write_ome_xml(path / "OME" / "METADATA.ome.xml", values.shape, classes, cell_um if is_scaled else None)


def open_levels(path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8], dict[str, Any]]:
    """Read the finest level of values and labels, and what stands under the key `wsiseg`.

    The arrays are float32[channels, rows, columns] and uint8[rows, columns]. An OSError says that nothing can be read,
    a KeyError that a part is missing, a ValueError that one is not what the format says.
    """
    import zarr  # noqa: PLC0415  heavy: only where a heatmap is read

    group = zarr.open_group(str(path), mode="r")
    stored = [cast("zarr.Array[Any]", group[name]) for name in ("0", "labels/segmentation/0")]
    if any(array.size > _MOST_CELLS or math.prod(array.chunks) > _MOST_CELLS for array in stored):
        raise ValueError(f"more than {_MOST_CELLS:,} cells, which no slide has")
    values, labels = stored[0][...], stored[1][0]
    own = cast("dict[str, Any]", group.attrs["wsiseg"])
    return np.asarray(values, np.float32), np.asarray(labels, np.uint8), own


def _write_arrays(group: Any, levels: list[NDArray[Any]], ngff: NgffVersion) -> None:  # noqa: ANN401  a zarr group
    for number, level in enumerate(levels):
        array = group.create_array(
            str(number),
            shape=level.shape,
            chunks=(1, min(_CHUNK, level.shape[1]), min(_CHUNK, level.shape[2])),
            dtype=level.dtype,
            chunk_key_encoding={"name": "v2" if ngff == "0.4" else "default", "separator": "/"},
            dimension_names=None if ngff == "0.4" else ("c", "y", "x"),
            fill_value=0,
        )
        array[:] = level


def halved(values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return a pyramid of [channels, rows, columns], finest first, each level the means of 2x2 of the one before."""
    return _pyramid(values, _mean2)


def _pyramid(level: NDArray[T], smaller: Callable[[NDArray[T]], NDArray[T]]) -> list[NDArray[T]]:
    levels = [level]
    while max(levels[-1].shape[1:]) > _SMALLEST_LEVEL:
        levels.append(smaller(levels[-1]))
    return levels


def _mean2(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Halve every channel of an image by the mean of 2x2; an odd edge is repeated."""
    padded = np.pad(level, [(0, 0), *((0, size % 2) for size in level.shape[1:])], mode="edge")
    squares = padded.reshape(len(padded), padded.shape[1] // 2, 2, padded.shape[2] // 2, 2)
    means: NDArray[np.float32] = squares.mean((2, 4), dtype=np.float64).astype(np.float32)
    return means


def _placed(cell: float, pixel: tuple[float, float]) -> list[dict[str, Any]]:
    """Place a level: its pixel centres lie half a pixel in, counted from the centre of the slide's first pixel."""
    shift = [0.0, (cell - pixel[1]) / 2, (cell - pixel[0]) / 2]
    return [{"type": "scale", "scale": [1.0, cell, cell]}, {"type": "translation", "translation": shift}]


def _versioned(attributes: dict[str, Any], ngff: NgffVersion) -> dict[str, Any]:
    """State the version where it belongs: in 0.4 in every image, label and channel list, in 0.5 once above them."""
    if ngff == "0.5":
        return {"ome": {"version": ngff, **attributes}}
    version = {"version": ngff}
    stated = {key: {**version, **value} if isinstance(value, dict) else value for key, value in attributes.items()}
    if "multiscales" in stated:
        stated["multiscales"] = [{**version, **one} for one in stated["multiscales"]]
    return stated


def _channels(classes: Sequence[str], count: int) -> list[str]:
    return [*(f"p({name})" for name in classes), "disagreement"][:count]


def _omero(name: str, classes: Sequence[str], count: int) -> dict[str, Any]:
    """Say how the channels are shown; that of the disagreement is off until somebody wants to see it."""
    shown = [
        *((True, bytes(color_of(place)).hex().upper(), 1.0) for place in range(len(classes))),
        (False, "FFFFFF", 0.5),  # no standard deviation of probabilities is larger than half
    ]
    linear = {"coefficient": 1, "family": "linear", "inverted": False}
    channels = [
        {**linear, "active": is_active, "color": color, "label": label, "window": {**_WINDOW, "max": most, "end": most}}
        for label, (is_active, color, most) in zip(_channels(classes, count), shown, strict=False)
    ]
    return {"id": 1, "name": name, "channels": channels, "rdefs": {"defaultT": 0, "defaultZ": 0, "model": "color"}}


def _multiscale(placed: list[Any], name: str, method: str, unit: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "type": method,
        "metadata": {"method": method, "description": f"each level is the {method} of 2x2 of the one before"},
        "axes": [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", **unit} for axis in "yx")],
        "datasets": [{"path": str(level), "coordinateTransformations": steps} for level, steps in enumerate(placed)],
    }


def _write_ome_xml(path: Path, shape: tuple[int, ...], classes: Sequence[str], cell_um: float | None) -> None:
    """Write the sizes once more as OME-XML, where Bio-Formats looks for them."""
    sizes = "" if cell_um is None else "".join(f'PhysicalSize{x}="{cell_um}" PhysicalSize{x}Unit="µm" ' for x in "XY")
    channels = "".join(
        f'<Channel ID="Channel:0:{number}" Name="{escape(label)}" SamplesPerPixel="1"/>'
        for number, label in enumerate(_channels(classes, shape[0]))
    )
    name = escape(f"{' and '.join(map(in_words, classes))} probability")
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0" Name="{name}"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="float" '
        f'SizeX="{shape[2]}" SizeY="{shape[1]}" SizeZ="1" SizeC="{shape[0]}" SizeT="1" {sizes}>{channels}'
        "<MetadataOnly/></Pixels></Image></OME>\n"
    )
    path.write_text(text, encoding="utf-8")
