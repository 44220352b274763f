"""From a table as it was read to typed columns and labels: kinds are inferred, bad rows dropped, everything told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exporter.data.tabular import RawTable
from exporter.errors import DataError
from exporter.recipes.base import Dropped

NUMERIC_SHARE = 0.9
"""A column of texts is numeric when this share of its values are numbers; the rows of the others are broken."""
IDENTIFIER_SHARE = 0.5
"""A column of texts with more different values than this share of its rows identifies rows and tells nothing."""
MIN_IDENTIFIERS = 50
MAX_LABELS = 100
MIN_ROWS_PER_LABEL = 10

_FLOAT32_MAX = float(np.finfo(np.float32).max)

Values = NDArray[Any]
"""float64 with NaN where a value is missing, or objects: str, or None where a value is missing."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that can be trained on. Columns of float64 are numeric, columns of objects categorical."""

    columns: Mapping[str, Values]
    targets: NDArray[np.int64]
    """Indices into `labels`, one for each row."""
    labels: tuple[str, ...]
    broken: tuple[Dropped, ...]
    duplicates: tuple[Dropped, ...]
    notes: tuple[str, ...]
    """The kind of each column and why one was left out; the table's own notes first."""


def clean(raw: RawTable) -> Table:
    """Decide the columns' kinds, then drop rows without a label, rows with an unreadable value and duplicates.

    Two rows are duplicates when the model could not tell them apart: equal in every column that is used, and
    in the label. The first of them stays.

    Raises:
        DataError: no usable column, a target that is no class, fewer than 2 labels, or too few rows of one.
    """
    reasons: dict[int, str] = {}
    labels_r = _label_texts(raw.frame[raw.target])
    _blame(reasons, np.array([label is None for label in labels_r]), f"{raw.target}: no label")
    columns: dict[str, Values] = {}
    left_out: list[str] = []
    for name in raw.frame.columns:
        if name != raw.target:
            values, problem = _typed(raw.frame[name], name, reasons)
            if problem:
                left_out.append(f"column {name} is left out: {problem}")
            else:
                columns[name] = values
    if not columns:
        raise DataError(f"{raw.source}: no usable column: {'; '.join(left_out)}")
    good = np.array([row not in reasons for row in range(len(raw.frame))])
    repeated = pd.DataFrame({**columns, raw.target: labels_r}, dtype=object)[good].duplicated()
    duplicates = [int(row) for row in repeated.index[repeated]]
    good[duplicates] = False
    labels, targets = _targets(raw.target, labels_r[good])
    return Table(
        {name: values[good] for name, values in columns.items()},
        targets,
        labels,
        raw.broken + tuple(Dropped(raw.where[row], reason) for row, reason in sorted(reasons.items())),
        tuple(Dropped(raw.where[row], "equal to an earlier row") for row in duplicates),
        (*raw.notes, _kinds_told(columns), *left_out),
    )


def _blame(reasons: dict[int, str], bad: NDArray[np.bool_], reason: str) -> None:
    for row in np.flatnonzero(bad):
        reasons.setdefault(int(row), reason)


def _typed(series: pd.Series[Any], name: str, reasons: dict[int, str]) -> tuple[Values, str]:
    """The values of a column, and why it can't be used (else empty). Rows with unreadable values get a reason."""
    if pd.api.types.is_datetime64_any_dtype(series) or pd.api.types.is_timedelta64_dtype(series):
        return series.to_numpy(), "times are not supported; give what matters of them as numbers"
    if series.isna().all():
        return series.to_numpy(), "it has no values"
    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
        numbers, unreadable = series.to_numpy(dtype=np.float64, na_value=np.nan), np.zeros(len(series), dtype=bool)
    else:
        texts = _texts(series)
        numbers, unreadable = _parsed(texts)
        present = sum(text is not None for text in texts)
        if unreadable.sum() > (1 - NUMERIC_SHARE) * present:
            return texts, _unusable_texts(texts, present)
    _blame(reasons, unreadable, f"{name}: not a number")
    _blame(reasons, np.abs(numbers) > _FLOAT32_MAX, f"{name}: not a finite 32-bit number")
    constant = np.unique(numbers[np.isfinite(numbers)]).size < 2 and not np.isnan(numbers).any()
    return numbers, "it is the same in every row" if constant else ""


def _texts(series: pd.Series[Any]) -> NDArray[np.object_]:
    """Texts, None where a value is missing; booleans in JSON's spelling."""
    texts = np.empty(len(series), dtype=object)
    for row, (value, missing) in enumerate(zip(series.tolist(), series.isna().tolist(), strict=True)):
        texts[row] = None if missing else str(value).lower() if isinstance(value, bool) else str(value)
    return texts


def _parsed(texts: NDArray[np.object_]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers (NaN for missing and unreadable texts), and which texts are unreadable."""
    numbers = np.array([np.nan if text is None else _number(text) for text in texts])
    return numbers, np.isnan(numbers) & np.array([text is not None for text in texts])


def _number(text: str) -> float:
    try:
        return np.nan if "_" in text else float(text)
    except ValueError:
        return np.nan


def _unusable_texts(texts: NDArray[np.object_], present: int) -> str:
    distinct = len({text for text in texts if text is not None})
    if distinct > max(MIN_IDENTIFIERS, IDENTIFIER_SHARE * present):
        return f"{distinct} different texts in {present} rows identify the rows and tell nothing about others"
    return "it is the same in every row" if distinct < 2 and present == len(texts) else ""


def _kinds_told(columns: Mapping[str, Values]) -> str:
    numeric = [name for name, values in columns.items() if values.dtype.kind == "f"]
    categorical = [name for name in columns if name not in numeric]
    return f"numeric columns: {', '.join(numeric) or 'none'}; categorical columns: {', '.join(categorical) or 'none'}"


def _label_texts(series: pd.Series[Any]) -> NDArray[np.object_]:
    """Labels without spaces around them; 1.0 is the label 1; None where there is none."""
    labels = _texts(series)
    whole = pd.api.types.is_float_dtype(series)
    for row, label in enumerate(labels):
        if label is not None:
            labels[row] = (label.removesuffix(".0") if whole else label.strip()) or None
    return labels


def _targets(name: str, texts: NDArray[np.object_]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    counts = Counter(texts.tolist())
    if len(counts) > MAX_LABELS:
        raise DataError(
            f"target {name!r} has {len(counts)} different values, at most {MAX_LABELS} labels are supported"
        )
    if len(counts) < 2:
        raise DataError(f"target {name!r} has {len(counts)} labels after clean-up, at least 2 are needed")
    rare = [f"{label!r} has {count}" for label, count in sorted(counts.items()) if count < MIN_ROWS_PER_LABEL]
    if rare:
        problem = f"too few rows of some labels after clean-up, {MIN_ROWS_PER_LABEL} are needed"
        raise DataError(f"target {name!r}: {problem}: {', '.join(rare)}")
    labels = tuple(sorted(counts))
    index_of = {label: index for index, label in enumerate(labels)}
    return labels, np.array([index_of[text] for text in texts], dtype=np.int64)
