"""The recipe for rows from a file to a verified ONNX model that the serving pipeline understands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
import torch
import yaml
from onnx import load, numpy_helper

from exporter import onnx, quantize, run, verify
from exporter.errors import UsageError, VerifyError
from exporter.folder import write_evaluation
from exporter.recertify import Trained, certify_again
from exporter.recipes.base import Evaluation, Hyperparameters, RunConfig, Split
from exporter.recipes.tabular import UNSEEN_CATEGORY, TabularRecipe, TabularTask
from exporter.recipes.tabular_metrics import choose_threshold
from exporter.steps import Run
from server.pipeline.load import load_pipeline, read_spec
from server.pipeline.tabular import TabularPipeline, TabularSpec
from server.repository.certificate import Manifest, read_manifest, write_manifest
from server.tensor import Array
from server.types import Classification, RowInput
from tests.support.tables import write_csv

# Lightning 2.6 trips over a deprecation in PyTorch 2.13; the exporter silences it for people, not for pytest.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

RECIPE = TabularRecipe()
SHORT = Hyperparameters(epochs=12, batch_size=64, learning_rate=1e-2, weight_decay=1e-2, patience=12)


def config(data: str, target: str = "", training: Hyperparameters = SHORT, seed: int = 0) -> RunConfig:
    return RunConfig(recipe=RECIPE.name, data=data, name="model", target=target, seed=seed, training=training)


def prepared(wanted: RunConfig) -> TabularTask:
    return RECIPE.collect(wanted).prepare(wanted)


def trained(task: TabularTask, wanted: RunConfig, folder: Path) -> tuple[torch.nn.Module, Evaluation]:
    folder.mkdir(parents=True, exist_ok=True)
    network = run.train(task, wanted.training, wanted.seed, folder)
    return network, task.evaluate(run.predictor(task, network))


def answers(folder: Path, path: Path, task: TabularTask) -> tuple[TabularPipeline, Mapping[str, Array]]:
    """The pipeline read back from what training wrote, and ONNX Runtime's outputs for the golden rows."""
    spec = TabularSpec.model_validate(yaml.safe_load((folder / "processing.yaml").read_text(encoding="utf-8")))
    pipeline = TabularPipeline(spec, folder)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, dict(pipeline.preprocess(task.golden_inputs())))
    return pipeline, {output.name: array for output, array in zip(session.get_outputs(), outputs, strict=True)}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[TabularTask, torch.nn.Module, Evaluation, Path]:
    folder = tmp_path_factory.mktemp("rare")
    wanted = config(str(write_csv(folder / "data.csv", 1200, rare=True)), "label")
    task = prepared(wanted)
    network, evaluation = trained(task, wanted, folder / "run")
    task.write_processing(folder, evaluation)
    onnx.export(task, network, folder / "model.onnx")
    return task, network, evaluation, folder


@pytest.mark.training
def test_a_rare_label_is_found(published: tuple[TabularTask, torch.nn.Module, Evaluation, Path]) -> None:
    """A rare label is measured by PR-AUC, beats chance, and has a threshold from the validation rows."""
    task, _, evaluation, _ = published
    assert list(evaluation.baseline) == [*evaluation.metrics, "chance_pr_auc"]
    assert evaluation.baseline["chance_pr_auc"] == pytest.approx(0.05, abs=0.001)
    assert list(evaluation.metrics)[:2] == ["pr_auc", "recall_at_precision_0.80"]
    assert evaluation.metrics["pr_auc"] > 0.8
    assert evaluation.decision is not None
    assert evaluation.decision.positive_label == "big"
    assert task.report.notes[-1].endswith("pr_auc 0.0500")


