"""Texts with labels: CSV or JSONL of `text,label`; what can't be used is named, copies are dropped."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import DataError
from exporter.recipes.base import Dropped

COLUMNS = ("text", "label")
MOST_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class LabelledText:
    where: str
    """For example ``row 17``."""
    text: str
    label: str


@dataclass(frozen=True, slots=True)
class TextSet:
    """Texts as read. `labelled` are those that could be."""

    source: str
    labelled: tuple[LabelledText, ...]
    broken: tuple[Dropped, ...] = ()
    synthetic: bool = False

    @property
    def sha256(self) -> str:
        """Of texts, labels and their order."""
        digest = hashlib.sha256()
        for item in self.labelled:
            digest.update(json.dumps([item.text, item.label]).encode())
        return digest.hexdigest()


def read_file(path: Path) -> TextSet:
    """A .csv file with a header, or a .jsonl file of objects; both have the columns `text` and `label`.

    Raises:
        DataError: the file can't be read, is of another kind, lacks a column, or no row of it can be used.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: texts are read from {' or '.join(readers)}")
    labelled: list[LabelledText] = []
    broken: list[Dropped] = []
    try:
        for number, row in readers[path.suffix.lower()](path):
            where = f"row {number}"
            problem = row if isinstance(row, str) else _problem(row)
            if problem:
                broken.append(Dropped(where, problem))
            else:
                assert not isinstance(row, str)
                labelled.append(LabelledText(where, row["text"], str(row["label"]).strip()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    if not labelled:
        raise DataError(f"{path}: no row has a text and a label")
    return TextSet(f"file {path.name}", tuple(labelled), tuple(broken))


def clean(found: Sequence[LabelledText]) -> tuple[list[LabelledText], tuple[Dropped, ...]]:
    """Without copies, and without texts that have several labels. Blanks and case make no other text."""
    groups: dict[str, list[LabelledText]] = {}
    for item in found:
        groups.setdefault(" ".join(item.text.casefold().split()), []).append(item)
    kept: list[LabelledText] = []
    dropped: list[Dropped] = []
    for items in groups.values():
        first, *copies = items
        if len({item.label for item in items}) > 1:
            dropped += [Dropped(item.where, f"the same text has several labels, see {first.where}") for item in items]
        else:
            kept.append(first)
            dropped += [Dropped(item.where, f"a copy of {first.where}") for item in copies]
    return kept, tuple(dropped)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Rows by their numbers, 1 the first below the header; a text instead of a row says what is wrong with it."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="", strict=True)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: has no column {' and no column '.join(missing)}")
        for number, row in enumerate(reader, start=1):
            yield number, "has more fields than the header" if "" in row else row


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield number, f"is no JSON: {error}"
                continue
            yield number, row if isinstance(row, dict) else "is no object"


def _problem(row: Mapping[str, Any]) -> str:
    """Why a row is no text with a label; empty where it is."""
    text, label = row.get("text"), row.get("label")
    if not isinstance(text, str) or not text.strip():
        return "has no text"
    if len(text) > MOST_CHARACTERS:
        return f"has a text of {len(text)} characters, the most are {MOST_CHARACTERS}"
    if not isinstance(label, str | int) or isinstance(label, bool) or not str(label).strip():
        return "has no label"
    if len(str(label).strip().splitlines()) != 1:
        return "has a label of several lines"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "has half of a surrogate pair in its text"
    return ""
