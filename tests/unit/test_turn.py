"""Batchers that share the cores, with a manual clock, loop and workers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from server.errors import Overloaded
from server.explain import Explanation, WaitReason
from server.scheduler.batcher import STALL_NS
from server.scheduler.handoff import HANDOFF_NS
from server.scheduler.share import Share
from server.scheduler.turn import Turn
from server.types import InferRequest
from tests.support.scheduler import MS, Bench, StillCost


class Pair:
    """Two models on `tokens` cores. Each has been asked lately."""

    def __init__(self, tokens: int = 1, a_ns: int = 10 * MS, b_ns: int = 10 * MS, **b: Any) -> None:
        self.share = Share(tokens)
        self.a = Bench(cost=StillCost(a_ns), share=self.share, model_name="a", instances=2)
        self.b = Bench(1, cost=StillCost(b_ns), share=self.share, model_name="b", beside=self.a, **b)

    def ask(self, bench: Bench, **rest: Any) -> InferRequest:
        request = bench.caller.request([1], **rest)
        bench.submit(request)
        bench.loop.run()
        return request


def end(bench: Bench) -> None:
    """One of its passes ends, and what follows from it happens."""
    next(runner for runner in bench.runners if runner.job).complete()
    bench.loop.run()


def running(bench: Bench) -> int:
    return sum(runner.job is not None for runner in bench.runners)


def test_a_batch_waits_for_its_turn_in_the_queue() -> None:
    """It is formed when its turn comes: with those who came meanwhile, without those that expired."""
    pair = Pair()
    pair.ask(pair.a)
    pair.ask(pair.b, deadline_ns=pair.a.clock() + 5 * MS)
    later = pair.ask(pair.b)
    assert (running(pair.b), pair.b.batcher.pending) == (0, 2)
    pair.a.advance(8 * MS)
    end(pair.a)
    assert running(pair.b) == 1
    end(pair.b)
    assert pair.b.batches == [[1]]
    assert pair.b.caller.answer(later) == [2]


@pytest.mark.parametrize(
    ("threads", "chosen"), [((1, 1, 1), 2), ((0, 1, 1), 0), ((1, 0, 1), 1), ((1, 1, 0), 2), ((0, 0, 0), 2)], ids=str
)
def test_an_instance_that_needs_no_core_goes_first(threads: tuple[int, ...], chosen: int) -> None:
    """Of those that are idle; else the one that was used last."""
    bench = Bench(instances=3)
    turn = Turn(Share(1), "m", dict(zip(bench.runners, threads, strict=True)), bench.statistics, lambda: None)
    assert turn.choose(bench.runners) is bench.runners[chosen]


def test_each_models_turn_comes_while_both_have_work() -> None:
    """One core, equal passes: alternately."""
    pair = Pair()
    pair.ask(pair.b)
    pair.a.advance(10 * MS)
    end(pair.b)
    order = []
    for _ in range(40):
        pair.a.submit(pair.a.caller.request([1]))
        pair.b.submit(pair.b.caller.request([1]))
    pair.a.loop.run()
    for _ in range(16):
        pair.a.advance(10 * MS)
        assert running(pair.a) + running(pair.b) == 1
        bench = pair.a if running(pair.a) else pair.b
        order.append(bench is pair.a)
        end(bench)
    assert order[0], "the other one has had a pass"
    assert all(before != after for before, after in pairwise(order[1:]))


def test_a_model_alone_uses_all_its_instances() -> None:
    """Tokens hold back nobody who is alone."""
    pair = Pair()
    for _ in range(5):
        pair.ask(pair.a)
    assert running(pair.a) == 2


def test_a_short_pass_goes_beside_a_long_one() -> None:
    """The other model's long pass can't be interrupted, and the core is shared."""
    pair = Pair(a_ns=200 * MS, b_ns=2 * MS)
    pair.ask(pair.a)
    pair.ask(pair.b)
    assert running(pair.b) == 1


def test_a_pass_on_the_loop_waits_for_nobody() -> None:
    """It takes no token, and is charged."""
    pair = Pair(b_ns=HANDOFF_NS - 1)
    pair.ask(pair.a)
    request = pair.ask(pair.b)
    assert pair.b.caller.answer(request) == [2]
    assert pair.share.used == 1


def test_what_runs_elsewhere_waits_for_nobody() -> None:
    """A GPU's pass takes no core."""
    pair = Pair(threads=0)
    pair.ask(pair.a)
    pair.ask(pair.b)
    assert running(pair.b) == 1
    assert pair.share.used == 1


