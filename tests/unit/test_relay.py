"""The relay: who is sent when and where, what becomes of failures, and that each is settled once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from server.errors import (
    CallExpired,
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    Overloaded,
    QueueFull,
    TritonDeclined,
    TritonLost,
    TritonQueueFull,
    TritonUnreached,
)
from server.explain import Explanation, WaitReason
from server.scheduler.flights import Done
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


@pytest.mark.parametrize("waits", [True, False])
def test_a_caller_who_goes_away_during_a_retry_ends_it(waits: bool) -> None:
    """Also while it waits for room; the other server hears of it if it has it, and is free for the next one."""
    bench = RelayBench(servers=2, window=1)
    request, other, later = (bench.caller.request() for _ in range(3))
    bench.submit(request, other)
    first, second = bench.servers
    bench.relay.serve_by([second])
    if not waits:
        bench.answer(other)
    bench.fail(request, UNREACHED)

    bench.relay.cancel(request)
    bench.loop.run()
    bench.submit(later)
    if waits:
        bench.answer(other)

    assert isinstance(bench.caller.outcome(request), Cancelled)
    assert first.asked == [request]
    assert second.asked == ([other, later] if waits else [other, request, later])
    assert not bench.relay._refused_by


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


class Choosy(ManualServer):
    """Can't begin with a request that is not its like."""

    def ask(self, request: InferRequest, done: Done) -> Callable[[], None]:
        if request.id == "odd":
            raise ValueError("it can't be written")
        return super().ask(request, done)


def test_a_request_that_can_not_be_sent_costs_its_neighbours_nothing() -> None:
    """Those before it are under way, those behind it are sent, and its place is free."""
    bench = RelayBench(window=2)
    choosy = Choosy("choosy", bench.loop)
    bench.relay.serve_by([choosy])
    first, odd, second, third = requests = [bench.caller.request() for _ in range(4)]
    odd.id = "odd"

    bench.submit(*requests)
    assert isinstance(bench.caller.outcome(odd), EngineFailure)
    assert choosy.asked == [first, second]
    for request in (first, second, third):
        choosy.answer(request)
        bench.loop.run()

    assert [bench.caller.answer(request) for request in (first, second, third)] == [[2]] * 3


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
        bench = RelayBench(window=1)
        request, waits = bench.caller.request(), bench.caller.request()
        bench.submit(request, waits)
        closing = asyncio.ensure_future(bench.relay.close())
        await asyncio.sleep(0)
        assert bench.statistics.pending == 0, "at once"
        bench.loop.run()
        await closing
        assert isinstance(bench.caller.outcome(request), Draining)
        assert isinstance(bench.caller.outcome(waits), Draining)
        assert bench.server.waiting == {}

    asyncio.run(close())


# --- what it tells ----------------------------------------------------------------------------------------------------


def test_everything_is_counted_once() -> None:
    """Who waits, what the servers took, and how many requests fit there; what was foreseen is held against it."""
    bench = RelayBench(servers=2, window=2, seed_ns=10 * MS)
    counts = bench.statistics
    assert counts.instances == 4
    requests = [bench.caller.request() for _ in range(5)]
    bench.submit(*requests)
    assert (counts.admitted, counts.pending, bench.relay.pending) == (5, 1, 1)
    bench.clock.now_ns += 7 * MS
    bench.answer(requests[0])
    assert (counts.busy_ns, counts.predicted_ns, counts.actual_ns) == (7 * MS, 10 * MS, 7 * MS)
    assert (counts.compute_input.ns, counts.compute_infer.ns, counts.compute_output.ns) == (0, 7 * MS, 0)
    assert (counts.pending, counts.success.count, counts.queue.ns) == (0, 1, 0)
    bench.relay.serve_by(bench.servers[:1])
    assert counts.instances == 2
    unknown = RelayBench()
    request = unknown.caller.request()
    unknown.submit(request)
    unknown.answer(request)
    assert (unknown.statistics.predicted_ns, unknown.statistics.actual_ns) == (0, 0)


def test_pending_has_those_who_were_not_looked_at_yet() -> None:
    """The statistics do not, until they are admitted."""
    bench = RelayBench(window=1)
    bench.submit(bench.caller.request(), bench.caller.request())
    bench.relay.submit([bench.caller.request()])
    assert (bench.relay.pending, bench.statistics.pending) == (2, 1)
    bench.loop.run()
    assert bench.statistics.pending == 2


def test_who_asks_is_told_that_it_waited_for_the_server() -> None:
    """One that is sent at once waited for nothing."""
    bench = RelayBench(window=1)
    requests = [bench.caller.request() for _ in range(2)]
    for request in requests:
        request.explanation = Explanation(bench.clock.now_ns, bench.clock)
    bench.submit(*requests)
    bench.advance(3 * MS)
    bench.answer(requests[0])
    waited = [request.explanation.waited for request in requests if request.explanation]
    assert waited == [WaitReason.NONE, WaitReason.INSTANCE_BUSY]
    assert not bench.relay._waits


