"""The pipeline for rows: what it accepts, what it refuses and under which name, and the tensors it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from server.errors import InvalidRequest, ModelLoadFailed
from server.pipeline.classification import LABELS, ClassificationSpec, DecisionThreshold
from server.pipeline.tabular import RowEncoder, TabularPipeline, TabularSpec, described
from server.types import RowInput, TextInput

AMOUNT = {"kind": "numeric", "name": "amount", "mean": 10.0, "std": 2.0, "minimum": 0, "maximum": 50, "typical": 9}
DAYS = {
    "kind": "numeric", "name": "days", "missing": 3.0, "indicator": True, "clip": (0, 7), "transform": "signed_log1p",
    "mean": 0.0, "std": 1.0, "minimum": 0, "maximum": 7, "typical": 3,
}  # fmt: skip
SHOP = {"kind": "categorical", "name": "shop", "categories": ["food", "fuel"]}
COUNTRY = {"kind": "categorical", "name": "country", "categories": ["NL"], "missing": "error", "unknown": "error"}
EXAMPLE = {"amount": 9, "days": 3, "shop": "food", "country": "NL"}


def make_spec(*columns: dict[str, Any], **changed: Any) -> TabularSpec:
    columns = columns or (AMOUNT, DAYS, SHOP, COUNTRY)
    example = {column["name"]: EXAMPLE[column["name"]] for column in columns}
    return TabularSpec.model_validate({"columns": columns, "example": example} | changed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LABELS.write(tmp_path, ("honest", "fraud"))
    return tmp_path


@pytest.fixture
def pipeline(folder: Path) -> TabularPipeline:
    return TabularPipeline(make_spec(), folder)


def refused(pipeline: TabularPipeline, *rows: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        pipeline.preprocess([RowInput(row) for row in rows])
    return caught.value


def test_features_are_numeric_columns_then_indicators(pipeline: TabularPipeline) -> None:
    """FP32 [B, F]: standardised values in column order, then an indicator for each column that has one."""
    features = pipeline.preprocess([RowInput([12, 1.5, "food", "NL"]), RowInput([8.0, None, "food", "NL"])])["features"]
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, [[1.0, np.log1p(1.5), 0.0], [-1.0, np.log1p(3.0), 1.0]], rtol=1e-6)


def test_values_are_clipped_before_the_log(pipeline: TabularPipeline) -> None:
    """A value outside of `clip` counts as the bound."""
    features = pipeline.preprocess([RowInput([10, 1e9, "food", "NL"]), RowInput([10, -5, "food", "NL"])])["features"]
    np.testing.assert_allclose(features[:, 1], [np.log1p(7.0), 0.0], rtol=1e-6)


def test_the_signed_log_keeps_the_sign() -> None:
    """signed_log1p is odd: it is defined for negative values."""
    column = DAYS | {"clip": None}
    features = RowEncoder(make_spec(column)).transform_columns({"days": [-4.0, 4.0]})["features"]
    np.testing.assert_allclose(features[:, 0], [-np.log1p(4.0), np.log1p(4.0)], rtol=1e-6)


def test_categories_have_indices_of_their_own_for_missing_and_unknown(pipeline: TabularPipeline) -> None:
    """INT64 [B, C]: 0 missing, 1 unknown, 2 and up in the order of the spec."""
    rows = [RowInput([1, 1, shop, "NL"]) for shop in (None, "casino", "food", "fuel")]
    categories = pipeline.preprocess(rows)["categories"]
    assert categories.dtype == np.int64
    assert categories.tolist() == [[0, 2], [1, 2], [2, 2], [3, 2]]


@pytest.mark.parametrize(
    ("categories", "values", "indices"),
    [
        (["false", "true"], [True, "true", False, "false", None, "yes"], [3, 3, 2, 2, 0, 1]),
        (["True", "False"], [True, False, "True", "true"], [2, 3, 2, 1]),
        (["TRUE", "true"], [True, False], [3, 1]),
        (["false"], [True, False], [1, 2]),
        (["maybe", "true"], [True, "maybe", False], [3, 2, 1]),
    ],
    ids=["in JSON's spelling", "as pandas writes them", "JSON's comes first", "true was rare", "beside other texts"],
)
def test_a_boolean_is_the_category_that_spells_it(categories: list[str], values: list[Any], indices: list[int]) -> None:
    """Alone, among others and as a column, by name and by place; the texts themselves stay what they were."""
    spec = make_spec(SHOP | {"categories": categories}, example={"shop": True})
    encoder = RowEncoder(spec)
    assert [encoder.transform_rows([RowInput([value])])["categories"].item() for value in values] == indices
    assert (
        encoder.transform_rows([RowInput({"shop": value}) for value in values])["categories"].ravel().tolist()
        == indices
    )
    for column in (values, np.array(values, dtype=object), [np.bool_(v) if isinstance(v, bool) else v for v in values]):
        assert encoder.transform_columns({"shop": column})["categories"].ravel().tolist() == indices
    assert described(spec)["columns"][0]["boolean"] is True  # type: ignore[index]


def test_a_column_of_booleans_says_what_it_wants() -> None:
    """A number is neither."""
    encoder = RowEncoder(make_spec(SHOP | {"categories": ["true", "false"]}, example={"shop": True}))
    with pytest.raises(InvalidRequest, match="a boolean or a string is wanted, not a number"):
        encoder.transform_rows([RowInput([1])])


def test_a_closed_column_refuses_a_boolean_that_it_has_not() -> None:
    """By the name of the column, as the text would be."""
    encoder = RowEncoder(make_spec(COUNTRY | {"categories": ["false"]}, example={"country": False}))
    for value in (True, "true"):
        with pytest.raises(InvalidRequest, match=r"unknown category: a string \('true'\); known: false"):
            encoder.transform_rows([RowInput([value])])


def test_an_object_and_an_array_are_the_same_row(pipeline: TabularPipeline) -> None:
    """Names may come in any order; an array follows the order of the columns."""
    named = pipeline.preprocess([RowInput({"country": "NL", "shop": "fuel", "days": 2, "amount": 5})])
    ordered = pipeline.preprocess([RowInput([5, 2, "fuel", "NL"])])
    assert all(np.array_equal(named[name], ordered[name]) for name in ("features", "categories"))


def test_a_model_of_one_kind_of_column_has_one_input() -> None:
    """No column of a kind: no tensor for it."""
    assert list(RowEncoder(make_spec(AMOUNT)).transform_rows([RowInput([1])])) == ["features"]
    assert list(RowEncoder(make_spec(SHOP)).transform_rows([RowInput(["food"])])) == ["categories"]


def test_no_rows_make_empty_tensors(pipeline: TabularPipeline) -> None:
    """Zero inputs are zero rows of the right width."""
    tensors = pipeline.preprocess([])
    assert {name: array.shape for name, array in tensors.items()} == {"features": (0, 3), "categories": (0, 2)}


@pytest.mark.parametrize(
    ("row", "field", "problem"),
    [
        ({**EXAMPLE, "colour": 1}, "inputs[1].colour", "no such column"),
        ({"amount": 1, "days": 1, "shop": "food"}, "inputs[1].country", "not there"),
        ([1, 2, "food"], "inputs[1]", "3 values, the model takes 4"),
        ([1, 2, "food", "NL", 5], "inputs[1]", "5 values, the model takes 4"),
        (["12", 2, "food", "NL"], "inputs[1].amount", "a number is wanted, not a string ('12')"),
        ([True, 2, "food", "NL"], "inputs[1].amount", "not a boolean"),
        ([np.True_, 2, "food", "NL"], "inputs[1].amount", "a number is wanted"),
        ([[1], 2, "food", "NL"], "inputs[1].amount", "not an array"),
        ([{}, 2, "food", "NL"], "inputs[1].amount", "not an object"),
        ([None, 2, "food", "NL"], "inputs[1].amount", "no value"),
        ([float("nan"), 2, "food", "NL"], "inputs[1].amount", "no value"),
        ([1, float("inf"), "food", "NL"], "inputs[1].days", "not a finite number"),
        ([1, float("-inf"), "food", "NL"], "inputs[1].days", "not a finite number"),
        ([1e39, 2, "food", "NL"], "inputs[1].amount", "out of range"),
        ([1, 1e39, "food", "NL"], "inputs[1].days", "out of range"),
        ([10**400, 2, "food", "NL"], "inputs[1].amount", "out of range"),
        ([1, -(10**400), "food", "NL"], "inputs[1].days", "out of range"),
        ([1, 2, 3, "NL"], "inputs[1].shop", "a string is wanted, not a number"),
        ([1, 2, False, "NL"], "inputs[1].shop", "not a boolean"),
        ([1, 2, b"food", "NL"], "inputs[1].shop", "a string is wanted"),
        ([1, 2, "food", None], "inputs[1].country", "no value"),
        ([1, 2, "food", "XX"], "inputs[1].country", "unknown category: a string ('XX'); known: NL"),
    ],
)
def test_a_bad_value_is_refused_by_row_and_column(
    pipeline: TabularPipeline, row: Any, field: str, problem: str
) -> None:
    """The field names the row and the column, the problem says what was wanted."""
    error = refused(pipeline, [1, 2, "food", "NL"], row)
    assert error.field == field
    assert problem in error.problem


def test_a_number_that_overflows_when_scaled_is_refused() -> None:
    """No feature is ever infinite, however small a column's std."""
    encoder = RowEncoder(make_spec(AMOUNT | {"std": 1e-300}))
    for value in (3e38, -3e38):
        with pytest.raises(InvalidRequest, match="too far"):
            encoder.transform_rows([RowInput([value])])


