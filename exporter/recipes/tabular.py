"""Classify rows of a table: numeric columns and categories, missing values, balanced labels or a rare one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, zip_longest
from math import isnan
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from exporter.data.clean import Table, clean, leaks_told
from exporter.data.columns import fit_columns
from exporter.data.split import Indices, divided
from exporter.data.tabular import RawTable, breast_cancer, fraud_transactions, read_file
from exporter.errors import UsageError
from exporter.recipes.base import (
    Arrays,
    Collected,
    DataReport,
    Evaluation,
    Hyperparameters,
    Predict,
    RunConfig,
    Split,
    Tolerance,
)
from exporter.recipes.tabular_metrics import (
    Scored,
    balanced_metrics,
    chance_metrics,
    rare_label,
    rare_metrics,
    threshold_metrics,
)
from exporter.recipes.tabular_network import TabularNetwork
from exporter.recipes.weights import weights_of
from server.pipeline.classification import LABELS, ClassificationSpec, Classifier, DecisionThreshold
from server.pipeline.columns import CategoricalColumn, Column, NumericColumn
from server.pipeline.load import read_spec, write_spec
from server.pipeline.tabular import TASK, RowEncoder, TabularSpec
from server.tensor import Array, TensorSpec
from server.types import RawInput, RowInput

OUTPUT = "logits"
MAX_BATCH_SIZE = 256
GOLDEN_ROWS = 16
DEFAULT_TOP_K = 5
BASELINE_NAME = "logistic regression"
CHANCE = "chance_"
"""Before the name of a metric: what is reached without a model, see `chance_metrics`."""
UNSEEN_CATEGORY = "a category that training has not seen"

_BUNDLED: Mapping[str, tuple[Callable[[], RawTable], str]] = {
    "breast_cancer": (breast_cancer, "569 tumours, 30 measurements of each: benign or malignant (scikit-learn's copy)"),
    "fraud": (
        fraud_transactions,
        "60,000 SYNTHETIC card transactions, 1 % of them fraudulent, from a seeded generator",
    ),
}
# A bundled set has one split, so that runs of different seeds can be compared. The 113 test rows of breast_cancer
# are few, and the split matters more than the model: over the splits of seeds 0 to 11, test accuracy went from 0.938
# to 0.991 around a mean of 0.968. This one was chosen, knowing its result, because it lies near that mean; whoever
# quotes its accuracy quotes the range as well.
_SPLIT_SEEDS = {"breast_cancer": 3, "fraud": 0}
_TRAINING = {
    "breast_cancer": Hyperparameters(epochs=80, batch_size=32, learning_rate=3e-3, weight_decay=1e-2, patience=20),
    "fraud": Hyperparameters(epochs=20, batch_size=512, learning_rate=4e-3, weight_decay=1e-3, patience=6),
}


class TabularTask:
    """`exporter.recipes.base.Task` for one cleaned table."""

    output: ClassVar[str] = OUTPUT
    activation: ClassVar[Literal["softmax", "none"]] = "softmax"

    def __init__(self, raw: RawTable, table: Table, config: RunConfig) -> None:
        self.labels = table.labels
        self.raw = raw
        self.config = config
        self._table = table
        split_seed = _SPLIT_SEEDS.get(config.data, config.seed)
        self._indices = divided(config, len(table.targets), table.order, table.groups, table.targets, seed=split_seed)
        self.spec = _spec(
            fit_columns(table.columns, self._indices[Split.TRAIN]),
            ClassificationSpec(
                output=self.output, activation=self.activation, top_k=min(len(table.labels), DEFAULT_TOP_K)
            ),
        )
        # All rows pass through the serving transform, once; what is learnt from was fitted to train rows alone.
        self._tensors = RowEncoder(self.spec).transform_columns(table.columns)
        train_targets = table.targets[self._indices[Split.TRAIN]]
        self._weights = weights_of(config.training, train_targets, len(table.labels))
        self._rare = rare_label(table.targets, len(table.labels))
        self._baseline_name = f"{BASELINE_NAME}, on synthetic data" if raw.synthetic else BASELINE_NAME
        self.report = _report(raw, table, self._indices, self._chance())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, "FP32" if name == self.spec.features else "INT64", (array.shape[1],))
            for name, array in self._tensors.items()
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(self.output, "FP32", (len(self.labels),)),)

    @property
    def max_batch_size(self) -> int:
        return MAX_BATCH_SIZE

    @property
    def tolerances(self) -> Mapping[str, Tolerance]:
        return {self.output: Tolerance()}

    def size(self, split: Split) -> int:
        return len(self._indices[split])

    def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
        chosen = self._indices[split][rows]
        return {name: array[chosen] for name, array in self._tensors.items()}, self._table.targets[chosen]

    def network(self) -> nn.Module:
        features = self._tensors.get(self.spec.features)
        return TabularNetwork(
            num_features=0 if features is None else features.shape[1],
            cardinalities=[column.cardinality for column in self.spec.categorical],
            num_labels=len(self.labels),
            hidden=(32,) if self.size(Split.TRAIN) < 2_000 else (64, 64),
            dropout=0.2,
        )

    def loss(self, outputs: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs[0], targets, weight=self._weights)

    def evaluate(self, predict: Predict) -> Evaluation:
        network, linear = self._score_network(predict), self._score_logistic_regression()
        chance = {f"{CHANCE}{name}": value for name, value in self._chance().items()}
        if self._rare is None:
            metrics, baseline = balanced_metrics(network[Split.TEST]), balanced_metrics(linear[Split.TEST])
            return Evaluation(metrics, baseline | chance, self._baseline_name)
        metrics, threshold = rare_metrics(network[Split.VALIDATION], network[Split.TEST], self._rare)
        baseline, _ = rare_metrics(linear[Split.VALIDATION], linear[Split.TEST], self._rare)
        decision = DecisionThreshold(positive_label=self.labels[self._rare], threshold=threshold)
        return Evaluation(metrics, baseline | chance, self._baseline_name, decision)

    def metrics(self, predict: Predict) -> Mapping[str, float]:
        """Those of `evaluate`, without the baseline's."""
        found = self._score_network(predict)
        if self._rare is None:
            return balanced_metrics(found[Split.TEST])
        return rare_metrics(found[Split.VALIDATION], found[Split.TEST], self._rare)[0]

    def decide(self, predict: Predict, evaluation: Evaluation) -> Evaluation:
        """With the threshold that these scores of the validation rows choose, where there is one."""
        if self._rare is None or evaluation.decision is None:
            return evaluation
        found = self._score_network(predict)
        _, threshold = rare_metrics(found[Split.VALIDATION], found[Split.TEST], self._rare)
        return replace(evaluation, decision=evaluation.decision.model_copy(update={"threshold": threshold}))

    def decided(self, predict: Predict, evaluation: Evaluation) -> Mapping[str, float]:
        """Precision and recall at the threshold, where there is one."""
        if self._rare is None or evaluation.decision is None:
            return {}
        found = self._score_network(predict)
        return threshold_metrics(found[Split.TEST], self._rare, evaluation.decision.threshold)

    def served(self, folder: Path) -> Evaluation:
        spec = read_spec(folder)
        return Evaluation({}, {}, "", spec.classification.decision if isinstance(spec, TabularSpec) else None)

    def write_processing(self, folder: Path, evaluation: Evaluation) -> None:
        classification = self.spec.classification.model_copy(update={"decision": evaluation.decision})
        spec = self.spec.model_copy(update={"classification": classification})
        write_spec(spec, folder)
        LABELS.write(folder, self.labels)

    def profile(self) -> Mapping[str, Mapping[Split, Array]]:
        return profile_of(
            {**self._table.columns, self.raw.target: np.array(self.labels)[self._table.targets]}, self._indices
        )

    def golden_inputs(self) -> Sequence[RawInput]:
        """Test rows of every label in turn, then a row that misses all it may, and one with unseen categories."""
        test = self._indices[Split.TEST]
        by_label = [test[self._table.targets[test] == label] for label in range(len(self.labels))]
        turns = chain.from_iterable(zip_longest(*by_label))
        rows = [self._row(row) for row in islice((row for row in turns if row is not None), GOLDEN_ROWS)]
        missing = {column.name: None for column in self.spec.columns if column.missing != "error"}
        unseen = {column.name: UNSEEN_CATEGORY for column in self.spec.categorical}
        hard = [rows[0] | changed for changed in (missing, unseen) if changed]
        return [RowInput(values) for values in (*rows, *hard)]

    def _chance(self) -> dict[str, float]:
        return chance_metrics(self._table.targets[self._indices[Split.TEST]], len(self.labels), self._rare)

    def _row(self, row: int) -> dict[str, Any]:
        return row_of(self.spec.columns, self._table.columns, row)

    def _score_network(self, predict: Predict) -> dict[Split, Scored]:
        """By the serving code: what `postprocess` makes of the outputs is what is measured."""
        scored = {}
        for split in (Split.VALIDATION, Split.TEST):
            inputs, targets = self._whole(split)
            scored[split] = Scored(targets, self.probabilities(predict(inputs)))
        return scored

    def probabilities(self, outputs: Arrays) -> Array:
        """By the serving code, [B, C]."""
        return Classifier(self.spec.classification, self.labels, self.config.name).probabilities(outputs)

    def _score_logistic_regression(self) -> dict[Split, Scored]:
        """On the same features, with one indicator for each category in place of an embedding."""
        model = LogisticRegression(max_iter=5_000)
        inputs, targets = self._whole(Split.TRAIN)
        model.fit(self._one_hot(inputs), targets)
        scored = {}
        for split in (Split.VALIDATION, Split.TEST):
            inputs, targets = self._whole(split)
            scored[split] = Scored(targets, model.predict_proba(self._one_hot(inputs)))
        return scored

    def _one_hot(self, inputs: Arrays) -> Array:
        return one_hot(self.spec.features, self.spec.categories, self.spec.categorical, inputs)

    def _whole(self, split: Split) -> tuple[Arrays, Array]:
        return self.batch(split, np.arange(self.size(split)), 0)


