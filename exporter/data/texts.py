"""Texts with labels: CSV, JSONL or Parquet of `text,label`; what can't be used is named, copies are dropped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.data.records import csv_rows, jsonl_rows, kind_of, parquet_frame
from exporter.errors import DataError, LabelsError
from exporter.recipes.base import Dropped

COLUMNS = ("text", "label")
MOST_CHARACTERS = 20_000
_NO_LABEL = "has no label"


@dataclass(frozen=True, slots=True)
class LabelledText:
    where: str
    """For example ``line 17``."""
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
    """A CSV, JSONL or Parquet file with the columns `text` and `label`; further ones are not used.

    Raises:
        DataError: the file can't be read, is of another kind, lacks a column, or no row of it can be used.
    """
    labelled: list[LabelledText] = []
    broken: list[Dropped] = []
    for where, row in _rows(path):
        problem = row if isinstance(row, str) else _problem(row)
        if isinstance(row, str) or problem:
            broken.append(Dropped(where, problem))
        else:
            labelled.append(LabelledText(where, row["text"], _label(row["label"])))
    if not labelled:
        first = f"; the first: {broken[0].where}: {broken[0].reason}" if broken else ""
        wrong = LabelsError if broken and all(each.reason == _NO_LABEL for each in broken) else DataError
        raise wrong(f"{path}: no row has a text and a label{first}")
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


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """Rows of any of the formats; a text instead of a row says what is wrong with it."""
    kind = kind_of(path)
    if kind == ".jsonl":
        yield from jsonl_rows(path)
        return
    if kind == ".parquet":
        frame = parquet_frame(path)
        _demand_columns(path, list(frame.columns))
        for number, (text, label) in enumerate(zip(frame["text"].tolist(), frame["label"].tolist(), strict=True), 1):
            yield f"row {number}", {"text": text, "label": label}
        return
    found = csv_rows(path)
    _, names = next(found, ("", []))
    _demand_columns(path, names)
    for line, cells in found:
        yield line, cells if isinstance(cells, str) else dict(zip(names, cells, strict=True))


def _demand_columns(path: Path, names: Sequence[str]) -> None:
    repeated = [name for name in COLUMNS if names.count(name) > 1]
    if repeated:
        raise DataError(f"{path}: two columns are named {repeated[0]!r}")
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        wrong = LabelsError if missing == ["label"] else DataError
        raise wrong(f"{path}: has no column {' and no column '.join(missing)}; there are {', '.join(names)}")


def _label(value: object) -> str:
    """Its text; booleans in JSON's spelling, 1.0 is the label 1; empty where there is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):  # a column of whole numbers with one missing is one of floats
        return str(int(value)) if value.is_integer() else ""
    return str(value).strip() if isinstance(value, str | int) else ""


def _problem(row: Mapping[str, Any]) -> str:
    """Why a row is no text with a label; empty where it is."""
    text, label = row.get("text"), _label(row.get("label"))
    if not isinstance(text, str) or not text.strip():
        return "has no text"
    if len(text) > MOST_CHARACTERS:
        return f"has a text of {len(text)} characters, the most are {MOST_CHARACTERS}"
    if not label:
        return _NO_LABEL
    if len(label.splitlines()) != 1:
        return "has a label of several lines"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "has half of a surrogate pair in its text"
    return ""
