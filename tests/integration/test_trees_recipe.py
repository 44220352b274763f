"""Trees of scikit-learn, from a file to a published model whose probabilities are scikit-learn's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from exporter.recipes.base import Hyperparameters, RunConfig, Split
from exporter.recipes.trees import LIMIT, OUTPUT, TrainedTrees, TreesTask, round_thresholds
from exporter.steps import Run
from server.pipeline.load import load_pipeline
from server.repository.certificate import read_manifest
from server.tensor import Array, TensorSpec
from server.types import Classification
from tests.support.tables import write_csv

# Lightning 2.6 trips over a deprecation in PyTorch 2.13; the exporter silences it for people, not for pytest.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


@pytest.fixture(scope="module")
def told() -> dict[str, list[str]]:
    return {}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, told: dict[str, list[str]]) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("trees")
    path = write_csv(folder / "data.csv", 900, rare=True)
    training = Hyperparameters(epochs=3, batch_size=128, learning_rate=1e-2, patience=3)
    config = RunConfig(recipe="tabular-trees", data=str(path), name="trees", target="label", training=training)

    def report(step: str, lines: Sequence[str]) -> None:
        told[step] = list(lines)

    run = Run.start(folder / "run", config, report, resume=False)
    run.train()
    run.export()
    run.publish(folder / "repository", replace=False)
    return run, folder / "repository" / "trees"


def served(folder: Path, arrays: dict[str, Array]) -> Array:
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], arrays)
    return np.asarray(found)


@pytest.mark.training
def test_probabilities_are_scikit_learns_on_every_row(published: tuple[Run, Path]) -> None:
    """On all rows of all splits, held out or not, the file is within the limit; rows sum to one."""
    run, folder = published
    for split in Split:
        arrays, _ = run.task.batch(split, np.arange(run.task.size(split)), 0)
        found = served(folder, dict(arrays))
        assert np.abs(found - run._trained.predict(arrays)[OUTPUT]).max() <= LIMIT
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


@pytest.mark.training
def test_the_winner_on_the_same_rows_is_named(published: tuple[Run, Path], told: dict[str, list[str]]) -> None:
    """Both kinds of trees and the network are measured by one metric on one split, and told with the winner."""
    run, _ = published
    (note,) = run.evaluation.notes
    for name in ("gradient boosting", "random forest", "network"):
        assert name in note
    assert "the winner is" in note
    assert note in told["evaluate"]
    assert run.evaluation.metrics["pr_auc"] > 0.7
    assert run.evaluation.baseline["network_pr_auc"] > run.evaluation.baseline["chance_pr_auc"]


@pytest.mark.training
def test_the_pipeline_is_that_of_the_network(published: tuple[Run, Path]) -> None:
    """Rows in, labels out by the task tabular-classification; the certificate names who was compared."""
    run, folder = published
    pipeline = load_pipeline(folder)
    assert isinstance(run.task, TreesTask)
    raw = run.task.golden_inputs()
    answers = pipeline.postprocess({OUTPUT: served(folder, dict(pipeline.preprocess(raw)))})
    manifest = read_manifest(folder)

    assert pipeline.task == "tabular-classification"
    assert all(isinstance(answer, Classification) for answer in answers)
    assert manifest is not None
    assert (manifest.recipe, manifest.task) == ("tabular-trees", "tabular-classification")
    assert manifest.versions["1"].tolerances[OUTPUT].atol == LIMIT
    assert "scikit-learn" in manifest.versions["1"].environment


@pytest.mark.parametrize("kind", ["forest", "boosting", "boosting of three"])
def test_values_on_the_edge_of_a_threshold_take_the_same_branch(kind: str, tmp_path: Path) -> None:
    """Features on each threshold, and one float32 to each side of it, get scikit-learn's own probabilities."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 3)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] ** 2 > 0.5).astype(int) + (x[:, 2] > 1) * (kind == "boosting of three")
    model: Any = RandomForestClassifier(8, max_depth=5, random_state=0)
    if kind != "forest":
        model = HistGradientBoostingClassifier(max_iter=8, max_leaf_nodes=6, random_state=0)
    model.fit(x, y)
    before = model.predict_proba(x)
    if kind == "forest":
        edges = np.concatenate([one.tree_.threshold[one.tree_.feature >= 0] for one in model.estimators_])
    else:
        edges = np.concatenate([one.nodes["num_threshold"] for step in model._predictors for one in step])
    round_thresholds(model)
    assert (model.predict_proba(x) == before).all()

    near = edges.astype(np.float32)
    values = np.concatenate([near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))])
    rows = np.repeat(values[:, None], 3, axis=1)
    trees = TrainedTrees(kind, model, (TensorSpec("features", "FP32", (3,)),), 3)
    trees.export(tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], {"features": rows})
    assert np.abs(found - model.predict_proba(rows)).max() <= LIMIT
