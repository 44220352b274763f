"""Regression with intervals and recommendation: from data to published models that answer through their pipelines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
import yaml

from exporter import variants
from exporter.checks import predictor_of, session_of
from exporter.data import interactions
from exporter.errors import DataError
from exporter.recertify import certify_again
from exporter.recipes.base import Decides, Hyperparameters, RunConfig, Split
from exporter.recipes.recommendation import RecommendationTask
from exporter.recipes.regression import RegressionTask, margin_for, measured
from exporter.steps import Run
from server.answers import Prediction, Ranking, Regression
from server.pipeline.base import answers
from server.pipeline.load import load_pipeline
from server.repository.certificate import read_manifest
from server.types import RawInput, RowInput

# Lightning 2.6 trips over a deprecation in PyTorch 2.13; the exporter silences it for people, not for pytest.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


def published(config: RunConfig, folder: Path) -> tuple[Run, Path]:
    run = Run.start(folder / "run", config, lambda step, lines: None, resume=False)
    run.train()
    run.export()
    run.publish(folder / "repository", replace=False)
    return run, folder / "repository" / config.name


def asked(folder: Path, raw: Sequence[RawInput], top_k: int = 0) -> list[Prediction]:
    pipeline = load_pipeline(folder)
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, dict(pipeline.preprocess(raw)))
    outputs = {output.name: array for output, array in zip(session.get_outputs(), found, strict=True)}
    return answers(pipeline, raw, outputs, top_k)


# --- regression ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("prices")
    generator = np.random.default_rng(0)
    size, kind = generator.uniform(1, 9, 600), generator.choice(["flat", "house"], 600)
    # The spread grows with the size, so that an interval of one width would be wrong for most rows.
    price = 100 * size + np.where(kind == "house", 150, 0) + generator.normal(0, 1, 600) * 12 * size
    cells = [f"{'' if n % 50 == 0 else round(size[n], 3)},{kind[n]},{price[n]:.1f}" for n in range(600)]
    path = folder / "prices.csv"
    path.write_text("\n".join(["size,kind,price", *cells, "3,flat,dear"]) + "\n")
    training = Hyperparameters(epochs=25, batch_size=64, learning_rate=2e-2, patience=25)
    config = RunConfig(
        recipe="regression", data=str(path), name="prices", target="price", interval=0.8, training=training
    )
    return published(config, folder)


@pytest.mark.training
def test_numbers_are_better_than_the_mean_and_their_intervals_hold(prices: tuple[Run, Path]) -> None:
    """On the test rows: errors below the constant's, coverage near what was asked for, narrower than the constant's."""
    run, _ = prices
    evaluation = run.evaluation
    assert evaluation.metrics["r2"] > 0.8
    assert evaluation.metrics["pinball"] < evaluation.baseline["pinball"] < evaluation.baseline["constant_pinball"]
    assert 0.7 <= evaluation.metrics["coverage"] <= 0.92
    assert evaluation.metrics["width"] < evaluation.baseline["constant_width"]
    assert "80%" in evaluation.notes[0]
    assert [d.reason for d in run.task.report.broken] == ["price: no finite number"]


@pytest.mark.training
def test_a_served_number_lies_between_its_bounds(prices: tuple[Run, Path]) -> None:
    """Through the published folder: never crossed, wider for what varies more; the margin is the evaluation's."""
    run, folder = prices
    assert isinstance(run.task, RegressionTask)
    rows = [RowInput({"size": size, "kind": "house"}) for size in (2, 8)] + list(run.task.golden_inputs())
    found = [answer for answer in asked(folder, rows) if isinstance(answer, Regression)]
    manifest = read_manifest(folder)

    assert len(found) == len(rows)
    assert all(one.low <= one.value <= one.high for one in found)
    assert found[1].high - found[1].low > found[0].high - found[0].low
    assert manifest is not None
    assert manifest.task == "tabular-regression"
    assert f"margin: {run.evaluation.chosen['margin']}" in (folder / "processing.yaml").read_text()


@pytest.mark.training
def test_the_coverage_that_is_served_is_the_one_that_was_reported(prices: tuple[Run, Path]) -> None:
    """The test rows through the written pipeline are covered as the report says."""
    run, folder = prices
    assert isinstance(run.task, RegressionTask)
    test = run.task._indices[Split.TEST]
    found = asked(folder, [RowInput(run.task._row(int(row))) for row in test])
    truth = run.task._table.targets[test]
    held = [isinstance(one, Regression) and one.low <= true <= one.high for one, true in zip(found, truth, strict=True)]
    assert np.mean(held) == pytest.approx(run.evaluation.metrics["coverage"], abs=0.01)


