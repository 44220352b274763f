"""Sequences that other servers run: one server each, in order, and a gap is the end."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    QueueFull,
    SequenceLost,
    TritonLost,
    TritonRefused,
    TritonUnreached,
)
from server.scheduler.queue import QueuePolicy
from server.scheduler.sequence_relay import SequenceRelay
from server.scheduler.statistics import ModelStatistics
from server.types import NO_DEADLINE, InferRequest
from tests.support.relaying import ManualServer
from tests.support.scheduler import MS, Caller, ManualClock, ManualLoop


class Bench:
    def __init__(self, servers: int = 1, *, max_queue_size: int = 0) -> None:
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
