"""The relay: who is sent when and where, what becomes of failures, and that each is settled once."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import (
    CallExpired,
    Cancelled,
    DeadlineExceeded,
    Draining,
    Overloaded,
    QueueFull,
    TritonDeclined,
    TritonLost,
    TritonQueueFull,
    TritonUnreached,
)
from server.scheduler.queue import Priorities, QueuePolicy
from server.scheduler.statistics import FailureReason
from server.scheduler.window import Bounds, Window
from server.types import InferRequest
from tests.support.relaying import ManualServer, RelayBench
from tests.support.scheduler import MS

UNREACHED = TritonUnreached("doubler", "gone")


def test_an_answer_reaches_its_caller() -> None:
    """It is counted as one success and one pass, of its own rows."""
    bench = RelayBench()
    request = bench.caller.request([1, 2])

    bench.submit(request)
    bench.clock.now_ns += 5 * MS
    bench.answer(request)

    assert bench.caller.answer(request) == [2, 4]
    counts = bench.statistics
    assert (counts.success.count, counts.inference_count, counts.execution_count) == (1, 2, 1)
    assert counts.compute_infer.ns == 5 * MS
    assert bench.server.work_ns == 0


def test_no_more_is_sent_than_the_window_takes() -> None:
    """The others wait here, and one goes for each that is answered."""
    bench = RelayBench(window=2)
    requests = [bench.caller.request() for _ in range(4)]

    bench.submit(*requests)
    assert bench.server.asked == requests[:2]
    bench.answer(requests[0])

    assert bench.server.asked == requests[:3]
    assert bench.statistics.pending == 1


def test_a_request_larger_than_the_window_goes_alone() -> None:
    """It would wait for ever else."""
    bench = RelayBench(window=2)
    large, small = bench.caller.request([1] * 5), bench.caller.request()

    bench.submit(large, small)
    assert bench.server.asked == [large]
    bench.answer(large)

    assert bench.server.asked == [large, small]


def test_where_requests_are_not_merged_their_rows_do_not_count() -> None:
    """A pass each, however many rows."""
    bench = RelayBench(window=2, merges=False)
    requests = [bench.caller.request([1] * 5) for _ in range(3)]

    bench.submit(*requests)

    assert bench.server.asked == requests[:2]


def test_who_waits_goes_by_priority_and_then_by_deadline() -> None:
    """The order is made here, where it still can be."""
    bench = RelayBench(window=1, priorities=Priorities(levels=2, default_level=2))
    now = bench.clock.now_ns
    first = bench.caller.request()
    late, early = (bench.caller.request(deadline_ns=now + ms * MS) for ms in (900, 500))
    urgent = bench.caller.request(parameters={"priority": 1})
    bench.submit(first)
    bench.submit(late, early, urgent)

    for request in (first, urgent, early):
        bench.answer(request)

    assert bench.server.asked == [first, urgent, early, late]


def test_the_server_with_the_least_work_gets_the_next_request() -> None:
    """Work of other models counts."""
    bench = RelayBench(servers=2, window=4, seed_ns=10 * MS)
    bench.servers[0].work_ns = 15 * MS
    requests = [bench.caller.request() for _ in range(3)]

    bench.submit(*requests)

    assert bench.servers[1].asked == requests[:2]
    assert bench.servers[0].asked == requests[2:]


def test_what_expires_is_never_sent() -> None:
    """It is settled when its deadline comes, not when a place is free."""
    bench = RelayBench(window=1)
    first = bench.caller.request()
    second = bench.caller.request(deadline_ns=bench.clock.now_ns + 10 * MS)
    bench.submit(first)
    bench.submit(second)

    bench.advance(10 * MS)
    assert isinstance(bench.caller.outcome(second), DeadlineExceeded)
    bench.answer(first)

    assert bench.server.asked == [first]
    assert bench.statistics.expired == 1


def test_who_can_not_be_answered_in_time_is_refused_at_the_door() -> None:
    """By what answers take, and how many a window holds: 6 ahead, 2 at a time, 10 ms each."""
    bench = RelayBench(window=2, seed_ns=10 * MS)
    bench.submit(*(bench.caller.request() for _ in range(8)))
    now = bench.clock.now_ns
    hopeless, patient = (bench.caller.request(deadline_ns=now + ms * MS) for ms in (15, 200))

    bench.submit(hopeless, patient)

    assert isinstance(bench.caller.outcome(hopeless), Overloaded)
    assert bench.caller.outcome(patient) is None


def test_what_a_deadline_ended_is_learned() -> None:
    """How long it would have taken is not known, but it was longer than expected: those who come are told by it."""
    bench = RelayBench(window=1, seed_ns=10 * MS)
    for _ in range(4):
        request = bench.caller.request(deadline_ns=bench.clock.now_ns + 50 * MS)
        bench.submit(request)
        bench.advance(50 * MS)
        bench.fail(request, CallExpired())
    bench.submit(bench.caller.request())

    hasty = bench.caller.request(deadline_ns=bench.clock.now_ns + 40 * MS)
    bench.submit(hasty)

    assert isinstance(bench.caller.outcome(hasty), Overloaded)


def test_the_queue_has_its_limit() -> None:
    """Of requests that wait here."""
    bench = RelayBench(window=1, policy=QueuePolicy(max_queue_size=1))
    requests = [bench.caller.request() for _ in range(3)]
    bench.submit(requests[0])

    bench.submit(*requests[1:])

    assert bench.caller.outcome(requests[1]) is None
    assert isinstance(bench.caller.outcome(requests[2]), QueueFull)


def test_a_caller_who_goes_away_while_it_waits_is_never_sent() -> None:
    """Its place is free at once."""
    bench = RelayBench(window=1)
    first, second = bench.caller.request(), bench.caller.request()
    bench.submit(first, second)

    bench.relay.cancel(second)
    bench.answer(first)

    assert isinstance(bench.caller.outcome(second), Cancelled)
    assert bench.server.asked == [first]


def test_a_caller_who_goes_away_gives_up_its_call() -> None:
    """The server hears of it, and its place in the window is free."""
    bench = RelayBench(window=1)
    first, second = bench.caller.request(), bench.caller.request()
    bench.submit(first, second)

    bench.relay.cancel(first)
    bench.loop.run()

    assert isinstance(bench.caller.outcome(first), Cancelled)
    assert bench.server.asked == [first, second]
    assert bench.statistics.cancelled == 1


@pytest.mark.parametrize("error", [UNREACHED, TritonDeclined("doubler", "no")], ids=["unreached", "declined"])
def test_what_was_not_executed_is_sent_once_more_elsewhere(error: Exception) -> None:
    """The caller does not notice; a second failure is its answer."""
    bench = RelayBench(servers=2)
    request, other = bench.caller.request([3]), bench.caller.request()
    bench.submit(request, other)
    assert bench.servers[0].asked == [request]

    bench.fail(request, error)
    assert bench.servers[1].asked == [other, request]
    bench.fail(request, UNREACHED)

    assert bench.caller.outcome(request) is UNREACHED
    assert bench.statistics.failures[FailureReason.OTHER] == 1


def test_what_is_sent_once_more_goes_before_all_who_wait() -> None:
    """It has waited its turn."""
    bench = RelayBench(servers=2, window=1)
    first, second, third = (bench.caller.request() for _ in range(3))
    bench.submit(first, second, third)

    bench.fail(first, UNREACHED)
    bench.answer(second)

    assert bench.servers[1].asked[:2] == [second, first]


@pytest.mark.parametrize("error", [TritonLost("doubler"), TritonQueueFull("doubler"), ValueError("bug")])
def test_what_may_have_been_executed_is_never_sent_again(error: Exception) -> None:
    """Nor what was answered with a refusal."""
    bench = RelayBench(servers=2)
    request = bench.caller.request()
    bench.submit(request)

    bench.fail(request, error)

    assert bench.caller.outcome(request) is not None
    assert len(bench.servers[0].asked) + len(bench.servers[1].asked) == 1


def test_a_retry_keeps_its_deadline() -> None:
    """It waits no longer than it could have in the first place."""
    bench = RelayBench(servers=2, window=1)
    request, other = bench.caller.request(deadline_ns=bench.clock.now_ns + 10 * MS), bench.caller.request()
    bench.submit(request, other)
    bench.fail(request, UNREACHED)

    bench.advance(10 * MS)

    assert isinstance(bench.caller.outcome(request), DeadlineExceeded)
    assert request not in bench.servers[1].asked


def test_without_a_server_everybody_is_told_so_at_once() -> None:
    """Whoever waits, and whoever comes; those under way go on."""
    bench = RelayBench(window=1)
    under_way, waits, comes = (bench.caller.request() for _ in range(3))
    bench.submit(under_way, waits)

    bench.relay.serve_by([])
    bench.submit(comes)
    assert isinstance(bench.caller.outcome(waits), TritonUnreached)
    assert isinstance(bench.caller.outcome(comes), TritonUnreached)
    assert not bench.relay.healthy()
    bench.answer(under_way)

    assert bench.caller.answer(under_way) == [2]


def test_a_server_that_comes_back_begins_with_an_empty_window() -> None:
    """What it had when it went has ended since."""
    bench = RelayBench(window=1)
    first, second = bench.caller.request(), bench.caller.request()
    bench.submit(first)
    bench.relay.serve_by([])
    bench.fail(first, TritonLost("doubler"))

    bench.relay.serve_by(bench.servers)
    bench.submit(second)

    assert bench.server.asked == [first, second]


def test_a_full_queue_of_the_server_cuts_its_window() -> None:
    """What it refuses now it would refuse again."""
    bench = RelayBench(window=10)
    window = bench.relay._flights._windows[bench.server] = Window(Bounds(1, 10, 10))
    request = bench.caller.request()
    bench.submit(request)

    bench.fail(request, TritonQueueFull("doubler"))

    assert window.size == 7


class Breaking(ManualServer):
    """Can't even begin."""

    def ask(self, request: InferRequest, done: object) -> object:  # type: ignore[override]
        raise RuntimeError("no call")


