"""From a table as it was read to typed columns and labels: kinds are inferred, bad rows dropped, everything told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, time, timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exporter.data.labels import check as check_labels
from exporter.data.tabular import RawTable
from exporter.errors import DataError, UsageError
from exporter.recipes.base import Dropped, RunConfig, Split

NUMERIC_SHARE = 0.9
"""A column of texts is numeric when this share of its values are numbers; the rows of the others are broken."""
IDENTIFIER_SHARE = 0.5
"""A column of texts with more different values than this share of its rows identifies rows and tells nothing."""
MIN_IDENTIFIERS = 50
MAX_LABELS = 100
DIGITS = 5
"""Numbers that agree in so many significant digits are nearly equal."""
_WITH_COMMA = re.compile(r"[+-]?\d+(,\d+)?")
LISTED = 5

_FLOAT32_MAX = float(np.finfo(np.float32).max)

Values = NDArray[Any]
"""float64 with NaN where a value is missing, or objects: str, or None where a value is missing."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Rows that can be trained on. Columns of float64 are numeric, columns of objects categorical."""

    columns: Mapping[str, Values]
    broken: tuple[Dropped, ...]
    duplicates: tuple[Dropped, ...]
    notes: tuple[str, ...]
    """The kind of each column and why one was left out; the table's own notes first."""
    order: NDArray[np.float64] | None
    """For a split by time: seconds, or the column's own numbers."""
    groups: NDArray[np.object_] | None
    """For a split by group."""
    keys: NDArray[np.uint64]
    """Equal where rows are nearly equal in all columns, whatever their targets."""


@dataclass(frozen=True, slots=True)
class Table(Cleaned):
    targets: NDArray[np.int64]
    """Indices into `labels`, one for each row."""
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NumberTable(Cleaned):
    targets: NDArray[np.float64]


def clean(raw: RawTable, config: RunConfig | None = None) -> Table:
    """Decide the columns' kinds, then drop rows without a label, rows with an unreadable value and duplicates.

    Two rows are duplicates when they are equal in every column that is used, and in the label: exactly, or nearly
    (numbers in their first `DIGITS` digits, texts but for case and spaces). The first of them stays. Rows that are
    nearly equal and differ in their labels stay, and are told.

    Raises:
        DataError: no usable column, a target that is no class, fewer than 2 labels, or too few rows of one.
    """
    reasons: dict[int, str] = {}
    labels_r = _label_texts(raw.frame[raw.target])
    _blame(reasons, np.array([label is None for label in labels_r]), f"{raw.target}: no label")
    lines = np.array([label is not None and len(label.splitlines()) != 1 for label in labels_r])
    _blame(reasons, lines, f"{raw.target}: a label of several lines")
    good, cleaned = _cleaned(raw, config, labels_r, reasons)
    labels, targets = _targets(raw.target, labels_r[good])
    few = check_labels(f"target {raw.target!r}", labels, targets, _lost(cleaned))
    told = (
        *_conflicts(cleaned.keys, labels_r[good], [raw.where[row] for row in np.flatnonzero(good)]),
        *few,
    )
    return Table(**{**fields_of(cleaned), "notes": (*cleaned.notes, *told)}, targets=targets, labels=labels)


def clean_numbers(raw: RawTable, config: RunConfig | None = None) -> NumberTable:
    """The same for a target that is a number; rows whose target is none are broken.

    Raises:
        DataError: no usable column, or a target with fewer than 2 different numbers.
    """
    reasons: dict[int, str] = {}
    target = raw.frame[raw.target]
    if pd.api.types.is_numeric_dtype(target) and not pd.api.types.is_bool_dtype(target):
        numbers = target.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        numbers, _ = _parsed(_texts(target))
        comma = _comma(_texts(target))
        if comma:
            raise DataError(f"target {raw.target!r}: {comma}")
    _blame(reasons, ~np.isfinite(numbers) | (np.abs(numbers) > _FLOAT32_MAX), f"{raw.target}: no finite number")
    good, cleaned = _cleaned(raw, config, numbers.astype(object), reasons)
    if np.unique(numbers[good]).size < 2:
        raise DataError(f"target {raw.target!r} has fewer than 2 different numbers after clean-up{_lost(cleaned)}")
    return NumberTable(**fields_of(cleaned), targets=numbers[good])


def fields_of(cleaned: Cleaned) -> dict[str, Any]:
    return {field.name: getattr(cleaned, field.name) for field in fields(cleaned)}