class TabularRecipe:
    """`exporter.recipes.base.Recipe` for tables."""

    options = frozenset({"target", "split", "split_column", "class_weights"})

    @property
    def name(self) -> str:
        return TASK

    @property
    def bundled(self) -> Mapping[str, str]:
        return {name: about for name, (_, about) in _BUNDLED.items()}

    def hyperparameters(self, data: str) -> Hyperparameters:
        return _TRAINING.get(data, Hyperparameters(epochs=60, batch_size=64, learning_rate=3e-3, weight_decay=1e-2))

    task: type[TabularTask] = TabularTask

    def collect(self, config: RunConfig) -> Collected:
        raw = self._read(config)
        return Collected(raw.source, raw.sha256, raw.rows, lambda config: self.task(raw, clean(raw, config), config))

    def _read(self, config: RunConfig) -> RawTable:
        if config.data not in _BUNDLED:
            return read_file(Path(config.data), config.target)
        if config.target:
            raise UsageError(f"--target: the bundled data set {config.data} has a target of its own")
        read, _ = _BUNDLED[config.data]
        return read()


def _spec(columns: tuple[Column, ...], classification: ClassificationSpec) -> TabularSpec:
    return TabularSpec(columns=columns, classification=classification, example=example_of(columns))


def one_hot(features: str, categories: str, columns: Sequence[CategoricalColumn], inputs: Arrays) -> Array:
    """The features, and an indicator for each category of `columns`, [B, F]; the first two name the inputs."""
    parts = [inputs[features]] if features in inputs else []
    for index, column in enumerate(columns):
        parts.append(np.eye(column.cardinality, dtype=np.float32)[inputs[categories][:, index]])
    return np.concatenate(parts, axis=1)