@pytest.mark.training
def test_a_copy_is_served_with_a_threshold_of_its_own(
    published: tuple[TabularTask, torch.nn.Module, Evaluation, Path], tmp_path: Path
) -> None:
    """A copy that ranks as the model but scores lower: the old threshold would miss what its own finds.

    Whoever chose a threshold, a model's metrics are those with the one that it is served with; by them it is certified
    again.
    """
    task, network, evaluation, folder = published
    assert evaluation.decision is not None
    opened = Run.start(tmp_path / "run", task.config, lambda *_: None, resume=False)
    write_evaluation(opened.folder, evaluation)
    opened.__dict__["_trained"] = onnx.TrainedNetwork(task, network)
    opened.export()
    lower = load(opened.model_file)
    [bias] = [each for each in lower.graph.initializer if each.name == "_shortcut.bias"]
    shift = np.where(np.array(task.labels) == "big", -3, 0).astype(np.float32)
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + shift, bias.name))
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(lower.SerializeToString(deterministic=True))

    with pytest.raises(VerifyError, match=r"recall_at_threshold falls from .* all its versions share"):
        opened.publish_copy(copy, "int8-static", tmp_path / "root", name="model", replace=True, max_drop=0.01)
    assert not (tmp_path / "root" / "model").exists()

    place = opened.publish_copy(copy, "int8-static", tmp_path / "root", name="own", replace=True, max_drop=0.01).folder
    manifest, spec = read_manifest(place), read_spec(place)
    assert manifest is not None
    assert isinstance(spec, TabularSpec)
    assert spec.classification.decision is not None
    assert 0 < spec.classification.decision.threshold < evaluation.decision.threshold
    for name, value in evaluation.metrics.items():
        assert manifest.versions["1"].metrics[name] == pytest.approx(value, abs=0.02), name
    same = opened.publish_copy(
        opened.model_file, "fp32", tmp_path / "root", name="model", replace=True, max_drop=0.01
    ).folder
    assert (same / "processing.yaml").read_bytes() == (folder / "processing.yaml").read_bytes()

    # Two versions more that share its threshold: with their own they would find more than they do when served.
    fused = tmp_path / "fused.onnx"
    quantize.make(quantize.VARIANTS["optimized"], opened.model_file, fused)
    for file, precision in ((copy, "int8-static"), (fused, "fp32-optimized")):
        opened.publish_copy(file, precision, tmp_path / "root", name="model", replace=False, max_drop=1.0)
    versions = checked_manifest(same).versions
    recall = {version: record.metrics["recall_at_threshold"] for version, record in versions.items()}
    assert recall["1"] == recall["3"] > recall["2"] + 0.01
    for record in versions.values():
        assert record.checks[1].metrics == record.metrics
    # As such a version was told before: it is no network that could be built of its weights.
    told = checked_manifest(same)
    write_manifest(
        same,
        told.model_copy(
            update={"versions": {**told.versions, "3": told.versions["3"].model_copy(update={"precision": "fp32"})}}
        ),
    )
    for model in (same, place):
        before = checked_manifest(model)
        certify_again(model, Trained(task.config.data, "label"), lambda *_: None)
        after = checked_manifest(model)
        assert {version: record.metrics for version, record in after.versions.items()} == {
            version: record.metrics for version, record in before.versions.items()
        }
        assert [record.checks[1].metrics for record in after.versions.values()] == [
            pytest.approx(record.checks[1].metrics) for record in before.versions.values()
        ]
    assert [each.precision for each in checked_manifest(same).versions.values()] == [
        "fp32",
        "int8-static",
        "fp32-optimized",
    ]
    assert "fp32-optimized" in (same / "README.md").read_text()


def checked_manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


@pytest.mark.training
def test_every_row_of_the_file_is_accounted_for(
    published: tuple[TabularTask, torch.nn.Module, Evaluation, Path],
) -> None:
    """Splits, broken rows and duplicates add up to what was read; each label is in each split."""
    report = published[0].report
    kept = sum(sum(counts.values()) for counts in report.rows.values())
    assert report.collected == 1202 == kept + len(report.broken) + len(report.duplicates)
    assert [(dropped.where, len(report.duplicates)) for dropped in report.broken] == [("line 1202", 1)]
    assert all(min(counts.values()) > 0 for counts in report.rows.values())


@pytest.mark.training
def test_the_exported_file_answers_as_the_network(
    published: tuple[TabularTask, torch.nn.Module, Evaluation, Path],
) -> None:
    """Verified on the golden rows with missing and unseen values, alone and as a batch; small enough to commit."""
    task, network, _, folder = published
    inputs = TabularPipeline(task.spec, folder).preprocess(task.golden_inputs())
    assert [spec.name for spec in task.inputs] == ["features", "categories"]
    verified = verify.verify(task, run.predictor(task, network), folder / "model.onnx", inputs)
    assert verified.errors["logits"].max_abs < 1e-4
    assert (folder / "model.onnx").stat().st_size < 200_000


