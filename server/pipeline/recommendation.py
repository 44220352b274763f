"""A user's items in, the items that come next out.

An input is a list of item ids, the oldest first: ``["item-3", "item-17"]``. The rules:

* an id that the model does not know is passed over, it says nothing to the model;
* of the others the last `length` are read, repetitions included;
* a history without a known item, an empty one too, is answered with the most popular items;
* an item of the history, however far back, is never among the answers; so there may be fewer than `top_k`.

Shapes: B rows, L the spec's length, V items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from server.answers import Prediction, Ranking, Score
from server.errors import EngineFailure, InvalidRequest, ModelLoadFailed
from server.pipeline.base import PROCESSING_FILE
from server.pipeline.classification import SpecModel
from server.pipeline.names import NamesFile
from server.tensor import Array
from server.types import RawInput, RowInput

TASK: Literal["recommendation"] = "recommendation"
ITEMS_FILE = "items.txt"
ITEMS = NamesFile(ITEMS_FILE, "id", "items")
PADDING = 0
"""The index of no item; that of item i of `items.txt` is i + 1."""
MAX_HISTORY = 10_000
MAX_TOP_K = 1_000


class RecommendationSpec(SpecModel):
    """What `processing.yaml` says of a model that recommends items."""

    task: Literal["recommendation"] = TASK
    input: str = "history"
    """Name of the INT64 input [B, L]: indices of items, the latest last, padded with 0 in front."""
    length: Annotated[int, Field(ge=1, le=4096)]
    output: str = "scores"
    """Name of the FP32 output [B, V]: a score for each item, in the order of the items' file."""
    items: Literal["items.txt"] = "items.txt"
    """The file of item ids, in the model's folder, one a line."""
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 10
    """Items of an answer where the caller does not say."""
    example: tuple[str, ...]
    """A history, for the commands that people paste."""


class Histories:
    """Lists of item ids to the model's input, for training and serving alike. Immutable."""

    def __init__(self, items: Sequence[str], length: int) -> None:
        self._index_of = {item: index for index, item in enumerate(items, start=PADDING + 1)}
        self._length = length

    def known(self, history: Sequence[str]) -> list[int]:
        """The indices of the items that are known, in their order."""
        found = [self._index_of.get(item) for item in history]
        return [index for index in found if index is not None]

    def tensor(self, histories: Sequence[Sequence[str]]) -> NDArray[np.int64]:
        """INT64 [B, L]."""
        rows = np.full((len(histories), self._length), PADDING, dtype=np.int64)
        for row, history in zip(rows, histories, strict=True):
            latest = self.known(history)[-self._length :]
            if latest:
                row[-len(latest) :] = latest
        return rows


class RecommendationPipeline:
    """`server.pipeline.base.OfInputs` for histories."""

    task: str = TASK

    def __init__(self, spec: RecommendationSpec, folder: Path) -> None:
        """Raises ModelLoadFailed where the items' file or the example can't be used."""
        self._spec = spec
        self._items = ITEMS.read(folder)
        self._histories = Histories(self._items, spec.length)
        self._model_name = folder.name
        if not self._histories.known(spec.example):
            raise ModelLoadFailed(folder.name, f"{PROCESSING_FILE}: example", f"none of its ids is in {ITEMS_FILE}")

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        """INT64 [B, L].

        Raises:
            InvalidRequest: an input is no list of ids, or over `MAX_HISTORY` of them; an id is no string or whole
                number. The field is ``inputs[i]`` or ``inputs[i][j]``.
        """
        return {self._spec.input: self._histories.tensor([history_of(i, raw) for i, raw in enumerate(inputs)])}

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        """One `Ranking` for each row, as for histories that are not known: nothing is left out."""
        scores = self._checked(outputs)
        return self.postprocess_inputs([RowInput([])] * len(scores), outputs, top_k)

    def postprocess_inputs(
        self, inputs: Sequence[RawInput], outputs: Mapping[str, Array], top_k: int = 0
    ) -> list[Prediction]:
        """One `Ranking` for each history, without the items that are in it; ties go to the earlier item.

        Raises:
            InvalidRequest: `top_k` is over the number of items, or over `MAX_TOP_K`.
            EngineFailure: the output is missing, not [B, V], or not finite.
        """
        most = min(len(self._items), MAX_TOP_K)
        if not 0 <= top_k <= most:
            raise InvalidRequest(
                "top_k", f"{top_k} is not between 0 and {most}, the model has {len(self._items)} items"
            )
        count = min(top_k or self._spec.top_k, most)
        scores = self._checked(outputs)
        answers: list[Prediction] = []
        for index, (raw, row) in enumerate(zip(inputs, scores, strict=True)):
            seen = np.array(self._histories.known(history_of(index, raw)), dtype=np.int64) - (PADDING + 1)
            best = best_unseen(row, seen, count)
            answers.append(Ranking(tuple(Score(self._items[item], float(row[item])) for item in best.tolist())))
        return answers

    def describe(self) -> Mapping[str, object]:
        """The task, that a history is wanted, how many items there are, and the rules."""
        return {
            "task": self.task,
            "input": {
                "kind": "history",
                "length": self._spec.length,
                "unknown": "passed over",
                "empty": "answered with the most popular items",
            },
            "labels": [],
            "items": len(self._items),
            "top_k": min(self._spec.top_k, len(self._items)),
        }

    def example(self) -> RowInput:
        """The spec's own history."""
        return RowInput(list(self._spec.example))

    def _checked(self, outputs: Mapping[str, Array]) -> NDArray[np.float64]:
        name = self._spec.output
        if name not in outputs:
            raise EngineFailure(self._model_name, f"the model gave no output {name!r}")
        scores = np.asarray(outputs[name], dtype=np.float64)
        if scores.ndim != 2 or scores.shape[1] != len(self._items):
            expected = f"[B, {len(self._items)}]"
            raise EngineFailure(self._model_name, f"output {name!r} has shape {scores.shape}, expected {expected}")
        if not np.isfinite(scores).all():
            raise EngineFailure(self._model_name, f"output {name!r} holds a value that is not finite")
        return scores


def best_unseen(scores: Array, seen: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The indices of the `count` best scores, best first, none of them in `seen`; fewer where there are not so many."""
    masked = np.array(scores, dtype=np.float64)
    masked[seen] = -np.inf
    count = min(count, int(np.isfinite(masked).sum()))
    if count == 0:
        return np.empty(0, dtype=np.int64)
    # Only those that reach the least of the best need an order.
    least = np.partition(masked, -count)[-count]
    candidates = np.flatnonzero(masked >= least)
    return candidates[np.argsort(-masked[candidates], kind="stable")[:count]]


def history_of(index: int, raw: RawInput) -> list[str]:
    """The ids of an input, as texts. Raises InvalidRequest, see `RecommendationPipeline.preprocess`."""
    field = f"inputs[{index}]"
    if not isinstance(raw, RowInput) or isinstance(raw.values, Mapping):
        raise InvalidRequest(field, 'the model takes a list of item ids, the oldest first, like ["a", "b"]')
    if len(raw.values) > MAX_HISTORY:
        raise InvalidRequest(field, f"{len(raw.values)} ids, at most {MAX_HISTORY} are taken")
    return [_id(f"{field}[{place}]", value) for place, value in enumerate(raw.values)]


def _id(field: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidRequest(field, "an item id is a string or a whole number")
    return str(value)
