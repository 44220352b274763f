"""Digits of 8x8 pixels drawn anew, as a pen would on paper: what makes a model of scans read drawings.

A digit becomes two maps, made once: its smoothly enlarged grey values, and the distance of each pixel to the
middle of the nearest stroke. A drawing takes one of them at a random level (which is the thickness of the
pen), then is turned, sheared and stretched, blurred, and put on paper of random colour, light and grain.

Shapes: H and W are `SIDE`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import distance_transform_edt, gaussian_filter

Map = NDArray[np.float32]

SCALE = 6
PAD = 3
SIDE = (8 + 2 * PAD) * SCALE
MAX_INTENSITY = 16
"""Of a pixel in scikit-learn's digits."""


def enlarge(digit: NDArray[np.floating[Any]]) -> Map:
    """An [8, 8] digit, 0 to 16, as a smooth [H, W] map from 0 to 1 with an empty border."""
    padded = np.pad(np.asarray(digit, dtype=np.float32) / MAX_INTENSITY, PAD)
    smooth = Image.fromarray(padded).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth, dtype=np.float32), 0, 1)


def plain(enlarged: Map) -> Image.Image:
    """The digit as it was scanned, white on black."""
    return Image.fromarray(np.rint(enlarged * 255).astype(np.uint8))


def stroke_distance(enlarged: Map, level: float = 0.5) -> Map:
    """[H, W]: pixels from the middle of the nearest stroke; strokes are what is above `level` of the maximum.

    Sharpened first, or the small hole of a 6 closes and its skeleton is that of another digit.
    """
    sharp = enlarged + 2 * (enlarged - gaussian_filter(enlarged, SCALE))
    middle = thin(sharp > level * float(sharp.max()))
    return np.asarray(distance_transform_edt(~middle), dtype=np.float32)


def thin(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The one-pixel-wide skeleton of a mask whose border is empty; connected parts stay connected.

    Source: Zhang and Suen, "A fast parallel algorithm for thinning digital patterns", CACM 27 (1984).
    """
    mask = mask.copy()
    removed = True
    while removed:
        removed = False
        for corner in (0, 4):
            drop = mask & _removable(mask, corner)
            if drop.any():
                mask &= ~drop
                removed = True
    return mask


def _removable(mask: NDArray[np.bool_], corner: int) -> NDArray[np.bool_]:
    """Pixels on the south-east (`corner` 0) or north-west (4) side that hold nothing together."""
    steps = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # clockwise from north
    ring = [np.roll(mask, (-dy, -dx), axis=(0, 1)) for dy, dx in steps]
    count = np.sum(ring, axis=0)
    changes = np.sum([~ring[i] & ring[(i + 1) % 8] for i in range(8)], axis=0)
    north, east, south, west = (ring[(i + corner) % 8] for i in (0, 2, 4, 6))
    held = (north & east & south) | (east & south & west)
    return np.asarray((count >= 2) & (count <= 6) & (changes == 1) & ~held)


def redraw(enlarged: Map, distance: Map, generator: np.random.Generator) -> Image.Image:
    """A random drawing of a digit, mode L, H x W; the generator alone decides which."""
    choice = generator.random()
    if choice < 0.6:
        radius = generator.uniform(0.8, 1.15 * SCALE)
        ink = np.clip(radius + 0.5 - distance, 0, 1)
    elif choice < 0.8:
        level, softness = generator.uniform(0.2, 0.65), generator.uniform(0.05, 0.5)
        ink = np.clip((enlarged - level) / softness + 0.5, 0, 1)
    else:
        ink = enlarged
    picture = Image.fromarray(ink.astype(np.float32)).transform(
        (SIDE, SIDE), Image.Transform.AFFINE, _warp(generator), Image.Resampling.BILINEAR
    )
    return _on_paper(np.asarray(picture, dtype=np.float32), generator)


def _warp(generator: np.random.Generator) -> tuple[float, float, float, float, float, float]:
    """A random turn, shear and stretch about the middle, as Pillow's six numbers (output to input)."""
    # Bounded, and not normal: a seven that is squeezed or turned far enough is a one.
    angle = np.deg2rad(generator.uniform(-14, 14))
    shear = generator.uniform(-0.35, 0.35)
    stretch = np.exp(generator.uniform(-0.3, 0.3))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([stretch, 1.0])
    # The corners of a wide or turned digit have to stay on the paper.
    matrix *= max(1.0, 1.0 / stretch) * generator.uniform(0.95, 1.25)
    shift = SIDE / 2 - matrix @ np.array([SIDE / 2, SIDE / 2]) + generator.uniform(-SCALE, SCALE, 2)
    (a, b), (d, e) = matrix.tolist()
    return a, b, float(shift[0]), d, e, float(shift[1])


def _on_paper(ink: Map, generator: np.random.Generator) -> Image.Image:
    noise = generator.uniform(0, 5)
    contrast = generator.uniform(50 + 4 * noise, 250)
    paper = generator.uniform(0, 255 - contrast)
    slope_y, slope_x = generator.uniform(-0.15, 0.15, 2) * contrast
    ramp = np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)
    grey = paper + contrast * ink + slope_y * ramp[:, None] + slope_x * ramp[None, :]
    grey = grey + generator.normal(0, noise, grey.shape)
    if generator.random() < 0.5:
        grey = 255 - grey
    picture = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    if generator.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(generator.uniform(0.3, 1.2)))
    return picture


def example() -> Image.Image:
    """A seven in one pen stroke, dark on light, 280 x 280 and off-centre."""
    stroke = [(78, 66), (98, 60), (140, 62), (184, 57), (196, 62), (180, 96), (158, 140), (140, 186), (131, 224)]
    large = Image.new("L", (1120, 1120), 246)
    canvas = ImageDraw.Draw(large)
    canvas.line([(4 * x, 4 * y) for x, y in stroke], fill=38, width=52, joint="curve")
    for x, y in (stroke[0], stroke[-1]):
        canvas.ellipse((4 * x - 26, 4 * y - 26, 4 * x + 26, 4 * y + 26), fill=38)
    return large.resize((280, 280), Image.Resampling.BOX)
