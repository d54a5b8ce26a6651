"""Outlines that people or programs drew, and which of them mean tumour."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wsiseg.run.errors import WsisegError

TUMOR_NAMES = frozenset(
    [
        "_0",
        "_1",
        "adenocarcinoma",
        "cancer",
        "carcinoma",
        "invasive",
        "lesion",
        "malignant",
        "metastases",
        "metastasis",
        "positive",
        "tumor",
        "tumour",
    ],
)
"""Classes taken for tumour unless the user names the classes."""
NEGATIVE_NAMES = frozenset(
    ["_2", "benign", "exclude", "exclusion", "hole", "ignore*", "negative", "no-tumor", "non-tumor", "normal"]
)
"""Classes that cut a hole into tumour which they lie in."""
OTHER_NAMES = frozenset(
    ["background", "fat", "immune", "mucus", "muscle", "necrosis", "other", "region*", "stroma", "tissue"]
)
"""Classes that are known to be no tumour and to cut nothing."""


Point = tuple[float, float]
_FARTHEST = 1e8  # level-0 pixels; also keeps areas exact


class AnnotationError(WsisegError):
    """Outlines or a mask cannot be read, or mean nothing here."""


class ZeroedMapError(AnnotationError):
    """A published map of normal tissue, set to zero by hand: it is left out, not failed."""


@dataclass(frozen=True)
class Outline:
    """One outline as drawn.

    Attributes:
        polygon: A shapely Polygon or MultiPolygon in level-0 pixels; it may cross itself.
        class_name: Its class, empty where it has none.
        is_negative: True if the file itself says that it is a hole.
        name: What it was called besides; taken for its class where it has none and the user names classes.
    """

    polygon: Any
    class_name: str = ""
    is_negative: bool = False
    name: str = ""


def drawn_polygon(shell: Sequence[Point], holes: Sequence[Sequence[Point]] = ()) -> Any:  # noqa: ANN401  a shapely polygon
    """Make a polygon of points.

    Raises:
        ValueError: There are too few points, or one that lies on no slide.
    """
    import shapely  # noqa: PLC0415  heavy: only where outlines are read

    if not all(abs(number) < _FARTHEST for ring in (shell, *holes) for point in ring for number in point):
        raise ValueError("a coordinate lies on no slide")
    return shapely.Polygon(shell, holes)


@dataclass(frozen=True)
class Classes:
    """Which classes mean tumour.

    Attributes:
        tumor: Names that count as tumour, in any case of letters. Where there are none, the usual names count, and
            outlines without a class.
        negative: Further names that cut a hole.
    """

    tumor: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()

    def sign(self, class_name: str) -> int | None:
        """Give 1 for tumour, -1 for a hole, 0 for neither, None for a class that is not known."""
        name = class_name.strip().casefold()
        if name in {other.casefold() for other in self.negative}:
            return -1
        if self.tumor:
            return 1 if name in {other.casefold() for other in self.tumor} else -int(name in NEGATIVE_NAMES)
        if not name or name in TUMOR_NAMES:
            return 1
        if name in NEGATIVE_NAMES:
            return -1
        return 0 if name in OTHER_NAMES else None

    def sign_of(self, outline: Outline) -> int | None:
        """Give the sign of an outline, as `sign` does."""
        if outline.is_negative:
            return -1
        return self.sign(outline.class_name or (outline.name if self.tumor else ""))


def tumor_area(name: str, outlines: Sequence[Outline], classes: Classes) -> tuple[Any, tuple[str, ...]]:
    """Put outlines together: the largest is laid first, so what is nested in another decides there.

    Args:
        name: File name, for messages.
        outlines: Outlines of one slide.
        classes: Which of them mean tumour.

    Returns:
        The tumour as a valid shapely geometry, and what a person should know.

    Raises:
        AnnotationError: There are classes that nobody said anything about, and none that is known as tumour.
    """
    import shapely  # noqa: PLC0415  heavy: only where outlines are read

    signs = [classes.sign_of(outline) for outline in outlines]
    unknown = Counter(outline.class_name for outline, sign in zip(outlines, signs, strict=True) if sign is None)
    if unknown and not any(sign == 1 and outline.class_name for outline, sign in zip(outlines, signs, strict=True)):
        raise unknown_classes(name, unknown)
    notes = [f"{name}: {count} outlines of class {text} are not counted as tumour" for text, count in unknown.items()]
    drawn = [(outline.polygon, sign) for outline, sign in zip(outlines, signs, strict=True) if sign]
    polygons, repaired = _valid([polygon for polygon, _ in drawn])
    if repaired:
        notes.append(f"{name}: {repaired} self-crossing outlines were repaired")
    try:
        return _layered(polygons, [sign for _, sign in drawn]), tuple(notes)
    except shapely.GEOSException as error:
        raise AnnotationError(f"{name}: its outlines cannot be put together: {error}", "draw them again") from error


def _layered(polygons: list[Any], signs: list[int]) -> Any:  # noqa: ANN401  a shapely geometry
    """Lay polygons over each other, the largest first; those with a negative sign cut."""
    import shapely  # noqa: PLC0415  heavy: only where outlines are read

    layers = sorted(zip(polygons, signs, strict=True), key=lambda layer: -layer[0].area)
    area = shapely.MultiPolygon()
    for sign, group in itertools.groupby(layers, key=lambda layer: layer[1]):
        together = shapely.union_all([polygon for polygon, _ in group])
        area = area.union(together) if sign > 0 else area.difference(together)
    return area


def unknown_classes(name: str, classes: Iterable[str]) -> AnnotationError:
    """Make the error for a file all of whose classes could mean anything."""
    listed = ", ".join(sorted(classes))
    return AnnotationError(f"{name}: nothing is of a class known as tumour, but of {listed}", "give --tumor-class NAME")


def _valid(polygons: list[Any]) -> tuple[list[Any], int]:
    """Repair outlines that cross themselves; a part that is enclosed twice stays part of the outline."""
    import shapely  # noqa: PLC0415  heavy: only where outlines are read

    broken = [not shapely.is_valid(polygon) for polygon in polygons]
    mended = [
        shapely.make_valid(polygon, method="structure", keep_collapsed=False) if is_broken else polygon
        for polygon, is_broken in zip(polygons, broken, strict=True)
    ]
    return mended, sum(broken)