@pytest.mark.training
def test_what_is_served_is_what_was_evaluated(
    published: tuple[TabularTask, torch.nn.Module, Evaluation, Path],
) -> None:
    """The written spec carries the threshold, and with it the served labels reach the recall that was measured."""
    task, network, evaluation, folder = published
    pipeline, outputs = answers(folder, folder / "model.onnx", task)
    assert len(pipeline.postprocess(outputs)) == len(task.golden_inputs())
    rows = np.arange(task.size(Split.TEST))
    tensors, targets = task.batch(Split.TEST, rows, 0)
    served = pipeline.postprocess(run.predictor(task, network)(tensors))
    positive = task.labels.index("big")
    found = [isinstance(answer, Classification) and answer.label == "big" for answer in served]
    hits = int((np.array(found) & (targets == positive)).sum())
    assert hits / int((targets == positive).sum()) == evaluation.metrics["recall_at_threshold"]
    assert hits / sum(found) == evaluation.metrics["precision_at_threshold"]


@pytest.mark.training
def test_an_index_that_does_not_exist_counts_as_unknown(
    published: tuple[TabularTask, torch.nn.Module, Evaluation, Path],
) -> None:
    """Raw tensors with wild indices are answered as an unknown category, and leave the other rows alone."""
    task, _, _, folder = published
    tensors, _ = task.batch(Split.TEST, np.array([0, 1, 2, 3]), 0)
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    wild = tensors["categories"].copy()
    wild[:3, 0] = [-1, 10_000, 2**62]
    unknown = tensors["categories"].copy()
    unknown[:3, 0] = 1
    given, expected = (
        session.run(None, {"features": tensors["features"], "categories": indices})[0] for indices in (wild, unknown)
    )
    np.testing.assert_array_equal(given, expected)


@pytest.mark.training
@pytest.mark.parametrize("columns", ["size", "shape"])
def test_a_table_of_one_kind_of_column_can_be_exported(tmp_path: Path, columns: str) -> None:
    """Numeric columns alone, or categorical ones alone: one input, the same way to the end."""
    lines = [line.split(",") for line in write_csv(tmp_path / "all.csv", 600, rare=False).read_text().splitlines()]
    cells = {"size": [0, 1, 3], "shape": [2, 3]}[columns]
    path = tmp_path / "data.csv"
    extra = ["kind", *(f"k{n % 25}" for n in range(600))]
    rows = (",".join([extra[n], *(line[cell] for cell in cells)]) for n, line in enumerate(lines[:601]))
    path.write_text("\n".join(rows if columns == "shape" else (row.partition(",")[2] for row in rows)) + "\n")
    wanted = config(str(path), "label", SHORT.model_copy(update={"epochs": 2}))
    task = prepared(wanted)
    network, evaluation = trained(task, wanted, tmp_path / "run")
    assert len(task.inputs) == 1
    task.write_processing(tmp_path, evaluation)
    onnx.export(task, network, tmp_path / "model.onnx")
    pipeline, outputs = answers(tmp_path, tmp_path / "model.onnx", task)
    assert len(pipeline.postprocess(outputs)) == len(task.golden_inputs())


@pytest.mark.training
def test_the_same_seed_gives_the_same_metrics(tmp_path: Path) -> None:
    """Twice the same run: the same weights to the last bit. Another seed: others."""
    path = write_csv(tmp_path / "data.csv", 400, rare=False)
    found = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        wanted = config(str(path), "label", SHORT.model_copy(update={"epochs": 3}), seed)
        network, evaluation = trained(prepared(wanted), wanted, tmp_path / name)
        found.append((b"".join(t.numpy().tobytes() for t in network.state_dict().values()), evaluation.metrics))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


@pytest.mark.training
def test_breast_cancer_reaches_its_accuracy(tmp_path: Path) -> None:
    """The default run on the bundled set: at least 96 % on the held-out rows, beside both baselines."""
    wanted = config("breast_cancer", training=RECIPE.hyperparameters("breast_cancer"))
    task = prepared(wanted)
    _, evaluation = trained(task, wanted, tmp_path)
    assert task.size(Split.TEST) == 113
    assert evaluation.metrics["accuracy"] >= 0.96
    assert evaluation.baseline_name == "logistic regression"
    assert evaluation.decision is None
    assert evaluation.baseline["chance_accuracy"] == 71 / 113
    assert evaluation.baseline["chance_macro_f1"] == pytest.approx(71 / 113 / (1 + 71 / 113))


