"""Answers of requests whose passes ended in one turn of the loop: made together, each as if it were alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from server.afterwards import as_step
from server.answering import Answering, Waiting
from server.errors import EngineFailure, InvalidRequest, QueueFull
from server.pipeline.classification import ClassificationSpec, Classifier
from server.tensor import Array, Tensor
from server.types import ImageInput, InferRequest, InferResponse, Outcome, Prediction, PredictRequest, RawInput


class Classes:
    """Only postprocesses."""

    task = "image-classification"

    def __init__(self, labels: int, *, by_row: bool = True) -> None:
        self.by_row = by_row
        self.classifier = Classifier(ClassificationSpec(), tuple(f"class {index}" for index in range(labels)), "m")
        self.rows: list[int] = []
        """Of each call."""

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        self.rows.append(len(outputs["logits"]))
        return self.classifier.postprocess(outputs, top_k)

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        raise NotImplementedError

    def describe(self) -> Mapping[str, object]:
        raise NotImplementedError

    def example(self) -> RawInput:
        raise NotImplementedError


class Caller(Waiting):
    """One that is awaited."""

    def __init__(self, pipeline: Classes, request: PredictRequest) -> None:
        super().__init__(pipeline, request, lambda _waiting, error: self.ended.set_result(error))
        self.ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()


def waiting(pipeline: Classes, rows: int = 1, top_k: int = 0) -> Caller:
    return Caller(pipeline, PredictRequest("m", [ImageInput(b"")] * rows, top_k=top_k))


def settle(answering: Answering, caller: Waiting, outcome: Array | Outcome) -> None:
    request = InferRequest(
        "m", (), on_settle=answering.on_settle, received_ns=time.monotonic_ns(), caller=caller, id="7"
    )
    if isinstance(outcome, np.ndarray):
        outcome = InferResponse("m", "1", [Tensor.from_numpy("logits", outcome)])
    request.settle(outcome)


def logits(rows: int, labels: int = 10, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 8, (rows, labels)).astype(np.float32)


@pytest.mark.parametrize("labels", [2, 3, 9, 10, 33, 130, 1000], ids=lambda labels: f"{labels} labels")
async def test_together_each_has_the_bits_that_it_has_alone(labels: int) -> None:
    """What else was in the pass changes no bit of an answer."""
    answering, pipeline, rows = Answering(), Classes(labels), (1, 3, 1, 1, 2, 8)
    outputs = [logits(count, labels, seed) for seed, count in enumerate(rows)]
    callers = [waiting(pipeline, count) for count in rows]
    for caller, output in zip(callers, outputs, strict=True):
        settle(answering, caller, output)
    assert [await caller.ended for caller in callers] == [None] * len(rows)
    assert pipeline.rows == [sum(rows)]
    alone = Classes(labels)
    assert [caller.predictions for caller in callers] == [alone.postprocess({"logits": each}) for each in outputs]


async def test_only_pipelines_that_look_at_rows_alone_are_given_those_of_others() -> None:
    """One that does not say so sees the outputs of one request at a time."""
    answering, pipeline = Answering(), Classes(10, by_row=False)
    callers = [waiting(pipeline), waiting(pipeline, 2)]
    for caller in callers:
        settle(answering, caller, logits(len(caller.request.inputs)))
    assert [await caller.ended for caller in callers] == [None, None]
    assert pipeline.rows == [1, 2]


async def test_a_row_without_an_answer_fails_its_own_request_alone() -> None:
    """Neighbours of one whose output is not finite have their answers."""
    answering, pipeline = Answering(), Classes(10)
    callers = [waiting(pipeline) for _ in range(3)]
    bad = logits(1)
    bad[0, 4] = np.nan
    for caller, output in zip(callers, (logits(1, seed=1), bad, logits(1, seed=2)), strict=True):
        settle(answering, caller, output)
    errors = [await caller.ended for caller in callers]
    assert [type(error) for error in errors] == [type(None), EngineFailure, type(None)]
    assert callers[2].predictions == Classes(10).postprocess({"logits": logits(1, seed=2)})


async def test_what_a_caller_got_wrong_is_its_own() -> None:
    """A top_k beyond the labels is refused to who asked for it, and its neighbours get what they asked for."""
    answering, pipeline = Answering(), Classes(10)
    callers = [waiting(pipeline, top_k=top_k) for top_k in (2, 2, 11, 3)]
    for caller in callers:
        settle(answering, caller, logits(1))
    errors = [await caller.ended for caller in callers]
    assert [type(error) for error in errors] == [type(None), type(None), InvalidRequest, type(None)]
    told = [caller.predictions for caller in callers]
    assert told == [Classes(10).postprocess({"logits": logits(1)}, k) if k < 11 else None for k in (2, 2, 11, 3)]


async def test_a_tensor_without_a_row_for_each_input_is_joined_to_none() -> None:
    """Of a model without a batch dimension, or one that gives something else."""
    answering, pipeline = Answering(), Classes(10)
    callers = [waiting(pipeline) for _ in range(2)]
    for caller in callers:
        settle(answering, caller, logits(2))
    assert [await caller.ended for caller in callers] == [None, None]
    assert pipeline.rows == [2, 2]


async def test_a_refusal_is_told_at_once() -> None:
    """An error has nothing to wait for."""
    answering, pipeline = Answering(), Classes(10)
    refused, there = waiting(pipeline), waiting(pipeline)
    settle(answering, refused, QueueFull("m", 1))
    assert isinstance(refused.ended.result(), QueueFull)
    settle(answering, there, logits(1))
    assert await there.ended is None
    assert there.predictions is not None


async def test_they_are_made_behind_the_step_that_settles() -> None:
    """In the same turn of the loop, of all that were settled in it."""
    answering, pipeline = Answering(), Classes(3)
    callers = [waiting(pipeline) for _ in range(2)]

    def step() -> None:
        for caller in callers:
            settle(answering, caller, logits(1, 3))
        assert not any(caller.ended.done() for caller in callers)

    as_step(step)
    assert all(caller.ended.done() for caller in callers)
    assert pipeline.rows == [2]
