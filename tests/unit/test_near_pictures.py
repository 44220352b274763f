"""Pictures that look the same are one picture, whatever their file says."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from exporter.data.images import Item, duplicates, thumbnail_of


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)


def recoded(original: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    original.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def item(where: str, label: str, shown: Image.Image) -> Item:
    return Item(where, label, shown.tobytes(), thumbnail_of(shown))


def test_copies_in_other_sizes_and_qualities_are_dropped() -> None:
    """The first stays; another picture stays, and a copy under another label, and pictures without a thumbnail."""
    one, other = picture(1), picture(2)
    items = [
        item("a", "cat", one),
        item("b", "cat", recoded(one, 90)),
        item("c", "cat", one.resize((64, 64), Image.Resampling.BOX)),
        item("d", "cat", other),
        item("e", "dog", recoded(one, 90)),
        Item("f", "cat", b"f"),
        Item("g", "cat", b"g"),
    ]
    items[4] = Item("e", "dog", b"e", items[4].thumbnail)
    kept, dropped = duplicates(items)
    assert [items[index].where for index in kept] == ["a", "d", "e", "f", "g"]
    assert [(one.where, one.reason) for one in dropped] == [("b", "looks the same as a"), ("c", "looks the same as a")]
