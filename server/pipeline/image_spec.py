"""What processing.yaml may say of pictures. No decoder is imported here: a server without image models needs none."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from server.pipeline.classification import ClassificationSpec, SpecModel

Format = Literal["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]
Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]
Decoder = Literal["pillow", "pillow-draft"]
Byte = Annotated[int, Field(ge=0, le=255)]

PILLOW_MAX_PIXELS = 89_478_485
"""Where Pillow itself begins to warn of a decompression bomb; a spec can't go beyond it."""


class Decode(SpecModel):
    decoder: Decoder = "pillow"
    """What training used, and so what serving uses; see `server.pipeline.decode` for what each does."""
    oversample: Annotated[float, Field(ge=1, le=8)] = 1.0
    """pillow-draft: the reduced picture is at least this many times the model's size, which resizing then uses.
    On photos 1 differs from the whole picture by a grey level on average, 2 by a quarter, at up to twice the time."""
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
    shortest_edge: Annotated[int, Field(ge=1, le=4096)] | None = None
    """crop: the picture's shorter side becomes this long, then the middle of height and width is cut out of it. None:
    as long as it must be to be cut from."""

    @model_serializer(mode="wrap")
    def _as_written_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a field that most have no use for: what was written before it was there stays the same."""
        found: dict[str, Any] = handler(self)
        return {name: value for name, value in found.items() if name != "shortest_edge" or value is not None}

    @model_validator(mode="after")
    def _enough_to_cut_from(self) -> Self:
        if self.shortest_edge is not None and self.fit != "crop":
            raise ValueError("shortest_edge: needs fit crop")
        if self.shortest_edge is not None and self.shortest_edge < max(self.height, self.width):
            raise ValueError("shortest_edge: is less than height or width")
        return self


class Normalize(SpecModel):
    """Per channel: ``(value * scale - mean) / std``, value from 0 to 255."""

    scale: Annotated[float, Field(gt=0)] = 1 / 255
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class Foreground(SpecModel):
    border: Annotated[float, Field(gt=0, le=0.25)] = 0.04
    """The part of the height and width, on each side, that the background is estimated from."""
    min_contrast: Annotated[int, Field(ge=1, le=255)] = 12
    """Grey levels between background and strokes below which a picture is called blank."""
    box_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """The part of full contrast at which a pixel counts for the bounding box."""
    margin: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Black on each side of the box, as a part of its longer side."""


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
        if self.foreground is not None and self.decode.decoder == "pillow-draft" and self.decode.max_side is None:
            raise ValueError("decode: pillow-draft with a foreground needs max_side, the size that it is looked for at")
        return self
