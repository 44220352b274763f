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


# --- passes that are given up ---------------------------------------------------------------------------


class Renewable(Gated):
    """Its engine makes another one, and can tell a pass to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupted = 0
        self.made: list[Gated] = []

    def interrupt(self) -> None:
        self.interrupted += 1

    def renew(self) -> Gated:
        self.made.append(Gated())
        return self.made[-1]


async def hung(instance: Gated, caller: Caller) -> tuple[Worker, list[Pass]]:
    """A worker whose pass hangs, and what is told of it."""
    instance.gate.clear()
    worker = Worker(instance, MODEL, asyncio.get_running_loop(), time.monotonic_ns)
    told: list[Pass] = []
    worker.start([caller.request([1])], told.append)
    assert await asyncio.to_thread(instance.began.wait, 30)
    return worker, told


async def test_a_pass_that_is_given_up_is_not_waited_for_nor_told_when_it_ends(caller: Caller) -> None:
    """Another instance is in its place by then, on a thread of its own."""
    instance = Renewable()
    worker, told = await hung(instance, caller)
    thread = worker._thread
    worker.give_up()
    assert (worker.alive, instance.interrupted) == (False, 1)
    await worker.join()
    await worker.renew()
    assert worker.alive
    assert (await run(worker, [caller.request([3])])).responses
    [made] = instance.made
    assert made.batches == [[3]]
    instance.gate.set()
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
    assert (await run(worker, [caller.request([4])])).error is None
    assert told == []
    worker.stop()
    await worker.join()
    assert not worker.alive


async def test_a_pass_that_was_given_up_may_die_too(caller: Caller) -> None:
    """Nobody is told, and the one in its place lives."""
    instance = Renewable()
    instance.faults.append(SystemExit())
    worker, told = await hung(instance, caller)
    thread = worker._thread
    worker.give_up()
    await worker.renew()
    instance.gate.set()
    await asyncio.to_thread(thread.join, 30)
    assert (await run(worker, [caller.request([4])])).error is None
    assert (worker.alive, told) == (True, [])
    worker.stop()
    await worker.join()


async def test_an_instance_that_can_not_be_made_again_or_is_not_wanted_is_not_renewed(caller: Caller) -> None:
    """The worker stays dead, and says why."""
    plain = Gated()
    worker, _ = await hung(plain, caller)
    worker.give_up()
    with pytest.raises(EngineFailure) as told:
        await worker.renew()
    assert "no second one" in told.value.detail
    assert not worker.alive
    plain.gate.set()

    instance = Renewable()
    worker, _ = await hung(instance, caller)
    worker.give_up()
    worker.stop()
    with pytest.raises(EngineFailure) as told:
        await worker.renew()
    assert "not wanted" in told.value.detail
    assert not worker.alive
    instance.gate.set()
    await worker.join()


def test_a_pass_adds_up_its_parts() -> None:
    """And tells the share of padding, none where nothing is padded."""
    told = Pass(3, 0, compute_input_ns=1, compute_infer_ns=20, compute_output_ns=300)
    assert (told.compute_ns, told.durations_ns, told.padding, told.died) == (321, (1, 20, 300), 0.0, False)
    assert Pass(3, 0, input_elements=8, padding_elements=2).padding == 0.25


async def test_a_thread_that_dies_tells_of_all_rows(caller: Caller) -> None:
    """It has died before its callers hear of it."""
    instance = Gated()
    instance.faults.append(SystemExit())
    worker = Worker(instance, MODEL, asyncio.get_running_loop(), time.monotonic_ns)
    told = await run(worker, [caller.request([1, 2]), caller.request([3])])
    assert (told.rows, told.died, worker.alive) == (3, True, False)
    assert isinstance(told.error, EngineFailure)
    assert isinstance(told.error.__cause__, SystemExit)
    await worker.join()


async def test_whoever_ends_after_its_loop_tells_nobody(caller: Caller) -> None:
    """And its thread ends all the same."""
    loop = asyncio.new_event_loop()
    loop.close()
    instance = Gated()
    worker = Worker(instance, MODEL, loop, time.monotonic_ns)
    told: list[Pass] = []
    worker.start([caller.request([1])], told.append)
    worker.stop()
    await asyncio.to_thread(worker._thread.join, 30)
    assert not worker.alive
    assert (told, instance.batches) == ([], [[1]])


async def test_a_join_returns_when_the_thread_is_gone(instance: Gated) -> None:
    """Not when it says that it goes."""
    goes_on = threading.Event()

    class Lingering(Worker):
        def _post(self, callback: object, *arguments: object) -> bool:
            posted = super()._post(callback, *arguments)  # type: ignore[arg-type]
            assert goes_on.wait(30)
            return posted

    worker = Lingering(instance, MODEL, asyncio.get_running_loop(), time.monotonic_ns)
    worker.stop()
    threading.Timer(0.05, goes_on.set).start()
    await worker.join()
    assert not worker._thread.is_alive()
