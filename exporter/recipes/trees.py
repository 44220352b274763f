"""`tabular-trees`: gradient boosting or a random forest of scikit-learn, beside the network on the same rows.

Both kinds of trees are fitted to the training rows; the one that is better on the validation rows becomes the model.
Then the network of `tabular-classification` is trained on the same split, and the report names who won on the test
rows. The pipeline is that recipe's own: the same columns, the same tensors; a category counts as its index.

A tree asks ``x <= threshold`` with float32 features and, in scikit-learn, a float64 threshold that ONNX rounds: a value
between the two would take another branch. So each threshold is first rounded down to the next float32, which no
float32 feature can tell from the original, and both sides then ask the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from threadpoolctl import threadpool_limits
from torch import nn

from exporter import run
from exporter.errors import ExportError
from exporter.onnx import IR_VERSION, OPSET
from exporter.recipes.base import Arrays, Evaluation, Predict, Split, Tolerance, Trained
from exporter.recipes.tabular import TabularRecipe, TabularTask
from exporter.recipes.tabular_metrics import Scored, balanced_metrics, rare_metrics
from server.tensor import Array, TensorSpec

OUTPUT = "probabilities"
ML_OPSET = 3
"""Of ai.onnx.ml, whose trees ONNX Runtime 1.19 reads."""
LIMIT = 1e-5
"""How far a probability may be from scikit-learn's."""
NETWORK_FOLDER = "network"
NETWORK = "network"

_JOINED = "joined"
_SHOWN = 300


class Estimator(Protocol):
    """What is used of scikit-learn's classifiers."""

    def fit(self, x: Array, y: Array) -> Any: ...

    def predict_proba(self, x: Array) -> Any: ...


def estimators(rows: int, seed: int, *, balanced: bool = False) -> Mapping[str, Estimator]:
    """The candidates by name, not fitted, as large as the rows allow and no larger. `balanced`: labels count alike."""
    weights = "balanced" if balanced else None
    leaf = 2 if rows < 2_000 else 10
    return {
        "gradient boosting": HistGradientBoostingClassifier(
            learning_rate=0.06,
            max_iter=150,
            max_leaf_nodes=15,
            min_samples_leaf=max(leaf, 5),
            l2_regularization=1.0,
            early_stopping=False,
            class_weight=weights,
            random_state=seed,
        ),
        "random forest": RandomForestClassifier(
            n_estimators=120, max_depth=12, min_samples_leaf=leaf, n_jobs=1, class_weight=weights, random_state=seed
        ),
    }


def round_thresholds(model: Any) -> None:
    """Round all thresholds of a fitted model down to float32, in place: no float32 feature takes another branch."""
    for tree in _trees(model):
        values = tree["num_threshold"] if isinstance(tree, np.ndarray) else tree.threshold
        values[:] = _down(values)


def _trees(model: Any) -> list[Any]:
    """The trees of a forest, or the nodes of a boosting's trees."""
    if hasattr(model, "estimators_"):
        return [estimator.tree_ for estimator in model.estimators_]
    return [predictor.nodes for step in model._predictors for predictor in step]


def _down(values: NDArray[np.float64]) -> NDArray[np.float32]:
    rounded = values.astype(np.float32)
    return np.where(rounded.astype(np.float64) > values, np.nextafter(rounded, np.float32(-np.inf)), rounded)


class TrainedTrees:
    """`exporter.recipes.base.Trained` of scikit-learn."""

    framework = "scikit-learn"

    def __init__(self, name: str, model: Any, inputs: tuple[TensorSpec, ...], columns: int) -> None:
        self.name = name
        self._model = model
        self._inputs = inputs
        self._columns = columns

    @property
    def size(self) -> str:
        return f"{self.name}, {len(_trees(self._model))} trees"

    def predict(self, arrays: Arrays) -> Arrays:
        return {OUTPUT: self._model.predict_proba(self.joined(arrays)).astype(np.float32)}

    def joined(self, arrays: Arrays) -> Array:
        return np.concatenate([arrays[spec.name].astype(np.float32) for spec in self._inputs], axis=1)

    def export(self, path: Path) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of skl2onnx, about numpy scalars that it hands to protobuf
                model = self._converted()
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # skl2onnx and onnx each have exceptions of their own
            raise ExportError(f"{self.name} can't be exported: {str(error)[:_SHOWN]}") from error
        path.write_bytes(model.SerializeToString(deterministic=True))

    def _converted(self) -> onnx.ModelProto:
        """The trees behind one input, as skl2onnx makes them, with the task's inputs joined in front."""
        made = convert_sklearn(
            self._model,
            initial_types=[(_JOINED, FloatTensorType([None, self._columns]))],
            options={id(self._model): {"zipmap": False}},
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        )
        (probabilities,) = [output.name for output in made.graph.output if output.name != "label"] or [OUTPUT]
        parts = []
        nodes = []
        for spec in self._inputs:
            parts.append(spec.name if spec.datatype == "FP32" else f"{spec.name}_as_numbers")
            if spec.datatype != "FP32":
                nodes.append(helper.make_node("Cast", [spec.name], [parts[-1]], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Concat", parts, [_JOINED], axis=1))
        for node in made.graph.node:
            node.input[:] = [OUTPUT if name == probabilities else name for name in node.input]
            node.output[:] = [OUTPUT if name == probabilities else name for name in node.output]
        kinds = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}
        graph = helper.make_graph(
            [*nodes, *made.graph.node],
            "trees",
            [helper.make_tensor_value_info(s.name, kinds[s.datatype], ["batch", *s.dims]) for s in self._inputs],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(self._model.classes_)])],
            list(made.graph.initializer),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="skl2onnx")


