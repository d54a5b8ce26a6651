"""Outlines in XML: ASAP (the format of the CAMELYON challenges), Aperio ImageScope and HALO.

The files come from strangers: entities, external or not, are refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shapely import Point, affinity, box

from wsiseg.annotations.outlines import NOT_AN_AREA, AnnotationError, Drawn, Outline, drawn, points_of
from wsiseg.slides.pixel_size import positive

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element  # only the type; parsing is defusedxml's

_MOST_BYTES = 2**30
_ASAP_AREAS = ("Polygon", "Rectangle", "Spline")
_ELLIPSES, _RECTANGLES = ("2", "Ellipse"), ("1", "Rectangle")  # the Type of a Region: ImageScope's, HALO's
_LINES = ("3", "4", "Arrow", "Pin", "Ruler")
_UNNAMED = ("", "None", "Description")


def read_xml(path: Path) -> Drawn:
    """Read the outlines of an XML file: none where it holds nothing.

    Raises:
        AnnotationError: The file is of none of these programs, or holds nothing but points, rulers and broken outlines.
    """
    root = _parse(path)
    if root.tag == "ASAP_Annotations":
        return drawn(path.name, _asap(root))
    if root.tag == "Annotations":
        return drawn(path.name, _layers(root), positive(root.get("MicronsPerPixel")) or None)
    raise AnnotationError(f"{path.name}: <{root.tag}> is not of ASAP, ImageScope or HALO", "export it as GeoJSON")


def _parse(path: Path) -> "Element":
    from defusedxml import DefusedXmlException, ElementTree  # noqa: PLC0415  only where XML is read

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise AnnotationError(f"{path.name}: more than 1 GiB of outlines", "keep only what is evaluated")
        root: Element = ElementTree.parse(path, forbid_dtd=True).getroot()
    except (OSError, ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise AnnotationError(f"{path.name}: cannot be read as XML: {error}", "get or export it again") from error
    return root


def _asap(root: "Element") -> Iterator[Outline | str]:
    for one in root.iter("Annotation"):
        if one.get("Type") not in _ASAP_AREAS:
            yield NOT_AN_AREA
            continue
        points = sorted(one.iter("Coordinate"), key=lambda point: positive(point.get("Order")))
        group = one.get("PartOfGroup", "")
        ring = [(point.get("X"), point.get("Y")) for point in points]
        yield Outline([ring], "" if group in _UNNAMED else group, name=one.get("Name", ""))


def _layers(root: "Element") -> Iterator[Outline | str]:
    for layer in root.iter("Annotation"):
        attribute = layer.find("Attributes/Attribute")  # where people write the class when the name is empty
        names = [layer.get("Name", "")]
        names += [] if attribute is None else [attribute.get("Value", ""), attribute.get("Name", "")]
        class_name = next((name for name in names if name not in _UNNAMED), "")
        for region in layer.iter("Region"):
            points = [(vertex.get("X"), vertex.get("Y")) for tag in ("Vertex", "V") for vertex in region.iter(tag)]
            kind = region.get("Type", "")
            ring = _ring(kind, points)
            is_negative = region.get("NegativeROA") == "1"
            yield NOT_AN_AREA if kind in _LINES else Outline([ring], class_name, is_negative, region.get("Text", ""))


def _ring(kind: str, points: list[tuple[Any, Any]]) -> Any:  # noqa: ANN401  points as a file has them, or as numbers
    """Return the corners of a region; ellipses, and HALO's rectangles, are given by corners of the box around them."""
    if kind not in {*_ELLIPSES, *_RECTANGLES} or len(points) not in {2, 4}:
        return points
    try:
        corners = points_of(points)
    except ValueError:  # is noted with all that is broken
        return points
    (left, top), (right, below) = corners.min(0), corners.max(0)
    if kind in _ELLIPSES:
        circle = Point((left + right) / 2, (top + below) / 2).buffer(0.5, quad_segs=64)
        return affinity.scale(circle, right - left, below - top).exterior.coords
    return box(left, top, right, below).exterior.coords if len(points) == 2 else points  # noqa: PLR2004  two corners