def test_while_it_waits_the_last_request_may_go() -> None:
    """Its place in the line is given up, and the next one that is free goes on."""
    pair = Pair()
    pair.ask(pair.a)
    request = pair.ask(pair.b)
    assert pair.b.batcher._instances.turn.waiting
    pair.b.batcher.cancel(request)
    pair.b.loop.run()
    assert not pair.b.batcher._instances.turn.waiting
    end(pair.a)
    pair.ask(pair.a)
    assert running(pair.a) == 1


def test_a_pass_that_never_ends_holds_up_nobody() -> None:
    """Nobody calls, and the alarm rings: the batch begins beside the pass that hangs."""
    pair = Pair()
    pair.ask(pair.a)
    pair.ask(pair.b)
    assert running(pair.b) == 0
    pair.b.advance(21 * MS)
    assert running(pair.b) == 1


def test_waiting_for_long_passes_of_others_is_healthy() -> None:
    """Nothing of this model moves for seconds, and nothing is wrong with it."""
    pair = Pair(a_ns=20_000 * MS, b_ns=20_000 * MS)
    pair.ask(pair.a)
    pair.ask(pair.b)
    pair.b.advance(STALL_NS + MS)
    assert (running(pair.b), pair.b.batcher.healthy()) == (0, True)


@pytest.mark.parametrize("end", ["die", "fail"])
def test_tokens_come_back_whatever_ends_the_pass(end: str) -> None:
    """A worker that died, or a pass that failed."""
    pair = Pair()
    pair.ask(pair.a)
    pair.ask(pair.b)
    runner = next(runner for runner in pair.a.runners if runner.job)
    if end == "die":
        runner.die()
    else:
        runner.instance.faults.append(RuntimeError("scripted"))
        runner.complete()
    pair.a.loop.run()
    assert running(pair.b) == 1


async def test_a_model_that_closes_gives_its_place_free() -> None:
    """Whoever waits behind it is called, and nothing is left of it in the share."""
    pair = Pair()
    pair.ask(pair.a)
    pair.ask(pair.b)
    await pair.a.batcher.close()
    pair.b.loop.run()
    assert running(pair.b) == 1
    end(pair.a)
    end(pair.b)
    await pair.b.batcher.close()
    assert (pair.share.used, pair.share._accounts) == (0, {})


def test_the_wait_for_other_models_is_counted_and_explained() -> None:
    """From the time that batch and instance were ready to the begin of the pass."""
    pair = Pair()
    pair.ask(pair.a)
    request = pair.b.caller.request([1])
    request.explanation = Explanation(pair.b.clock(), pair.b.clock)
    pair.b.submit(request)
    pair.b.loop.run()
    pair.a.advance(7 * MS)
    end(pair.a)
    end(pair.b)
    assert request.explanation.waited is WaitReason.OTHER_MODELS
    assert (pair.a.statistics.turn_wait_ns, pair.b.statistics.turn_wait_ns) == (0, 7 * MS)


def test_admission_foresees_the_others_passes() -> None:
    """Who can't be answered in time because of another model's passes is refused; an idle instance still takes one."""
    pair = Pair()
    for _ in range(20):
        pair.ask(pair.a)
    pair.a.advance(4 * MS)
    tight_ns, wide_ns = pair.b.clock() + 20 * MS, pair.b.clock() + 60 * MS
    first = pair.ask(pair.b, deadline_ns=tight_ns)
    second, third = (pair.ask(pair.b, deadline_ns=ns) for ns in (tight_ns, wide_ns))
    assert [pair.b.caller.outcome(request) is None for request in (first, third)] == [True, True]
    assert isinstance(pair.b.caller.outcome(second), Overloaded)
