"""What was drawn on a picture, apart from what it was drawn on: bright ink on black, cropped and centred.

1. The background is a plane (uneven light) fitted to the picture's border; border pixels far from it are not of it.
2. Ink is what differs from it, on the side (darker or lighter) that differs more.
3. Contrast is stretched so that the strokes are white.
4. The ink's bounding box is cut out and laid in the middle of a black square; its aspect is kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from server.pipeline.image_spec import Foreground

Plane = NDArray[np.float32]

NOISE_FACTOR = 4.0
"""Ink differs from the background by more than this many times the noise on the border."""


class Blank(ValueError):
    """Nothing stands out from the background."""

    def __init__(self) -> None:
        super().__init__("nothing stands out from the background of the picture")


def isolate(picture: Image.Image, spec: Foreground) -> Image.Image:
    """A square picture of mode L with the ink of `picture` (mode L) in it. Raises Blank."""
    grey = np.asarray(picture, dtype=np.float32)
    difference, noise = _difference(grey, spec.border)
    floor = max(NOISE_FACTOR * noise, spec.min_contrast / 2)
    lighter, darker = np.maximum(difference - floor, 0), np.maximum(-difference - floor, 0)
    is_light = float(np.square(lighter).sum()) > float(np.square(darker).sum())
    ink = np.maximum(difference if is_light else -difference, 0)
    strokes = ink[ink > floor]
    if strokes.size == 0:
        raise Blank
    full = _quantile(strokes, 0.9)
    if full < spec.min_contrast:
        raise Blank
    # From half the noise floor up, so that paper grain does not turn into grey.
    low = min(floor, full / 2) / 2
    stretched = np.clip((ink - low) / (full - low), 0, 1).astype(np.float32)
    return _centred(stretched, _box(stretched, spec.box_threshold), spec.margin)


def _difference(grey: Plane, border: float) -> tuple[Plane, float]:
    """How much each pixel is lighter than the background, and the noise of the background (both grey levels)."""
    height, width = grey.shape
    rows, columns = max(1, round(height * border)), max(1, round(width * border))
    frame = np.ones(grey.shape, dtype=bool)
    frame[rows : height - rows, columns : width - columns] = False
    y, x = np.nonzero(frame)
    values = grey[frame].astype(np.float64)
    terms = np.stack([np.ones(len(y)), y / height, x / width], axis=1)
    # Ink may run over the border: only what is near the median is fitted.
    residual = np.abs(values - _median(values))
    kept = residual <= max(3.0, 3 * _median(residual))
    plane = np.linalg.lstsq(terms[kept], values[kept], rcond=None)[0]
    noise = 1.4826 * _median(np.abs(values[kept] - terms[kept] @ plane))
    down = (plane[1] * np.arange(height) / height).astype(np.float32)
    across = (plane[0] + plane[2] * np.arange(width) / width).astype(np.float32)
    return grey - down[:, None] - across[None, :], noise


def _median(values: NDArray[np.float64]) -> float:
    """`np.median` of values that are not empty and not NaN, bit for bit; that one imports all of `numpy.ma`."""
    middle = [(values.size - 1) // 2, values.size // 2]
    return float(np.partition(values, middle)[middle].mean())


def _quantile(values: Plane, share: float) -> float:
    """`np.quantile` of values that are not empty and not NaN, bit for bit, without `numpy.ma` as well."""
    at = (values.size - 1) * share
    places = [int(at), min(int(at) + 1, values.size - 1)]
    below, above = np.partition(values, places)[places]
    beyond = at - places[0]
    # From the nearer of the two, as there: it is a matter of the last bit.
    return float(above - (above - below) * (1 - beyond) if beyond >= 0.5 else below + (above - below) * beyond)


def _box(ink: Plane, threshold: float) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the strokes. A mean over 3x3 pixels keeps lines and forgets lone specks."""
    padded = np.pad(ink, 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    mean = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9
    mask = (ink > threshold) & (mean > threshold / 2)
    if not mask.any():
        mask = ink > threshold
    y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def _centred(ink: Plane, box: tuple[int, int, int, int], margin: float) -> Image.Image:
    left, top, right, bottom = box
    height, width = bottom - top, right - left
    side = max(1, round(max(height, width) * (1 + 2 * margin)))
    canvas = np.zeros((side, side), dtype=np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    canvas[y : y + height, x : x + width] = np.rint(ink[top:bottom, left:right] * 255)
    return Image.fromarray(canvas)
