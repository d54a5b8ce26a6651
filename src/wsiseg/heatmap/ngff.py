"""OME-NGFF 0.4 and 0.5 on disk: a pyramid of probabilities with its segmentation label.

Specification: https://ngff.openmicroscopy.org/0.4 and /0.5 (multiscales, omero, labels). Version 0.4 lies on zarr 2 and
is what QuPath reads; 0.5 lies on zarr 3. All transformations stand at the data sets, where every viewer looks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)
NgffVersion = Literal["0.4", "0.5"]
TUMOR, UNKNOWN = 2, 3
COLORS = {0: (0, 0, 0, 0), 1: (0, 114, 178, 96), TUMOR: (213, 94, 0, 160), UNKNOWN: (128, 128, 128, 192)}
CLASSES = {0: "background", 1: "tissue", TUMOR: "tumor", UNKNOWN: "unknown"}
CHANNELS = ("p(tumor)", "disagreement")
_CHUNK = 256
_SMALLEST_LEVEL = 64  # the pyramid ends where a level is no larger


def write_levels(  # noqa: PLR0913  one argument for each thing the format states
    path: Path,
    values: NDArray[np.float32],
    labels: NDArray[np.uint8],
    *,
    cell_um: float,
    mpp: tuple[float, float],
    name: str,
    own: dict[str, Any],
    ngff: NgffVersion,
    is_scaled: bool = True,
) -> None:
    """Write pyramid, labels, metadata and OME-XML to a folder that does not exist yet.

    Args:
        path: The folder.
        values: float32[channels, rows, columns], without NaN; the channels are the first of `CHANNELS`.
        labels: uint8[rows, columns] of `CLASSES`.
        cell_um: Side of a cell in micrometers.
        mpp: Micrometers per level-0 pixel of the slide along x and y.
        is_scaled: False where nobody knows the micrometers: then everything is in level-0 pixels, without a unit.
        name: What a viewer calls the image.
        own: What stands under the key `wsiseg`.
        ngff: The version of the format.
    """
    import zarr  # noqa: PLC0415  heavy: only where a heatmap is written

    images = _pyramid(values, _mean2)
    masks = _pyramid(labels[None], _nearest2)
    root = zarr.create_group(str(path), zarr_format=2 if ngff == "0.4" else 3)
    label_group = root.create_group("labels")
    segmentation = label_group.create_group("segmentation")
    for group, levels in ((root, images), (segmentation, masks)):
        _write_arrays(group, levels, ngff)
    cell, pixel = (cell_um, mpp) if is_scaled else (cell_um / mpp[0], (1.0, 1.0))
    transforms = [_transforms(cell * 2**level, pixel) for level in range(len(images))]
    unit = {"unit": "micrometer"} if is_scaled else {}
    attributes = _attributes(transforms, (name, *CHANNELS[: len(values)]), own, ngff, unit)
    for group, stated in zip((root, label_group, segmentation), attributes, strict=True):
        group.attrs.update(stated)
    root.create_group("OME")
    _write_ome_xml(path / "OME" / "METADATA.ome.xml", values.shape, cell_um if is_scaled else None)


def open_levels(path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8], dict[str, Any]]:
    """Read the finest level of the values and labels, and what stands under the key `wsiseg`.

    Returns:
        float32[channels, rows, columns], uint8[rows, columns], and the rest.

    Raises:
        OSError: Nothing can be read there.
        KeyError: A part is missing.
        ValueError: A part is not what the format says.
    """
    import zarr  # noqa: PLC0415  heavy: only where a heatmap is read

    group = zarr.open_group(str(path), mode="r")
    values = cast("zarr.Array[Any]", group["0"])[...]
    labels = cast("zarr.Array[Any]", group["labels/segmentation/0"])[0]
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


def _nearest2(level: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return level[:, ::2, ::2]


def _transforms(cell: float, pixel: tuple[float, float]) -> list[dict[str, Any]]:
    """Place a level: its pixel centres lie half a pixel in, counted from the centre of the slide's first pixel."""
    shift_y, shift_x = (cell - pixel[1]) / 2, (cell - pixel[0]) / 2
    return [
        {"type": "scale", "scale": [1.0, cell, cell]},
        {"type": "translation", "translation": [0.0, shift_y, shift_x]},
    ]


