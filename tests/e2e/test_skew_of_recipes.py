"""1,000 rows with numbers, histories, trees' rows and texts through training's transform and through a server.

How well a model was trained does not matter here: an epoch each. What is compared: the tensors that the served pipeline
makes of an input with those that training makes of it, bit for bit; and the server's answers with those that the same
file gives to training's tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from exporter.config import make_config
from exporter.data import interactions
from exporter.recipes.recommendation import RecommendationTask
from exporter.recipes.regression import RegressionTask
from exporter.recipes.text import TextTask
from exporter.recipes.trees import TreesTask
from exporter.steps import Run
from server.answers import Ranking, Regression
from server.pipeline.base import answers
from server.pipeline.load import load_pipeline
from server.pipeline.tabular import RowEncoder
from server.tensor import Array
from server.types import Classification, RawInput, RowInput, TextInput
from tests.e2e.conftest import ServerProcess, end, start
from tests.e2e.test_skew import CLOSE, COUNT, asked
from tests.support.tables import write_csv
from tests.support.text_models import write_texts

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.training,
    # Lightning 2.6 trips over a deprecation in PyTorch 2.13; the exporter silences it for people, not for pytest.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
BATCH = 25
ITEMS = 30


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Run, Path]]:
    folder = tmp_path_factory.mktemp("skew")
    table = write_csv(folder / "rows.csv", 300, rare=False)
    interactions.synthetic(users=60, items=ITEMS).frame.to_csv(folder / "visits.csv", index=False)
    wanted: Mapping[str, dict[str, Any]] = {
        "regression": {"data": str(table), "target": "noise"},
        "tabular-trees": {"data": str(table), "target": "label"},
        "recommendation": {"data": str(folder / "visits.csv")},
        "text-classification": {
            "data": str(write_texts(folder / "texts.csv")),
            "text": {"max_length": 40, "vocabulary": 400},
        },
    }
    return {recipe: published(folder, recipe, options) for recipe, options in wanted.items()}


def published(folder: Path, recipe: str, options: Mapping[str, Any]) -> tuple[Run, Path]:
    config = make_config({"recipe": recipe, "name": recipe, **options}, {"epochs": 1})
    run = Run.start(folder / f"run-{recipe}", config, lambda step, lines: None, resume=False)
    run.train()
    run.export()
    run.publish(folder / "models", replace=False)
    return run, folder / "models" / recipe


@pytest.fixture(scope="module")
def served(runs: Mapping[str, tuple[Run, Path]]) -> Iterator[ServerProcess]:
    [root] = {folder.parent for _, folder in runs.values()}
    running = start(root.parent / "server.log", repository=root)
    yield running
    end(running)


def expected(folder: Path, raw: Sequence[RawInput], trained: Mapping[str, Array]) -> list[Any]:
    """What the file answers to training's tensors, by the batches that are sent.

    Texts are padded to the longest of their batch, so the tensors of each batch are compared up to its length.
    """
    pipeline = load_pipeline(folder)
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found: list[Any] = []
    for first in range(0, len(raw), BATCH):
        part = raw[first : first + BATCH]
        tensors = pipeline.preprocess(part)
        theirs = {name: array[first : first + BATCH, : tensors[name].shape[1]] for name, array in trained.items()}
        for name, array in tensors.items():
            assert array.dtype == theirs[name].dtype
            assert array.tobytes() == np.ascontiguousarray(theirs[name]).tobytes()
        outputs = dict(
            zip(names, session.run(names, {n: np.ascontiguousarray(a) for n, a in theirs.items()}), strict=True)
        )
        found += answers(pipeline, part, outputs)
    return found


def table_rows(kinds: Sequence[str | None], second: str) -> tuple[dict[str, Array], list[dict[str, Any]]]:
    """Columns as training reads them and the same as rows by name, with missing cells and a category that is new."""
    generator = np.random.default_rng(5)
    size = np.where(generator.random(COUNT) < 0.1, np.nan, generator.uniform(0, 12, COUNT))
    shape = generator.choice(np.array(kinds, dtype=object), COUNT)
    columns = {"size": size, "shape": shape, second: generator.normal(0, 1, COUNT).round(3)}
    if second == "label":
        columns["label"] = generator.choice(np.array(["big", "small"], dtype=object), COUNT)
    rows = [
        {
            name: None if isinstance(cell, float) and np.isnan(cell) else cell
            for name, cell in zip(columns, row, strict=True)
        }
        for row in zip(*(column.tolist() for column in columns.values()), strict=True)
    ]
    return columns, rows


def test_numbers_are_those_of_training(runs: Mapping[str, tuple[Run, Path]], served: ServerProcess) -> None:
    """Values and both bounds, relative to their size."""
    run, folder = runs["regression"]
    assert isinstance(run.task, RegressionTask)
    columns, rows = table_rows(["round", "square", "new", None], "label")
    tensors = RowEncoder(run.task.spec).transform_columns(columns)
    wanted = expected(folder, [RowInput(row) for row in rows], tensors)
    found = asked(served.http, folder.name, rows)
    assert all(isinstance(one, Regression) for one in found)
    numbers = [[[one.low, one.value, one.high] for one in side] for side in (found, wanted)]
    np.testing.assert_allclose(*numbers, rtol=CLOSE, atol=CLOSE)


def test_trees_answer_as_in_training(runs: Mapping[str, tuple[Run, Path]], served: ServerProcess) -> None:
    """Labels and probabilities."""
    run, folder = runs["tabular-trees"]
    assert isinstance(run.task, TreesTask)
    columns, rows = table_rows(["round", "square", "new", None], "noise")
    tensors = RowEncoder(run.task.spec).transform_columns(columns)
    same_labels(asked(served.http, folder.name, rows), expected(folder, [RowInput(row) for row in rows], tensors))


def test_texts_are_answered_as_in_training(runs: Mapping[str, tuple[Run, Path]], served: ServerProcess) -> None:
    """Of any length, cut ones among them; the server pads to a bucket, and over gRPC."""
    run, folder = runs["text-classification"]
    assert isinstance(run.task, TextTask)
    generator = np.random.default_rng(7)
    words = np.array(["where", "is", "my", "parcel", "money", "back", "invoice", "Ünïcode", "十", "42", ",", "again"])
    texts = [" ".join(generator.choice(words, int(generator.integers(1, 60)))) for _ in range(COUNT)]
    encoder = run.task.rows._encoder
    tensors = encoder.padded([encoding.ids for encoding in encoder.encode(texts)])
    assert tensors["input_ids"].shape == (COUNT, 40)
    wanted = expected(folder, [TextInput(text) for text in texts], tensors)
    same_labels(asked(f"grpc://{served.grpc}", folder.name, texts), wanted)


def test_rankings_are_those_of_training(runs: Mapping[str, tuple[Run, Path]], served: ServerProcess) -> None:
    """The same items in the same order, with their scores; unknown ids and empty histories among them."""
    run, folder = runs["recommendation"]
    assert isinstance(run.task, RecommendationTask)
    generator = np.random.default_rng(6)
    ids = [*(f"item-{number:03d}" for number in range(ITEMS)), "unknown"]
    histories = [generator.choice(ids, int(generator.integers(0, 20))).tolist() for _ in range(COUNT)]
    tensors = {run.task.spec.input: run.task._histories.tensor(histories)}
    wanted = expected(folder, [RowInput(history) for history in histories], tensors)
    found = asked(served.http, folder.name, histories)
    for history, one, other in zip(histories, found, wanted, strict=True):
        assert isinstance(one, Ranking)
        assert [item.label for item in one.items] == [item.label for item in other.items]
        assert max((abs(a.score - b.score) for a, b in zip(one.items, other.items, strict=True)), default=0) <= CLOSE
        assert {item.label for item in one.items}.isdisjoint(history)


def same_labels(found: Sequence[Any], wanted: Sequence[Any]) -> None:
    assert len(found) == len(wanted) == COUNT
    for one, other in zip(found, wanted, strict=True):
        assert isinstance(one, Classification)
        assert one.label == other.label
        assert max(abs(a.score - b.score) for a, b in zip(one.top_k, other.top_k, strict=True)) <= CLOSE
