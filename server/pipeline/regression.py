"""Rows of a table in, a number with its interval out.

The model gives three quantiles of each row in the target's own unit, ascending. Training measures on the validation
rows by how much the outer two must be moved for `level` of the rows to lie between them, and writes that as `margin`
(conformalized quantile regression, Romano, Patterson and Candes, 2019).

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, StrictBool, StrictInt, StrictStr, model_validator

from server.answers import Prediction, Regression
from server.errors import EngineFailure, InvalidRequest
from server.pipeline.classification import SpecModel
from server.pipeline.columns import Column
from server.pipeline.tabular import RowEncoder, check_rows, described
from server.tensor import Array
from server.types import RawInput, RowInput

TASK: Literal["tabular-regression"] = "tabular-regression"


class IntervalSpec(SpecModel):
    """How an output tensor of shape [B, 3] becomes a value between two bounds."""

    output: str = "quantiles"
    """Name of the FP32 output: the lower bound, the median, the upper bound."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """The share of rows whose true value is meant to lie within the bounds."""
    margin: FiniteFloat = 0.0
    """Added to the upper bound and taken from the lower one; below 0 it narrows, to the value and no further."""


class RegressionSpec(SpecModel):
    """What `processing.yaml` says of a model that estimates a number for rows; the columns are as `TabularSpec`'s."""

    task: Literal["tabular-regression"] = TASK
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    features: Annotated[str, Field(min_length=1)] = "features"
    categories: Annotated[str, Field(min_length=1)] = "categories"
    target: str = ""
    """What is estimated, for people."""
    interval: IntervalSpec = IntervalSpec()
    example: Mapping[str, StrictBool | StrictInt | FiniteFloat | StrictStr | None]

    @model_validator(mode="after")
    def _consistent(self) -> RegressionSpec:
        check_rows(self)
        return self


def bounds(spec: IntervalSpec, quantiles: Array) -> NDArray[np.float64]:
    """[B, 3]: low, value, high; the margin is on the outer two, which stay on their sides of the value."""
    low, value, high = np.asarray(quantiles, dtype=np.float64).T
    return np.stack([np.minimum(low - spec.margin, value), value, np.maximum(high + spec.margin, value)], axis=1)


class RegressionPipeline:
    """`server.pipeline.base.Pipeline` for rows whose answer is a number."""

    task: str = TASK
    by_row = True

    def __init__(self, spec: RegressionSpec, folder: Path) -> None:
        """Raises ModelLoadFailed where the example is no valid row."""
        self._spec = spec
        self._encoder = RowEncoder.checked(spec, folder)
        self.most_brief = self._encoder.most_brief
        self._model_name = folder.name

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        """FP32 features [B, F] and INT64 categories [B, C], where the model has such columns; see `RowEncoder`."""
        return self._encoder.transform_rows(inputs)

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        """One `Regression` for each row.

        Raises:
            InvalidRequest: `top_k` is asked for, and there are no labels.
            EngineFailure: the output is missing, not [B, 3], not finite or not ascending.
        """
        if top_k:
            raise InvalidRequest("top_k", "the model gives a number, there are no labels to choose from")
        rows = bounds(self._spec.interval, self._checked(outputs)).tolist()
        return [Regression(value, low, high) for low, value, high in rows]

    def describe(self) -> Mapping[str, object]:
        """The task, the columns with what each takes, what is estimated, and the interval's share."""
        return {
            "task": self.task,
            "input": described(self._spec),
            "labels": [],
            "target": self._spec.target,
            "level": self._spec.interval.level,
        }

    def example(self) -> RowInput:
        """The spec's own example, by column name."""
        return RowInput(dict(self._spec.example))

    def _checked(self, outputs: Mapping[str, Array]) -> Array:
        name = self._spec.interval.output
        values = outputs.get(name)
        if values is None:
            raise EngineFailure(self._model_name, f"the model gave no output {name!r}")
        if values.ndim != 2 or values.shape[1] != 3:
            raise EngineFailure(self._model_name, f"output {name!r} has shape {values.shape}, expected [B, 3]")
        if not np.isfinite(values).all():
            raise EngineFailure(self._model_name, f"output {name!r} holds a value that is not finite")
        if (values[:, :2] > values[:, 1:]).any():
            raise EngineFailure(self._model_name, f"output {name!r}: its quantiles cross")
        return values
