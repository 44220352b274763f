"""A history of item ids in, the next items out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.answers import Ranking
from server.errors import EngineFailure, InvalidRequest, ModelLoadFailed
from server.pipeline.base import answers
from server.pipeline.load import load_pipeline, read_spec, write_spec
from server.pipeline.recommendation import (
    ITEMS,
    ITEMS_FILE,
    MAX_HISTORY,
    RecommendationPipeline,
    RecommendationSpec,
    best_unseen,
)
from server.tensor import Array
from server.types import ImageInput, RawInput, RowInput, TextInput

IDS = ("a", "b", "c", "7", "e")
SPEC = RecommendationSpec(length=3, top_k=2, example=("a", "b"))
SCORES = {"scores": np.array([[0.1, 0.9, 0.4, 0.4, -2.0]], dtype=np.float32)}


@pytest.fixture
def pipeline(tmp_path: Path) -> RecommendationPipeline:
    write_spec(SPEC, tmp_path)
    ITEMS.write(tmp_path, IDS)
    found = load_pipeline(tmp_path)
    assert isinstance(found, RecommendationPipeline)
    return found


def ranked(pipeline: RecommendationPipeline, history: list[Any], top_k: int = 0) -> list[str]:
    [answer] = answers(pipeline, [RowInput(history)], SCORES, top_k)
    assert isinstance(answer, Ranking)
    return [item.label for item in answer.items]


@pytest.mark.parametrize(
    ("history", "row"),
    [
        (["a", "b"], [0, 1, 2]),
        (["a", "b", "c", "e"], [2, 3, 5]),
        (["b", "b"], [0, 2, 2]),
        ([7, "7"], [0, 4, 4]),
        (["a", "?", "b"], [0, 1, 2]),
        (["?"], [0, 0, 0]),
        ([], [0, 0, 0]),
    ],
    ids=["short", "the latest of a long one", "repeated", "whole numbers", "one unknown", "all unknown", "empty"],
)
def test_a_history_becomes_indices_with_padding_in_front(
    pipeline: RecommendationPipeline, history: list[Any], row: list[int]
) -> None:
    """The latest known items stand last; unknown ids are passed over."""
    assert pipeline.preprocess([RowInput(history)])["history"].tolist() == [row]


def test_what_the_user_has_had_is_never_recommended(pipeline: RecommendationPipeline) -> None:
    """Best first, ties by the items' order, without the history, also that beyond what the model reads."""
    assert ranked(pipeline, [], 5) == ["b", "c", "7", "a", "e"]
    assert ranked(pipeline, ["b"]) == ["c", "7"]
    assert ranked(pipeline, ["b", "a", "a", "a", "a"], 5) == ["c", "7", "e"]
    assert ranked(pipeline, list(IDS)) == []


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (TextInput("a"), "inputs[1]"),
        (ImageInput(b"x"), "inputs[1]"),
        (RowInput({"a": 1}), "inputs[1]"),
        (RowInput(["a", 1.5]), "inputs[1][1]"),
        (RowInput([None]), "inputs[1][0]"),
        (RowInput([True]), "inputs[1][0]"),
        (RowInput(["a"] * (MAX_HISTORY + 1)), "inputs[1]"),
    ],
    ids=["a text", "a picture", "a row by name", "a fraction", "null", "a boolean", "too long"],
)
def test_what_is_no_history_is_refused_by_name(pipeline: RecommendationPipeline, raw: RawInput, field: str) -> None:
    """The place of the input, and of the id in it."""
    with pytest.raises(InvalidRequest) as caught:
        pipeline.preprocess([RowInput(["a"]), raw])
    assert caught.value.field == field


@pytest.mark.parametrize("top_k", [-1, 6])
def test_more_items_than_there_are_can_not_be_asked_for(pipeline: RecommendationPipeline, top_k: int) -> None:
    """top_k is refused by name."""
    with pytest.raises(InvalidRequest, match="top_k"):
        pipeline.postprocess(SCORES, top_k)


@pytest.mark.parametrize(
    "outputs",
    [{}, {"scores": np.zeros((1, 4), np.float32)}, {"scores": np.full((1, 5), np.inf, np.float32)}],
    ids=["missing", "narrow", "not finite"],
)
def test_outputs_that_are_no_scores_fail(pipeline: RecommendationPipeline, outputs: dict[str, Array]) -> None:
    """A score for each item, or no answer."""
    with pytest.raises(EngineFailure):
        pipeline.postprocess(outputs)


@pytest.mark.parametrize(
    "text", ["a\nb\na\n", "a\n\nb\n", "a\n", None], ids=["repeated", "empty line", "one item", "missing"]
)
def test_a_file_of_items_that_can_not_be_used_keeps_the_model_out(tmp_path: Path, text: str | None) -> None:
    """The file is named."""
    write_spec(SPEC, tmp_path)
    if text is not None:
        (tmp_path / ITEMS_FILE).write_text(text)
    with pytest.raises(ModelLoadFailed, match=ITEMS_FILE):
        load_pipeline(tmp_path)


def test_an_example_of_unknown_items_keeps_the_model_out(pipeline: RecommendationPipeline, tmp_path: Path) -> None:
    """It would show nothing; a good one is read back as it was written."""
    assert read_spec(tmp_path) == SPEC
    assert pipeline.describe()["items"] == len(IDS)
    write_spec(SPEC.model_copy(update={"example": ("x",)}), tmp_path)
    with pytest.raises(ModelLoadFailed, match="example"):
        load_pipeline(tmp_path)


def test_the_best_are_those_of_a_whole_sort() -> None:
    """Choosing a few of many is the head of a stable sort, with ties and with items left out."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        scores = generator.integers(0, 6, 40).astype(np.float64)
        seen = generator.choice(40, generator.integers(0, 40), replace=False)
        count = int(generator.integers(1, 12))
        expected = [item for item in np.argsort(-scores, kind="stable") if item not in set(seen.tolist())][:count]
        assert best_unseen(scores, seen, count).tolist() == expected