def test_an_input_of_another_kind_is_refused(pipeline: TabularPipeline) -> None:
    """A text sent to a model for rows is the caller's error."""
    with pytest.raises(InvalidRequest, match=r"inputs\[1\].*kind text"):
        pipeline.preprocess([RowInput([1, 2, "food", "NL"]), TextInput("hello")])


def test_a_huge_text_is_cut_in_the_message(pipeline: TabularPipeline) -> None:
    """A message never echoes more of the caller's text than helps."""
    assert len(refused(pipeline, [1, 2, "food", "x" * 100_000]).public_message) < 300
    assert len(refused(pipeline, {**EXAMPLE, "y" * 100_000: 1}).public_message) < 300


def test_numbers_of_numpy_are_numbers(pipeline: TabularPipeline) -> None:
    """Training's own scalars pass, and give what plain numbers give."""
    scalars = pipeline.preprocess([RowInput([np.float32(1.5), np.int64(2), "food", "NL"])])
    plain = pipeline.preprocess([RowInput([1.5, 2, "food", "NL"])])
    assert np.array_equal(scalars["features"], plain["features"])


@pytest.mark.parametrize(
    "change",
    [
        {"columns": []},
        {"columns": [AMOUNT, AMOUNT]},
        {"columns": [AMOUNT | {"std": 0}]},
        {"columns": [AMOUNT | {"mean": float("nan")}]},
        {"columns": [AMOUNT | {"clip": (3, 3)}]},
        {"columns": [AMOUNT | {"minimum": 60}]},
        {"columns": [AMOUNT | {"indicator": True}]},
        {"columns": [AMOUNT | {"unit": "EUR"}]},
        {"columns": [SHOP | {"categories": []}]},
        {"columns": [SHOP | {"categories": ["a", "a"]}]},
        {"columns": [{"kind": "date", "name": "when"}]},
        {"features": "x", "categories": "x"},
        {"task": "text-classification"},
        {"scaler": "standard"},
    ],
    ids=str,
)
def test_a_spec_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    """Every contradiction and every unknown key is an error when the spec is read."""
    with pytest.raises(ValidationError):
        make_spec(**change)


