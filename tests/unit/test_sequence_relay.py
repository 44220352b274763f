"""Sequences that other servers run: one server each, in order, and a gap is the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    QueueFull,
    SequenceLost,
    TritonLost,
    TritonRefused,
    TritonUnreached,
)
from server.scheduler.flights import Done
from server.scheduler.queue import QueuePolicy
from server.scheduler.sequence_relay import SequenceRelay
from server.scheduler.statistics import ModelStatistics
from server.types import NO_DEADLINE, InferRequest
from tests.support.relaying import ManualServer
from tests.support.scheduler import MS, Caller, ManualClock, ManualLoop


class Bench:
    def __init__(self, servers: int = 1, *, max_queue_size: int = 0, slo_ns: int = 0) -> None:
        self.clock = ManualClock()
        self.loop = ManualLoop(self.clock)
        self.caller = Caller(self.clock)
        self.statistics = ModelStatistics("doubler", "1")
        self.servers = [ManualServer(f"server{index}", self.loop) for index in range(servers)]
        self.relay = SequenceRelay(
            "doubler",
            QueuePolicy(max_queue_size=max_queue_size),
            1000 * MS,
            self.statistics,
            self.loop,  # type: ignore[arg-type]
            self.clock,
            slo_ns=slo_ns,
        )
        self.relay.serve_by(self.servers)

    def request(self, name: Any = 7, *, deadline_ns: int = NO_DEADLINE, **flags: bool) -> InferRequest:
        parameters = {"sequence_id": name, **{f"sequence_{flag}": value for flag, value in flags.items()}}
        return self.caller.request(deadline_ns=deadline_ns, parameters=parameters)

    def submit(self, *requests: InferRequest) -> None:
        self.relay.submit(requests)
        self.loop.run()

    def who(self, request: InferRequest) -> ManualServer:
        return next(server for server in self.servers if request in server.waiting)

    def answer(self, request: InferRequest) -> None:
        self.who(request).answer(request)
        self.loop.run()

    def fail(self, request: InferRequest, error: Exception) -> None:
        self.who(request).end(request, error)
        self.loop.run()

    def asked(self) -> list[InferRequest]:
        return [request for server in self.servers for request in server.asked]


def test_the_requests_of_a_sequence_go_one_behind_the_other() -> None:
    """Each when the one before it was answered, and all to one server."""
    bench = Bench(servers=3)
    requests = [bench.request(start=True), bench.request(), bench.request(end=True)]

    bench.submit(*requests)
    home = bench.who(requests[0])
    assert home.asked == requests[:1]
    bench.answer(requests[0])
    bench.answer(requests[1])
    bench.answer(requests[2])

    assert home.asked == requests
    assert [bench.caller.answer(request) for request in requests] == [[2]] * 3
    assert bench.statistics.success.count == 3


def test_a_request_that_can_not_be_sent_ends_its_sequence_alone() -> None:
    """Others go on."""
    bench = Bench()
    (server,) = bench.servers
    odd, behind, other = bench.request(1, start=True), bench.request(1), bench.request(2, start=True)
    ask = server.ask

    def choosy(request: InferRequest, done: Done) -> Callable[[], None]:
        if request is odd:
            raise ValueError("it can't be written")
        return ask(request, done)

    server.ask = choosy  # type: ignore[method-assign]
    bench.submit(odd, behind, other)
    bench.answer(other)

    assert isinstance(bench.caller.outcome(odd), EngineFailure)
    assert isinstance(bench.caller.outcome(behind), SequenceLost)
    assert bench.caller.answer(other) == [2]


def test_sequences_do_not_wait_for_each_other() -> None:
    """Nor are they all on one server."""
    bench = Bench(servers=4)
    requests = [bench.request(number, start=True) for number in range(1, 65)]

    bench.submit(*requests)

    assert len(bench.asked()) == 64
    assert all(len(server.asked) > 4 for server in bench.servers)


def test_every_gateway_finds_the_same_server() -> None:
    """One that knows nothing of the sequence, as after a restart, and whatever the order of the servers."""
    first, second = Bench(servers=4), Bench(servers=4)
    second.relay.serve_by(reversed(second.servers))
    for number in range(1, 33):
        one, other = first.request(number, start=True), second.request(number)
        first.submit(one)
        second.submit(other)
        assert first.who(one).name == second.who(other).name


def test_a_server_that_comes_takes_no_sequence_that_runs() -> None:
    """They stay where they are until they end."""
    bench = Bench(servers=4)
    bench.relay.serve_by(bench.servers[:1])
    for number in range(1, 33):
        start = bench.request(number, start=True)
        bench.submit(start)
        bench.answer(start)
    bench.relay.serve_by(bench.servers)

    bench.submit(*(bench.request(number) for number in range(1, 33)))

    assert [len(server.asked) for server in bench.servers] == [64, 0, 0, 0]


def test_a_sequence_that_is_long_idle_is_forgotten() -> None:
    """As its server forgets it; it may be at home somewhere else since."""
    bench = Bench()
    start, other = bench.request(start=True), bench.request(8, start=True)
    bench.submit(start)
    bench.answer(start)
    bench.clock.now_ns += 1001 * MS

    bench.submit(other)

    assert list(bench.relay._courses) == [8]


@pytest.mark.parametrize("error", [TritonLost("doubler"), TritonRefused("no"), TritonUnreached("doubler", "gone")])
def test_a_request_that_is_not_answered_ends_its_sequence(error: Exception) -> None:
    """What waits behind it would meet another state than its caller believes; another start begins anew."""
    bench = Bench()
    start, second, third = bench.request(start=True), bench.request(), bench.request()
    other = bench.request(8, start=True)
    bench.submit(start, second, third, other)
    bench.answer(start)

    bench.fail(second, error)
    again = bench.request(start=True)
    bench.submit(again)
    bench.answer(again)

    assert bench.caller.outcome(second) is error
    assert isinstance(bench.caller.outcome(third), SequenceLost)
    assert bench.caller.answer(again) == [2]
    assert bench.caller.outcome(other) is None


def test_a_start_that_was_not_executed_goes_to_another_server_once() -> None:
    """Nothing is lost by that; a later request has its state where it is."""
    bench = Bench(servers=2)
    start = bench.request(start=True)
    bench.submit(start)
    first = bench.who(start)

    bench.fail(start, TritonUnreached("doubler", "gone"))
    assert bench.who(start) is not first
    bench.fail(start, TritonUnreached("doubler", "gone"))

    assert isinstance(bench.caller.outcome(start), TritonUnreached)
    assert bench.relay.retries == 1


def test_sequences_of_a_server_that_goes_are_over() -> None:
    """Those of the others go on."""
    bench = Bench(servers=2)
    starts = [bench.request(number, start=True) for number in range(1, 17)]
    bench.submit(*starts)
    homes = {start: bench.who(start) for start in starts}
    for start in starts:
        bench.answer(start)
    bench.relay.serve_by(bench.servers[:1])

    later = {start: bench.request(start.parameters["sequence_id"]) for start in starts}
    bench.submit(*later.values())

    assert all(bench.who(request) is bench.servers[0] for request in later.values())
    assert set(homes.values()) == set(bench.servers)


def test_a_caller_who_goes_away_while_it_waits_ends_its_sequence() -> None:
    """There is a gap where it was."""
    bench = Bench()
    start, second, third = bench.request(start=True), bench.request(), bench.request()
    bench.submit(start, second, third)

    bench.relay.cancel(second)
    bench.answer(start)

    assert isinstance(bench.caller.outcome(second), Cancelled)
    assert isinstance(bench.caller.outcome(third), SequenceLost)
    assert bench.caller.answer(start) == [2]
    assert bench.asked() == [start]


def test_a_caller_who_goes_away_gives_up_its_call() -> None:
    """And what waits behind it is over."""
    bench = Bench()
    start, second = bench.request(start=True), bench.request()
    bench.submit(start, second)

    bench.relay.cancel(start)
    bench.loop.run()

    assert isinstance(bench.caller.outcome(start), Cancelled)
    assert isinstance(bench.caller.outcome(second), SequenceLost)


def test_what_expires_while_it_waits_ends_its_sequence() -> None:
    """It is told when its deadline comes."""
    bench = Bench()
    start, second = bench.request(start=True), bench.request(deadline_ns=bench.clock.now_ns + 10 * MS)
    third = bench.request()
    bench.submit(start, second, third)

    bench.clock.now_ns += 10 * MS
    bench.loop.run()

    assert isinstance(bench.caller.outcome(second), DeadlineExceeded)
    assert isinstance(bench.caller.outcome(third), SequenceLost)


def test_the_queue_has_its_limit() -> None:
    """Of all sequences' requests that wait here; who is refused leaves a gap."""
    bench = Bench(max_queue_size=1)
    start, second, third = bench.request(start=True), bench.request(), bench.request()
    bench.submit(start)
    bench.submit(second)
    bench.submit(third)

    assert isinstance(bench.caller.outcome(third), QueueFull)
    assert isinstance(bench.caller.outcome(second), SequenceLost)