def profile_of(columns: Mapping[str, Array], indices: Mapping[Split, Indices]) -> Mapping[str, Mapping[Split, Array]]:
    """The values of each column in each split."""
    return {name: {split: values[rows] for split, rows in indices.items()} for name, values in columns.items()}


def example_of(columns: tuple[Column, ...]) -> dict[str, int | float | str | None]:
    """A row of typical values."""
    return {
        column.name: plain(column, column.typical if isinstance(column, NumericColumn) else column.categories[0])
        for column in columns
    }


def row_of(columns: Sequence[Column], values: Mapping[str, Array], row: int) -> dict[str, int | float | str | None]:
    """A row as a client would send it."""
    return {column.name: plain(column, values[column.name][row]) for column in columns}


def plain(column: Column, value: Any) -> int | float | str | None:
    """A value as a client would send it: whole numbers without a fraction, booleans as such, None for a missing one."""
    if isinstance(column, CategoricalColumn):
        told = {text: each for each, text in column.booleans.items()}
        return None if value is None else told.get(value, str(value))
    if isnan(value):
        return None
    return int(value) if value.is_integer() else float(value)


def _report(raw: RawTable, table: Table, indices: Mapping[Split, Indices], chance: Mapping[str, float]) -> DataReport:
    counts = {split: np.bincount(table.targets[rows], minlength=len(table.labels)) for split, rows in indices.items()}
    chance_told = ", ".join(f"{name} {value:.4f}" for name, value in chance.items())
    return DataReport(
        source=raw.source,
        sha256=raw.sha256,
        collected=raw.rows,
        broken=table.broken,
        duplicates=table.duplicates,
        rows={split: dict(zip(table.labels, found.tolist(), strict=True)) for split, found in counts.items()},
        notes=(
            *table.notes,
            leaks_told(table.keys, indices),
            f"without a model (most frequent label, random order): {chance_told}",
        ),
        synthetic=raw.synthetic,
    )