def _attributes(
    transforms: list[list[dict[str, Any]]],
    names: tuple[str, ...],
    own: dict[str, Any],
    ngff: NgffVersion,
    unit: dict[str, str],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the attributes of the image, of the list of labels and of the segmentation.

    `names` are those of the image and of its channels.
    """
    image = _multiscale(transforms, "tumor_probability", "mean", unit)
    label = _multiscale(transforms, "segmentation", "nearest", unit)
    omero = {
        "id": 1,
        "name": names[0],
        "channels": [_channel(label) for label in names[1:]],
        "rdefs": {"defaultT": 0, "defaultZ": 0, "model": "color"},
    }
    image_label = {
        "colors": [{"label-value": value, "rgba": list(color)} for value, color in COLORS.items()],
        "properties": [{"label-value": value, "class": text} for value, text in CLASSES.items()],
        "source": {"image": "../../"},
    }
    if ngff == "0.5":
        return (
            {"ome": {"version": ngff, "multiscales": [image], "omero": omero}, "wsiseg": own},
            {"ome": {"version": ngff, "labels": ["segmentation"]}},
            {"ome": {"version": ngff, "multiscales": [label], "image-label": image_label}},
        )
    return (
        {"multiscales": [{"version": ngff, **image}], "omero": {"version": ngff, **omero}, "wsiseg": own},
        {"labels": ["segmentation"]},
        {"multiscales": [{"version": ngff, **label}], "image-label": {"version": ngff, **image_label}},
    )


def _channel(label: str) -> dict[str, Any]:
    """Say how a channel is shown; that of the disagreement is off until somebody wants to see it."""
    is_first = label == CHANNELS[0]
    most = 1.0 if is_first else 0.5  # no standard deviation of probabilities is larger
    return {
        "active": is_first,
        "coefficient": 1,
        "color": "FF0000" if is_first else "FFFFFF",
        "family": "linear",
        "inverted": False,
        "label": label,
        "window": {"min": 0.0, "max": most, "start": 0.0, "end": most},
    }


def _multiscale(
    transforms: list[list[dict[str, Any]]],
    name: str,
    method: str,
    unit: dict[str, str],
) -> dict[str, Any]:
    return {
        "name": name,
        "type": method,
        "metadata": {"method": method, "description": f"each level is the {method} of 2x2 of the one before"},
        "axes": [
            {"name": "c", "type": "channel"},
            {"name": "y", "type": "space", **unit},
            {"name": "x", "type": "space", **unit},
        ],
        "datasets": [
            {"path": str(level), "coordinateTransformations": steps} for level, steps in enumerate(transforms)
        ],
    }


def _write_ome_xml(path: Path, shape: tuple[int, ...], cell_um: float | None) -> None:
    """Write the sizes once more as OME-XML, where Bio-Formats looks for them."""
    sizes = "" if cell_um is None else "".join(f'PhysicalSize{x}="{cell_um}" PhysicalSize{x}Unit="µm" ' for x in "XY")
    channels = "".join(
        f'<Channel ID="Channel:0:{number}" Name="{label}" SamplesPerPixel="1"/>'
        for number, label in enumerate(CHANNELS[: shape[0]])
    )
    pixels = (
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="float" SizeX="{shape[2]}" SizeY="{shape[1]}" SizeZ="1" '
        f'SizeC="{shape[0]}" SizeT="1" {sizes}>{channels}<MetadataOnly/></Pixels>'
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0" Name="tumour probability">{pixels}</Image></OME>\n'
    )
    path.write_text(text, encoding="utf-8")
