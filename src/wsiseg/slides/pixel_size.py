"""The physical size of a slide's pixels: where it is written, which statement counts, and what cannot be true.

The order is: the user, the OME-XML, the reader's own figure, the vendor's key, the TIFF resolution tags, the objective
power.
Nothing found is an error, never a default: a wrong pixel size silently spoils everything that follows. Nonsense in a
file is an error too; what the user gives is believed, with a warning where it is odd.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from wsiseg.run.errors import PixelSizeError

SMALLEST, LARGEST = 0.05, 10.0
"""Micrometers per pixel outside this range are taken for nonsense."""

_LONGEST_MM, _LARGEST_MM2 = 300.0, 40_000.0  # the largest glass slides measure 127 x 178 mm
_UNEQUAL = 0.05  # x and y may differ by this share
_OBJECTIVE_DIFFERS = 0.3  # objective and pixel size may differ by this share
_UM_AT_1X = 10.0  # a 10x objective gives about 1 um per pixel
_UNITS = (
    "um micron microns micrometer 1, pm picometer 1e-6,"
    " \u00c5 \u212b angstrom 1e-4, nm nanometer 1e-3, mm millimeter 1e3, cm centimeter 1e4,"
    " dm 1e5, m meter 1e6, in inch 25400, thou 25.4"
)
_UM_PER_UNIT = {name: float(one.split()[-1]) for one in _UNITS.split(",") for name in one.split()[:-1]}
_MOST_DPI = 2400
_KEYS = (
    "ome.PhysicalSizeX ome.PhysicalSizeY imagej.unit openslide.mpp-x openslide.mpp-y aperio.MPP aperio.AppMag"
    " hamamatsu.SourceLens tiff.XResolution tiff.YResolution tiff.ResolutionUnit openslide.objective-power"
)
_LONGEST_XML = 10_000_000
_ADVICE = "give --slide-mpp or the mpp column of the cohort"


@dataclass(frozen=True)
class PixelSize:
    """Micrometers per level-0 pixel and where they come from."""

    mpp: tuple[float, float]  # along x and y
    source: str  # the user or the key of the statement that counted
    raw: dict[str, str]  # every statement that the file makes, as written
    warnings: tuple[str, ...] = ()  # what a person should know before trusting it


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
    properties = {**properties, **_described(properties.get("tiff.ImageDescription", ""), size_px)}
    raw = {key: properties[key] for key in _KEYS.split() if key in properties}
    source, mpp = ("user", (user, user)) if user is not None else _stated(name, properties)
    width, height = (size * um / 1000 for size, um in zip(size_px, mpp, strict=True))
    if max(width, height) > _LONGEST_MM or width * height > _LARGEST_MM2:
        stated = f"{name}: with pixels of {max(mpp):g} um ({source})"
        raise PixelSizeError(f"{stated} the slide would measure {width:.0f} x {height:.0f} mm", _ADVICE)
    return PixelSize(mpp, source, raw, tuple(_doubts(source, mpp, properties)))


def _stated(name: str, properties: Mapping[str, str]) -> tuple[str, tuple[float, float]]:
    """Return what the file says, if it can be true.

    Resolution tags are often those of a printer: where they cannot be true, what comes after them is asked.
    """
    tags = {"tiff.XResolution"}
    if properties.get("openslide.vendor") == "generic-tiff":  # then OpenSlide only repeats them
        tags.add("openslide.mpp-x")
    refused = f"{name}: no pixel size in the file"
    for source, mpp in _statements(properties):
        stated = f"{name}: its pixels are said to be {mpp[0]:g} x {mpp[1]:g} um ({source})"
        if not _is_plausible(mpp):
            refused = f"{stated}, outside {SMALLEST:g}-{LARGEST:g} um"
            if source not in tags:
                break
            if _UM_PER_UNIT["inch"] / _MOST_DPI <= min(mpp) <= max(mpp) <= _UM_PER_UNIT["inch"]:
                refused += f": {_UM_PER_UNIT['inch'] / mpp[0]:.0f} dots per inch are those of a screen or printer"
        elif abs(mpp[0] - mpp[1]) > _UNEQUAL * min(mpp):
            refused = f"{stated}, not square"
            break
        else:
            return source, mpp
    raise PixelSizeError(refused, _ADVICE)


def _statements(properties: Mapping[str, str]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield what the file says of its pixel size, most trustworthy first."""
    for source, other in (("ome.PhysicalSizeX", "ome.PhysicalSizeY"), ("openslide.mpp-x", "openslide.mpp-y")):
        x, y = positive(properties.get(source)), positive(properties.get(other))
        if x or y:
            yield source, (x or y, y or x)
    if vendor := positive(properties.get("aperio.MPP")):
        yield "aperio.MPP", (vendor, vendor)
    named = properties.get("imagej.unit", properties.get("tiff.ResolutionUnit", ""))
    unit = _UM_PER_UNIT.get(named.casefold(), 0.0)
    x, y = positive(properties.get("tiff.XResolution")), positive(properties.get("tiff.YResolution"))
    if unit and (x or y):
        yield "tiff.XResolution", (unit / (x or y), unit / (y or x))
    if power := positive(properties.get("openslide.objective-power")):
        yield "openslide.objective-power", (_UM_AT_1X / power, _UM_AT_1X / power)


