"""Outlines in XML: ASAP (the format of the CAMELYON challenges) and Aperio ImageScope.

The files come from strangers: entities, external or not, are refused.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiseg.annotations.classes import AnnotationError, Outline, drawn_polygon

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element  # only the type; parsing is defusedxml's

_MOST_BYTES = 2**30
_ASAP_AREAS = ("Polygon", "Rectangle", "Spline")
_ELLIPSE, _ARROW, _RULER = "2", "3", "4"  # Aperio's Region Type
_ELLIPSE_POINTS = 256
_UNNAMED = ("", "None", "Description")


def read_xml(path: Path) -> tuple[list[Outline], float | None]:
    """Read the outlines of an XML file.

    Returns:
        The outlines, none for a file that holds nothing; and the um/px that ImageScope wrote, if it did.

    Raises:
        AnnotationError: The file is neither ASAP's nor ImageScope's, or holds only points or rulers.
    """
    root = _parse(path)
    if root.tag not in {"ASAP_Annotations", "Annotations"}:
        raise AnnotationError(f"{path.name}: <{root.tag}> is neither of ASAP nor of ImageScope", "export it as GeoJSON")
    is_asap = root.tag == "ASAP_Annotations"
    try:
        found = list(_asap(root) if is_asap else _imagescope(root))
    except (TypeError, ValueError) as error:
        raise AnnotationError(f"{path.name}: broken outline: {error}", "export it again") from error
    outlines = [outline for outline in found if outline is not None]
    if found and not outlines:
        raise AnnotationError(f"{path.name}: holds points or lines but no outline of an area", "draw closed outlines")
    return outlines, None if is_asap else _number(root.get("MicronsPerPixel"))


def _parse(path: Path) -> "Element":
    from defusedxml import DefusedXmlException, ElementTree  # noqa: PLC0415  only where XML is read

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise AnnotationError(f"{path.name}: more than 1 GiB of outlines", "keep only what is evaluated")
        root: Element = ElementTree.parse(path, forbid_dtd=True).getroot()
    except (OSError, ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise AnnotationError(f"{path.name}: cannot be read as XML: {error}", "get or export it again") from error
    return root


def _asap(root: "Element") -> Iterator[Outline | None]:
    for one in root.iter("Annotation"):
        points = sorted(one.iter("Coordinate"), key=lambda point: int(point.get("Order", "0")))
        group = one.get("PartOfGroup", "")
        if one.get("Type") in _ASAP_AREAS:
            yield _outline([(point.get("X"), point.get("Y")) for point in points], "" if group in _UNNAMED else group)
        else:
            yield None


def _imagescope(root: "Element") -> Iterator[Outline | None]:
    for layer in root.iter("Annotation"):
        name = _layer_name(layer)
        for region in layer.iter("Region"):
            points = [(vertex.get("X"), vertex.get("Y")) for vertex in region.iter("Vertex")]
            kind = region.get("Type")
            if kind in {_ARROW, _RULER}:
                yield None
            else:
                is_negative = region.get("NegativeROA") == "1"
                yield _outline(points, name, is_negative=is_negative, is_ellipse=kind == _ELLIPSE)


def _layer_name(layer: "Element") -> str:
    """Give a layer's name, or that of its first attribute, where people write the class when the name is empty."""
    attribute = layer.find("Attributes/Attribute")
    names = [layer.get("Name", "")]
    if attribute is not None:
        names += [attribute.get("Value", ""), attribute.get("Name", "")]
    return next((name for name in names if name not in _UNNAMED), "")


def _outline(
    texts: list[tuple[str | None, str | None]],
    name: str,
    *,
    is_negative: bool = False,
    is_ellipse: bool = False,
) -> Outline | None:
    """Make an outline of points as written; an ellipse is given by two opposite corners around it."""
    points = [(float(x), float(y)) for x, y in texts if x is not None and y is not None]
    if is_ellipse and len(points) in {2, 4}:
        points = _ellipse(points)
    return Outline(drawn_polygon(points), name, is_negative) if len(points) > 2 else None  # noqa: PLR2004  a triangle


def _ellipse(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    xs, ys = zip(*points, strict=True)
    center, radius = (
        ((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2),
        ((max(xs) - min(xs)) / 2, (max(ys) - min(ys)) / 2),
    )
    angles = [2 * math.pi * step / _ELLIPSE_POINTS for step in range(_ELLIPSE_POINTS)]
    return [(center[0] + radius[0] * math.cos(a), center[1] + radius[1] * math.sin(a)) for a in angles]


def _number(text: Any) -> float | None:  # noqa: ANN401  an attribute or nothing
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None