def _cleaned(
    raw: RawTable, config: RunConfig | None, targets_r: NDArray[np.object_], reasons: dict[int, str]
) -> tuple[NDArray[np.bool_], Cleaned]:
    """Which rows stay, and what is the same for all kinds of targets. `reasons`: rows that are broken already."""
    apart = config.split_column if config is not None else ""
    order, groups = _splitting(raw, config, reasons) if apart else (None, None)
    columns: dict[str, Values] = {}
    left_out: list[str] = []
    for name in raw.frame.columns:
        if name not in (raw.target, apart):
            values, problem = _typed(raw.frame[name], name, reasons)
            if problem:
                left_out.append(f"column {name} is left out: {problem}")
            else:
                columns[name] = values
    if not columns:
        raise DataError(f"{raw.source}: no usable column: {'; '.join(left_out)}")
    good = np.array([row not in reasons for row in range(len(raw.frame))])
    keys = near_keys(columns)
    duplicates = _duplicates(pd.DataFrame({**columns, raw.target: targets_r}, dtype=object), keys, good, raw.where)
    good[list(duplicates)] = False
    return good, Cleaned(
        {name: values[good] for name, values in columns.items()},
        raw.broken + tuple(Dropped(raw.where[row], reason) for row, reason in sorted(reasons.items())),
        tuple(Dropped(raw.where[row], reason) for row, reason in sorted(duplicates.items())),
        (*raw.notes, _kinds_told(columns), *left_out),
        None if order is None else order[good],
        None if groups is None else groups[good],
        keys[good],
    )


def _splitting(
    raw: RawTable, config: RunConfig | None, reasons: dict[int, str]
) -> tuple[NDArray[np.float64] | None, NDArray[np.object_] | None]:
    """Times or groups by the column that the configuration names; rows without one are broken."""
    assert config is not None
    name = config.split_column
    if name not in raw.frame.columns or name == raw.target:
        raise UsageError(f"--split-column: {raw.source} has no column {name!r} beside the target")
    if config.split == "group":
        groups = _texts(raw.frame[name])
        _blame(reasons, np.array([group is None for group in groups]), f"{name}: no group")
        return None, groups
    order = times(raw.frame[name])
    _blame(reasons, np.isnan(order), f"{name}: neither a number nor a date like 2024-01-31")
    return order, None


def times(series: pd.Series[Any]) -> NDArray[np.float64]:
    """Times as numbers that order them: numbers as they are, dates as seconds since 1970; NaN where there is none."""
    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    texts = _texts(series)
    numbers, unreadable = _parsed(texts)
    if pd.api.types.is_datetime64_any_dtype(series):
        return _seconds(series)
    if not unreadable.any():
        return numbers
    rest = pd.Series([text if bad else None for text, bad in zip(texts.tolist(), unreadable.tolist(), strict=True)])
    return np.asarray(np.where(unreadable, _seconds(rest), numbers), dtype=np.float64)


