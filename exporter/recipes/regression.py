"""`regression`: a number for each row of a table, between bounds that hold for a stated share of rows.

The network gives three quantiles, the lower bound, the median and the upper bound, by the pinball loss; they can't
cross, for the outer two are the median less or plus something positive. On the validation rows the outer two are
then moved until they hold the share that was asked for (see `server.pipeline.regression`); the test rows only measure.

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import nn

from exporter.data.clean import NumberTable, clean_numbers, leaks_told
from exporter.data.columns import fit_columns
from exporter.data.split import divided
from exporter.data.tabular import RawTable, diabetes, read_file
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
from exporter.recipes.tabular import (
    GOLDEN_ROWS,
    MAX_BATCH_SIZE,
    UNSEEN_CATEGORY,
    example_of,
    one_hot,
    profile_of,
    row_of,
)
from exporter.recipes.tabular_network import TabularNetwork
from server.pipeline.load import read_spec, write_spec
from server.pipeline.regression import IntervalSpec, RegressionSpec, bounds
from server.pipeline.tabular import RowEncoder, categorical_of
from server.tensor import Array, TensorSpec
from server.types import RawInput, RowInput

OUTPUT = "quantiles"
DEFAULT_LEVEL = 0.9
CONSTANT = "constant_"
"""Before the name of a metric: what the mean and the quantiles of the training rows reach."""
MARGIN = "margin"

Floats = NDArray[np.float64]

_BUNDLED: Mapping[str, tuple[Callable[[], RawTable], str]] = {
    "diabetes": (diabetes, "442 patients, 10 measurements of each: the disease's progression a year later"),
}


class RegressionTask:
    """`exporter.recipes.base.Task` for one cleaned table with a numeric target."""

    labels: tuple[str, ...] = ()

    def __init__(self, raw: RawTable, table: NumberTable, config: RunConfig) -> None:
        self._table = table
        self._level = config.interval or DEFAULT_LEVEL
        self._indices = divided(config, len(table.targets), table.order, table.groups)
        train = self._indices[Split.TRAIN]
        columns = fit_columns(table.columns, train)
        interval = IntervalSpec(output=OUTPUT, level=self._level)
        self.spec = RegressionSpec(columns=columns, target=raw.target, interval=interval, example=example_of(columns))
        self._tensors = RowEncoder(self.spec).transform_columns(table.columns)
        self._center = float(table.targets[train].mean())
        self._scale = float(table.targets[train].std()) or 1.0
        self.quantiles = ((1 - self._level) / 2, 0.5, (1 + self._level) / 2)
        self.report = _report(raw, table, self._indices)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, "FP32" if name == self.spec.features else "INT64", (array.shape[1],))
            for name, array in self._tensors.items()
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(OUTPUT, "FP32", (3,)),)

    @property
    def max_batch_size(self) -> int:
        return MAX_BATCH_SIZE

    @property
    def tolerances(self) -> Mapping[str, Tolerance]:
        return {OUTPUT: Tolerance(absolute=1e-4 * self._scale, relative=1e-4)}

    def size(self, split: Split) -> int:
        return len(self._indices[split])

    def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
        chosen = self._indices[split][rows]
        inputs = {name: array[chosen] for name, array in self._tensors.items()}
        return inputs, self._table.targets[chosen].astype(np.float32)

    def network(self) -> nn.Module:
        features = self._tensors.get(self.spec.features)
        small = self.size(Split.TRAIN) < 2_000
        network = TabularNetwork(
            num_features=0 if features is None else features.shape[1],
            cardinalities=[column.cardinality for column in categorical_of(self.spec.columns)],
            num_labels=3,
            hidden=(32,) if small else (64, 64),
            dropout=0.1,
        )
        return QuantileNetwork(network, self._center, self._scale)

    def loss(self, outputs: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """The pinball loss of the three quantiles, in standard deviations of the target."""
        shares = torch.tensor(self.quantiles)
        errors = (targets.unsqueeze(1) - outputs[0]) / self._scale
        return torch.maximum(shares * errors, (shares - 1) * errors).mean()

    def metrics(self, predict: Predict) -> Mapping[str, float]:
        """Those of `evaluate`, with the margin that `predict`'s own validation rows give."""
        return self._measured(predict)[0]

    def decide(self, predict: Predict, evaluation: Evaluation) -> Evaluation:
        """With the margin that these quantiles of the validation rows give."""
        return replace(evaluation, chosen={MARGIN: self._measured(predict)[1]})

    def decided(self, predict: Predict, evaluation: Evaluation) -> Mapping[str, float]:
        """The share of the test rows within the interval, with the margin."""
        interval = self.spec.interval.model_copy(update={MARGIN: evaluation.chosen[MARGIN]})
        served = bounds(interval, self._quantiles_of(predict, Split.TEST))
        return {"coverage": measured(served, self._targets(Split.TEST), self.quantiles)["coverage"]}

    def served(self, folder: Path) -> Evaluation:
        spec = read_spec(folder)
        interval = spec.interval if isinstance(spec, RegressionSpec) else self.spec.interval
        return Evaluation({}, {}, "", chosen={MARGIN: interval.margin})

    def _measured(self, predict: Predict) -> tuple[dict[str, float], float]:
        """The metrics on the test rows, and the margin of the bounds."""
        found = {split: self._quantiles_of(predict, split) for split in (Split.VALIDATION, Split.TEST)}
        margin = margin_for(found[Split.VALIDATION], self._targets(Split.VALIDATION), self._level)
        interval = self.spec.interval.model_copy(update={MARGIN: margin})
        served = bounds(interval, found[Split.TEST])
        return measured(served, self._targets(Split.TEST), self.quantiles), margin

    def evaluate(self, predict: Predict) -> Evaluation:
        metrics, margin = self._measured(predict)
        truth = self._targets(Split.TEST)
        baseline = measured(self._ridge(), truth, self.quantiles)
        constant = measured(self._constant(), truth, self.quantiles)
        asked = (
            f"the interval is made for {self._level:.0%} of rows, and holds {metrics['coverage']:.1%} of the test rows"
        )
        return Evaluation(
            metrics,
            baseline | {f"{CONSTANT}{name}": value for name, value in constant.items()},
            "ridge regression, with the quantiles of its errors",
            chosen={MARGIN: margin},
            notes=(f"{asked}; margin {margin:.4g} from the validation rows",),
        )

    def write_processing(self, folder: Path, evaluation: Evaluation) -> None:
        interval = self.spec.interval.model_copy(update={MARGIN: evaluation.chosen[MARGIN]})
        write_spec(self.spec.model_copy(update={"interval": interval}), folder)

    def profile(self) -> Mapping[str, Mapping[Split, Array]]:
        return profile_of({**self._table.columns, self.spec.target: self._table.targets}, self._indices)

    def golden_inputs(self) -> Sequence[RawInput]:
        """Test rows from the lowest target to the highest, one that misses all it may, one with unseen categories."""
        test = self._indices[Split.TEST]
        ranked = test[np.argsort(self._table.targets[test], kind="stable")]
        chosen = np.unique(np.linspace(0, len(ranked) - 1, min(GOLDEN_ROWS, len(ranked))).astype(int))
        rows = [self._row(int(row)) for row in ranked[chosen]]
        missing: dict[str, int | float | str | None] = {
            column.name: None for column in self.spec.columns if column.missing != "error"
        }
        unseen: dict[str, int | float | str | None] = {
            column.name: UNSEEN_CATEGORY for column in categorical_of(self.spec.columns)
        }
        hard = [rows[0] | changed for changed in (missing, unseen) if changed]
        return [RowInput(values) for values in (*rows, *hard)]

    def _row(self, row: int) -> dict[str, int | float | str | None]:
        return row_of(self.spec.columns, self._table.columns, row)

    def _targets(self, split: Split) -> Floats:
        return self._table.targets[self._indices[split]]

    def _inputs(self, split: Split) -> Arrays:
        return self.batch(split, np.arange(self.size(split)), 0)[0]

    def _quantiles_of(self, predict: Predict, split: Split) -> Floats:
        return np.asarray(predict(self._inputs(split))[OUTPUT], dtype=np.float64)

    def _ridge(self) -> Floats:
        """A ridge regression of the same features, its bounds by the quantiles of its errors on validation rows."""
        categorical = categorical_of(self.spec.columns)
        features = {
            split: one_hot(self.spec.features, self.spec.categories, categorical, self._inputs(split))
            for split in Split
        }
        model = Ridge(alpha=1.0).fit(features[Split.TRAIN], self._targets(Split.TRAIN))
        errors = self._targets(Split.VALIDATION) - model.predict(features[Split.VALIDATION])
        low, high = np.quantile(errors, (self.quantiles[0], self.quantiles[2]))
        found = model.predict(features[Split.TEST])
        return np.stack([found + min(low, 0), found, found + max(high, 0)], axis=1)

    def _constant(self) -> Floats:
        train = self._targets(Split.TRAIN)
        low, high = np.quantile(train, (self.quantiles[0], self.quantiles[2]))
        return np.tile([low, train.mean(), high], (self.size(Split.TEST), 1))


