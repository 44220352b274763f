"""Digits drawn by hand: polylines of my own pen in a 100x100 square, on paper of many kinds.

They share nothing with the data that models are trained on.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi, sin

from PIL import Image, ImageDraw, ImageFilter, ImageFont

Point = tuple[float, float]
Stroke = tuple[Point, ...]


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Stroke:
    """Degrees clockwise from the right, y downwards."""
    steps = 24
    angles = [(start + (end - start) * i / steps) * pi / 180 for i in range(steps + 1)]
    return tuple((x + rx * cos(a), y + ry * sin(a)) for a in angles)


DRAWINGS: dict[str, tuple[Stroke, ...]] = {
    "0": (_arc(50, 50, 28, 42, -80, 290),),
    "1": (((36, 26), (52, 10), (53, 50), (51, 91)),),
    "2": ((*_arc(48, 32, 24, 22, 190, 370), (64, 54), (44, 74), (25, 90), (50, 88), (77, 90)),),
    "3": ((*_arc(46, 30, 23, 20, 200, 430), *_arc(46, 70, 26, 21, -80, 160)),),
    "4": (((45, 10), (33, 36), (22, 60), (50, 61), (80, 60)), ((62, 38), (60, 66), (59, 92))),
    "5": (((72, 11), (50, 11), (31, 12), (28, 45), *_arc(48, 66, 27, 25, -110, 150)),),
    "6": (((64, 9), (46, 22), (33, 42), *_arc(50, 68, 23, 22, 190, 540)),),
    "7": (((22, 14), (50, 13), (78, 12), (64, 40), (52, 64), (44, 91)),),
    "8": ((*_arc(50, 30, 19, 20, 90, 450), *_arc(50, 70, 23, 21, -90, 270)),),
    "9": ((*_arc(48, 32, 22, 22, -10, 350), (70, 34), (68, 60), (62, 92)),),
}


@dataclass(frozen=True)
class Style:
    """How a digit is put on paper. Lengths are parts of the digit's height."""

    name: str
    size: tuple[int, int] = (280, 280)
    height: float = 0.75
    """Of the digit, as a part of the picture's shorter side."""
    centre: Point = (0.5, 0.5)
    pen: float = 0.08
    ink: int = 0
    paper: int = 255
    slant: float = 0.0
    shade: int = 0
    """Grey levels by which the paper darkens from left to right."""
    blur: float = 0.0
    wobble: float = 0.0


STYLES = (
    Style("a felt pen on white paper"),
    Style("chalk on a black board", ink=255, paper=0),
    Style("a thin pen", pen=0.035),
    Style("a thick marker", pen=0.16),
    Style("a pencil, hardly visible", ink=150, paper=190, pen=0.05),
    Style("light grey on dark grey", ink=120, paper=70),
    Style("small and in a corner of a photo", size=(640, 480), height=0.35, centre=(0.25, 0.3), shade=50, paper=220),
    Style("large, to the edges", height=0.96),
    Style("slanted to the right", slant=0.25),
    Style("slanted to the left, dark", slant=-0.2, ink=230, paper=20),
    Style("out of focus", blur=3.0),
    Style("a tall photo in uneven light", size=(480, 640), height=0.6, shade=80, paper=230, ink=40, pen=0.06),
)


def draw(digit: str, style: Style) -> Image.Image:
    """A drawing of mode L."""
    width, height = style.size
    scale = style.height * min(width, height) / 100
    left, top = style.centre[0] * width - 50 * scale, style.centre[1] * height - 50 * scale
    mask = Image.new("L", style.size, 0)
    canvas = ImageDraw.Draw(mask)
    pen = max(1.0, style.pen * 100 * scale)
    for stroke in DRAWINGS[digit]:
        points = [(left + (x + style.slant * (50 - y)) * scale, top + y * scale) for x, y in stroke]
        canvas.line(points, fill=255, width=round(pen), joint="curve")
        for x, y in (points[0], points[-1]):
            canvas.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    paper = Image.new("L", style.size, style.paper)
    if style.shade:
        dark = Image.linear_gradient("L").rotate(90).resize(style.size)
        paper = Image.composite(Image.new("L", style.size, style.paper - style.shade), paper, dark)
    paper.paste(style.ink, (0, 0), mask)
    return paper.filter(ImageFilter.GaussianBlur(style.blur)) if style.blur else paper


def typed(digit: str, dark_on_light: bool = True) -> Image.Image:
    """The digit in Pillow's own font, large."""
    picture = Image.new("L", (200, 240), 255 if dark_on_light else 0)
    font = ImageFont.load_default(size=180)
    ImageDraw.Draw(picture).text((50, 20), digit, fill=0 if dark_on_light else 255, font=font)
    return picture


def transparent(digit: str, ink: int) -> Image.Image:
    """As a drawing canvas in a browser gives it: ink on nothing."""
    mask = draw(digit, Style("mask", ink=255, paper=0))
    picture = Image.new("RGBA", mask.size, (ink, ink, ink, 0))
    picture.putalpha(mask)
    return picture


def encode(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def all_drawings() -> Iterator[tuple[str, Style, Image.Image]]:
    for style in STYLES:
        for digit in DRAWINGS:
            yield digit, style, draw(digit, style)
