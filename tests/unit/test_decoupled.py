"""Models that give several responses to a request, on the scripted engine: from the data plane to the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.call import Responses, each
from server.engine.fake import Script
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.errors import Cancelled, Draining, EngineFailure, InvalidRequest, ModelLoadFailed, UnknownModel, Unsupported
from server.repository.model_config import read_model_config
from server.shared_memory.references import Reference, SharedTensors
from server.tensor import Tensor
from server.types import InferRequest, InferResponse, Special
from tests.unit.test_dataplane import Plane

CONFIG = """
platform: "onnxruntime_onnx" max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
model_transaction_policy { decoupled: true }
"""


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    """Model m: x responses to a request of one x, with x, x + 1, ..."""
    plane = Plane(tmp_path, Script())
    plane.write("m", "1", config=CONFIG)
    await plane.start()
    plane.engine.batches.clear()  # those of the warm-up
    yield plane
    plane.script.release.set()
    await plane.models.close()
    plane.dataplane.close()


def asked(plane: Plane, x: float, model: str = "m", **rest: Any) -> tuple[InferRequest, AsyncGenerator[InferResponse]]:
    arrived = asyncio.Event()
    responses = Responses(arrived.set)
    request = InferRequest(
        model,
        [Tensor.from_numpy("x", np.array([[x]], np.float32))],
        on_settle=responses.settle,
        received_ns=time.monotonic_ns(),
        id="seven",
        caller=responses,
    )
    for name, value in rest.items():
        setattr(request, name, value)
    plane.dataplane.stream((request,))
    return request, each(request, responses, arrived, plane.dataplane.cancel)


def values(responses: list[InferResponse]) -> list[float | None]:
    return [float(one.outputs[0].numpy().item()) if one.outputs else None for one in responses]


@pytest.mark.parametrize("number", [0, 1, 5])
async def test_a_request_gets_its_responses_and_their_end(plane: Plane, number: int) -> None:
    """Any number of them, each with the request's id; the end has no outputs."""
    _, told = asked(plane, number)
    responses = [one async for one in told]
    assert values(responses) == [*(float(number + n) for n in range(number)), None]
    assert {(one.model_name, one.id) for one in responses} == {("m", "seven")}


async def test_requests_take_turns(plane: Plane) -> None:
    """With one instance, one after the other; none is mixed up with another."""
    streams = [asked(plane, number)[1] for number in (3, 2, 4)]
    told = await asyncio.gather(*(_all(stream) for stream in streams))
    assert [values(one)[:-1] for one in told] == [[3, 4, 5], [2, 3], [4, 5, 6, 7]]


async def _all(stream: AsyncGenerator[InferResponse]) -> list[InferResponse]:
    return [one async for one in stream]


async def test_an_error_ends_the_responses(plane: Plane) -> None:
    """Those before it are told; others of the model are not concerned."""
    plane.engine.play(["answer", "fail"])
    _, told = asked(plane, 3)
    assert values([await anext(told)]) == [3]
    with pytest.raises(EngineFailure):
        await anext(told)
    assert len(await _all(asked(plane, 1)[1])) == 2


async def test_a_caller_that_goes_away_ends_the_pass(plane: Plane) -> None:
    """The engine makes no more responses, and the instance takes the next request."""
    request, told = asked(plane, 10_000_000)
    async with aclosing(told):
        await anext(told)
    assert request.settled
    assert len(await _all(asked(plane, 1)[1])) == 2
    assert plane.engine.given_up == 1
    assert len(plane.engine.batches) < 10_000


async def test_a_caller_that_takes_nothing_holds_the_engine_up(plane: Plane) -> None:
    """The engine is no further ahead than what may wait, however many responses there are to come."""
    _, told = asked(plane, 10_000_000)
    async with aclosing(told):
        await anext(told)
        before = -1
        while before != len(plane.engine.batches):
            before = len(plane.engine.batches)
            await asyncio.sleep(0.05)
        assert before < 1000


async def test_a_caller_of_one_answer_is_refused(plane: Plane) -> None:
    """infer and predict have no place for several: refused by name, and nothing is run."""
    outcome = await plane.ask(1)
    assert isinstance(outcome, Unsupported)
    assert outcome.field == "model_transaction_policy"
    assert plane.engine.batches == []


async def test_a_request_that_is_wrong_is_refused_like_any_other(plane: Plane) -> None:
    """Before a pass is begun: an unknown model, a wrong shape, outputs in shared memory or as classes."""
    for error, rest in (
        (UnknownModel, {"model": "nobody"}),
        (InvalidRequest, {"inputs": [Tensor.from_numpy("x", np.zeros((1, 2), np.float32))]}),
        (Unsupported, {"special": Special(SharedTensors((), {"y": Reference("r", 4, 0)}), {})}),
        (Unsupported, {"special": Special(None, {"y": 1})}),
    ):
        with pytest.raises(error):
            await anext(asked(plane, 1, **rest)[1])


async def test_a_cancelled_request_that_waits_is_not_run(plane: Plane) -> None:
    """As any other."""
    plane.engine.play(["hang"])
    _, first = asked(plane, 1)
    request, second = asked(plane, 1)
    waiting = asyncio.ensure_future(anext(second))
    await asyncio.sleep(0.05)
    plane.dataplane.cancel(request)
    with pytest.raises(Cancelled):
        await waiting
    plane.script.release.set()
    assert len(await _all(first)) == 2
    assert len(plane.engine.batches) == 1


async def test_a_drain_waits_for_the_responses_until_its_end(plane: Plane) -> None:
    """What is still under way then is settled as Draining, behind the responses that were made."""
    _, told = asked(plane, 2)
    await plane.models.drain(time.monotonic_ns() + 5_000_000_000)
    assert values(await _all(told)) == [2, 3, None]

    plane.write("n", "1", config=CONFIG)
    await plane.models.load("n")
    plane.script.latency_s = lambda _: 0.01
    _, told = asked(plane, 1_000_000, model="n")
    await anext(told)
    await plane.models.drain(time.monotonic_ns())
    with pytest.raises(Draining):
        await _all(told)


async def test_its_statistics_are_those_of_its_requests(plane: Plane) -> None:
    """One success for each request, however many responses it got, and one failure for each that failed."""
    await _all(asked(plane, 3)[1])
    plane.engine.play(["fail"])
    with pytest.raises(EngineFailure):
        await _all(asked(plane, 3)[1])
    [counts] = plane.dataplane.statistics("m")
    assert (counts.success.count, counts.fail.count, counts.inference_count) == (1, 1, 1)


def test_the_engine_of_onnx_files_refuses_the_policy(tmp_path: Path) -> None:
    """An ONNX file gives one response; a client that reads the policy must not be misled."""
    (tmp_path / "config.pbtxt").write_text(CONFIG)
    spec = read_model_config(tmp_path).engine_spec(tmp_path, "1")
    with pytest.raises(ModelLoadFailed, match=r"config\.pbtxt: model_transaction_policy\.decoupled"):
        OnnxRuntimeEngine().load(spec)