@pytest.mark.training
def test_the_report_of_a_run_is_one_page(prices: tuple[Run, Path]) -> None:
    """Metrics beside the baseline, dropped rows, the learning curve and the columns by split; nothing from afar."""
    run, _ = prices
    page = run.write_report().read_text()
    assert page.count("<svg") == 2
    assert "ridge regression" in page
    assert "price: no finite number" in page
    assert "validation loss" in page
    assert all(name in page for name in ("size", "kind", "price", "leakage: "))
    assert "<script" not in page
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    assert run.write_report().read_text() == page


def test_the_margin_is_the_quantile_of_the_misses() -> None:
    """Of 9 rows and 0.8: the 8th smallest miss, (n + 1) * level; inside rows have negative misses."""
    quantiles = np.tile([0.0, 1.0, 2.0], (9, 1))
    truth = np.array([1.0, 1, 1, 1, 1, 1, 1, 2.5, 4])
    assert margin_for(quantiles, truth, 0.8) == 0.5
    assert margin_for(quantiles, np.ones(9), 0.8) == -1.0
    assert margin_for(quantiles, truth, 0.99) == 2.0


def test_metrics_are_what_their_names_say() -> None:
    """By hand: two rows, one of them outside of its bounds."""
    found = measured(np.array([[0.0, 1, 2], [0, 1, 2]]), np.array([1.0, 3]), (0.1, 0.5, 0.9))
    assert found["mae"] == 1.0
    assert found["r2"] == -1.0
    assert found["rmse"] == pytest.approx(2**0.5)
    assert (found["coverage"], found["width"]) == (0.5, 2.0)
    assert found["pinball"] == pytest.approx((0.1 + 0 + 0.1 + 0.3 + 1.0 + 0.9) / 6)


@pytest.mark.training
def test_copies_of_numbers_and_of_rankings_are_measured(
    prices: tuple[Run, Path], shop: tuple[Run, Path], tmp_path: Path
) -> None:
    """By the recipe's first metric, which the original has as it was evaluated; a copy is published as what it is."""
    for (run, _), metric in ((prices, "r2"), (shop, "ndcg_at_10")):
        found = variants.compare(run, ["int8-dynamic"], max_metric_drop=0.5)
        assert (found.metric, [row.name for row in found.rows], found.failed) == (metric, ["fp32", "int8-dynamic"], {})
        assert found.rows[0].metric == pytest.approx(run.evaluation.metrics[metric], abs=1e-6)
        assert found.rows[1].within
        variants.publish(run, found, "int8-dynamic", tmp_path, name="copy", replace=True)
        manifest = read_manifest(tmp_path / "copy")
        assert manifest is not None
        assert manifest.versions["1"].metrics[metric] == pytest.approx(found.rows[1].metric)
        if metric == "r2":
            served = manifest.versions["1"].metrics["coverage"]
            predict = predictor_of(session_of(variants.file_of(run, "int8-dynamic")), run.task)
            assert isinstance(run.task, Decides)
            own = run.task.decide(predict, run.evaluation)
            assert dict(run.task.decided(predict, own)) == {"coverage": served}
            margin = yaml.safe_load((tmp_path / "copy" / "processing.yaml").read_text())["interval"]["margin"]
            assert margin == own.chosen["margin"]


# --- recommendation ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("shop")
    events = interactions.synthetic(users=160, items=30)
    events.frame.to_csv(folder / "visits.csv", index=False)
    with (folder / "visits.csv").open("a") as file:
        file.write(f"{','.join(map(str, events.frame.iloc[0]))}\nuser-1,,12\nuser-2,item-001,soon\nalone,item-002,5\n")
    training = Hyperparameters(epochs=12, batch_size=32, learning_rate=1e-2, patience=12)
    config = RunConfig(recipe="recommendation", data=str(folder / "visits.csv"), name="shop", training=training)
    return published(config, folder)