def _seconds(dates: pd.Series[Any]) -> NDArray[np.float64]:
    """Since 1970; NaN for what is no date in ISO 8601's form."""
    parsed = pd.to_datetime(dates, utc=True, errors="coerce", format="ISO8601")
    seconds = (parsed - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    return np.asarray(seconds.to_numpy(dtype=np.float64, na_value=np.nan))


def near_keys(columns: Mapping[str, Values]) -> NDArray[np.uint64]:
    """A hash of each row: equal where numbers agree in `DIGITS` digits, and texts but for case and spaces."""
    frame = pd.DataFrame(
        {
            name: [_rounded(value) for value in values]
            if values.dtype.kind == "f"
            else [None if text is None else " ".join(text.casefold().split()) for text in values]
            for name, values in columns.items()
        },
        dtype=object,
    )
    hashes = pd.util.hash_pandas_object(frame.fillna("\0missing").astype(str), index=False)
    return np.asarray(hashes.to_numpy(dtype=np.uint64))


def _rounded(value: float) -> str:
    return f"{value:.{DIGITS - 1}e}"


def _duplicates(
    frame: pd.DataFrame, keys: NDArray[np.uint64], good: NDArray[np.bool_], where: Sequence[str]
) -> dict[int, str]:
    """Rows to drop, with the reason: equal, or nearly equal, to an earlier row with the same target."""
    found = {int(row): "equal to an earlier row" for row in np.flatnonzero(good)[frame[good].duplicated().to_numpy()]}
    first: dict[tuple[int, Any], int] = {}
    targets = frame.iloc[:, -1].to_list()
    for row in np.flatnonzero(good).tolist():
        if row not in found:
            earlier = first.setdefault((int(keys[row]), targets[row]), row)
            if earlier != row:
                found[row] = f"nearly equal to {where[earlier]}"
    return found


def _conflicts(keys: NDArray[np.uint64], labels: NDArray[np.object_], where: Sequence[str]) -> list[str]:
    """A note where rows that are nearly equal have different labels: no model can be right about both."""
    first: dict[int, int] = {}
    found = []
    for row, key in enumerate(keys.tolist()):
        earlier = first.setdefault(key, row)
        if labels[earlier] != labels[row]:
            found.append(f"{where[row]} is {labels[row]!r} and {where[earlier]} {labels[earlier]!r}")
    if not found:
        return []
    more = f", and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return [f"{len(found)} rows are nearly equal to one with another label: {'; '.join(found[:LISTED])}{more}"]


def leaks(keys: NDArray[np.uint64], splits: Mapping[Split, NDArray[np.int64]]) -> int:
    """How many rows outside of train are nearly equal to a row in it."""
    train = keys[splits[Split.TRAIN]]
    return sum(int(np.isin(keys[rows], train).sum()) for split, rows in splits.items() if split is not Split.TRAIN)


def leaks_told(keys: NDArray[np.uint64], splits: Mapping[Split, NDArray[np.int64]]) -> str:
    """A line on `leaks` for the report."""
    count = leaks(keys, splits)
    why = ", with other targets" if count else ""
    return f"leakage: {count} validation and test rows are nearly equal to a training row{why}"


def _blame(reasons: dict[int, str], bad: NDArray[np.bool_], reason: str) -> None:
    for row in np.flatnonzero(bad):
        reasons.setdefault(int(row), reason)


def _typed(series: pd.Series[Any], name: str, reasons: dict[int, str]) -> tuple[Values, str]:
    """The values of a column, and why it can't be used (else empty). Rows with unreadable values get a reason."""
    if series.isna().all():
        return series.to_numpy(), "it has no values"
    problem = _unsupported(series)
    if problem:
        return series.to_numpy(), problem
    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
        numbers, unreadable = series.to_numpy(dtype=np.float64, na_value=np.nan), np.zeros(len(series), dtype=bool)
    else:
        texts = _texts(series)
        numbers, unreadable = _parsed(texts)
        present = sum(text is not None for text in texts)
        if unreadable.sum() > (1 - NUMERIC_SHARE) * present:
            return texts, _comma(texts) or _unusable_texts(texts, present)
    _blame(reasons, unreadable, f"{name}: not a number")
    _blame(reasons, np.abs(numbers) > _FLOAT32_MAX, f"{name}: not a finite 32-bit number")
    constant = np.unique(numbers[np.isfinite(numbers)]).size < 2 and not np.isnan(numbers).any()
    return numbers, "it is the same in every row" if constant else ""


def _unsupported(series: pd.Series[Any]) -> str:
    """Why values of this type are not for a model; empty where they are."""
    example = series[series.notna()].iloc[0]
    if isinstance(example, date | time | timedelta | np.datetime64 | np.timedelta64):
        return "times are not supported; give what matters of them as numbers"
    if isinstance(example, list | dict | np.ndarray | bytes):
        return f"values of the type {type(example).__name__} are not supported"
    return ""


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


def _comma(texts: NDArray[np.object_]) -> str:
    """What to say of numbers that are written with a comma; empty of other texts."""
    present = [text.strip() for text in texts if text is not None]
    numbers = [text for text in present if _WITH_COMMA.fullmatch(text)]
    example = next((text for text in numbers if "," in text), "")
    if not example or len(numbers) < NUMERIC_SHARE * len(present):
        return ""
    return f"its numbers have a comma, like {example}; write them with a point"


def _lost(cleaned: Cleaned) -> str:
    """How many rows were dropped, and why the first was; for an error that has no report beside it."""
    told = ""
    for kind, dropped in (("broken", cleaned.broken), ("duplicate", cleaned.duplicates)):
        if dropped:
            told += f"; {len(dropped)} {kind} rows, the first: {dropped[0].where}: {dropped[0].reason}"
    return told


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
    labels = tuple(sorted(set(texts.tolist())))
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"target {name!r} has {len(labels)} different values, at most {MAX_LABELS} labels are supported"
        )
    index_of = {label: index for index, label in enumerate(labels)}
    return labels, np.array([index_of[text] for text in texts], dtype=np.int64)
