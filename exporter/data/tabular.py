"""Tables: read a file or a bundled set as it is, then clean it into typed columns and labels.

Reading changes nothing. Cleaning decides the kind of each column and drops, with a reason for each, the rows that
can't be read, those without a label and exact duplicates. Nothing here computes a statistic that a model uses:
that is `exporter.data.columns`, on the training rows alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes

from exporter.data import fraud
from exporter.data.records import csv_rows, jsonl_rows, kind_of, parquet_frame
from exporter.errors import DataError, UsageError
from exporter.recipes.base import Dropped

MISSING_TEXTS = frozenset({"", "na", "n/a", "nan", "null", "none"})
"""Texts of a CSV cell that mean no value, in lower case."""

Read = tuple[pd.DataFrame, tuple[str, ...], tuple[Dropped, ...]]
"""The rows, what to call each, and those that can't be read."""


@dataclass(frozen=True, slots=True)
class RawTable:
    """A table as it was read: texts from a CSV, typed values from elsewhere."""

    source: str
    sha256: str
    target: str
    frame: pd.DataFrame
    """The target among its columns, which are unique texts."""
    where: tuple[str, ...]
    """What to call each row of `frame` when talking to its owner."""
    broken: tuple[Dropped, ...] = ()
    """Rows that are not in `frame` because they could not be read."""
    notes: tuple[str, ...] = ()
    synthetic: bool = False

    @property
    def rows(self) -> int:
        """Rows seen, the broken ones included."""
        return len(self.frame) + len(self.broken)


def breast_cancer() -> RawTable:
    """scikit-learn's bundled copy of Breast Cancer Wisconsin (Diagnostic): 569 tumours, 30 measurements of each."""
    bunch = load_breast_cancer(as_frame=True)
    frame = bunch.data.rename(columns=lambda name: name.replace(" ", "_"))
    frame["diagnosis"] = bunch.target_names[bunch.target.to_numpy()]
    source = "breast_cancer: Breast Cancer Wisconsin (Diagnostic), bundled with scikit-learn, CC BY 4.0"
    return RawTable(source, _digest(frame), "diagnosis", frame, _row_names(len(frame)))


def diabetes() -> RawTable:
    """scikit-learn's bundled copy of the diabetes study: 442 patients, 10 measurements of each, as they were taken."""
    frame = load_diabetes(as_frame=True, scaled=False).frame.rename(columns={"target": "progression"})
    frame["sex"] = frame["sex"].astype(int).astype(str)
    source = "diabetes: Efron, Hastie, Johnstone and Tibshirani (2004), bundled with scikit-learn"
    return RawTable(source, _digest(frame), "progression", frame, _row_names(len(frame)))


def fraud_transactions() -> RawTable:
    """The synthetic transactions of `exporter.data.fraud`, always the same ones."""
    frame = fraud.transactions()
    return RawTable(
        fraud.SOURCE, _digest(frame), fraud.TARGET, frame, _row_names(len(frame)), notes=(fraud.NOTE,), synthetic=True
    )


def read_file(path: Path, target: str) -> RawTable:
    """A CSV (comma, semicolon, tab or bar; UTF-8; names in the first line), JSONL or Parquet file.

    Raises:
        UsageError: no target was named, or the file has no such column.
        DataError: the file is missing, not of these formats, empty, can't be read, or its column names are not usable.
    """
    kind = kind_of(path)
    if not target:
        raise UsageError(f"{path}: name the column to predict with --target")
    frame, where, broken = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[kind](path)
    if frame.empty:
        first = f"; the first is broken: {broken[0].where}: {broken[0].reason}" if broken else ""
        raise DataError(f"{path}: no row can be read{first}")
    _check_names(path, list(frame.columns))
    if target not in frame.columns:
        raise UsageError(f"{path}: no column {target!r}; there are {', '.join(map(str, frame.columns))}")
    return RawTable(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), target, frame, where, broken)


def _digest(frame: pd.DataFrame) -> str:
    return hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()


def _row_names(count: int) -> tuple[str, ...]:
    return tuple(f"row {number}" for number in range(1, count + 1))


def _read_parquet(path: Path) -> Read:
    frame = parquet_frame(path)
    return frame, _row_names(len(frame)), ()


def _read_csv(path: Path) -> Read:
    """All cells as texts, missing ones as None."""
    rows: list[list[str | None]] = []
    where: list[str] = []
    broken: list[Dropped] = []
    found = csv_rows(path)
    _, names = next(found, ("", []))
    assert not isinstance(names, str)
    _check_names(path, names)
    for line, cells in found:
        if isinstance(cells, str):
            broken.append(Dropped(line, cells))
        else:
            rows.append([None if cell.strip().lower() in MISSING_TEXTS else cell for cell in cells])
            where.append(line)
    return pd.DataFrame(rows, columns=pd.Index(names), dtype=object), tuple(where), tuple(broken)


def _read_jsonl(path: Path) -> Read:
    """Objects of numbers, texts, booleans and nulls; a key that a line lacks is a missing value."""
    rows: list[dict[str, Any]] = []
    where: list[str] = []
    broken: list[Dropped] = []
    names: dict[str, None] = {}
    for line, row in jsonl_rows(path):
        problem = row if isinstance(row, str) else _nested(row)
        if isinstance(row, str) or problem:
            broken.append(Dropped(line, problem))
            continue
        names.update(dict.fromkeys(row))
        rows.append(row)
        where.append(line)
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    return pd.DataFrame(columns), tuple(where), tuple(broken)


def _nested(row: dict[str, Any]) -> str:
    nested = next((name for name, value in row.items() if isinstance(value, dict | list)), None)
    return "" if nested is None else f"{nested}: an object or a list is no value of a column"


def _column(values: list[Any]) -> pd.Series[Any]:
    """Numbers alone are a column of numbers; else each value is as its text would be in a CSV."""
    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        return pd.Series([np.nan if value is None else _float(value) for value in values])
    texts = [None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]
    return pd.Series(
        [None if text is None or text.strip().lower() in MISSING_TEXTS else text for text in texts], dtype=object
    )


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of over 308 digits
        return np.inf


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(names) < 2:
        raise DataError(f"{path}: {len(names)} columns, a target and at least one other are needed")
    if "" in names:
        raise DataError(f"{path}: column {names.index('') + 1} has no name")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{path}: two columns are named {repeated!r}")
