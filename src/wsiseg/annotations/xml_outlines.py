"""Outlines in XML: ASAP (the format of the CAMELYON challenges), Aperio ImageScope and HALO.

The files come from strangers: entities, external or not, are refused.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiseg.annotations.outlines import NOT_AN_AREA, AnnotationError, Drawn, Part, drawn, ellipse

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element  # only the type; parsing is defusedxml's

_MOST_BYTES = 2**30
_ASAP_AREAS = ("Polygon", "Rectangle", "Spline")
_ELLIPSES, _RECTANGLES = ("2", "Ellipse"), ("1", "Rectangle")  # the Type of a Region: ImageScope's, HALO's
_LINES = ("3", "4", "Arrow", "Pin", "Ruler")
_UNNAMED = ("", "None", "Description")


def read_xml(path: Path) -> tuple[Drawn, float | None]:
    """Read the outlines of an XML file.

    Returns:
        The outlines, none for a file that holds nothing; and the um/px that ImageScope wrote, if it did.

    Raises:
        AnnotationError: The file is of none of these programs, or holds nothing but points, rulers and broken outlines.
    """
    root = _parse(path)
    if root.tag not in {"ASAP_Annotations", "Annotations"}:
        what = f"<{root.tag}> is not of ASAP, ImageScope or HALO"
        raise AnnotationError(f"{path.name}: {what}", "export it as GeoJSON")
    is_asap = root.tag == "ASAP_Annotations"
    found = drawn(path.name, _asap(root) if is_asap else _layers(root))
    return found, None if is_asap else _number(root.get("MicronsPerPixel"))


def _parse(path: Path) -> "Element":
    from defusedxml import DefusedXmlException, ElementTree  # noqa: PLC0415  only where XML is read

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise AnnotationError(f"{path.name}: more than 1 GiB of outlines", "keep only what is evaluated")
        root: Element = ElementTree.parse(path, forbid_dtd=True).getroot()
    except (OSError, ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise AnnotationError(f"{path.name}: cannot be read as XML: {error}", "get or export it again") from error
    return root


def _asap(root: "Element") -> Iterator[Part | str]:
    for one in root.iter("Annotation"):
        points = sorted(one.iter("Coordinate"), key=lambda point: _number(point.get("Order")) or 0)
        if one.get("Type") in _ASAP_AREAS:
            group = one.get("PartOfGroup", "")
            name = "" if group in _UNNAMED else group
            yield Part([[(point.get("X"), point.get("Y")) for point in points]], name, name=one.get("Name", ""))
        else:
            yield NOT_AN_AREA


def _layers(root: "Element") -> Iterator[Part | str]:
    """Yield the regions of ImageScope or HALO."""
    for layer in root.iter("Annotation"):
        name = _layer_name(layer)
        for region in layer.iter("Region"):
            points = [(vertex.get("X"), vertex.get("Y")) for tag in ("Vertex", "V") for vertex in region.iter(tag)]
            kind = region.get("Type", "")
            if kind in _LINES:
                yield NOT_AN_AREA
            else:
                is_negative = region.get("NegativeROA") == "1"
                yield Part([_shape(kind, points)], name, is_negative, region.get("Text", ""))


def _layer_name(layer: "Element") -> str:
    """Return a layer's name, or that of its first attribute, where people write the class when the name is empty."""
    attribute = layer.find("Attributes/Attribute")
    names = [layer.get("Name", "")]
    if attribute is not None:
        names += [attribute.get("Value", ""), attribute.get("Name", "")]
    return next((name for name in names if name not in _UNNAMED), "")


def _shape(kind: str, points: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return the corners of a region; ellipses, and HALO's rectangles, are given by corners of the box around them."""
    try:
        xs, ys = sorted(float(x) for x, _ in points), sorted(float(y) for _, y in points)
    except (TypeError, ValueError):
        return points
    if kind in _ELLIPSES and len(points) in {2, 4}:
        return ellipse([(xs[0], ys[0]), (xs[-1], ys[-1])])
    if kind in _RECTANGLES and len(points) == 2:  # noqa: PLR2004  opposite corners
        return [(xs[0], ys[0]), (xs[1], ys[0]), (xs[1], ys[1]), (xs[0], ys[1])]
    return points


def _number(text: Any) -> float | None:  # noqa: ANN401  an attribute or nothing
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None
