"""Why a request that asked waited, through the batcher with a manual clock, loop and workers."""

from __future__ import annotations

import pytest

from server.explain import Explanation, WaitReason
from server.scheduler.waits import Waits
from server.types import InferRequest
from tests.support.scheduler import MS, Bench

CHEAP = {1: 5_000}


def asking(bench: Bench, *values: int, tenant: str = "") -> InferRequest:
    request = bench.caller.request(values or (1,), tenant=tenant)
    request.explanation = Explanation(bench.clock(), bench.clock)
    return request


def reason(request: InferRequest) -> WaitReason:
    assert request.explanation is not None
    return request.explanation.waited


def test_who_goes_at_once_waited_for_nothing() -> None:
    """With an idle instance and no window there is no reason."""
    bench = Bench()
    request = asking(bench)
    bench.submit(request)
    bench.loop.run()
    bench.complete()
    assert bench.caller.answer(request) == [2]
    assert reason(request) is WaitReason.NONE


def test_who_waits_for_company_waited_for_the_window() -> None:
    """An instance was idle all the time."""
    bench = Bench(max_queue_delay_ns=5 * MS, seed={1: MS, 4: MS})
    request = asking(bench)
    bench.submit(request)
    bench.loop.run()
    bench.advance(5 * MS)
    bench.complete()
    assert bench.caller.answer(request) == [2]
    assert reason(request) is WaitReason.WINDOW


def test_who_comes_during_a_pass_waited_for_the_instance() -> None:
    """No instance was idle."""
    bench = Bench()
    request = asking(bench)
    bench.submit(bench.caller.request())
    bench.loop.run()
    bench.submit(request)
    bench.advance(3 * MS)
    bench.complete()
    bench.complete()
    assert bench.caller.answer(request) == [2]
    assert reason(request) is WaitReason.INSTANCE_BUSY


def test_who_does_not_fit_into_a_pass_on_the_loop_waited_for_the_instance() -> None:
    """A pass on the loop is over before the tick ends; whoever it left behind waited for it, not for company."""
    bench = Bench(max_batch_size=1, seed=CHEAP)
    first, second = asking(bench), asking(bench)
    bench.submit(first, second)
    bench.loop.run()
    assert (reason(first), reason(second)) == (WaitReason.NONE, WaitReason.INSTANCE_BUSY)


def test_the_reason_is_the_one_that_took_longest() -> None:
    """A window of 2 ms and then 3 ms of a busy instance is a busy instance; the other way round it is the window."""
    for window_ms, busy_ms, expected in ((2, 3, WaitReason.INSTANCE_BUSY), (3, 2, WaitReason.WINDOW)):
        waits = Waits()
        bench = Bench()
        request = asking(bench)
        waits.watch(request)
        waits.look(0, busy=False)
        waits.look(window_ms * MS, busy=True)
        waits.begin([request], (window_ms + busy_ms) * MS)
        assert reason(request) is expected


@pytest.mark.parametrize(("later_ns", "expected"), [(1, WaitReason.PRIORITY), (0, WaitReason.INSTANCE_BUSY)])
def test_who_is_overtaken_waited_by_priority(later_ns: int, expected: WaitReason) -> None:
    """A pass began with a request that had come later. Who came at the same time overtook nobody."""
    waits = Waits()
    bench = Bench()
    request, other = asking(bench), bench.caller.request()
    other.enqueued_ns = request.enqueued_ns + later_ns
    waits.watch(request)
    waits.begin([other], 1 * MS)
    waits.look(1 * MS, busy=True)
    waits.begin([request], 2 * MS)
    assert reason(request) is expected


def test_only_those_who_ask_are_watched_and_only_while_they_wait() -> None:
    """A request that did not ask, was refused, began or was settled costs the scheduler nothing more."""
    waits = Waits()
    bench = Bench()
    gone, begun = asking(bench), asking(bench)
    waits.watch(gone)
    waits.watch(begun)
    waits.begin([begun], 0)
    gone.settle(ValueError())
    assert waits
    waits.look(0, busy=True)
    assert not waits


def test_who_was_passed_over_for_another_bucket_says_so() -> None:
    """It could not join the batch that went first, though it had come no later."""
    bench = Bench()
    bench.submit(bench.caller.request())
    bench.loop.run()
    urgent = bench.caller.request([2], columns=2, deadline_ns=bench.clock() + 500 * MS)
    request = asking(bench)
    bench.submit(request, urgent)
    bench.loop.run()
    bench.complete()
    bench.advance(3 * MS)
    bench.complete()
    bench.complete()
    assert bench.caller.answer(request) == [2]
    assert reason(request) is WaitReason.BUCKET


def test_who_waits_for_company_beside_another_bucket_says_so() -> None:
    """An instance was idle and others waited, in another bucket: they were no company."""
    bench = Bench(max_queue_delay_ns=5 * MS, seed={1: MS, 4: MS})
    request = asking(bench)
    bench.submit(request, bench.caller.request([2], columns=2))
    bench.loop.run()
    bench.advance(5 * MS)
    bench.complete()
    assert bench.caller.answer(request) == [2]
    assert reason(request) is WaitReason.BUCKET


@pytest.mark.parametrize(
    ("by_tenant", "others", "expected"),
    [
        (True, ["b", "c"], WaitReason.OTHER_TENANTS),
        (True, ["b", "a"], WaitReason.PRIORITY),
        (False, ["b", "c"], WaitReason.PRIORITY),
    ],
)
def test_who_is_overtaken_by_other_tenants_alone_says_so(
    by_tenant: bool, others: list[str], expected: WaitReason
) -> None:
    """Where tenants share the queue; one of its own that goes first is more urgent. The first overtaker counts."""
    waits = Waits(by_tenant=by_tenant)
    bench = Bench()
    request = asking(bench, tenant="a")
    waits.watch(request)

    def later(tenant: str) -> InferRequest:
        other = bench.caller.request(tenant=tenant)
        other.enqueued_ns = request.enqueued_ns + 1
        return other

    waits.begin([later(tenant) for tenant in others], 0)
    waits.begin([later("a")], 0)
    waits.look(0, busy=True)
    waits.begin([request], 1)
    assert reason(request) is expected


def test_other_models_are_the_reason_whatever_else_is() -> None:
    """They have the cores; two spells of one reason add up."""
    waits = Waits()
    bench = Bench()
    request = asking(bench)
    waits.watch(request)
    waits.look(0, busy=True, others=True)
    waits.look(2 * MS, busy=True)
    waits.look(5 * MS, busy=False, others=True)
    waits.begin([request], 7 * MS)
    assert reason(request) is WaitReason.OTHER_MODELS


def test_who_was_passed_over_and_overtaken_was_overtaken() -> None:
    """A batch of its own kind went first; of one that waits for company the bucket matters only where others wait."""
    waits = Waits()
    bench = Bench()
    request, other = asking(bench), bench.caller.request(columns=2)
    waits.watch(request)
    waits.begin([other], 0)
    waits.look(0, busy=True)
    assert waits._watched[request].reason is WaitReason.BUCKET
    later = bench.caller.request()
    later.enqueued_ns = request.enqueued_ns + 1
    waits.begin([later], 0)
    waits.look(0, busy=True)
    assert waits._watched[request].reason is WaitReason.PRIORITY
    waits.look(0, busy=False, signatures=2)
    assert waits._watched[request].reason is WaitReason.BUCKET
    waits.look(0, busy=False)
    assert waits._watched[request].reason is WaitReason.WINDOW