class QuantileNetwork(nn.Module):
    """The network for rows, with three outputs [B, 3] that ascend, in the target's unit."""

    def __init__(self, network: TabularNetwork, center: float, scale: float) -> None:
        super().__init__()
        self._network = network
        self._center = center
        self._scale = scale

    def forward(self, first: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
        raw = self._network(first, second) if second is not None else self._network(first)
        value, below, above = raw[:, 0:1], raw[:, 1:2], raw[:, 2:3]
        quantiles = torch.cat(
            [value - nn.functional.softplus(below), value, value + nn.functional.softplus(above)], dim=1
        )
        return quantiles * self._scale + self._center


def margin_for(quantiles: Floats, truth: Floats, level: float) -> float:
    """By how much the bounds must be moved so that `level` of rows like these lie between them."""
    misses = np.sort(np.maximum(quantiles[:, 0] - truth, truth - quantiles[:, 2]))
    return float(misses[min(len(misses), ceil((len(misses) + 1) * level)) - 1])


def measured(found: Floats, truth: Floats, quantiles: Sequence[float]) -> dict[str, float]:
    """Of bounds and values [B, 3] against the truth [B]: errors in the target's unit, `r2` first."""
    errors = truth - found[:, 1]
    spread = float(((truth - truth.mean()) ** 2).sum())
    below = truth[:, None] - found
    shares = np.array(quantiles)
    return {
        "r2": 1 - float((errors**2).sum()) / spread if spread > 0 else 0.0,
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt((errors**2).mean())),
        "pinball": float(np.maximum(shares * below, (shares - 1) * below).mean()),
        "coverage": float(((found[:, 0] <= truth) & (truth <= found[:, 2])).mean()),
        "width": float((found[:, 2] - found[:, 0]).mean()),
    }


