"""Rows in, a number between bounds out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.answers import Regression
from server.errors import EngineFailure, InvalidRequest, ModelLoadFailed
from server.pipeline.load import load_pipeline, read_spec, write_spec
from server.pipeline.regression import IntervalSpec, RegressionPipeline, RegressionSpec, bounds
from server.tensor import Array
from server.types import RowInput
from tests.support.tables import NUMBER_COLUMN

SPEC = RegressionSpec(columns=(NUMBER_COLUMN,), target="price", interval=IntervalSpec(margin=0.5), example={"size": 3})


def quantiles(*rows: tuple[float, float, float]) -> dict[str, Array]:
    return {"quantiles": np.array(rows, dtype=np.float32)}


@pytest.fixture
def pipeline(tmp_path: Path) -> RegressionPipeline:
    write_spec(SPEC, tmp_path)
    found = load_pipeline(tmp_path)
    assert isinstance(found, RegressionPipeline)
    return found


def test_the_spec_is_read_back_as_it_was_written(pipeline: RegressionPipeline, tmp_path: Path) -> None:
    """processing.yaml holds all of it; the example is a row that the model takes."""
    assert read_spec(tmp_path) == SPEC
    assert pipeline.preprocess([pipeline.example()])["features"].shape == (1, 1)
    assert (pipeline.describe()["task"], pipeline.describe()["level"]) == ("tabular-regression", 0.9)


def test_the_margin_widens_the_bounds(pipeline: RegressionPipeline) -> None:
    """The value stays, the bounds move by the margin of the validation rows."""
    assert pipeline.postprocess(quantiles((1, 2, 4), (-1, 0, 0))) == [
        Regression(2.0, 0.5, 4.5),
        Regression(0.0, -1.5, 0.5),
    ]


def test_a_negative_margin_narrows_to_the_value_and_no_further() -> None:
    """low <= value <= high, whatever the margin."""
    found = bounds(IntervalSpec(margin=-3), np.array([[1.0, 2.0, 9.0]]))
    assert found.tolist() == [[2.0, 2.0, 6.0]]


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ({}, "no output 'quantiles'"),
        ({"quantiles": np.zeros((2, 2), np.float32)}, "expected [B, 3]"),
        (quantiles((1, float("nan"), 3)), "not finite"),
        (quantiles((1, 3, 2)), "quantiles cross"),
    ],
    ids=["missing", "narrow", "not a number", "crossed"],
)
def test_outputs_that_are_no_interval_fail(
    pipeline: RegressionPipeline, outputs: dict[str, Array], problem: str
) -> None:
    """No answer is made of what is not three ascending numbers."""
    with pytest.raises(EngineFailure) as caught:
        pipeline.postprocess(outputs)
    assert problem in caught.value.detail


def test_labels_can_not_be_asked_for(pipeline: RegressionPipeline) -> None:
    """top_k is refused by name."""
    with pytest.raises(InvalidRequest, match="top_k"):
        pipeline.postprocess(quantiles((1, 2, 3)), top_k=1)


def test_a_row_is_checked_as_for_every_task_on_rows(pipeline: RegressionPipeline) -> None:
    """An unknown column is named."""
    with pytest.raises(InvalidRequest, match="colour"):
        pipeline.preprocess([RowInput({"size": 1, "colour": "red"})])


def test_an_example_that_is_no_row_keeps_the_model_out(tmp_path: Path) -> None:
    """The example is run at load, and named."""
    write_spec(SPEC.model_copy(update={"example": {"weight": 1}}), tmp_path)
    with pytest.raises(ModelLoadFailed, match="example"):
        load_pipeline(tmp_path)
