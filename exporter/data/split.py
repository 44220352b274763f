"""Splits without leakage: at random (stratified by label), by time, or by group; made after de-duplication.

The seed alone decides what is random. Time splits put the latest rows into test and those before them into
validation; group splits keep all rows of a group (a customer, a patient) on one side.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import DataError
from exporter.recipes.base import RunConfig, Split

Indices = NDArray[np.int64]

MIN_ROWS_PER_LABEL = 3
"""One for each split."""
MIN_ROWS = 10


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


def divided(
    config: RunConfig,
    rows: int,
    order: NDArray[np.float64] | None = None,
    groups: NDArray[np.object_] | None = None,
    targets: NDArray[np.int64] | None = None,
    *,
    seed: int | None = None,
    validation: float = 0.2,
    test: float = 0.2,
) -> Mapping[Split, Indices]:
    """Row indices of each split, sorted, as `config.split` asks; every row is in exactly one.

    `order`: a time for each row, for a split by time. `groups`: a group for each row, for one by group. `targets`:
    labels, for a random split to be stratified by. `seed`: instead of the configuration's.

    Raises:
        DataError: too few rows, groups or labels for three splits.
    """
    seed = config.seed if seed is None else seed
    if config.split == "time":
        assert order is not None
        found = _by_time(order, validation, test)
    elif config.split == "group":
        assert groups is not None
        found = _by_group(groups, seed, validation, test)
    elif targets is not None:
        found = dict(stratified(targets, seed, validation, test))
    else:
        found = _cut(np.random.default_rng([seed, 0x5EED]).permutation(rows), validation, test)
    if targets is not None:
        lacking = set(np.unique(targets)) - set(np.unique(targets[found[Split.TRAIN]]))
        if lacking:
            raise DataError(
                f"the training split has no row of {len(lacking)} labels; split otherwise, or leave them out"
            )
    return found


def _cut(ranked: NDArray[np.integer[Any]], validation: float, test: float) -> dict[Split, Indices]:
    """The first rows to train, the last ones to test."""
    if len(ranked) < MIN_ROWS:
        raise DataError(f"{len(ranked)} rows after clean-up, at least {MIN_ROWS} are needed")
    num_test, num_validation = (max(1, round(len(ranked) * share)) for share in (test, validation))
    end = len(ranked) - num_test
    parts = ranked[: end - num_validation], ranked[end - num_validation : end], ranked[end:]
    return {split: np.sort(part).astype(np.int64) for split, part in zip(Split, parts, strict=True)}


def _by_time(order: NDArray[np.float64], validation: float, test: float) -> dict[Split, Indices]:
    """Rows of one time stay together, on the later side of a cut."""
    found = _cut(np.argsort(order, kind="stable"), validation, test)
    starts = [float(order[found[split]].min()) for split in (Split.VALIDATION, Split.TEST)]
    edges = [-np.inf, *starts, np.inf]
    for split, (low, high) in zip(Split, pairwise(edges), strict=True):
        found[split] = np.flatnonzero((order >= low) & (order < high))
        if not len(found[split]):
            raise DataError(f"too few different times: the {split} split would be empty")
    return found


def _by_group(groups: NDArray[np.object_], seed: int, validation: float, test: float) -> dict[Split, Indices]:
    """Groups in random order, to test and then to validation until these have their shares of the rows."""
    names = sorted(set(groups.tolist()))
    if len(names) < MIN_ROWS_PER_LABEL:
        raise DataError(f"{len(names)} groups, at least {MIN_ROWS_PER_LABEL} are needed for three splits")
    shuffled = [names[i] for i in np.random.default_rng([seed, 0x5EED]).permutation(len(names))]
    members: dict[str, list[int]] = {name: [] for name in names}
    for row, name in enumerate(groups.tolist()):
        members[name].append(row)
    found: dict[Split, list[int]] = {split: [] for split in Split}
    wanted = {Split.TEST: test * len(groups), Split.VALIDATION: validation * len(groups)}
    for split, share in wanted.items():
        while len(found[split]) < share and len(shuffled) > (2 if split is Split.TEST else 1):
            found[split] += members[shuffled.pop()]
    for name in shuffled:
        found[Split.TRAIN] += members[name]
    return {split: np.sort(np.array(rows, dtype=np.int64)) for split, rows in found.items()}