class TreesTask(TabularTask):
    """`exporter.recipes.base.Task` and `Fits`: the data and pipeline of `TabularTask`, with trees for a model."""

    output = OUTPUT
    activation = "none"

    @property
    def tolerances(self) -> Mapping[str, Tolerance]:
        return {OUTPUT: Tolerance(absolute=LIMIT, relative=0.0)}

    def fit(self, folder: Path) -> Trained:
        """The better kind of trees, by the validation rows; the network beside it is trained in `folder`."""
        with threadpool_limits(self.config.threads):
            fitted = [self._fitted(name, model) for name, model in self._candidates().items()]
        best = max(fitted, key=lambda trees: self._quality(trees.predict, Split.VALIDATION))
        self._beside: dict[str, Predict] = {trees.name: trees.predict for trees in fitted if trees is not best}
        self._beside[NETWORK] = self._network(folder / NETWORK_FOLDER)
        self._served = best.name
        return best

    def network(self) -> nn.Module:
        raise NotImplementedError("trees are fitted, see `fit`")

    def evaluate(self, predict: Predict) -> Evaluation:
        """As the network's recipe does, beside all that was trained on the same rows."""
        evaluation = super().evaluate(predict)
        quality = next(iter(evaluation.metrics))
        found = {self._served: evaluation.metrics[quality]}
        found |= {name: self._quality(other, Split.TEST) for name, other in self._beside.items()}
        ranked = sorted(found, key=lambda name: -found[name])
        told = ", ".join(f"{name} {found[name]:.4f}" for name in ranked)
        winners = [name for name in ranked if found[name] == found[ranked[0]]]
        winner = f"the winner is {' and '.join(winners)}, served is {self._served}"
        beside = {f"{name.replace(' ', '_')}_{quality}": found[name] for name in self._beside}
        return replace(
            evaluation,
            baseline={**evaluation.baseline, **beside},
            notes=(f"{quality} on the same test rows: {told}; {winner}",),
        )

    def _candidates(self) -> Mapping[str, Estimator]:
        balanced = self.config.training.class_weights == "balanced"
        return estimators(self.size(Split.TRAIN), self.config.seed, balanced=balanced)

    def _fitted(self, name: str, model: Estimator) -> TrainedTrees:
        inputs, targets = self._whole(Split.TRAIN)
        columns = sum(array.shape[1] for array in inputs.values())
        trees = TrainedTrees(name, model, self.inputs, columns)
        model.fit(trees.joined(inputs), targets)
        round_thresholds(model)
        return trees

    def _network(self, folder: Path) -> Predict:
        """The network of the other recipe, trained on this split; its output is made probabilities of."""
        task = TabularTask(self.raw, self._table, self.config)
        folder.mkdir(parents=True, exist_ok=True)
        network = run.train(task, self.config.training, self.config.seed, folder, threads=self.config.threads)
        predict = run.predictor(task, network)
        return lambda arrays: {OUTPUT: task.probabilities(predict(arrays))}

    def _quality(self, predict: Predict, split: Split) -> float:
        """The first of the metrics, of the rows of a split."""
        inputs, targets = self._whole(split)
        scored = Scored(targets, np.asarray(predict(inputs)[OUTPUT], dtype=np.float64))
        if self._rare is None:
            return balanced_metrics(scored)["accuracy"]
        return rare_metrics(scored, scored, self._rare)[0]["pr_auc"]


class TreesRecipe(TabularRecipe):
    """`exporter.recipes.base.Recipe`: the data and options of `tabular-classification`."""

    task = TreesTask

    @property
    def name(self) -> str:
        return "tabular-trees"
