"""Encoded pictures to upright pixels: limits first, then a decoder that the spec names.

    pillow         the whole picture is decoded; with max_side a JPEG may be reduced while it is
    pillow-draft   a JPEG is reduced by 2, 4 or 8 while it is decoded, as far as the model's own size allows (times
                   `oversample`), and as grey where the model wants grey; any other format as with pillow

Both are libjpeg-turbo, and release the GIL while they work. Reducing in the decoder takes a half to a third of the
time; the pixels differ a little, which is why training and serving read the choice from one spec.
"""

from __future__ import annotations

from io import BytesIO
from math import ceil
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from server.errors import InvalidRequest, PayloadTooLarge
from server.pipeline.image_spec import ImageSpec

_LYING = frozenset({5, 6, 7, 8})
_TURNED = frozenset({2, 3, 4}) | _LYING
"""EXIF orientations that change the picture; those of `_LYING` swap its sides."""


class PictureDecoder:
    """The `decode` part of a spec. Immutable, and safe to call from several threads."""

    def __init__(self, spec: ImageSpec, max_pixels: int) -> None:
        self._spec = spec
        self._max_pixels = max_pixels

    def __call__(self, data: bytes, field: str) -> Image.Image:
        """Bytes to an upright picture of the spec's mode, no larger than its max_side.

        Raises:
            InvalidRequest: `field` is no picture, is damaged, animated, or of a format that the spec does not take.
            PayloadTooLarge: `field` is over the spec's bytes or pixels.
        """
        limits = self._spec.decode
        if len(data) > limits.max_bytes:
            raise PayloadTooLarge(field, limits.max_bytes, len(data))
        picture = self._open(data, field)
        pixels = picture.width * picture.height
        if pixels > self._max_pixels:
            raise PayloadTooLarge(field, self._max_pixels, pixels, "pixels")
        # A phone's JPEG may carry a second view (MPO); its first is the picture that people see.
        if picture.format != "MPO" and getattr(picture, "is_animated", False):
            raise InvalidRequest(field, "is an animation, a single picture is needed")
        try:
            return self._load(picture)
        except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
            raise InvalidRequest(field, f"the {picture.format} picture is damaged or cut short") from error

    def _open(self, data: bytes, field: str) -> Image.Image:
        try:
            return Image.open(BytesIO(data), formats=self._spec.decode.formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise PayloadTooLarge(field, self._max_pixels, unit="pixels") from error
        except Exception as error:
            formats = ", ".join(self._spec.decode.formats)
            raise InvalidRequest(field, f"is not a picture in one of these formats: {formats}") from error

    def _load(self, picture: Image.Image) -> Image.Image:
        limits, mode = self._spec.decode, self._spec.mode
        orientation = picture.getexif().get(ExifTags.Base.Orientation) if limits.exif_orientation else None
        self._draft(picture, orientation in _LYING)
        picture.load()
        if orientation in _TURNED:
            picture = ImageOps.exif_transpose(picture)
        picture = _eight_bits(picture)
        if picture.has_transparency_data:
            picture = _composite(picture.convert("RGBA"), limits.background)
        if picture.mode != mode:
            picture = picture.convert(mode)
        if limits.max_side is not None and max(picture.size) > limits.max_side:
            picture.thumbnail((limits.max_side, limits.max_side), Image.Resampling.BOX)
        return picture

    def _draft(self, picture: Image.Image, lying: bool) -> None:
        """Let a JPEG's decoder reduce the picture, to no less than the size asked for. Other formats can't."""
        limits = self._spec.decode
        if limits.decoder == "pillow-draft":
            picture.draft("L" if self._spec.mode == "L" else None, self._least_size(picture, lying))
        elif limits.max_side is not None:
            picture.draft(None, (limits.max_side, limits.max_side))

    def _least_size(self, picture: Image.Image, lying: bool) -> tuple[int, int]:
        """Of the picture as it is stored: what resizing needs of it, or what a foreground is looked for in."""
        limits, resize = self._spec.decode, self._spec.resize
        if self._spec.foreground is not None and limits.max_side is not None:
            part = limits.max_side / max(picture.size)
            return ceil(picture.width * part), ceil(picture.height * part)
        width, height = ceil(resize.width * limits.oversample), ceil(resize.height * limits.oversample)
        return (height, width) if lying else (width, height)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey pictures of 16 bits, which Pillow's own conversion would clip to white."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.mode in {"I", "F"}:
        raise ValueError(f"pixels of mode {picture.mode} have no known white")
    return picture


def _composite(picture: Image.Image, background: Literal["contrast"] | tuple[int, int, int]) -> Image.Image:
    """An RGBA picture over a plain background, as RGB."""
    if background == "contrast":
        alpha = np.asarray(picture.getchannel("A"), dtype=np.float64)
        grey = np.asarray(picture.convert("RGB").convert("L"), dtype=np.float64)
        visible = float((grey * alpha).sum() / max(alpha.sum(), 1.0))
        background = (0, 0, 0) if visible > 127 else (255, 255, 255)
    canvas = Image.new("RGBA", picture.size, (*background, 255))
    canvas.alpha_composite(picture)
    return canvas.convert("RGB")
