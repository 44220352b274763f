"""Rows of a table in, a class out: the spec, the row encoder that training shares, and the pipeline.

A row gives its values by column name or as an array in the order of the columns. Training has whole columns
already and calls `RowEncoder.transform_columns` on them. Serving has rows, mostly one: it gathers their values and runs
the same arithmetic on them. Rows with anything unusual in them are turned into columns first, where it is looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, FiniteFloat, StrictBool, StrictInt, StrictStr, model_validator

from server.errors import InvalidRequest, ModelLoadFailed
from server.pipeline.base import PROCESSING_FILE
from server.pipeline.classification import ClassificationSpec, Classifier, SpecModel
from server.pipeline.columns import CategoricalColumn, Column, ColumnTransform, NumericColumn, Values, shortened
from server.tensor import Array
from server.types import Prediction, RawInput, RowInput

TASK: Literal["tabular-classification"] = "tabular-classification"


_BRIEF_VALUES = 256
"""Of the rows of a request: they are encoded in some 100 us. A thread would have them for as long, and take the loop's
core from it when it hands them back."""


class TabularSpec(SpecModel):
    """What `processing.yaml` says of a model that classifies rows."""

    task: Literal["tabular-classification"] = TASK
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    """In the order in which an array of values is read."""
    features: Annotated[str, Field(min_length=1)] = "features"
    """Name of the FP32 input [B, F]: numeric columns in their order, then missing indicators in theirs. A model
    without numeric columns has no such input."""
    categories: Annotated[str, Field(min_length=1)] = "categories"
    """Name of the INT64 input [B, C]: an index for each categorical column. A model without any has no such input."""
    classification: ClassificationSpec = ClassificationSpec()
    example: Mapping[str, StrictBool | StrictInt | FiniteFloat | StrictStr | None]
    """A realistic row, for the commands that people paste."""

    @model_validator(mode="after")
    def _consistent(self) -> TabularSpec:
        check_rows(self)
        return self

    @property
    def categorical(self) -> tuple[CategoricalColumn, ...]:
        """The columns of the `categories` input, in its order."""
        return categorical_of(self.columns)


class RowSpec(Protocol):
    """What the specs of all tasks on rows have."""

    @property
    def columns(self) -> tuple[Column, ...]: ...

    @property
    def features(self) -> str: ...

    @property
    def categories(self) -> str: ...

    @property
    def example(self) -> Mapping[str, Any]: ...


def check_rows(spec: RowSpec) -> None:
    """Raises ValueError where a spec's columns or inputs contradict each other."""
    names = [column.name for column in spec.columns]
    if len(set(names)) != len(names):
        raise ValueError("columns: a name is given twice")
    if spec.features == spec.categories:
        raise ValueError("features and categories are inputs of the same name")


def categorical_of(columns: Sequence[Column]) -> tuple[CategoricalColumn, ...]:
    """Those that are categorical, in their order."""
    return tuple(column for column in columns if isinstance(column, CategoricalColumn))


