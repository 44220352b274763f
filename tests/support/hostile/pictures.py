"""Pictures that are none, that are too much, or of a kind that nobody asked for."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

from tests.support.hostile.case import Case, http

PATH = "/v2/models/digits/predict"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 8, height: int = 8, rows: bytes | None = None, more: bytes = b"", depth: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    data = zlib.compress(bytes((width + 1) * height) if rows is None else rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(kind: str, size: tuple[int, int] = (16, 16), **more: object) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize(size).save(buffer, kind, **more)
    return buffer.getvalue()


def animated(kind: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (8, 8), shade) for shade in range(0, 200, 2)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def cases() -> list[Case]:
    jpeg, good = saved("JPEG", (64, 64)), png()
    broken_length = jpeg[:4] + b"\xff\xff" + jpeg[6:]
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n%%EOF\n"
    pictures = {
        "nothing": b"",
        "text": b"this is no picture",
        "half of a PNG": good[: len(good) // 2],
        "half of a JPEG": jpeg[: len(jpeg) // 2],
        "a JPEG with a segment that is too long": broken_length,
        "a PNG with a wrong checksum": good[:29] + b"\0\0\0\0" + good[33:],
        "a PNG of 60,000 x 60,000 pixels in a few bytes": png(60_000, 60_000, bytes(1000)),
        "a PNG of 0 pixels": png(0, 0, b""),
        "a PNG of 2^31 columns": png(2**31 - 1, 1, bytes(100)),
        "a PNG of one column and a million rows": png(1, 1_000_000),
        "a PNG whose pixels are a bomb": png(8, 8, bytes(30_000_000)),
        "a PNG with a text that is a bomb": png(more=chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(30_000_000)))),
        "a PNG with a profile that is a bomb": png(more=chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(30_000_000)))),
        "a GIF": saved("GIF"),
        "a GIF of 100 frames": animated("GIF"),
        "a PNG of 100 frames": animated("PNG"),
        "a TIFF": saved("TIFF"),
        "a TIFF of 100 frames": animated("TIFF"),
        "an ICO": saved("ICO"),
        "a BMP": saved("BMP"),
        "a BMP of 2^31 pixels": saved("BMP")[:18] + struct.pack("<ii", 46341, 46341) + saved("BMP")[26:],
        "PostScript": postscript,
        "a PDF": b"%PDF-1.7\n1 0 obj <</OpenAction <</S /Launch>>>> endobj\n",
        "SVG that names a file": svg,
        "a WebP": saved("WEBP"),
        "a JPEG 2000 that is none": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
        "a JPEG with EXIF that is none": jpeg[:2] + b"\xff\xe1\x00\x20Exif\0\0" + b"\xff" * 24 + jpeg[2:],
        "a JPEG with a thousand comments": jpeg[:2] + b"\xff\xfe\x00\x04ab" * 1000 + jpeg[2:],
    }
    return [http("picture", name, PATH, data, kind="image/png") for name, data in pictures.items()]