def test_without_a_server_everybody_is_told_so() -> None:
    """At once."""
    bench = Bench()
    bench.relay.serve_by([])
    start = bench.request(start=True)
    bench.submit(start)

    assert isinstance(bench.caller.outcome(start), TritonUnreached)
    assert not bench.relay.healthy()


def test_a_drain_answers_what_was_admitted_and_nothing_more() -> None:
    """Whoever comes is told; whoever waits is answered."""
    bench = Bench()
    start, second, late = bench.request(start=True), bench.request(), bench.request(8, start=True)
    bench.submit(start, second)

    draining = bench.relay.drain(bench.clock.now_ns + 1000 * MS)
    draining.send(None)
    bench.submit(late)
    bench.answer(start)
    bench.answer(second)

    assert isinstance(bench.caller.outcome(late), Draining)
    assert bench.caller.answer(second) == [2]
    with pytest.raises(StopIteration):
        draining.send(None)


def test_everything_is_counted_once() -> None:
    """Who is admitted, who waits, what the servers took, and how many of them there are."""
    bench = Bench(servers=2)
    counts = bench.statistics
    assert counts.instances == 2
    start, second, third = bench.request(start=True), bench.request(), bench.request(end=True)
    bench.submit(start, second, third)
    assert (counts.admitted, counts.pending, start.enqueued_ns) == (3, 2, bench.clock.now_ns)
    bench.clock.now_ns += 5 * MS
    bench.answer(start)
    assert (counts.pending, counts.busy_ns, counts.queue.ns, counts.compute_infer.ns) == (1, 5 * MS, 0, 5 * MS)
    bench.clock.now_ns += 2 * MS
    bench.answer(second)
    bench.answer(third)
    assert (counts.pending, counts.success.count, counts.busy_ns) == (0, 3, 7 * MS)
    assert counts.queue.ns == 5 * MS + 7 * MS
    assert (counts.inference_count, counts.execution_count) == (3, 3)
    bench.relay.serve_by(bench.servers[:1])
    assert counts.instances == 1


