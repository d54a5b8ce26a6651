"""Outlines as people and programs drew them, made into valid polygons: the one place that repairs geometry.

What an outline encloses is what it winds around (the non-zero rule, by which QuPath fills its polygons): a part that is
enclosed twice lies inside, both halves of a bow-tie count, and so does the middle of a five-pointed star.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from wsiseg.run.errors import WsisegError

EMPTY, NOT_AN_AREA = "feature without geometry", "point or line"
"""Why a part of a file is passed over: nothing was drawn, or nothing that bounds an area."""

_FARTHEST = 1e8  # level-0 pixels; also keeps areas exact
_CORNERS = 3  # a triangle's
_DRAW_AREAS = "draw closed outlines, or leave the file empty where there is nothing to outline"


class AnnotationError(WsisegError):
    """Outlines or a mask cannot be read, or mean nothing here."""


@dataclass(frozen=True)
class Outline:
    """One outline; before `drawn` made it valid, its polygon is an outer ring and holes as the file has them."""

    polygon: Any  # a valid shapely Polygon or MultiPolygon with an area, in pixels
    class_name: str = ""  # its class, empty where it has none
    is_negative: bool = False  # True if the file itself says that it is a hole
    name: str = ""  # what it was called besides; taken for its class where it has none and the name is that of a class


@dataclass(frozen=True)
class Drawn:
    """The outlines of a file, in its order."""

    outlines: tuple[Outline, ...]  # all that bound an area
    notes: tuple[str, ...] = ()  # what a person should know: what was repaired or passed over
    mpp: float | None = None  # the um/px that the file says it was drawn at, if it does


def drawn(file: str, parts: Iterable[Outline | str], mpp: float | None = None) -> Drawn:
    """Make the outlines of a file; a broken part is passed over and noted.

    Args:
        file: Its name, for messages.
        parts: The areas in it as it has them, or why something in it is not an area.
        mpp: The um/px that it says it was drawn at.

    Raises:
        AnnotationError: There are parts, and none of them is an area.
    """
    outlines, passed_over, repaired = [], Counter[str](), 0
    for part in parts:
        if isinstance(part, str):
            passed_over[part] += 1
            continue
        try:
            polygon, is_repaired = valid_polygon(part.polygon)
        except ValueError as error:
            passed_over[f"outline {error}"] += 1
        else:
            repaired += is_repaired
            outlines.append(replace(part, polygon=polygon))
    reasons = [_counted(count, reason) for reason, count in passed_over.items()]
    if not outlines and set(passed_over) - {EMPTY}:
        raise AnnotationError(f"{file}: holds no outline of an area, but {', '.join(reasons)}", _DRAW_AREAS)
    notes = [f"{file}: repaired {_counted(repaired, 'self-crossing outline')}"] if repaired else []
    return Drawn(tuple(outlines), (*notes, *(f"{file}: passed over {reason}" for reason in reasons)), mpp)


def _counted(count: int, what: str) -> str:
    many = re.sub(r"(feature|outline|point|line)(?= |$)", r"\1s", what)
    return f"{count} {what if count == 1 else many}"


def valid_polygon(rings: Sequence[Any]) -> tuple[Any, bool]:
    """Make a valid polygon of an outer ring and holes, closed or not.

    Returns:
        A shapely Polygon or MultiPolygon, and whether a ring had to be repaired.

    Raises:
        ValueError: It bounds no area, or is broken; the text continues "outlines ...".
    """
    shell, *holes = [points_of(ring) for ring in rings] or [np.empty((0, 2))]
    holes = [hole for hole in holes if len(hole) >= _CORNERS]
    area = shapely.Polygon(shell, holes) if len(shell) >= _CORNERS else shapely.Polygon()
    is_broken = not shapely.is_valid(area)
    if is_broken:
        area = shapely.difference(_enclosed(shell), shapely.union_all([*map(_enclosed, holes)]))
    if not area.area > 0:
        raise ValueError("without an area")
    return area, is_broken


def points_of(ring: Any) -> NDArray[np.float64]:  # noqa: ANN401  any JSON value
    """Return the points of a ring as float64[n, 2].

    Raises:
        ValueError: They are broken; the text continues "outlines ...".
    """
    try:
        points = np.array([(float(point[0]), float(point[1])) for point in ring]).reshape(-1, 2)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ValueError("with points that are not two numbers") from error
    if not (np.abs(points) < _FARTHEST).all():  # so is NaN
        raise ValueError("with a coordinate that lies on no slide")
    return points


def _enclosed(points: NDArray[np.float64]) -> Any:  # noqa: ANN401  a shapely geometry
    """Return the area that a ring winds around at least once, whichever way: its faces are tried one by one."""
    ring = np.vstack([points, points[:1]])
    faces = shapely.get_parts(shapely.polygonize([shapely.union_all([shapely.LineString(ring)])]))
    inside = [_winding(ring, shapely.get_coordinates(shapely.point_on_surface(face))[0]) != 0 for face in faces]
    return shapely.union_all(faces[np.array(inside, np.bool_)])


def _winding(ring: NDArray[np.float64], point: NDArray[np.float64]) -> int:
    """Count how often a closed ring goes around a point (Sunday 2001): upward crossings to its right less downward."""
    begin, end = ring[:-1] - point, ring[1:] - point
    side = begin[:, 0] * end[:, 1] - end[:, 0] * begin[:, 1]
    upward = (begin[:, 1] <= 0) & (end[:, 1] > 0) & (side > 0)
    downward = (begin[:, 1] > 0) & (end[:, 1] <= 0) & (side < 0)
    return int(upward.sum()) - int(downward.sum())
