"""Pictures to train on: scikit-learn's bundled digits, or a folder with one sub-folder for each class.

A `PictureSet` is what the image recipe knows of either. Pictures of a folder are decoded once, by the
pipeline's own code, and kept in memory at the pipeline's `max_side`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from exporter.data import drawing
from exporter.errors import DataError
from exporter.recipes.base import Dropped
from server.errors import ServingError
from server.pipeline.image import ImageSteps

_THUMBNAIL = 16
_MEAN_LEVELS, _MOST_LEVELS = 4.0, 24
"""How far, of 255, two thumbnails of the same picture are on average, and at the worst pixel."""

DIGITS_SOURCE = "digits: Optical Recognition of Handwritten Digits (UCI), the copy in scikit-learn"


@dataclass(frozen=True, slots=True)
class Item:
    """One picture as collected. `where` names it in reports; `content` is equal for equal pictures."""

    where: str
    label: str
    content: bytes
    thumbnail: bytes = b""
    """What pictures that look the same are told by, see `thumbnail_of`; none: only equal ones are duplicates."""


class PictureSet(Protocol):
    """Pictures by index; only those asked for through `keep` remain."""

    @property
    def items(self) -> Sequence[Item]: ...

    def keep(self, indices: Sequence[int]) -> PictureSet:
        """The same set with these pictures alone, in this order."""

    def plain(self, index: int) -> Image.Image:
        """The picture as it is, decoded."""

    def varied(self, index: int, generator: np.random.Generator) -> Image.Image:
        """A random variation of the picture that keeps its class."""

    def example(self, index: int) -> Image.Image:
        """A picture as a user would send it, for the model's folder; `index` is one of the test pictures."""


class Digits:
    """1,797 scanned digits of 8x8 pixels; `varied` draws them anew."""

    def __init__(self, values: NDArray[np.float64], items: Sequence[Item]) -> None:
        self.items = items
        self._values = values
        self._enlarged = [drawing.enlarge(value) for value in values]
        self._distance = [drawing.stroke_distance(enlarged) for enlarged in self._enlarged]

    def keep(self, indices: Sequence[int]) -> Digits:
        return Digits(self._values[list(indices)], [self.items[index] for index in indices])

    def plain(self, index: int) -> Image.Image:
        return drawing.plain(self._enlarged[index])

    def varied(self, index: int, generator: np.random.Generator) -> Image.Image:
        return drawing.redraw(self._enlarged[index], self._distance[index], generator)

    def example(self, index: int) -> Image.Image:
        """A seven drawn with a pen, none of the data: what people send is no scan of 8x8 pixels."""
        return drawing.example()


class Folder:
    """Decoded pictures of a folder; `varied` turns, shifts, and changes size, brightness and contrast a little."""

    def __init__(self, pictures: Sequence[Image.Image], items: Sequence[Item]) -> None:
        self.items = items
        self._pictures = pictures

    def keep(self, indices: Sequence[int]) -> Folder:
        return Folder([self._pictures[index] for index in indices], [self.items[index] for index in indices])

    def plain(self, index: int) -> Image.Image:
        return self._pictures[index]

    def varied(self, index: int, generator: np.random.Generator) -> Image.Image:
        picture = self._pictures[index]
        corner = tuple(int(value) for value in np.asarray(picture.resize((1, 1), Image.Resampling.BOX)).reshape(-1))
        angle, size = generator.normal(0, 6), generator.uniform(0.9, 1.1)
        shift = generator.uniform(-0.06, 0.06, 2) * picture.size
        width, height = (max(1, round(side * size)) for side in picture.size)
        turned = picture.resize((width, height), Image.Resampling.BILINEAR).rotate(
            angle, Image.Resampling.BILINEAR, translate=(int(shift[0]), int(shift[1])), fillcolor=corner
        )
        lit = ImageEnhance.Brightness(turned).enhance(generator.uniform(0.8, 1.2))
        return ImageEnhance.Contrast(lit).enhance(generator.uniform(0.8, 1.2))

    def example(self, index: int) -> Image.Image:
        return self._pictures[index]


