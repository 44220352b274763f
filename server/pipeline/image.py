"""Pictures in, classes out: the steps between an encoded picture and a model's tensor, as one declared spec.

    decode       bytes -> a picture: limits, formats, EXIF orientation, alpha laid over a background, max_side
    foreground   optional: what was drawn, bright on black, cropped and centred (see `server.pipeline.foreground`)
    resize       to the model's size, with a named filter
    normalize    (value * scale - mean) / std, in the declared layout

Training runs the same `ImagePipeline`. Decoding and resizing release the GIL.
Shapes: B rows, C channels, H and W of the model's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field, model_validator

from server.errors import InvalidRequest, ModelLoadFailed, PayloadTooLarge
from server.pipeline.classification import ClassificationSpec, Classifier, SpecModel
from server.pipeline.foreground import Blank, Foreground, isolate
from server.types import Array, ImageInput, Prediction, RawInput

Format = Literal["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]
Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]
Byte = Annotated[int, Field(ge=0, le=255)]

PILLOW_MAX_PIXELS = 89_478_485
"""Where Pillow itself begins to warn of a decompression bomb; a spec can't go beyond it."""


class Decode(SpecModel):
    decoder: Literal["pillow"] = "pillow"
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = ("PNG", "JPEG", "WEBP", "BMP")
    """What the bytes themselves must be; a caller's content type is not believed."""
    max_bytes: Annotated[int, Field(gt=0)] = 16 * 1024 * 1024
    """Of one encoded picture."""
    max_pixels: Annotated[int, Field(gt=0, le=PILLOW_MAX_PIXELS)] = 25_000_000
    """Width times height, read from the header before anything is decoded."""
    exif_orientation: bool = True
    background: Literal["contrast"] | tuple[Byte, Byte, Byte] = (255, 255, 255)
    """Laid under transparent pixels; contrast: black or white, whichever the visible pixels stand out from."""
    max_side: Annotated[int, Field(ge=8)] | None = None
    """Larger pictures are reduced so that their longer side is this many pixels, JPEGs while they are decoded."""


class Resize(SpecModel):
    height: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=4096)]
    filter: Filter = "bilinear"
    fit: Literal["stretch", "crop"] = "stretch"
    """crop: keep the aspect and cut what is over from both sides."""


class Normalize(SpecModel):
    """Per channel: ``(value * scale - mean) / std``, value from 0 to 255."""

    scale: Annotated[float, Field(gt=0)] = 1 / 255
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class ImageSpec(SpecModel):
    task: Literal["image-classification"] = "image-classification"
    input: str = "image"
    """Name of the input tensor, FP32, [B, C, H, W] or [B, H, W, C]."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    mode: Literal["L", "RGB"]
    """Channels of the model: one of luminance, or three."""
    decode: Decode = Decode()
    foreground: Foreground | None = None
    resize: Resize
    normalize: Normalize
    classification: ClassificationSpec = ClassificationSpec()
    example: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.(png|jpg)$")] = "example.png"
    """A picture in the model's folder that `example` gives."""

    @model_validator(mode="after")
    def _channels_agree(self) -> Self:
        channels = len(self.mode)
        if len(self.normalize.mean) != channels or len(self.normalize.std) != channels:
            raise ValueError(f"normalize: mode {self.mode} needs {channels} values in mean and in std")
        if self.foreground is not None and self.mode != "L":
            raise ValueError("foreground: needs mode L")
        return self


class ImagePipeline:
    """`server.pipeline.base.Pipeline` for pictures. Immutable, and safe to call from several threads."""

    task = "image-classification"

    def __init__(self, spec: ImageSpec, folder: Path, max_pixels: int | None = None) -> None:
        """Reads the labels and the example from `folder`; `max_pixels` is the server's own limit.

        Raises:
            ModelLoadFailed: one of the two can't be read, or the spec contradicts them.
        """
        try:
            example = (folder / spec.example).read_bytes()
        except OSError as error:
            raise ModelLoadFailed(folder.name, spec.example, f"can't be read: {type(error).__name__}") from error
        self._example = ImageInput(example, "image/png" if spec.example.endswith("png") else "image/jpeg")
        self._classifier = Classifier.from_folder(spec.classification, folder)
        self._steps = ImageSteps(spec, max_pixels)

    @property
    def spec(self) -> ImageSpec:
        return self._steps.spec

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        """One row for each picture; see `Pipeline.preprocess` for what is raised."""
        if not inputs:
            raise InvalidRequest("inputs", "is empty")
        rows = [self._steps.row(item, f"inputs[{index}]") for index, item in enumerate(inputs)]
        return {self.spec.input: np.stack(rows)}

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        return self._classifier.postprocess(outputs, top_k)

    def describe(self) -> Mapping[str, object]:
        decode = self.spec.decode
        return {
            "task": self.task,
            "input": {
                "kind": "image",
                "formats": list(decode.formats),
                "max_bytes": decode.max_bytes,
                "max_pixels": self._steps.max_pixels,
            },
            "labels": list(self._classifier.labels),
            "top_k": self._classifier.check_top_k(0),
        }

    def example(self) -> RawInput:
        return self._example