def test_a_sequence_that_has_ended_is_forgotten() -> None:
    """Unless more of it waits: that begins it anew, on the same server."""
    bench = Bench(servers=2)
    end = bench.request(start=True, end=True)
    bench.submit(end)
    bench.answer(end)
    assert not bench.relay._courses
    end, again = bench.request(start=True, end=True), bench.request(start=True)
    bench.submit(end, again)
    bench.answer(end)
    assert list(bench.relay._courses) == [7]
    bench.answer(again)
    assert list(bench.relay._courses) == [7], "it has no end yet"


def test_a_sequence_is_idle_from_its_last_answer_on() -> None:
    """One that is under way, or just as long idle as it may be, is kept; they are looked at once in a second."""
    bench = Bench()
    start, long = bench.request(start=True), bench.request(9, start=True)
    bench.submit(start, long)
    bench.clock.now_ns += 5000 * MS
    bench.answer(start)
    for later_ms, known in ((0, [7, 9]), (1000, [7, 9, 8]), (1000, [9, 8]), (1001, [9])):
        bench.clock.now_ns += later_ms * MS
        if later_ms == 1000:
            bench.submit(other := bench.request(8, start=True))
            bench.answer(other)
        else:
            bench.submit()
        assert list(bench.relay._courses) == known, later_ms


def test_the_sweep_comes_once_in_a_second() -> None:
    """It looks at every sequence that there is."""
    bench = Bench()
    bench.submit()
    swept_ns = bench.relay._swept_ns
    assert swept_ns == bench.clock.now_ns
    for later_ms, swept in ((999, False), (1, True)):
        bench.clock.now_ns += later_ms * MS
        bench.submit()
        assert (bench.relay._swept_ns != swept_ns) is swept


def test_a_retry_goes_before_what_waits_behind_it() -> None:
    """One that is no start, a second time, or that nobody waits for any more is not sent again."""
    bench = Bench(servers=2)
    start, second = bench.request(start=True), bench.request()
    bench.submit(start, second)
    first = bench.who(start)
    bench.fail(start, TritonUnreached("doubler", "gone"))
    other = bench.who(start)
    bench.answer(start)
    assert bench.who(second) is other is not first
    error = TritonUnreached("doubler", "gone")
    bench.fail(second, error)
    assert bench.caller.outcome(second) is error

    gone = bench.request(8, start=True)
    bench.submit(gone)
    gone.settle(Cancelled())
    bench.fail(gone, TritonUnreached("doubler", "gone"))
    assert bench.relay.retries == 1
    assert bench.statistics.failures["OTHER"] == 1  # type: ignore[index]


def test_a_start_that_was_lost_or_has_nowhere_else_to_go_is_not_sent_again() -> None:
    """It may have been executed; or the only server does not have it."""
    for servers, error in ((2, TritonLost("doubler")), (1, TritonUnreached("doubler", "gone"))):
        bench = Bench(servers)
        start = bench.request(start=True)
        bench.submit(start)
        bench.fail(start, error)
        assert bench.caller.outcome(start) is error
        assert bench.relay.retries == 0


def test_an_error_of_ours_is_told_as_one_of_the_engine() -> None:
    """Its text is withheld elsewhere."""
    bench = Bench()
    start = bench.request(start=True)
    bench.submit(start)
    bench.fail(start, ValueError("bug"))
    assert isinstance(bench.caller.outcome(start), EngineFailure)


