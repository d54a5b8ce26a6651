"""The physical size of a slide's pixels: where it is written, which statement counts, and what cannot be true.

The order is: the user, the reader's own figure, the vendor's key, the TIFF resolution tags, the objective power.
Nothing found is an error, never a default: a wrong pixel size silently spoils everything that follows. Nonsense in a
file is an error too; what the user gives is believed, with a warning where it is odd.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from wsiseg.run.errors import PixelSizeError

SMALLEST, LARGEST = 0.05, 10.0
"""Micrometers per pixel outside this range are taken for nonsense."""

_LONGEST_MM, _LARGEST_MM2 = 300.0, 40_000.0  # the largest glass slides measure 127 x 178 mm
_UNEQUAL = 0.05  # x and y may differ by this share
_OBJECTIVE_DIFFERS = 0.3  # objective and pixel size may differ by this share
_UM_AT_1X = 10.0  # a 10x objective gives about 1 um per pixel
_UM_PER_UNIT = {"inch": 25400.0, "centimeter": 10000.0}
_ADVICE = "give --slide-mpp or the mpp column of the cohort"


@dataclass(frozen=True)
class PixelSize:
    """Micrometers per level-0 pixel and where they come from.

    Attributes:
        mpp: Along x and y.
        source: The user or the key of the statement that counted.
        raw: Every statement that the file makes, as written.
        warnings: What a person should know before trusting it.
    """

    mpp: tuple[float, float]
    source: str
    raw: dict[str, str]
    warnings: tuple[str, ...] = ()


def pixel_size(
    name: str, properties: Mapping[str, str], size_px: tuple[int, int], *, user: float | None = None
) -> PixelSize:
    """Find the pixel size of a slide.

    Args:
        name: File name, for messages.
        properties: OpenSlide's properties of the slide.
        size_px: Width and height of the slide in pixels.
        user: What the user says, which overrides the file.

    Returns:
        The pixel size with its source.

    Raises:
        PixelSizeError: None is stated, the file's lies outside 0.05-10 um/px, its x and y are more than 5 % apart, or
            the slide would be wider than any glass.
    """
    raw = {key: properties[key] for key in _KEYS if key in properties}
    source, mpp = ("user", (user, user)) if user is not None else _stated(name, properties)
    width, height = (size * um / 1000 for size, um in zip(size_px, mpp, strict=True))
    if max(width, height) > _LONGEST_MM or width * height > _LARGEST_MM2:
        stated = f"{name}: with pixels of {max(mpp):g} um ({source})"
        raise PixelSizeError(f"{stated} the slide would measure {width:.0f} x {height:.0f} mm", _ADVICE)
    return PixelSize(mpp, source, raw, tuple(_doubts(source, mpp, properties)))


def _stated(name: str, properties: Mapping[str, str]) -> tuple[str, tuple[float, float]]:
    """Give what the file says, if it can be true."""
    source, mpp = next(_statements(properties), ("", (0.0, 0.0)))
    if not source:
        raise PixelSizeError(f"{name}: no pixel size in the file", _ADVICE)
    stated = f"{name}: its pixels are said to be {mpp[0]:g} x {mpp[1]:g} um ({source})"
    if not _is_plausible(mpp):
        raise PixelSizeError(f"{stated}, outside {SMALLEST:g}-{LARGEST:g} um", _ADVICE)
    if abs(mpp[0] - mpp[1]) > _UNEQUAL * min(mpp):
        raise PixelSizeError(f"{stated}, not square", _ADVICE)
    return source, mpp


_KEYS = (
    "openslide.mpp-x",
    "openslide.mpp-y",
    "aperio.MPP",
    "aperio.AppMag",
    "hamamatsu.SourceLens",
    "tiff.XResolution",
    "tiff.YResolution",
    "tiff.ResolutionUnit",
    "openslide.objective-power",
)


def _statements(properties: Mapping[str, str]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Give what the file says of its pixel size, most trustworthy first."""
    x, y = _number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y")
    if x or y:
        yield "openslide.mpp-x", (x or y, y or x)
    vendor = _number(properties, "aperio.MPP")
    if vendor:
        yield "aperio.MPP", (vendor, vendor)
    unit = _UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""), 0.0)
    x, y = _number(properties, "tiff.XResolution"), _number(properties, "tiff.YResolution")
    if unit and (x or y):
        yield "tiff.XResolution", (unit / (x or y), unit / (y or x))
    power = _number(properties, "openslide.objective-power")
    if power:
        yield "openslide.objective-power", (_UM_AT_1X / power, _UM_AT_1X / power)


def _number(properties: Mapping[str, str], key: str) -> float:
    """Read a positive number; 0 where there is none."""
    try:
        value = float(properties.get(key, "0").replace(",", "."))
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0


def _is_plausible(mpp: tuple[float, float]) -> bool:
    return all(SMALLEST <= value <= LARGEST for value in mpp)


def _doubts(source: str, mpp: tuple[float, float], properties: Mapping[str, str]) -> Iterator[str]:
    power = _number(properties, "openslide.objective-power")
    if source == "openslide.objective-power":
        yield f"pixel size {mpp[0]:g} um guessed from the {power:g}x objective"
    elif power and abs(_UM_AT_1X / power - mpp[0]) > _OBJECTIVE_DIFFERS * mpp[0]:
        yield f"the {power:g}x objective does not fit {mpp[0]:g} um/px ({source}), which is used"
    if not _is_plausible(mpp):
        yield f"{mpp[0]:g} um/px ({source}) is used, though it lies outside {SMALLEST:g}-{LARGEST:g}"
