"""Training and serving see the same bits: rows one by one, in batches, and as whole columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import InvalidRequest
from server.pipeline.columns import CategoricalColumn, NumericColumn
from server.pipeline.tabular import RowEncoder, TabularSpec
from server.tensor import Array
from server.types import RowInput

FINITE = st.floats(-1e6, 1e6, allow_nan=False)
SMALL_TEXTS = st.text(max_size=3) | st.sampled_from(["true", "True", "false", "FALSE"])


@st.composite
def numeric_columns(draw: st.DrawFn, name: str) -> NumericColumn:
    missing = draw(st.one_of(st.just("error"), FINITE))
    low, high = sorted((draw(FINITE), draw(FINITE)))
    return NumericColumn(
        name=name,
        missing=missing,
        indicator=missing != "error" and draw(st.booleans()),
        clip=draw(st.none() if low == high else st.sampled_from([None, (low, high)])),
        transform=draw(st.sampled_from(["identity", "signed_log1p"])),
        mean=draw(FINITE),
        std=draw(st.floats(1e-3, 1e6)),
        minimum=low,
        maximum=high,
        typical=low,
    )


@st.composite
def categorical_columns(draw: st.DrawFn, name: str) -> CategoricalColumn:
    categories = draw(st.lists(SMALL_TEXTS, min_size=1, max_size=5, unique=True))
    return CategoricalColumn(name=name, categories=tuple(categories), missing=draw(st.sampled_from(["index", "error"])))


def values_of(column: NumericColumn | CategoricalColumn) -> st.SearchStrategy[Any]:
    if isinstance(column, CategoricalColumn):
        known = st.one_of(st.sampled_from(column.categories), SMALL_TEXTS, st.sampled_from([*column.booleans, "b"]))
    else:
        known = st.one_of(FINITE, st.integers(-(10**6), 10**6))
    return known if column.missing == "error" else st.one_of(st.none(), known)


@st.composite
def tables(draw: st.DrawFn) -> tuple[TabularSpec, list[list[Any]]]:
    kinds = draw(st.lists(st.booleans(), min_size=1, max_size=6))
    columns = [
        draw(numeric_columns(f"n{i}") if numeric else categorical_columns(f"c{i}")) for i, numeric in enumerate(kinds)
    ]
    rows = draw(st.lists(st.tuples(*(values_of(column) for column in columns)).map(list), min_size=1, max_size=40))
    return TabularSpec(columns=tuple(columns), example={}), rows


def same_bits(whole: dict[str, Array], parts: Sequence[dict[str, Array]]) -> bool:
    """Compared as bytes: -0.0 and 0.0 differ, and a NaN could not hide."""
    return all(whole[name].tobytes() == np.concatenate([part[name] for part in parts]).tobytes() for name in whole)


@settings(max_examples=150)
@given(tables(), st.data())
def test_there_is_no_skew_between_training_and_serving(
    table: tuple[TabularSpec, list[list[Any]]], data: st.DataObject
) -> None:
    """A dataset by columns (lists or arrays), its rows alone, and its rows in batches give bit-equal tensors."""
    spec, rows = table
    encoder = RowEncoder(spec)
    names = [column.name for column in spec.columns]
    columns = dict(zip(names, (list(values) for values in zip(*rows, strict=True)), strict=True))
    whole = encoder.transform_columns(columns)
    arrays = {
        column.name: np.array(columns[column.name], dtype=np.float64 if column.kind == "numeric" else object)
        for column in spec.columns
    }
    assert same_bits(whole, [encoder.transform_columns(arrays)])
    assert same_bits(whole, [encoder.transform_rows([RowInput(row)]) for row in rows])
    assert same_bits(whole, [encoder.transform_rows([RowInput(dict(zip(names, row, strict=True)))]) for row in rows])
    cut = data.draw(st.integers(0, len(rows)))
    parts = [encoder.transform_rows([RowInput(row) for row in part]) for part in (rows[:cut], rows[cut:])]
    assert same_bits(whole, parts)


ODD = st.sampled_from(
    [None, math.nan, math.inf, -math.inf, True, 10**400, 1e39, -0.0, 0, "odd", "", np.float32(2.5), np.int64(3), [], {}]
)


def said(call: Callable[[], dict[str, Array]]) -> object:
    """The bytes of the tensors, or the error's field and words."""
    try:
        return {name: array.tobytes() for name, array in call().items()}
    except InvalidRequest as error:
        return error.field, error.problem


@settings(max_examples=150)
@given(tables(), st.data())
def test_rows_with_odd_values_are_told_what_columns_are(
    table: tuple[TabularSpec, list[list[Any]]], data: st.DataObject
) -> None:
    """The way of a plain row finds nothing else right, and nothing else wrong."""
    spec, rows = table
    names = [column.name for column in spec.columns]
    for _ in range(data.draw(st.integers(1, 3))):
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.integers(0, len(names) - 1))] = data.draw(ODD)
    encoder = RowEncoder(spec)
    columns = dict(zip(names, (list(values) for values in zip(*rows, strict=True)), strict=True))
    wanted = said(lambda: encoder.transform_columns(columns))
    assert said(lambda: encoder.transform_rows([RowInput(row) for row in rows])) == wanted
    named = [RowInput(dict(zip(names, row, strict=True))) for row in rows]
    assert said(lambda: encoder.transform_rows(named)) == wanted


@settings(max_examples=100)
@given(tables())
def test_features_are_finite_and_indices_are_in_range(table: tuple[TabularSpec, list[list[Any]]]) -> None:
    """Whatever is accepted, the network sees finite numbers and indices below each column's cardinality."""
    spec, rows = table
    tensors = RowEncoder(spec).transform_rows([RowInput(row) for row in rows])
    assert np.isfinite(tensors.get("features", np.zeros(1))).all()
    cardinalities = [column.cardinality for column in spec.categorical]
    if cardinalities:
        assert ((tensors["categories"] >= 0) & (tensors["categories"] < np.array(cardinalities))).all()
