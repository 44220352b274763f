"""Workers with real threads, on a real event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from server.errors import Draining, EngineFailure, ModelNotReady, Unsupported
from server.scheduler.batcher import Batcher
from server.scheduler.cost import CostModel
from server.scheduler.plan import Limits
from server.scheduler.queue import QueuePolicy
from server.scheduler.statistics import ModelStatistics
from server.scheduler.worker import Model, Pass, Worker, forward
from server.tensor import Array
from server.types import Batch, InferRequest, InferResponse, Outcome
from tests.support.scheduler import POISON, Caller, Doubler, ManualClock

MODEL = Model("doubler", "1", batched=True)


class Gated(Doubler):
    """Says which thread runs it, and waits for its gate."""

    def __init__(self) -> None:
        super().__init__()
        self.ran_on: list[int] = []
        self.began = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def run(self, batch: Batch) -> Mapping[str, Array]:
        self.ran_on.append(threading.get_ident())
        self.began.set()
        assert self.gate.wait(30)
        return super().run(batch)


@pytest.fixture
def caller() -> Caller:
    return Caller(ManualClock())


@pytest.fixture
def instance() -> Gated:
    return Gated()


@pytest.fixture
async def worker(instance: Gated) -> AsyncIterator[Worker]:
    made = Worker(instance, MODEL, asyncio.get_running_loop(), time.monotonic_ns)
    yield made
    made.stop()
    await made.join()


async def run(worker: Worker, requests: Sequence[InferRequest]) -> Pass:
    result: asyncio.Future[Pass] = asyncio.get_running_loop().create_future()
    worker.start(requests, result.set_result)
    return await result


async def test_a_pass_runs_on_the_workers_own_thread(worker: Worker, instance: Gated, caller: Caller) -> None:
    """Every pass of an instance runs on one thread that is not the loop's, and its end comes on the loop."""
    for number in (1, 2):
        result = await run(worker, [caller.request([number]), caller.request([5, 6])])
        assert result.error is None
        assert result.rows == 3
        assert [response.outputs[0].numpy()[:, 0].tolist() for response in result.responses] == [[number * 2], [10, 12]]
    assert len(set(instance.ran_on)) == 1
    assert instance.ran_on[0] != threading.get_ident()


async def test_inline_is_the_callers_thread(worker: Worker, instance: Gated, caller: Caller) -> None:
    """A pass that runs inline is over when the call returns."""
    result = worker.run_inline([caller.request([4])])
    assert result.responses[0].outputs[0].numpy().tolist() == [[8]]
    assert instance.ran_on == [threading.get_ident()]


def test_a_pass_says_where_its_time_went(caller: Caller) -> None:
    """Merging, the engine and splitting are measured one after the other, from the start on."""
    ticks = iter([100, 110, 130, 160])
    result = forward(Doubler(), [caller.request([1])], MODEL, lambda: next(ticks))
    times = (result.started_ns, result.compute_input_ns, result.compute_infer_ns, result.compute_output_ns)
    assert times == (100, 10, 20, 30)


def test_foreign_exceptions_become_engine_failures(caller: Caller) -> None:
    """What an engine raises is kept as the cause and never shown to a client."""
    result = forward(Doubler(), [caller.request([POISON])], MODEL, time.monotonic_ns)
    assert isinstance(result.error, EngineFailure)
    assert isinstance(result.error.__cause__, ValueError)
    assert "poison" in result.error.detail
    assert "poison" not in result.error.public_message


def test_our_own_errors_stay_what_they_are(caller: Caller) -> None:
    """An error of the tree passes unchanged."""
    instance = Doubler()
    instance.faults.append(Unsupported("x", "no"))
    assert isinstance(forward(instance, [caller.request([1])], MODEL, time.monotonic_ns).error, Unsupported)


async def test_a_thread_that_dies_tells_its_callers(worker: Worker, instance: Gated, caller: Caller) -> None:
    """What is no Exception ends the thread, after the pass was reported; the worker says that it is dead."""
    instance.faults.append(SystemExit())
    assert worker.alive
    result = await run(worker, [caller.request([1])])
    assert result.died
    assert isinstance(result.error, EngineFailure)
    assert not worker.alive
    worker.stop()
    await worker.join()


async def test_a_stopped_worker_finishes_its_pass(worker: Worker, instance: Gated, caller: Caller) -> None:
    """Stopping waits for what is under way, however often it is asked for."""
    instance.gate.clear()
    pending = asyncio.ensure_future(run(worker, [caller.request([3])]))
    await asyncio.to_thread(instance.began.wait, 30)
    worker.stop()
    worker.stop()
    instance.gate.set()
    await worker.join()
    assert (await pending).error is None
    assert not worker.alive


def batcher_of(instances: Sequence[Doubler], max_batch_size: int = 8, seed: Mapping[int, int] | None = None) -> Batcher:
    return Batcher(
        "doubler",
        "1",
        instances,
        Limits(max_batch_size),
        QueuePolicy(),
        CostModel(seed),
        ModelStatistics("doubler", "1"),
        asyncio.get_running_loop(),
    )


async def infer(batcher: Batcher, value: int) -> Outcome:
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    caller = Caller(ManualClock(time.monotonic_ns()))
    batcher.submit((caller.request([value], on_settle=lambda _, o: outcome.set_result(o)),))
    return await outcome


@pytest.mark.parametrize("seed", [{1: 10**12}, {1: 1}], ids=["on threads", "on the loop"])
async def test_many_callers_through_real_workers(seed: dict[int, int]) -> None:
    """A thousand concurrent callers, two instances, some poison: everybody gets their own, once."""
    batcher = batcher_of([Doubler("doubler_0"), Doubler("doubler_1")], seed=seed)
    values = [POISON if number % 97 == 0 else number for number in range(1000)]
    outcomes = await asyncio.gather(*(infer(batcher, value) for value in values))
    await batcher.drain(time.monotonic_ns() + 10**10)
    await batcher.close()
    for value, outcome in zip(values, outcomes, strict=True):
        if value == POISON:
            assert isinstance(outcome, EngineFailure)
        else:
            assert isinstance(outcome, InferResponse)
            assert outcome.outputs[0].numpy().tolist() == [[value * 2]]
    statistics = batcher.statistics
    assert (statistics.success.count, statistics.fail.count) == (1000 - values.count(POISON), values.count(POISON))
    assert statistics.pending == 0


async def test_a_dead_thread_is_seen_by_liveness() -> None:
    """When an engine's thread dies its caller fails, later callers are told, and liveness is gone."""
    instance = Doubler()
    instance.faults.append(SystemExit())
    batcher = batcher_of([instance])
    assert batcher.healthy()
    assert isinstance(await infer(batcher, 1), EngineFailure)
    assert isinstance(await infer(batcher, 2), ModelNotReady)
    assert not batcher.healthy()
    await batcher.close()


async def test_closing_waits_for_the_pass_under_way() -> None:
    """After close no thread is left in the engine, and the caller of the last pass was told."""
    instance = Gated()
    instance.gate.clear()
    batcher = batcher_of([instance])
    outcome = asyncio.ensure_future(infer(batcher, 1))
    await asyncio.sleep(0)
    await asyncio.to_thread(instance.began.wait, 30)
    closing = asyncio.ensure_future(batcher.close())
    assert isinstance(await outcome, Draining)
    assert not closing.done()
    instance.gate.set()
    await closing
    assert instance.batches == [[1]]
    assert not any(thread.name == f"forward {instance.name}" for thread in threading.enumerate())
