"""Splits without leakage: stratified by label, made after de-duplication, decided by the seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import DataError
from exporter.recipes.base import Split

Indices = NDArray[np.int64]

MIN_ROWS_PER_LABEL = 3
"""One for each split."""


def stratified(
    targets: NDArray[np.integer[Any]], seed: int, validation: float = 0.15, test: float = 0.15
) -> Mapping[Split, Indices]:
    """Row indices of each split, sorted; every row is in exactly one, every label is in all three.

    Rows must be free of duplicates already: two equal rows could end up on both sides.

    Raises:
        DataError: a label has fewer than 3 rows.
    """
    generator = np.random.default_rng([seed, 0x5EED])
    parts: dict[Split, list[Indices]] = {split: [] for split in Split}
    for label in np.unique(targets):
        rows = generator.permutation(np.flatnonzero(targets == label)).astype(np.int64)
        if len(rows) < MIN_ROWS_PER_LABEL:
            raise DataError(f"label {label} has {len(rows)} rows after clean-up, {MIN_ROWS_PER_LABEL} are needed")
        num_test = max(1, round(len(rows) * test))
        num_validation = max(1, round(len(rows) * validation))
        parts[Split.TEST].append(rows[:num_test])
        parts[Split.VALIDATION].append(rows[num_test : num_test + num_validation])
        parts[Split.TRAIN].append(rows[num_test + num_validation :])
    return {split: np.sort(np.concatenate(found)) for split, found in parts.items()}