def _described(description: str, size_px: tuple[int, int]) -> dict[str, str]:
    """Return what a TIFF's description says of its pixel size: OME-XML, or the lines of ImageJ."""
    if description.startswith("ImageJ="):
        unit = re.search(r"^unit=(.+)$", description, re.MULTILINE)
        return {} if unit is None else {"imagej.unit": _plain_unit(unit[1])}
    if "<OME" not in description or len(description) > _LONGEST_XML:
        return {}
    from defusedxml import ElementTree  # noqa: PLC0415  only where a slide brings XML

    try:
        root = ElementTree.fromstring(description.encode())
    except (ValueError, SyntaxError):  # entities are forbidden and raise a ValueError
        return {}
    pixels = [one for one in root.iter() if str(one.tag).rpartition("}")[2] == "Pixels"]
    sizes = [(one.get("SizeX"), one.get("SizeY")) for one in pixels]
    own = tuple(map(str, size_px))
    if not pixels or (own not in sizes and len(pixels) > 1):
        return {}
    return _physical(pixels[sizes.index(own) if own in sizes else 0].attrib)


def _physical(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return the physical sizes of OME-XML in micrometers; units that are not lengths, as `pixel`, say nothing."""
    found = {}
    for axis in "XY":
        value = positive(attributes.get(f"PhysicalSize{axis}"))
        unit = _UM_PER_UNIT.get(_plain_unit(attributes.get(f"PhysicalSize{axis}Unit", "um")), 0.0)
        if value and unit:
            found[f"ome.PhysicalSize{axis}"] = f"{value * unit:.9g}"
    return found


def _plain_unit(text: str) -> str:
    """Return the name of a unit with a plain u for the letters that mean micro, and for the way ImageJ writes one."""
    return re.sub(r"\\u00B5|[\u00b5\u03bc]", "u", text.strip())


def positive(text: str | None) -> float:
    """Read a positive number, with a decimal point or comma; 0 where there is none."""
    text = (text or "").replace(",", ".")
    try:
        value = float(text) if text.isascii() and "_" not in text else 0.0
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0


def _is_plausible(mpp: tuple[float, float]) -> bool:
    return all(SMALLEST <= value <= LARGEST for value in mpp)


def _doubts(source: str, mpp: tuple[float, float], properties: Mapping[str, str]) -> Iterator[str]:
    for key, said in _statements(properties) if source.startswith("ome.") else ():
        is_size = key != "openslide.objective-power" and _is_plausible(said)
        if is_size and abs(said[0] - mpp[0]) > _UNEQUAL * mpp[0]:
            yield f"{said[0]:g} um/px ({key}) contradicts {mpp[0]:g} um/px ({source}), which is used"
    power = positive(properties.get("openslide.objective-power"))
    if source == "openslide.objective-power":
        yield f"pixel size {mpp[0]:g} um guessed from the {power:g}x objective"
    elif power and abs(_UM_AT_1X / power - mpp[0]) > _OBJECTIVE_DIFFERS * mpp[0]:
        yield f"the {power:g}x objective does not fit {mpp[0]:g} um/px ({source}), which is used"
    if not _is_plausible(mpp):
        yield f"{mpp[0]:g} um/px ({source}) is used, though it lies outside {SMALLEST:g}-{LARGEST:g}"