def test_what_is_under_way_on_a_server_that_goes_is_answered_and_what_waits_behind_it_is_lost() -> None:
    """When it has ended; of a sequence that is idle there nothing is kept, and those of other servers go on."""
    bench = Bench(servers=2)
    starts = [bench.request(number, start=True) for number in range(1, 17)]
    waiting = {start: bench.request(start.parameters["sequence_id"]) for start in starts}
    idle = next(
        start for start in starts if bench.relay._home(start.parameters["sequence_id"], bench.servers).name == "server1"
    )
    bench.submit(*starts, *(request for start, request in waiting.items() if start is not idle))
    homes = {start: bench.who(start) for start in starts}
    bench.answer(idle)
    bench.relay.serve_by(bench.servers[:1])
    bench.loop.run()
    assert not any(bench.caller.outcome(request) for request in waiting.values())
    assert idle.parameters["sequence_id"] not in bench.relay._courses
    for start in starts:
        if start is not idle:
            bench.answer(start)
            stays = homes[start] is bench.servers[0]
            assert bench.caller.answer(start) == [2]
            assert isinstance(bench.caller.outcome(waiting[start]), SequenceLost) is not stays
            assert (waiting[start] in bench.servers[0].waiting) is stays
    assert {server.name for server in homes.values()} == {"server0", "server1"}
    assert len(bench.relay._courses) == sum(server is bench.servers[0] for server in homes.values())


def test_who_goes_away_in_the_turn_of_its_arrival_is_never_sent() -> None:
    """And what came with it is."""
    bench = Bench()
    gone, start = bench.request(8, start=True), bench.request(start=True)
    bench.relay.submit([gone, start])
    bench.relay.cancel(gone)
    bench.relay.cancel(gone)
    bench.loop.run()
    assert isinstance(bench.caller.outcome(gone), Cancelled)
    assert bench.asked() == [start]
    assert bench.statistics.cancelled == 1


def test_a_deadline_is_over_at_its_very_nanosecond() -> None:
    """For who comes, and for who waits; the one tells how long it did."""
    bench = Bench()
    over = bench.request(start=True, deadline_ns=bench.clock.now_ns)
    bench.submit(over)
    told = bench.caller.outcome(over)
    assert isinstance(told, DeadlineExceeded)
    assert told.waited_us == 0
    start, second = bench.request(start=True), bench.request(deadline_ns=bench.clock.now_ns + 10 * MS)
    bench.submit(start, second)
    assert bench.loop.next_timer_ns() is not None
    bench.clock.now_ns += 10 * MS - 1
    bench.loop.run()
    assert bench.caller.outcome(second) is None
    bench.clock.now_ns += 1
    bench.loop.run()
    told = bench.caller.outcome(second)
    assert isinstance(told, DeadlineExceeded)
    assert told.waited_us == 10_000


def test_a_models_objective_is_a_deadline() -> None:
    """From the receipt of each request."""
    bench = Bench(slo_ns=3 * MS)
    start, second = bench.request(start=True), bench.request()
    bench.submit(start, second)
    assert second.deadline_ns == second.received_ns + 3 * MS
    bench.clock.now_ns += 3 * MS
    bench.loop.run()
    assert isinstance(bench.caller.outcome(second), DeadlineExceeded)


def test_just_as_many_wait_as_may() -> None:
    """Those of all sequences together, not those that are with a server."""
    bench = Bench(max_queue_size=2)
    starts = [bench.request(number, start=True) for number in (1, 2)]
    bench.submit(*starts)
    waiting = [bench.request(number) for number in (1, 2)]
    bench.submit(*waiting)
    assert [bench.caller.outcome(request) for request in waiting] == [None, None]
    third = bench.request(3, start=True)
    bench.submit(third)
    refused = bench.caller.outcome(third)
    assert isinstance(refused, QueueFull)
    assert refused.limit == 2
    assert bench.statistics.pending == 2


def test_a_drain_ends_at_its_time() -> None:
    """Who waits and who is under way is told so; then nothing is left."""
    bench = Bench()
    start, second = bench.request(start=True), bench.request()
    bench.submit(start, second)
    draining = bench.relay.drain(bench.clock.now_ns + 1000 * MS)
    draining.send(None)
    bench.loop.run()
    bench.clock.now_ns += 1000 * MS - 1
    bench.loop.run()
    assert bench.caller.outcome(start) is None
    bench.clock.now_ns += 1
    bench.loop.run()
    for request in (start, second):
        assert isinstance(bench.caller.outcome(request), Draining)
    with pytest.raises(StopIteration):
        draining.send(None)
    assert bench.statistics.pending == 0
    assert not bench.relay._courses