class ImageSteps:
    """The steps of a spec, one picture at a time, without a model's folder: what training calls as well."""

    def __init__(self, spec: ImageSpec, max_pixels: int | None = None) -> None:
        self.spec = spec
        self.max_pixels = spec.decode.max_pixels if max_pixels is None else min(spec.decode.max_pixels, max_pixels)
        self._filter = Image.Resampling[spec.resize.filter.upper()]
        self._mean = np.asarray(spec.normalize.mean, dtype=np.float32)
        self._std = np.asarray(spec.normalize.std, dtype=np.float32)

    def row(self, item: RawInput, field: str) -> NDArray[np.float32]:
        """One encoded picture as a row of the input tensor.

        Raises:
            InvalidRequest: `field` is no picture, is damaged, animated, of a format that the spec does not take,
                or blank where the spec looks for a foreground.
            PayloadTooLarge: `field` is over the spec's bytes or pixels.
        """
        if not isinstance(item, ImageInput):
            raise InvalidRequest(field, "is not a picture, and this model takes pictures")
        picture = self.decode(item.data, field)
        try:
            return self.tensor(picture)
        except Blank as error:
            raise InvalidRequest(field, str(error)) from error

    def decode(self, data: bytes, field: str) -> Image.Image:
        """Bytes to an upright picture of the spec's mode, no larger than its max_side. Raises as `row` does."""
        limits = self.spec.decode
        if len(data) > limits.max_bytes:
            raise PayloadTooLarge(field, limits.max_bytes, len(data))
        picture = self._open(data, field)
        pixels = picture.width * picture.height
        if pixels > self.max_pixels:
            raise PayloadTooLarge(field, self.max_pixels, pixels, "pixels")
        # A phone's JPEG may carry a second view (MPO); its first is the picture that people see.
        if picture.format != "MPO" and getattr(picture, "is_animated", False):
            raise InvalidRequest(field, "is an animation, a single picture is needed")
        try:
            return self._load(picture)
        except Exception as error:  # Pillow's decoders raise almost anything on damaged bytes
            raise InvalidRequest(field, f"the {picture.format} picture is damaged or cut short") from error

    def tensor(self, picture: Image.Image) -> NDArray[np.float32]:
        """A decoded picture to [C, H, W] or [H, W, C]. Raises `Blank` where no foreground is found."""
        spec = self.spec
        if spec.foreground is not None:
            picture = isolate(picture, spec.foreground)
        size = (spec.resize.width, spec.resize.height)
        if spec.resize.fit == "crop":
            picture = ImageOps.fit(picture, size, self._filter)
        else:
            picture = picture.resize(size, self._filter)
        x_HWC = np.asarray(picture, dtype=np.float32).reshape(*picture.size[::-1], -1)  # noqa: N806
        x_HWC = (x_HWC * np.float32(spec.normalize.scale) - self._mean) / self._std  # noqa: N806
        return np.ascontiguousarray(x_HWC.transpose(2, 0, 1) if spec.layout == "NCHW" else x_HWC)

    def _open(self, data: bytes, field: str) -> Image.Image:
        try:
            return Image.open(BytesIO(data), formats=self.spec.decode.formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise PayloadTooLarge(field, self.max_pixels, unit="pixels") from error
        except Exception as error:
            formats = ", ".join(self.spec.decode.formats)
            raise InvalidRequest(field, f"is not a picture in one of these formats: {formats}") from error

    def _load(self, picture: Image.Image) -> Image.Image:
        limits = self.spec.decode
        if limits.max_side is not None:
            picture.draft(None, (limits.max_side, limits.max_side))
        picture.load()
        if limits.exif_orientation:
            picture = ImageOps.exif_transpose(picture)
        picture = _eight_bits(picture)
        if picture.has_transparency_data:
            picture = _composite(picture.convert("RGBA"), limits.background)
        picture = picture.convert(self.spec.mode)
        if limits.max_side is not None and max(picture.size) > limits.max_side:
            picture.thumbnail((limits.max_side, limits.max_side), Image.Resampling.BOX)
        return picture


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
