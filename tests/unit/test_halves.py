"""What one read of a socket brings to an idle loop goes in two passes: the client goes on with the first answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from server.afterwards import afterwards
from server.errors import Cancelled, Draining
from server.scheduler import batcher
from server.scheduler.handoff import HANDOFF_NS
from server.types import InferRequest, InferResponse, Outcome
from tests.support.scheduler import MS, Bench

SHORT = {8: 20_000, 16: 30_000}
"""Nanoseconds of a pass by its rows: a second one of eight costs 10 us more."""
IDLE_NS = 21_000

Idle = Callable[[Bench, int], None]


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Idle:
    """Says how long the loop has had nothing to do."""

    def told(bench: Bench, idle_ns: int) -> None:
        since_ns = bench.clock.now_ns - idle_ns
        monkeypatch.setattr(batcher, "idle_since_ns", lambda: since_ns)

    return told


def drain(coroutine: Coroutine[Any, Any, None]) -> None:
    """Begin a drain, which is not over yet."""
    coroutine.send(None)
    coroutine.close()


def sixteen(bench: Bench, **more: Any) -> list[InferRequest]:
    return [bench.caller.request([n], id=str(n), **more) for n in range(1, 17)]


def test_the_first_half_is_written_before_the_second_pass_begins(idle: Idle) -> None:
    """And whoever comes meanwhile joins that."""
    bench, done = Bench(max_batch_size=64, seed=SHORT), []
    idle(bench, IDLE_NS)

    def settled(request: InferRequest, _outcome: Outcome) -> None:
        if request.id in ("8", "16"):
            afterwards(lambda: done.append((request.id, len(bench.batches))))

    bench.batcher.submit(sixteen(bench, on_settle=settled))
    bench.loop.call_soon(lambda: bench.batcher.submit([bench.caller.request([17])]))
    bench.loop.run()
    assert bench.batches == [list(range(1, 9)), list(range(9, 18))]
    assert done == [("8", 1), ("16", 2)]


def test_the_second_half_needs_nobody_else_to_come(idle: Idle) -> None:
    """It goes in the next turn, and whole."""
    bench = Bench(max_batch_size=64, seed=SHORT)
    idle(bench, IDLE_NS)
    bench.submit(*sixteen(bench))
    assert bench.batches == [list(range(1, 9)), list(range(9, 17))]


@pytest.mark.parametrize(
    ("seed", "reads", "idle_ns"),
    [(SHORT, 1, IDLE_NS - 2_000), (SHORT, 2, IDLE_NS), ({16: 2 * HANDOFF_NS}, 1, MS), ({}, 1, MS)],
    ids=["the loop was busy", "of two clients", "on a thread", "of unknown cost"],
)
def test_all_else_goes_in_one_pass(idle: Idle, seed: dict[int, int], reads: int, idle_ns: int) -> None:
    """A second pass would only cost."""
    bench = Bench(max_batch_size=64, seed=seed)
    idle(bench, idle_ns)
    requests = sixteen(bench)
    for read in range(reads):
        bench.batcher.submit(requests[read::reads])
    bench.loop.run()
    if bench.runner.job is not None:
        bench.complete()
    assert list(map(sorted, bench.batches)) == [list(range(1, 17))]


def test_the_second_half_has_waited_for_the_first(idle: Idle) -> None:
    """Its queue time tells, and whoever came later has his own."""
    bench = Bench(max_batch_size=64, seed=SHORT)
    idle(bench, IDLE_NS)

    def settled(request: InferRequest, _outcome: Outcome) -> None:
        bench.clock.now_ns += 1_000

    requests, late = sixteen(bench, on_settle=settled), bench.caller.request([17])
    bench.batcher.submit(requests)
    bench.loop.call_soon(lambda: bench.batcher.submit([late]))
    bench.loop.run()
    waited = []
    for request in (requests[0], requests[-1], late):
        outcome = bench.caller.outcome(request)
        assert isinstance(outcome, InferResponse)
        assert outcome.timing is not None
        waited.append(outcome.timing.queue_ns)
    assert waited == [0, 8_000, 0]


def test_who_leaves_before_the_second_pass_is_not_in_it(idle: Idle) -> None:
    """Cancelled between the two, by a client that has its first answers."""
    bench = Bench(max_batch_size=64, seed=SHORT)
    idle(bench, IDLE_NS)
    requests = sixteen(bench)
    bench.batcher.submit(requests)
    bench.loop.call_soon(lambda: bench.batcher.cancel(requests[11]))
    bench.loop.run()
    assert bench.batches == [list(range(1, 9)), [9, 10, 11, 13, 14, 15, 16]]
    assert isinstance(bench.caller.outcome(requests[11]), Cancelled)
    assert not bench.batcher.pending


def test_a_drain_leaves_no_half_to_a_next_turn(idle: Idle) -> None:
    """They came before it, so all of them are answered."""
    bench = Bench(max_batch_size=64, seed=SHORT)
    idle(bench, IDLE_NS)
    requests = sixteen(bench)
    bench.batcher.submit(requests)
    drain(bench.batcher.drain(bench.clock.now_ns + MS))
    late = bench.caller.request([17])
    bench.submit(late)
    assert bench.batches == [list(range(1, 17))]
    assert all(isinstance(bench.caller.outcome(request), InferResponse) for request in requests)
    assert isinstance(bench.caller.outcome(late), Draining)


def test_a_drain_between_the_halves_answers_the_second(idle: Idle) -> None:
    """It was there before."""
    bench = Bench(max_batch_size=64, seed=SHORT)
    idle(bench, IDLE_NS)
    requests = sixteen(bench)
    bench.batcher.submit(requests)
    bench.loop.call_soon(lambda: drain(bench.batcher.drain(bench.clock.now_ns + MS)))
    bench.loop.run()
    assert bench.batches == [list(range(1, 9)), list(range(9, 17))]
    assert all(isinstance(bench.caller.outcome(request), InferResponse) for request in requests)