def test_splits_share_no_row() -> None:
    """No tensor of the test or validation split is among the training ones."""
    task = prepared(config("breast_cancer"))
    rows = {
        split: {row.tobytes() for row in task.batch(split, np.arange(task.size(split)), 0)[0]["features"]}
        for split in Split
    }
    assert not rows[Split.TRAIN] & rows[Split.TEST]
    assert not rows[Split.TRAIN] & rows[Split.VALIDATION]
    assert not rows[Split.VALIDATION] & rows[Split.TEST]
    assert sum(map(len, rows.values())) == 569


@pytest.mark.training
def test_golden_rows_hold_the_hard_cases(
    published: tuple[TabularTask, torch.nn.Module, Evaluation, Path],
) -> None:
    """Every label, a row that misses all it may, and one with categories that training has not seen."""
    rows = [raw.values for raw in published[0].golden_inputs() if isinstance(raw, RowInput)]
    named = [row for row in rows if isinstance(row, Mapping)]
    assert 2 <= len(named) == len(rows) <= 32
    assert any(row["size"] is row["shape"] is None for row in named)
    assert any(row["shape"] not in ("round", "square", "", None) for row in named)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_column_of_booleans_takes_booleans(tmp_path: Path, kind: str) -> None:
    """Whatever the file: golden rows and the example have them as JSON has, and serving makes training's tensors of
    them; so it does of their texts, which is how models of before were asked."""
    frame = pd.DataFrame(
        {
            "amount": np.arange(120.0),
            "member": pd.array([True, False, None] * 40, dtype="boolean"),
            "label": ["yes", "no"] * 60,
        }
    )
    path = tmp_path / f"data.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "csv":  # True and False, as pandas writes them
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    task = prepared(config(str(path), "label"))
    golden = [each.values for each in task.golden_inputs() if isinstance(each, RowInput)]
    assert {row["member"] for row in golden if isinstance(row, dict)} == {True, False, None, UNSEEN_CATEGORY}
    task.write_processing(tmp_path, Evaluation({}, {}, ""))
    pipeline = load_pipeline(tmp_path)
    assert isinstance(pipeline, TabularPipeline)
    assert isinstance(pipeline.example().values, dict)
    assert isinstance(pipeline.example().values["member"], bool)
    learnt = [task.batch(split, np.arange(task.size(split)), 0)[0] for split in Split]
    wanted = sorted(row for tensors in learnt for row in by_row(tensors))
    texts = {**task.spec.categorical[0].booleans, None: None}
    for said in ({True: True, False: False, None: None}, texts):
        rows = [{"amount": n, "member": said[(True, False, None)[n % 3]]} for n in range(120)]
        assert sorted(by_row(pipeline.preprocess([RowInput(row) for row in rows]))) == wanted


def by_row(tensors: Mapping[str, Array]) -> list[tuple[bytes, bytes]]:
    return [
        (features.tobytes(), categories.tobytes())
        for features, categories in zip(tensors["features"], tensors["categories"], strict=True)
    ]


def test_a_bundled_set_has_a_target_of_its_own() -> None:
    """--target beside a bundled set is refused, not ignored."""
    with pytest.raises(UsageError, match="--target"):
        RECIPE.collect(config("breast_cancer", "diagnosis"))


@pytest.mark.parametrize(
    ("scores", "wanted", "threshold"),
    [
        ([0.1, 0.2, 0.6, 0.7, 0.8], [0, 0, 1, 1, 1], 0.6),
        ([0.1, 0.5, 0.6, 0.7, 0.8, 0.9], [0, 1, 0, 1, 1, 1], 0.5),
        ([0.1, 0.5, 0.6, 0.9], [0, 1, 0, 0], 0.5),
    ],
    ids=["perfect", "the lowest that keeps the precision", "none keeps it, so the best F1"],
)
def test_the_threshold_is_the_lowest_that_keeps_the_precision(
    scores: list[float], wanted: list[int], threshold: float
) -> None:
    """Recall is what is left to win once precision is fixed."""
    assert choose_threshold(np.array(wanted, dtype=bool), np.array(scores)) == threshold
