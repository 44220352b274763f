"""Columns of a table as numbers: the one transform that training and serving both run.

A numeric value is imputed where it is missing, clipped, put on a log scale where the column asks for it, and
standardised. A categorical value becomes an index: 0 for a missing value, 1 for a category that training
did not know, 2 and up for the known ones in their order. A boolean is the category that spells it.

Everything works on whole columns; each element is computed on its own in float64 and rounded to float32 at
the end, so that a row alone, a batch and a whole dataset give the same bits.

Shapes: R rows, N numeric columns, F features (N and one for each missing indicator), C categorical columns;
the suffix of a name says its shape, `raw_rn` is [R, N].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from math import isnan
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, model_validator

from server.errors import InvalidRequest
from server.pipeline.classification import SpecModel
from server.tensor import Array

MISSING_INDEX = 0
UNKNOWN_INDEX = 1
FIRST_CATEGORY_INDEX = 2
_REFUSED = -1

Values = Sequence[Any] | Array
"""The values of one column, one for each row. None and NaN are missing values."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_PLAIN_NUMBERS = frozenset({int, float, type(None)})
_PLAIN_TEXTS = frozenset({str, type(None)})
_PLAIN_CATEGORIES = _PLAIN_TEXTS | {bool}
_SHOWN_CHARACTERS = 60
_SHOWN_CATEGORIES = 10


class NumericColumn(SpecModel):
    """A column of numbers; `mean` and `std` are those of the training rows after imputing, clip and transform."""

    kind: Literal["numeric"] = "numeric"
    name: Annotated[str, Field(min_length=1)]
    missing: Literal["error"] | FiniteFloat = "error"
    """The value that stands in for a missing one, or ``error``: a row without it is refused."""
    indicator: bool = False
    """Add a feature that is 1 where the value was missing."""
    clip: tuple[FiniteFloat, FiniteFloat] | None = None
    """Lowest and highest value that the model sees."""
    transform: Literal["identity", "signed_log1p"] = "identity"
    """signed_log1p is sign(x) * log(1 + |x|), for amounts and counts that span several magnitudes."""
    mean: FiniteFloat
    std: Annotated[FiniteFloat, Field(gt=0)]
    minimum: FiniteFloat
    """The lowest value seen in training: for forms and people, not enforced."""
    maximum: FiniteFloat
    """The highest value seen in training: for forms and people, not enforced."""
    typical: FiniteFloat
    """The median seen in training: for forms and people."""

    @model_validator(mode="after")
    def _consistent(self) -> NumericColumn:
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError("clip: the lower bound must be below the upper one")
        if self.minimum > self.maximum:
            raise ValueError("minimum is over maximum")
        if self.indicator and self.missing == "error":
            raise ValueError("indicator: a column whose missing values are errors has nothing to indicate")
        return self


class CategoricalColumn(SpecModel):
    """A column of texts out of a fixed list."""

    kind: Literal["categorical"] = "categorical"
    name: Annotated[str, Field(min_length=1)]
    categories: Annotated[tuple[str, ...], Field(min_length=1)]
    """In the order of their indices, the first of which is 2."""
    missing: Literal["index", "error"] = "index"
    """index: a missing value has index 0. error: a row without it is refused."""
    unknown: Literal["index", "error"] = "index"
    """index: a category that is not listed has index 1. error: a row with it is refused."""

    @property
    def cardinality(self) -> int:
        """How many indices there are, those of missing and unknown values included."""
        return len(self.categories) + FIRST_CATEGORY_INDEX

    @property
    def booleans(self) -> Mapping[bool, str]:
        """What JSON's true and false are in this column, whatever the case of its spelling. Empty: it takes neither,
        for no category is one of them."""
        spelled = {
            value: min((each for each in self.categories if each.casefold() == word), key=word.__ne__, default=word)
            for value, word in ((True, "true"), (False, "false"))
        }
        return spelled if not set(self.categories).isdisjoint(spelled.values()) else {}

    @model_validator(mode="after")
    def _distinct(self) -> CategoricalColumn:
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("categories: a category is listed twice")
        return self


Column = Annotated[NumericColumn | CategoricalColumn, Field(discriminator="kind")]