@pytest.mark.training
def test_rankings_and_numbers_are_certified_again(prices: tuple[Run, Path], shop: tuple[Run, Path]) -> None:
    """The network is built of the file's weights, those of linear layers over a sequence too, and compared with it."""
    for run, model in (prices, shop):
        before = read_manifest(model)
        certify_again(model, run.config, lambda *_: None)
        after = read_manifest(model)
        assert before is not None
        assert after is not None
        assert [check.data for check in after.versions["1"].checks] == ["golden", "held-out"]
        for old, new in zip(before.versions["1"].checks, after.versions["1"].checks, strict=True):
            assert (new.limits, new.rows, set(new.errors)) == (old.limits, old.rows, set(old.errors))


@pytest.mark.training
def test_the_order_of_items_beats_their_popularity(shop: tuple[Run, Path]) -> None:
    """On each user's last item; the file's bad rows are listed, and users with too few items told."""
    run, _ = shop
    evaluation, report = run.evaluation, run.task.report
    assert list(evaluation.metrics) == ["ndcg_at_10", "hit_rate_at_10"]
    assert evaluation.metrics["ndcg_at_10"] > 1.3 * evaluation.baseline["ndcg_at_10"]
    assert [d.reason for d in report.broken] == ["no item", "timestamp: neither a number nor a date"]
    assert len(report.duplicates) == 1
    assert "1 users with fewer than 4 items are left out" in report.notes


@pytest.mark.training
def test_served_items_are_new_to_the_user(shop: tuple[Run, Path]) -> None:
    """Through the published folder: ids of the data, none of the history, as many as were asked for."""
    run, folder = shop
    assert isinstance(run.task, RecommendationTask)
    for raw, answer in zip(run.task.golden_inputs(), asked(folder, run.task.golden_inputs(), 5), strict=True):
        assert isinstance(raw, RowInput)
        assert isinstance(answer, Ranking)
        assert len(answer.items) == 5 or len(set(raw.values)) > 20
        assert not {item.label for item in answer.items} & set(raw.values)


@pytest.mark.training
def test_without_a_known_item_the_most_popular_are_answered(shop: tuple[Run, Path]) -> None:
    """Empty, or of unknown ids alone: the items in the order of how often training saw them, which the file keeps."""
    _, folder = shop
    popular = (folder / "items.txt").read_text().split()[:6]
    for answer in asked(folder, [RowInput([]), RowInput(["?", "!"])], 6):
        assert isinstance(answer, Ranking)
        assert [item.label for item in answer.items] == popular


@pytest.mark.training
def test_an_index_that_does_not_exist_counts_as_padding(shop: tuple[Run, Path]) -> None:
    """Raw tensors with wild indices are answered, and leave the other rows alone."""
    _, folder = shop
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    length = session.get_inputs()[0].shape[1]
    rows = np.zeros((3, length), dtype=np.int64)
    rows[:, -1] = 1
    wild = rows.copy()
    wild[0, 0], wild[1, 0] = -5, 2**40
    np.testing.assert_array_equal(*(session.run(None, {"history": given})[0] for given in (rows, wild)))


def test_the_last_item_is_never_learnt_from() -> None:
    """What is tested is in no input and no target of training."""
    events = interactions.synthetic(users=40, items=20)
    found = interactions.histories(events)
    task = RecommendationTask(events, found)
    inputs, targets = task.batch(Split.TRAIN, np.arange(task.size(Split.TRAIN)), 0)
    lengths = [(row != 0).sum() for row in inputs["history"]]
    assert lengths == [len(history) - 3 for history in found.items]
    assert [(row >= 0).sum() for row in targets] == lengths


def test_the_synthetic_visits_are_the_same_each_time() -> None:
    """Seeded, and nobody takes an item twice."""
    one, two = interactions.synthetic(users=30), interactions.synthetic(users=30)
    assert (one.sha256, one.synthetic) == (two.sha256, True)
    assert not one.frame.duplicated(["user", "item"]).any()
    assert interactions.synthetic(users=30, seed=8).sha256 != one.sha256


def test_a_file_without_the_three_columns_is_refused(tmp_path: Path) -> None:
    """What is missing is named; so are too few users."""
    path = tmp_path / "visits.csv"
    pd.DataFrame({"user": ["a"], "timestamp": [1]}).to_csv(path, index=False)
    with pytest.raises(DataError, match="no column item"):
        interactions.read(path)
    pd.DataFrame({"user": ["a"] * 5, "item": list("vwxyz"), "timestamp": range(5)}).to_csv(path, index=False)
    with pytest.raises(DataError, match="1 users have 4 items"):
        interactions.histories(interactions.read(path))
