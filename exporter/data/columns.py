"""Fit a table's columns: the statistics of the transform in `server.pipeline.columns`, from training rows alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from exporter.data.clean import Values
from server.pipeline.columns import CategoricalColumn, Column, ColumnTransform, NumericColumn

MIN_CATEGORY_ROWS = 10
"""A category with fewer training rows is treated as unknown: it has too few to learn from, and so the index of
unknown categories learns something."""
MAX_CATEGORIES = 1000
LOG_SKEWNESS = 2.0
"""A column whose skewness is over this, and at least halved by it, is put on a log scale."""


def fit_columns(columns: Mapping[str, Values], train: NDArray[np.int64]) -> tuple[Column, ...]:
    """A column spec for each column. Only whether a column may lack values is asked of all rows: that is its type."""
    return tuple(
        _fit_numeric(name, values[train], bool(np.isnan(values).any()))
        if values.dtype.kind == "f"
        else _fit_categorical(name, values[train], any(value is None for value in values))
        for name, values in columns.items()
    )


def _fit_numeric(name: str, values: Values, nullable: bool) -> NumericColumn:
    present = values[~np.isnan(values)]
    low, median, high = (
        float(number) for number in np.quantile(present if present.size else np.zeros(1), [0.0, 0.5, 1.0])
    )
    draft = NumericColumn(
        name=name,
        missing=median if nullable else "error",
        indicator=nullable and 0 < present.size < values.size,
        # A network extrapolates without sense: what lies outside of the training rows counts as their extreme.
        clip=(low, high) if low < high else None,
        transform="signed_log1p" if _wants_log(present) else "identity",
        mean=0.0,
        std=1.0,
        minimum=low,
        maximum=high,
        typical=median,
    )
    # Measured behind the very transform that serving runs, so that the two can't disagree on what is standardised.
    shaped, _ = ColumnTransform([draft]).shaped({name: values})
    std = float(shaped.std())
    return draft.model_copy(update={"mean": float(shaped.mean()), "std": std if std > 0 else 1.0})


def _wants_log(present: Values) -> bool:
    skewness = abs(_skewness(present))
    return skewness > LOG_SKEWNESS and abs(_skewness(np.copysign(np.log1p(np.abs(present)), present))) < skewness / 2


def _skewness(values: Values) -> float:
    std = values.std() if values.size else 0.0
    return float((((values - values.mean()) / std) ** 3).mean()) if std > 0 else 0.0


def _fit_categorical(name: str, values: Values, nullable: bool) -> CategoricalColumn:
    counts = Counter(value for value in values if value is not None)
    ranked = sorted(counts, key=lambda category: (-counts[category], category))
    common = [category for category in ranked if counts[category] >= MIN_CATEGORY_ROWS][:MAX_CATEGORIES]
    return CategoricalColumn(
        name=name, categories=tuple(common or ranked[:1]), missing="index" if nullable else "error", unknown="index"
    )
