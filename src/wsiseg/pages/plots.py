"""Plots of lines: ROC, precision and recall, reliability, free-response ROC, measures by epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsiseg.pages.drawing import GRID, INK, Drawing, Polyline, Rectangle, Shape, Text

Floats = NDArray[np.float64]
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Told apart by people who see no red or no green too (Okabe and Ito)."""

_WIDTH, _HEIGHT = 420, 400
_LEFT, _TOP, _SIDE = 58, 34, 310
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_POINTS = 400  # of a line; more cannot be seen
_DOT = 7  # a line of one point


@dataclass(frozen=True)
class Line:
    """A line of a plot, float64[n] along x and y, or its points alone; the legend has its label."""

    label: str
    x: Floats
    y: Floats
    is_scattered: bool = False


def plot(
    title: str,
    axes: tuple[str, str],
    lines: Sequence[Line],
    *,
    diagonal: bool = False,
    widest: float = 1.0,
    highest: float = 1.0,
    falls: bool = False,
) -> Drawing:
    """Draw lines over 0..`widest` and 0..`highest`, each in a colour of its own, with the names of both axes.

    A grey line can show the diagonal. Where the lines fall to the right, their names stand above.
    """
    drawing = Drawing(_WIDTH, _HEIGHT, title, [Text(_LEFT, 16, title, 14)])
    shapes = drawing.shapes
    for tick in _TICKS:
        x, y = _place(tick, 0), _place(0, tick)
        shapes += [Polyline([x, _place(tick, 1)], GRID, 1), Polyline([y, _place(1, tick)], GRID, 1)]
        shapes.append(Text(x[0], x[1] + 14, f"{tick * widest:g}", 11, "middle"))
        shapes.append(Text(y[0] - 8, y[1], f"{tick * highest:.3g}", 11, "end"))
    shapes.append(Text(_LEFT + _SIDE / 2, _TOP + _SIDE + 36, axes[0], 12, "middle"))
    shapes.append(Text(14, _TOP + _SIDE / 2, axes[1], 12, "middle", is_upright=True))
    if diagonal:
        shapes.append(Polyline([_place(0, 0), _place(1, 1)], "#999999", 1))
    for line, color in zip(lines, COLORS, strict=False):
        inside = line.x <= widest
        end = [] if inside.all() else [_place(1, float(np.interp(widest, line.x, line.y)) / highest)]
        points = [_place(x / widest, y / highest) for x, y in zip(line.x[inside], line.y[inside], strict=True)]
        if line.is_scattered or len(points) + len(end) == 1:
            shapes += [Rectangle(x - _DOT / 2, y - _DOT / 2, _DOT, _DOT, color) for x, y in (*points, *end)]
        else:
            shapes.append(Polyline([*points, *end], color, 2))
    shapes += _legend(lines, is_above=falls)
    return drawing


def thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Keep points of a long line that are far enough apart to be seen."""
    if len(x) <= _POINTS:
        return x, y
    walked = np.cumsum(np.abs(np.diff(x, prepend=x[0])) + np.abs(np.diff(y, prepend=y[0])))
    kept = np.unique(np.searchsorted(walked, np.linspace(0, walked[-1], _POINTS)))
    return x[kept], y[kept]


def _place(x: float, y: float) -> tuple[float, float]:
    return _LEFT + x * _SIDE, _TOP + (1 - y) * _SIDE


def _legend(lines: Sequence[Line], *, is_above: bool) -> list[Shape]:
    """Name the lines at the right: below, where ROC curves leave room, or above."""
    widest = max((len(line.label) for line in lines), default=0) * 6.2 + 34
    left, top = _LEFT + _SIDE - widest - 6, _TOP + 6 if is_above else _TOP + _SIDE - 18 * len(lines) - 8
    shapes: list[Shape] = [Rectangle(left, top, widest, 18 * len(lines) + 2, "#ffffffd9")]
    for number, (line, color) in enumerate(zip(lines, COLORS, strict=False)):
        y = top + 10 + 18 * number
        shapes += [Polyline([(left + 6, y), (left + 22, y)], color, 3), Text(left + 28, y, line.label, 11, color=INK)]
    return shapes