def collect_digits() -> PictureSet:
    """The digits that come with scikit-learn, in its order."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    values = np.asarray(bunch.images, dtype=np.float64)
    targets = [str(target) for target in bunch.target]
    items = [Item(f"row {i}", targets[i], values[i].astype(np.uint8).tobytes()) for i in range(len(values))]
    return Digits(values, items)


def collect_folder(folder: Path, steps: ImageSteps) -> tuple[PictureSet, tuple[Dropped, ...]]:
    """Every picture below the class folders of `folder`, in the order of their names, and what could not be read.

    Hidden files and folders are passed over.

    Raises:
        DataError: `folder` is no folder, or has no readable picture in a sub-folder.
    """
    if not folder.is_dir():
        raise DataError(f"no such folder of pictures: {folder}")
    pictures: list[Image.Image] = []
    items: list[Item] = []
    broken: list[Dropped] = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue
        where = "/".join(parts)
        if path.is_dir():
            if len(parts) == 1 and not any(found.is_file() for found in path.rglob("*")):
                broken.append(Dropped(f"{where}/", "a class folder without files"))
            continue
        try:
            picture = _read(path, len(parts), steps)
        except (OSError, ServingError, ValueError) as error:
            broken.append(Dropped(where, _reason(error)))
            continue
        pictures.append(picture)
        size = f"{picture.width}x{picture.height} ".encode()
        content = size + hashlib.sha256(picture.tobytes()).digest()
        items.append(Item(where, parts[0], content, thumbnail_of(picture)))
    if not items:
        raise DataError(f"no readable picture in a sub-folder of {folder} ({len(broken)} files can't be read)")
    return Folder(pictures, items), tuple(broken)


def _read(path: Path, depth: int, steps: ImageSteps) -> Image.Image:
    if depth < 2:
        raise ValueError("lies beside the class folders, not in one")
    picture = steps.decode(path.read_bytes(), "the file")
    # The pipeline must be able to use it, and says so now and not in the middle of training.
    steps.tensor(picture)
    return picture


def _reason(error: Exception) -> str:
    return type(error).__name__ if isinstance(error, OSError) else str(error)


def thumbnail_of(picture: Image.Image) -> bytes:
    """The picture in 16x16, three bytes a pixel: equal but for a few levels for copies at other sizes or qualities."""
    return picture.convert("RGB").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX).tobytes()


def near_duplicates(items: Sequence[Item], kept: Sequence[int]) -> tuple[list[int], tuple[Dropped, ...]]:
    """Of those kept: which stay, and the later ones that look like an earlier picture of the same label."""
    stay: list[int] = []
    dropped: list[Dropped] = []
    shown: dict[str, tuple[list[int], list[NDArray[np.int16]]]] = defaultdict(lambda: ([], []))
    for index in kept:
        item = items[index]
        found, thumbnails = shown[item.label]
        mine = np.frombuffer(item.thumbnail, dtype=np.uint8).astype(np.int16)
        if mine.size and thumbnails:
            off = np.abs(np.stack(thumbnails) - mine)
            same = np.flatnonzero((off.mean(axis=1) <= _MEAN_LEVELS) & (off.max(axis=1) <= _MOST_LEVELS))
            if same.size:
                dropped.append(Dropped(item.where, f"looks the same as {items[found[int(same[0])]].where}"))
                continue
        if mine.size:
            found.append(index)
            thumbnails.append(mine)
        stay.append(index)
    return stay, tuple(dropped)


def duplicates(items: Sequence[Item]) -> tuple[list[int], tuple[Dropped, ...]]:
    """Indices to keep, and what to drop: later copies of a picture, and what looks like one; every copy where their
    labels differ."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[item.content].append(index)
    kept: list[int] = []
    dropped: list[Dropped] = []
    for indices in groups.values():
        first = items[indices[0]]
        if len({items[index].label for index in indices}) == 1:
            kept.append(indices[0])
            dropped += [Dropped(items[index].where, f"the same picture as {first.where}") for index in indices[1:]]
        else:
            reason = "the same picture under several labels"
            dropped += [Dropped(items[i].where, f"{reason}: {items[i].label}") for i in indices]
    stay, near = near_duplicates(items, sorted(kept))
    return stay, (*dropped, *near)


def fingerprint(items: Sequence[Item]) -> str:
    """SHA-256 over places, labels and contents, in hexadecimal."""
    digest = hashlib.sha256()
    for item in items:
        for part in (item.where.encode(), item.label.encode(), item.content):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