class ColumnTransform:
    """The transform of a list of columns. Immutable; may be called from several threads at once."""

    def __init__(self, columns: Sequence[NumericColumn | CategoricalColumn]) -> None:
        numeric = [column for column in columns if isinstance(column, NumericColumn)]
        self._numeric_names = [column.name for column in numeric]
        self._categorical = [
            (column, {category: index for index, category in enumerate(column.categories, FIRST_CATEGORY_INDEX)})
            for column in columns
            if isinstance(column, CategoricalColumn)
        ]
        self._plain_indices = [_plain_index(column, index_of) for column, index_of in self._categorical]
        self._optional_n = np.array([column.missing != "error" for column in numeric], dtype=bool)
        self._fill_n = np.array([0.0 if column.missing == "error" else column.missing for column in numeric])
        self._low_n = np.array([column.clip[0] if column.clip else -np.inf for column in numeric])
        self._high_n = np.array([column.clip[1] if column.clip else np.inf for column in numeric])
        self._mean_n = np.array([column.mean for column in numeric])
        self._std_n = np.array([column.std for column in numeric])
        self._logarithmic = np.flatnonzero([column.transform == "signed_log1p" for column in numeric])
        self._indicated = np.flatnonzero([column.indicator for column in numeric])

    @property
    def num_features(self) -> int:
        """F: numeric columns in their order, then the missing indicators in theirs."""
        return len(self._numeric_names) + len(self._indicated)

    @property
    def num_categories(self) -> int:
        """C."""
        return len(self._categorical)

    def features(self, columns: Mapping[str, Values]) -> NDArray[np.float32]:
        """The numeric features, FP32 [R, F], of columns of equal length. Columns of other names are ignored.

        Raises:
            InvalidRequest: a value is no number, not finite, out of range, or missing where it may not be;
                the field is ``inputs[row].column``.
        """
        return self._scaled(*self.shaped(columns))

    def plain_features(self, values_rn: Sequence[Sequence[Any]]) -> NDArray[np.float32] | None:
        """The same of rows with the values of the numeric columns, where each is a plain number or None. None: one is
        something else; the way by columns says of it what there is to say.

        Raises:
            InvalidRequest: as `features`.
        """
        if not _PLAIN_NUMBERS.issuperset(map(type, chain.from_iterable(values_rn))):
            return None
        try:
            raw_rn = np.array(values_rn, dtype=np.float64)
        except OverflowError:
            return None
        return self._scaled(*self._shaped(raw_rn))

    def _scaled(self, shaped_rn: NDArray[np.float64], missing_rn: NDArray[np.bool_]) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            scaled_rn = (shaped_rn - self._mean_n) / self._std_n
        self._check(np.abs(scaled_rn) > _FLOAT32_MAX, "out of range: too far from every value seen in training")
        return np.concatenate([scaled_rn, missing_rn[:, self._indicated]], axis=1, dtype=np.float32)

    def shaped(self, columns: Mapping[str, Values]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The numeric columns before they are standardised, FP64 [R, N], and where a value was missing, [R, N].

        Training fits `mean` and `std` to these. Raises as `features` does.
        """
        if not self._numeric_names:
            raise ValueError("no numeric columns")
        return self._shaped(np.stack([_numbers(name, columns[name]) for name in self._numeric_names], axis=1))

    def _shaped(self, raw_rn: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        missing_rn = np.isnan(raw_rn)
        # Of a few rows, the calls are what takes the time: one looks at all, and others where it found something.
        fine_rn = np.abs(raw_rn) <= _FLOAT32_MAX
        if not fine_rn.all():
            if not (fine_rn | (missing_rn & self._optional_n)).all():
                self._refuse(raw_rn, missing_rn)
            raw_rn = np.where(missing_rn, self._fill_n, raw_rn)
        shaped_rn: NDArray[np.float64] = np.minimum(np.maximum(raw_rn, self._low_n), self._high_n)
        if self._logarithmic.size:
            part = np.ascontiguousarray(shaped_rn[:, self._logarithmic])
            shaped_rn[:, self._logarithmic] = np.copysign(np.log1p(np.abs(part)), part)
        return shaped_rn, missing_rn

    def categories(self, columns: Mapping[str, Values]) -> NDArray[np.int64]:
        """The indices of the categorical columns, INT64 [R, C]. Columns of other names are ignored.

        Raises:
            InvalidRequest: a value is no string (nor a boolean, where the column has such), or missing or unknown where
                it may not be; the field is ``inputs[row].column``.
        """
        if not self._categorical:
            raise ValueError("no categorical columns")
        return np.stack(
            [_indices(column, index_of, columns[column.name]) for column, index_of in self._categorical], axis=1
        )

    def plain_categories(self, values_rc: Sequence[Sequence[Any]]) -> NDArray[np.int64] | None:
        """The same of rows with the values of the categorical columns, where each is a plain string, a boolean or None
        and taken by its column. None: one is not; the way by columns says of it what there is to say."""
        if not _PLAIN_CATEGORIES.issuperset(map(type, chain.from_iterable(values_rc))):
            return None
        columns = self._plain_indices
        rows = [[of.get(value, other) for (of, other), value in zip(columns, row, strict=True)] for row in values_rc]
        return None if any(_REFUSED in row for row in rows) else np.array(rows, dtype=np.int64)

    def _refuse(self, raw_rn: NDArray[np.float64], missing_rn: NDArray[np.bool_]) -> None:
        self._check(missing_rn & ~self._optional_n, "no value (null or NaN), and the model can't do without it")
        self._check(np.isinf(raw_rn), "not a finite number")
        self._check(np.abs(raw_rn) > _FLOAT32_MAX, "out of range: over the largest 32-bit float")

    def _check(self, bad_rn: NDArray[np.bool_], problem: str) -> None:
        if bad_rn.any():
            row, column = (int(index) for index in np.argwhere(bad_rn)[0])
            raise InvalidRequest(f"inputs[{row}].{self._numeric_names[column]}", problem)


def _plain_index(column: CategoricalColumn, index_of: Mapping[str, int]) -> tuple[Mapping[str | bool | None, int], int]:
    """The index of each known category, of booleans and of None, and that of others; `_REFUSED` where there is none."""
    other = UNKNOWN_INDEX if column.unknown == "index" else _REFUSED
    known: dict[str | bool | None, int] = {None: MISSING_INDEX if column.missing == "index" else _REFUSED}
    known.update(index_of.items())
    booleans = column.booleans
    known.update({value: index_of.get(booleans[value], other) if booleans else _REFUSED for value in (True, False)})
    return known, other


def _numbers(name: str, values: Values) -> NDArray[np.float64]:
    """A column as float64 [R], missing values as NaN."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        return values.astype(np.float64)
    plain: Sequence[Any] = values.tolist() if isinstance(values, np.ndarray) else values
    if not _PLAIN_NUMBERS.issuperset(map(type, plain)):
        _check_numbers(name, plain)
    try:
        return np.array(plain, dtype=np.float64)
    except OverflowError:
        row = next(row for row, value in enumerate(plain) if isinstance(value, int) and abs(value) > _FLOAT32_MAX)
        raise InvalidRequest(f"inputs[{row}].{name}", "out of range: over the largest 32-bit float") from None


def _check_numbers(name: str, values: Sequence[Any]) -> None:
    for row, value in enumerate(values):
        number = value is None or isinstance(value, int | float | np.integer | np.floating)
        if not number or isinstance(value, bool):
            raise InvalidRequest(f"inputs[{row}].{name}", f"a number is wanted, not {_told(value)}")


def _indices(column: CategoricalColumn, index_of: Mapping[str, int], values: Values) -> NDArray[np.int64]:
    """A column as indices, INT64 [R]."""
    plain: Sequence[Any] = values.tolist() if isinstance(values, np.ndarray) else values
    if not _PLAIN_TEXTS.issuperset(map(type, plain)):
        booleans = column.booleans
        plain = [_text_or_missing(column.name, booleans, row, value) for row, value in enumerate(plain)]
    indices = [MISSING_INDEX if value is None else index_of.get(value, UNKNOWN_INDEX) for value in plain]
    if column.missing == "error" and MISSING_INDEX in indices:
        field = f"inputs[{indices.index(MISSING_INDEX)}].{column.name}"
        raise InvalidRequest(field, "no value (null), and the model can't do without it")
    if column.unknown == "error" and UNKNOWN_INDEX in indices:
        row = indices.index(UNKNOWN_INDEX)
        problem = f"unknown category: {_told(plain[row])}; known: {_listed(column.categories)}"
        raise InvalidRequest(f"inputs[{row}].{column.name}", problem)
    return np.array(indices, dtype=np.int64)


def _text_or_missing(name: str, booleans: Mapping[bool, str], row: int, value: object) -> str | None:
    if value is None or (isinstance(value, float) and isnan(value)):
        return None
    if isinstance(value, str):
        return str(value)
    if booleans and isinstance(value, bool | np.bool_):
        return booleans[bool(value)]
    wanted = "a boolean or a string" if booleans else "a string"
    raise InvalidRequest(f"inputs[{row}].{name}", f"{wanted} is wanted, not {_told(value)}")


_KINDS = {bool: "a boolean", str: "a string", int: "a number", float: "a number", dict: "an object", list: "an array"}


def _told(value: object) -> str:
    """A value of the caller's for a message: its kind, and its text if that is short enough to help."""
    kind = _KINDS.get(type(value), f"a {type(value).__name__}")
    if not isinstance(value, str):
        return kind
    return f"{kind} ({shortened(value)!r})"


def shortened(text: str) -> str:
    """A text of the caller's, cut to a length that a message can carry."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _listed(categories: Sequence[str]) -> str:
    shown = ", ".join(categories[:_SHOWN_CATEGORIES])
    more = len(categories) - _SHOWN_CATEGORIES
    return f"{shown} and {more} more" if more > 0 else shown
