"""Texts: read, cleaned, and split by passages, so that no passage is in two splits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import DataError
from exporter.recipes.base import Dropped, Split

HANDBOOK = "handbook"
"""The pages of this project: text that may be passed on under its own licence."""
_KINDS = (".txt", ".md", ".rst")
_PASSAGE = 400
"""Characters that paragraphs are joined to, so that a passage has something to go on with."""
_LEAST = 8
"""Passages, below which nothing is held out."""
_TENTHS = (*(Split.TRAIN,) * 8, Split.VALIDATION, Split.TEST)


@dataclass(frozen=True, slots=True)
class Corpus:
    source: str
    sha256: str
    passages: Mapping[Split, Sequence[str]]
    broken: tuple[Dropped, ...]
    duplicates: tuple[Dropped, ...]

    @property
    def lines(self) -> list[str]:
        """For a report."""
        counted = ", ".join(f"{split.value} {len(texts)} passages" for split, texts in self.passages.items())
        kept = sum(len(text) for texts in self.passages.values() for text in texts)
        return [
            counted,
            f"{kept:,} characters; {len(self.broken)} files can't be read, {len(self.duplicates)} passages were double",
        ]


def read_corpus(data: str) -> Corpus:
    """Raises DataError: there is nothing that can be read, or too little of it."""
    root = Path(__file__).parents[2] if data == HANDBOOK else Path(data)
    files = list(_files(root, (".md",) if data == HANDBOOK else _KINDS))
    if not files:
        raise DataError(f"{data}: there is no file with the end {', '.join(_KINDS)}")
    digest, broken, duplicates = hashlib.sha256(), [], []
    seen: set[str] = set()
    passages: dict[Split, list[str]] = {split: [] for split in Split}
    for path in files:
        where = path.relative_to(root).as_posix() if root.is_dir() else path.name
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            broken.append(Dropped(where, str(error)))
            continue
        for number, passage in enumerate(_passages(text)):
            if passage in seen:
                duplicates.append(Dropped(f"{where}, passage {number}", "was there before"))
                continue
            seen.add(passage)
            sha = hashlib.sha256(passage.encode())
            digest.update(sha.digest())
            passages[_TENTHS[sha.digest()[0] % 10]].append(passage)
    if len(seen) < _LEAST or not all(passages.values()):
        raise DataError(f"{data}: {len(seen)} passages of text are too few to hold some out; more text is needed")
    told = "the pages of this project" if data == HANDBOOK else data
    return Corpus(f"{told}, {len(files)} files", digest.hexdigest(), passages, tuple(broken), tuple(duplicates))


def _files(root: Path, kinds: Sequence[str]) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") or part in ("build", "node_modules") for part in parts)
        if path.suffix in kinds and path.is_file() and not hidden:
            yield path


def _passages(text: str) -> Iterator[str]:
    """Paragraphs, joined to passages of some length."""
    passage = ""
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        paragraph = paragraph.strip("\n")
        if not paragraph.strip():
            continue
        passage = f"{passage}\n\n{paragraph}" if passage else paragraph
        if len(passage) >= _PASSAGE:
            yield passage
            passage = ""
    if passage:
        yield passage