def test_an_example_that_the_model_would_refuse_keeps_it_from_loading(folder: Path) -> None:
    """The example is checked at load, and the error says which column of it is wrong."""
    with pytest.raises(ModelLoadFailed, match=r"processing.yaml: example.country"):
        TabularPipeline(make_spec(example=EXAMPLE | {"country": "XX"}), folder)


def test_the_example_is_accepted(pipeline: TabularPipeline) -> None:
    """What `example` gives, `preprocess` takes."""
    assert pipeline.preprocess([pipeline.example()])["features"].shape == (1, 3)


def test_describe_tells_what_a_form_needs(pipeline: TabularPipeline) -> None:
    """Columns in order, with ranges or categories, and whether null is accepted."""
    described = pipeline.describe()
    assert described["task"] == "tabular-classification"
    assert described["labels"] == ["honest", "fraud"]
    assert described["input"] == {
        "kind": "row",
        "columns": [
            {"name": "amount", "kind": "numeric", "nullable": False, "minimum": 0.0, "maximum": 50.0, "typical": 9.0},
            {"name": "days", "kind": "numeric", "nullable": True, "minimum": 0.0, "maximum": 7.0, "typical": 3.0},
            {
                "name": "shop",
                "kind": "categorical",
                "nullable": True,
                "categories": ["food", "fuel"],
                "closed": False,
            },
            {"name": "country", "kind": "categorical", "nullable": False, "categories": ["NL"], "closed": True},
        ],
    }


def test_the_threshold_decides_the_label(folder: Path) -> None:
    """With a decision threshold the positive label wins below one half."""
    decision = DecisionThreshold(positive_label="fraud", threshold=0.25)
    pipeline = TabularPipeline(make_spec(classification=ClassificationSpec(decision=decision)), folder)
    logits = np.log([[0.7, 0.3], [0.8, 0.2]]).astype(np.float32)
    assert [answer.label for answer in pipeline.postprocess({"logits": logits})] == ["fraud", "honest"]