def test_who_is_still_made_ready_is_foreseen_behind_those_who_have_just_come() -> None:
    """And behind those that come before it. Without a server, or while it goes, it is told so."""
    bench = RelayBench(window=1, seed_ns=10 * MS)
    bench.submit(bench.caller.request())
    bench.relay.submit([bench.caller.request([1, 2])])
    foreseen = []
    for coming in (0, 1):
        request = bench.caller.request(deadline_ns=bench.clock.now_ns + 500 * MS)
        assert bench.relay.foresee(request, coming).refusal is None
        foreseen.append(request.predicted_ns - bench.clock.now_ns)
    assert foreseen == [int(10 * MS + 20 * MS / bench.relay._flights.requests) + 12 * MS, foreseen[0] + 10 * MS]
    bench.relay.serve_by([])
    assert isinstance(bench.relay.foresee(bench.caller.request(), 0).refusal, TritonUnreached)
    bench.relay.drain(bench.clock.now_ns + MS).send(None)
    assert isinstance(bench.relay.foresee(bench.caller.request(), 0).refusal, Draining)


def test_nobody_is_hopeless_while_a_server_has_room() -> None:
    """Only the last one that was late tells, once all are full."""
    bench = RelayBench(window=1, seed_ns=10 * MS)
    now_ns = bench.clock.now_ns
    assert bench.relay.hopeless(1, now_ns) is None
    bench.submit(bench.caller.request())
    assert bench.relay.hopeless(1, now_ns + 15 * MS) is None, "nobody has told yet"
    bench.submit(bench.caller.request(deadline_ns=now_ns + 15 * MS))
    assert isinstance(bench.relay.hopeless(1, now_ns + 15 * MS), Overloaded)
    bench.answer(bench.server.asked[0])
    assert bench.relay.hopeless(1, now_ns + 15 * MS) is None


def test_a_model_whose_answers_tell_nothing_of_the_next_refuses_nobody() -> None:
    """Where a request says how long its answer will be."""
    bench = RelayBench(window=1, foresees=False)
    for _ in range(3):
        request = bench.caller.request()
        bench.submit(request)
        bench.advance(100 * MS)
        bench.answer(request)
    bench.submit(bench.caller.request())
    hasty = bench.caller.request(deadline_ns=bench.clock.now_ns + MS)
    bench.submit(hasty)
    assert bench.caller.outcome(hasty) is None


def test_what_a_deadline_ended_sooner_than_expected_teaches_nothing() -> None:
    """It says only that the answer takes longer than that."""
    for took_ms, learns in ((10, False), (11, True)):
        bench = RelayBench(window=1, seed_ns=10 * MS)
        request = bench.caller.request()
        bench.submit(request)
        bench.advance(took_ms * MS)
        bench.fail(request, CallExpired())
        assert (bench.relay._admission.alone_ns(request) > 10 * MS) is learns


def test_work_that_nobody_is_there_to_do_counts_as_arrived() -> None:
    """So that a server is started for it; not while it goes."""
    bench = RelayBench(seed_ns=10 * MS)
    bench.relay.serve_by([])
    bench.submit(bench.caller.request())
    arrived = bench.statistics.load.work(bench.clock.now_ns)
    assert arrived > 0
    bench.relay.drain(bench.clock.now_ns + 1000 * MS).send(None)
    bench.submit(bench.caller.request())
    assert bench.statistics.load.work(bench.clock.now_ns) == arrived


def test_a_drain_ends_at_its_time() -> None:
    """Not a nanosecond before; who waits and who is under way is told so, and what comes later is thrown away."""
    bench = RelayBench(window=1)
    requests = [bench.caller.request() for _ in range(2)]
    bench.submit(*requests)
    draining = bench.relay.drain(bench.clock.now_ns + 1000 * MS)
    draining.send(None)
    bench.loop.run()
    bench.advance(1000 * MS - 1)
    assert [bench.caller.outcome(request) for request in requests] == [None, None]
    bench.advance(1)
    assert all(isinstance(bench.caller.outcome(request), Draining) for request in requests)
    assert bench.statistics.pending == 0
    with pytest.raises(StopIteration):
        draining.send(None)
    bench.answer(requests[0])
    assert bench.statistics.success.count == 0


def test_answers_leave_in_order_where_that_is_asked() -> None:
    """One that is cancelled lets those behind it go."""
    bench = RelayBench(window=3, preserve_ordering=True)
    requests = [bench.caller.request() for _ in range(3)]
    bench.submit(*requests)
    bench.answer(requests[2])
    bench.answer(requests[1])
    assert [bench.caller.outcome(request) for request in requests[1:]] == [None, None]
    bench.relay.cancel(requests[0])
    bench.loop.run()
    assert [bench.caller.answer(request) for request in requests[1:]] == [[2], [2]]