class RegressionRecipe:
    """`exporter.recipes.base.Recipe` for numbers."""

    options = frozenset({"target", "interval", "split", "split_column"})

    @property
    def name(self) -> str:
        return "regression"

    @property
    def bundled(self) -> Mapping[str, str]:
        return {name: about for name, (_, about) in _BUNDLED.items()}

    def hyperparameters(self, data: str) -> Hyperparameters:
        return Hyperparameters(epochs=80, batch_size=32, learning_rate=4e-3, weight_decay=1e-2, patience=20)

    def collect(self, config: RunConfig) -> Collected:
        raw = self._read(config)
        return Collected(
            raw.source,
            raw.sha256,
            raw.rows,
            lambda config: RegressionTask(raw, clean_numbers(raw, config), config),
        )

    def _read(self, config: RunConfig) -> RawTable:
        if config.data not in _BUNDLED:
            return read_file(Path(config.data), config.target)
        if config.target:
            raise UsageError(f"--target: the bundled data set {config.data} has a target of its own")
        read, _ = _BUNDLED[config.data]
        return read()


def _report(raw: RawTable, table: NumberTable, indices: Mapping[Split, NDArray[np.int64]]) -> DataReport:
    return DataReport(
        source=raw.source,
        sha256=raw.sha256,
        collected=raw.rows,
        broken=table.broken,
        duplicates=table.duplicates,
        rows={split: {"rows": len(rows)} for split, rows in indices.items()},
        notes=(*table.notes, leaks_told(table.keys, indices)),
        synthetic=raw.synthetic,
    )