class RowEncoder:
    """Values to tensors, for training and serving alike. Immutable; may be called from several threads at once."""

    def __init__(self, spec: RowSpec) -> None:
        self._spec = spec
        self._transform = ColumnTransform(spec.columns)
        self._names = tuple(column.name for column in spec.columns)
        self._known = frozenset(self._names)
        self.most_brief = _BRIEF_VALUES // len(self._names)
        numeric = [n for n, column in enumerate(spec.columns) if isinstance(column, NumericColumn)]
        categorical = [n for n, column in enumerate(spec.columns) if isinstance(column, CategoricalColumn)]
        self._pick_at = _picker(numeric), _picker(categorical)
        self._pick_named = tuple(_picker([self._names[n] for n in places]) for places in (numeric, categorical))

    @classmethod
    def checked(cls, spec: RowSpec, folder: Path) -> RowEncoder:
        """The encoder of a model's spec. Raises ModelLoadFailed where its example is no valid row."""
        encoder = cls(spec)
        try:
            encoder.transform_rows([RowInput(dict(spec.example))])
        except InvalidRequest as error:
            where = f"{PROCESSING_FILE}: example{error.field.removeprefix('inputs[0]')}"
            raise ModelLoadFailed(folder.name, where, error.problem) from error
        return encoder

    def transform_columns(self, columns: Mapping[str, Values]) -> dict[str, Array]:
        """The input tensors of a whole dataset, given as columns of equal length; other columns are ignored.

        Raises:
            InvalidRequest: a value is not what its column takes; the field is ``inputs[row].column``.
            KeyError: a column of the spec is not there.
        """
        tensors: dict[str, Array] = {}
        if self._transform.num_features:
            tensors[self._spec.features] = self._transform.features(columns)
        if self._transform.num_categories:
            tensors[self._spec.categories] = self._transform.categories(columns)
        return tensors

    def transform_rows(self, inputs: Sequence[RawInput]) -> dict[str, Array]:
        """The same tensors for rows.

        Raises:
            InvalidRequest: an input is no row, has an unknown column, lacks one (null stands for a missing
                value), is an array of another length, or holds a value that its column does not take.
        """
        tensors = self._plain(inputs) if inputs else None
        if tensors is not None:
            return tensors
        rows = [self._values(index, raw) for index, raw in enumerate(inputs)]
        columns = zip(*rows, strict=True) if rows else ((),) * len(self._names)
        return self.transform_columns(dict(zip(self._names, columns, strict=True)))

    def _plain(self, inputs: Sequence[RawInput]) -> dict[str, Array] | None:
        """The tensors of rows that have every column, with a value of its kind in it; None: some has not."""
        numbers, texts = [], []
        for raw in inputs:
            values = raw.values if isinstance(raw, RowInput) else ()
            if len(values) != len(self._names):
                return None
            pick_numbers, pick_texts = self._pick_named if isinstance(values, dict) else self._pick_at
            try:
                numbers.append(pick_numbers(values))
                texts.append(pick_texts(values))
            except LookupError:
                return None
        tensors: dict[str, Array] = {}
        indices = self._transform.plain_categories(texts)
        if indices is None:
            return None
        if self._transform.num_features:
            features = self._transform.plain_features(numbers)
            if features is None:
                return None
            tensors[self._spec.features] = features
        if self._transform.num_categories:
            tensors[self._spec.categories] = indices
        return tensors

    def _values(self, index: int, raw: RawInput) -> Sequence[Any]:
        """The values of one row, in the order of the columns."""
        field = f"inputs[{index}]"
        if not isinstance(raw, RowInput):
            kind = type(raw).__name__.removesuffix("Input").lower()
            raise InvalidRequest(
                field, f"the model takes rows (an object or an array of values), not an input of kind {kind}"
            )
        values = raw.values
        if isinstance(values, Mapping):
            return self._by_name(field, values)
        if len(values) != len(self._names):
            raise InvalidRequest(field, f"{len(values)} values, the model takes {len(self._names)}")
        return values

    def _by_name(self, field: str, values: Mapping[str, Any]) -> Sequence[Any]:
        unknown = next((name for name in values if name not in self._known), None)
        if unknown is not None:
            raise InvalidRequest(f"{field}.{shortened(str(unknown))}", "the model has no such column")
        for name in self._names:
            if name not in values:
                raise InvalidRequest(f"{field}.{name}", "the column is not there; give null where its value is missing")
        return [values[name] for name in self._names]


def _picker(keys: Sequence[Any]) -> Callable[[Any], Sequence[Any]]:
    """Gives the values of those keys, however many there are. It can be pickled: with workers pipelines are."""
    return itemgetter(*keys) if len(keys) > 1 else partial(_picked, tuple(keys))


def _picked(keys: Sequence[Any], values: Any) -> Sequence[Any]:
    return [values[key] for key in keys]


class TabularPipeline:
    """`server.pipeline.base.Pipeline` for rows."""

    task: str = TASK
    by_row = True

    def __init__(self, spec: TabularSpec, folder: Path) -> None:
        """Raises ModelLoadFailed where labels and spec contradict each other, or the example is no valid row."""
        self._spec = spec
        self._classifier = Classifier.from_folder(spec.classification, folder)
        self._encoder = RowEncoder.checked(spec, folder)
        self.most_brief = self._encoder.most_brief

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        """FP32 features [B, F] and INT64 categories [B, C], where the model has such columns; see `RowEncoder`."""
        return self._encoder.transform_rows(inputs)

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        """One answer for each row; see `Classifier.postprocess`."""
        return self._classifier.postprocess(outputs, top_k)

    def describe(self) -> Mapping[str, object]:
        """The task, the columns with what each takes, the labels, and the decision threshold if there is one."""
        decision = self._spec.classification.decision
        return {
            "task": self.task,
            "input": described(self._spec),
            "labels": list(self._classifier.labels),
            "decision": None if decision is None else decision.model_dump(),
        }

    def example(self) -> RowInput:
        """The spec's own example, by column name."""
        return RowInput(dict(self._spec.example))


def described(spec: RowSpec) -> dict[str, object]:
    """The input of a task on rows, for clients and forms."""
    return {"kind": "row", "columns": [_described(column) for column in spec.columns]}


def _described(column: NumericColumn | CategoricalColumn) -> dict[str, object]:
    """A column for clients and forms. `nullable`: null is accepted; `closed`: only the listed categories are;
    `boolean`: true and false are, as such and as texts."""
    told: dict[str, object] = {"name": column.name, "kind": column.kind, "nullable": column.missing != "error"}
    if isinstance(column, CategoricalColumn):
        return (
            told
            | {"categories": list(column.categories), "closed": column.unknown == "error"}
            | ({"boolean": True} if column.booleans else {})
        )
    return told | {"minimum": column.minimum, "maximum": column.maximum, "typical": column.typical}