def test_a_bug_strikes_nobody_twice() -> None:
    """A call that can't be made settles its request, and the next one is served."""
    bench = RelayBench()
    bench.relay.serve_by([Breaking("breaking", bench.loop)])  # type: ignore[list-item]
    request, later = bench.caller.request(), bench.caller.request()
    bench.submit(request)
    assert bench.caller.outcome(request) is not None

    bench.relay.serve_by(bench.servers)
    bench.submit(later)
    bench.answer(later)

    assert bench.caller.answer(later) == [2]


def test_a_drain_answers_what_was_admitted_and_nothing_more() -> None:
    """Whoever comes is told; whoever waits is answered."""
    bench = RelayBench(window=1)
    first, second, third = (bench.caller.request() for _ in range(3))
    bench.submit(first, second)

    draining = bench.relay.drain(bench.clock.now_ns + 1000 * MS)
    draining.send(None)
    bench.submit(third)
    bench.answer(first)
    bench.answer(second)

    assert isinstance(bench.caller.outcome(third), Draining)
    assert bench.caller.answer(second) == [2]
    with pytest.raises(StopIteration):
        draining.send(None)


def test_a_close_gives_up_what_is_under_way() -> None:
    """It is settled as Draining, once, and the close waits for its end."""

    async def close() -> None:
        bench = RelayBench()
        request = bench.caller.request()
        bench.submit(request)
        closing = asyncio.ensure_future(bench.relay.close())
        await asyncio.sleep(0)
        bench.loop.run()
        await closing
        assert isinstance(bench.caller.outcome(request), Draining)
        assert bench.server.waiting == {}

    asyncio.run(close())
