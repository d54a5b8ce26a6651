"""Plain drawings that are written as SVG and as PNG alike: rectangles, lines and text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from wsiseg.run.outputs import write_text, written_whole

Anchor = Literal["start", "middle", "end"]
INK, PAPER, GRID = "#222222", "#ffffff", "#dddddd"
_ZOOM = 2  # PNG pixels per unit
_SMOOTH = 2  # lines are drawn this much larger and reduced
_ANCHORS: dict[Anchor, str] = {"start": "lm", "middle": "mm", "end": "rm"}


@dataclass(frozen=True)
class Rectangle:
    """A filled rectangle with its upper left corner at x, y."""

    x: float
    y: float
    width: float
    height: float
    fill: str


@dataclass(frozen=True)
class Polyline:
    """A line through points."""

    points: Sequence[tuple[float, float]]
    color: str
    width: float = 1.5


@dataclass(frozen=True)
class Text:
    """Text whose vertical middle is at y; turned a quarter to the left where `is_upright`."""

    x: float
    y: float
    text: str
    size: int = 12
    anchor: Anchor = "start"
    is_upright: bool = False
    color: str = INK


Shape = Rectangle | Polyline | Text


@dataclass
class Drawing:
    """A drawing of a given width and height; shapes later in the list cover earlier ones."""

    width: int
    height: int
    title: str
    shapes: list[Shape] = field(default_factory=list)

    def svg(self) -> str:
        """Return the drawing as an SVG element."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" font-family="sans-serif"><title>{escape(self.title)}</title>'
            f'<rect width="{self.width}" height="{self.height}" fill="{PAPER}"/>'
        )
        return head + "".join(map(_svg, self.shapes)) + "</svg>"

    def png(self) -> Image.Image:
        """Return the drawing as an image at twice its size."""
        scale = _ZOOM * _SMOOTH
        image = Image.new("RGB", (self.width * scale, self.height * scale), PAPER)
        draw = ImageDraw.Draw(image)
        for shape in self.shapes:
            if isinstance(shape, Rectangle):
                left, top = round(shape.x * scale), round(shape.y * scale)
                right, below = round((shape.x + shape.width) * scale), round((shape.y + shape.height) * scale)
                draw.rectangle((left, top, max(left, right - 1), max(top, below - 1)), fill=shape.fill)
            elif isinstance(shape, Polyline):
                points = [(x * scale, y * scale) for x, y in shape.points]
                draw.line(points, fill=shape.color, width=round(shape.width * scale), joint="curve")
            else:
                _write(image, shape, scale)
        return image.resize((self.width * _ZOOM, self.height * _ZOOM), Image.Resampling.LANCZOS)

    def save(self, stem: Path) -> None:
        """Write `stem`.svg and `stem`.png."""
        write_text(stem.with_suffix(".svg"), self.svg() + "\n")
        with written_whole(stem.with_suffix(".png")) as partial:
            self.png().save(partial, "PNG", optimize=True)


def _svg(shape: Shape) -> str:
    if isinstance(shape, Rectangle):
        size = f'width="{shape.width:.2f}" height="{shape.height:.2f}"'
        return f'<rect x="{shape.x:.2f}" y="{shape.y:.2f}" {size} fill="{shape.fill}"/>'
    if isinstance(shape, Polyline):
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in shape.points)
        return f'<polyline points="{points}" fill="none" stroke="{shape.color}" stroke-width="{shape.width}"/>'
    turned = f' transform="rotate(-90 {shape.x:.2f} {shape.y:.2f})"' if shape.is_upright else ""
    return (
        f'<text x="{shape.x:.2f}" y="{shape.y:.2f}" font-size="{shape.size}" text-anchor="{shape.anchor}" '
        f'dominant-baseline="central" fill="{shape.color}"{turned}>{escape(shape.text)}</text>'
    )


def _write(image: Image.Image, text: Text, scale: int) -> None:
    font = ImageFont.load_default(text.size * scale)
    at = (text.x * scale, text.y * scale)
    if not text.is_upright:
        ImageDraw.Draw(image).text(at, text.text, fill=text.color, font=font, anchor=_ANCHORS[text.anchor])
        return
    length, height = math.ceil(font.getlength(text.text)), 2 * text.size * scale
    strip = Image.new("L", (length, height), 0)
    ImageDraw.Draw(strip).text((0, height / 2), text.text, fill=255, font=font, anchor="lm")
    turned = strip.transpose(Image.Transpose.ROTATE_90)
    image.paste(text.color, (round(at[0] - height / 2), round(at[1] - length / 2)), turned)
