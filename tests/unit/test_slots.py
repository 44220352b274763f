"""Sequences and their slots, asked directly: who is where, who is lost with whom, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from server.scheduler.sequence_statistics import SequenceStatistics, Tally
from server.scheduler.slots import Chain, Ending, Slots
from server.tensor import Tensor
from server.types import NO_DEADLINE, InferRequest

STATES = (Tensor("s", "FP32", (1,), bytes(4)),)


class Bench:
    def __init__(self, lanes: int = 1, size: int = 2) -> None:
        self.ready: list[InferRequest] = []
        self.slots = Slots(lanes, size, self.ready.append)

    def join(self, name: Any = 1, *, deadline_ns: int = NO_DEADLINE, **flags: bool) -> InferRequest:
        request = self.request(name, deadline_ns=deadline_ns, **flags)
        self.slots.join(request)
        return request

    def request(self, name: Any = 1, *, deadline_ns: int = NO_DEADLINE, **flags: bool) -> InferRequest:
        return InferRequest(
            "m",
            (),
            on_settle=lambda _, __: None,
            received_ns=0,
            deadline_ns=deadline_ns,
            parameters={"sequence_id": name, **{f"sequence_{flag}": value for flag, value in flags.items()}},
        )

    def chain(self, request: InferRequest) -> Chain:
        chain = self.slots.chain(request)
        assert chain is not None
        return chain

    def run(self, request: InferRequest, now_ns: int = 0) -> None:
        """It is its turn, and its pass succeeds."""
        chain = self.chain(request)
        assert self.slots.begin(chain) is request
        self.slots.advance(chain, STATES, now_ns)

    @property
    def ended(self) -> dict[str, int]:
        return {cause.value: count for cause, count in self.slots.ended.items() if count}

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Held, waiting, active, started, and in the backlog."""
        slots = self.slots
        return len(slots), slots.waiting, slots.active, slots.started, len(slots.backlog)


def test_a_sequence_goes_from_its_start_to_its_end() -> None:
    """Each request is ready when the one before it is over; at the end its slot is free."""
    bench = Bench()
    start, second, end = bench.join(start=True), bench.join(), bench.join(end=True)
    assert (bench.counts, bench.ready) == ((3, 3, 1, 1, 0), [start])
    assert not bench.slots.knows(1), "its end is there"
    chain = bench.chain(start)
    assert (chain.lane, chain.row) == (0, 0)
    bench.slots.begin(chain)
    assert (bench.counts, chain.running) == ((3, 2, 1, 1, 0), start)
    bench.slots.advance(chain, STATES, 0)
    assert (chain.states, chain.running, bench.ready) == (STATES, None, [start, second])
    bench.run(second)
    assert not bench.slots.empty()
    bench.run(end)
    assert bench.counts == (0, 0, 0, 1, 0)
    assert (bench.slots.empty(), bench.ended, chain.lane) == (True, {}, -1)
    assert bench.ready == [start, second, end]


def test_slots_are_given_the_lowest_row_first_and_who_finds_none_waits() -> None:
    """In the order of the starts, for whichever slot is free."""
    bench = Bench(lanes=2, size=2)
    ends = [bench.join(number, start=True, end=True) for number in range(6)]
    places = [(bench.chain(request).row, bench.chain(request).lane) for request in ends]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (-1, -1), (-1, -1)]
    assert bench.counts == (6, 6, 4, 4, 2)
    bench.run(ends[2])
    assert (bench.chain(ends[4]).row, bench.chain(ends[4]).lane) == (1, 0)
    assert bench.ready == [*ends[:4], ends[4]]
    bench.run(ends[0])
    assert (bench.chain(ends[5]).row, bench.chain(ends[5]).lane) == (0, 0)
    assert bench.counts == (4, 4, 4, 6, 0)


def test_a_sequence_without_a_slot_is_one_place_in_the_backlog() -> None:
    """However many requests of it wait there."""
    bench = Bench(size=1)
    first = bench.join(1, start=True, end=True)
    waiting = [bench.join(2, start=True), bench.join(2)]
    assert bench.counts == (3, 3, 1, 1, 1)
    bench.run(first)
    assert bench.ready == [first, waiting[0]]
    assert bench.counts == (2, 2, 1, 2, 0)


def test_a_sequence_without_requests_is_idle_until_it_is_ended() -> None:
    """The longest idle first, from its last request on; one that joins is idle no more."""
    bench = Bench()
    first, second = bench.join(1, start=True), bench.join(2, start=True)
    assert bench.slots.idle_since_ns() == NO_DEADLINE
    bench.run(first, 100)
    bench.run(second, 200)
    assert bench.slots.idle_since_ns() == 100
    assert bench.slots.end_idle(99) == 0
    again = bench.join(1)
    assert bench.slots.idle_since_ns() == 200
    bench.run(again, 300)
    assert bench.slots.end_idle(200) == 1
    assert (bench.slots.knows(1), bench.slots.knows(2), bench.ended) == (True, False, {"idle": 1})
    assert bench.slots.end_idle(400) == 1
    assert bench.counts == (0, 0, 0, 2, 0)


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_a_request_that_is_lost_alone_may_be_sent_again() -> None:
    """The sequence goes on with the states that it had; a start that is lost is none."""
    bench = Bench()
    bench.run(bench.join(start=True))
    request = bench.join()
    chain = bench.chain(request)
    assert bench.slots.lose(request, 50) == []
    assert (bench.slots.knows(1), bench.slots.idle_since_ns(), chain.states) == (True, 50, STATES)
    assert (bench.counts, bench.ended, list(bench.slots.lanes[0].ready)) == ((0, 0, 1, 1, 0), {}, [])
    assert bench.slots.lose(request, 60) == [], "it is not here"
    start = bench.join(2, start=True)
    assert bench.slots.lose(start, 60) == []
    assert (bench.slots.knows(2), bench.ended) == (False, {"lost": 1})
    assert bench.counts == (0, 0, 1, 2, 0)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_who_waits_behind_a_lost_one_is_lost_too(place: int) -> None:
    """Those before it are served; nobody joins."""
    bench = Bench()
    bench.run(bench.join(start=True))
    requests = [bench.join() for _ in range(3)]
    assert bench.slots.lose(requests[place], 0) == requests[place + 1 :]
    assert (bench.slots.knows(1), bench.ended) == (False, {"lost": 1})
    assert bench.counts[:2] == (place, place)
    for request in requests[:place]:
        bench.run(request)
    assert bench.counts == (0, 0, 0, 1, 0)


def test_one_that_runs_keeps_its_slot_until_its_pass_has_ended() -> None:
    """Its sequence is over with it if it was cancelled, or others wait behind it."""
    bench = Bench()
    start, behind = bench.join(start=True), bench.join()
    chain = bench.chain(start)
    bench.slots.begin(chain)
    assert bench.slots.lose(start, 0) == [behind]
    assert bench.counts == (1, 0, 1, 1, 0)
    bench.slots.leave(chain, 0)
    assert (bench.counts, bench.slots.empty()) == ((0, 0, 0, 1, 0), True)

    alone = Bench()
    alone.run(alone.join(start=True))
    request = alone.join()
    chain = alone.chain(request)
    alone.slots.begin(chain)
    assert alone.slots.lose(request, 0, cancelled=True) == []
    assert (alone.slots.knows(1), alone.ended) == (False, {"cancelled": 1})
    alone.slots.leave(chain, 0)
    assert alone.counts == (0, 0, 0, 1, 0)


def test_a_pass_that_failed_leaves_the_states_as_they_were() -> None:
    """The next one may run, or the sequence is idle."""
    bench = Bench()
    bench.run(bench.join(start=True))
    request = bench.join()
    chain = bench.chain(request)
    bench.slots.begin(chain)
    bench.slots.lose(request, 10)
    bench.slots.leave(chain, 20)
    assert (chain.states, bench.slots.knows(1), bench.slots.idle_since_ns()) == (STATES, True, 20)


@pytest.mark.parametrize(("flags", "over"), [({"start": True}, True), ({}, False)])
def test_a_refused_request_ends_its_sequence_where_others_are_under_way_or_it_was_to_begin_anew(
    flags: dict[str, bool], over: bool
) -> None:
    """Else its caller may send it again; one of no sequence that is known changes nothing."""
    idle = Bench()
    idle.run(idle.join(start=True))
    idle.slots.refuse(idle.request(**flags))
    assert idle.slots.knows(1) is not over
    assert idle.ended == ({"lost": 1} if over else {})
    assert idle.slots.active == (0 if over else 1)
    for runs in (False, True):
        busy = Bench()
        request = busy.join(start=True)
        if runs:
            busy.slots.begin(busy.chain(request))
        busy.slots.refuse(busy.request(**flags))
        assert (busy.slots.knows(1), busy.ended, busy.slots.active) == (False, {"lost": 1}, 1)
    idle.slots.refuse(idle.request(7, **flags))
    assert not idle.slots.knows(7)


def test_a_sequence_that_went_elsewhere_serves_what_it_has() -> None:
    """An idle one is gone at once; one that nobody knows is nothing."""
    bench = Bench()
    request = bench.join(start=True)
    bench.slots.supersede(1)
    bench.slots.supersede(9)
    assert (bench.slots.knows(1), bench.counts, bench.ended) == (False, (1, 1, 1, 1, 0), {"superseded": 1})
    bench.run(request)
    assert bench.counts == (0, 0, 0, 1, 0)
    bench.run(bench.join(2, start=True))
    bench.slots.supersede(2)
    assert (bench.counts, bench.ended) == ((0, 0, 0, 2, 0), {"superseded": 2})


def test_a_start_behind_an_end_is_a_sequence_of_its_own() -> None:
    """Of the same name, in a slot of its own."""
    bench = Bench()
    end, start = bench.join(start=True, end=True), bench.join(start=True)
    assert bench.chain(end) is not bench.chain(start)
    assert (bench.chain(start).row, bench.slots.knows(1)) == (1, True)


# --- time, and the end ------------------------------------------------------------------------------------------------


def test_who_waits_expires_at_the_very_nanosecond() -> None:
    """With a slot or without; who runs does not, and they still wait until they are lost."""
    bench = Bench(size=1)
    running = bench.join(1, start=True, deadline_ns=10)
    bench.slots.begin(bench.chain(running))
    waiting = [bench.join(1, deadline_ns=30), bench.join(2, start=True, deadline_ns=20), bench.join(3, start=True)]
    assert bench.slots.next_expiry_ns() == 10
    assert bench.slots.expired(19) == []
    assert bench.slots.next_expiry_ns() == 20
    assert bench.slots.expired(30) == [waiting[1], waiting[0]]
    assert len(bench.slots) == 4
    assert bench.slots.next_expiry_ns() == NO_DEADLINE


def test_deadlines_of_who_has_gone_are_not_kept() -> None:
    """However many come and go."""
    bench = Bench()
    bench.run(bench.join(start=True))
    for number in range(1, 1000):
        bench.slots.lose(bench.join(deadline_ns=10_000 - number), 0)
        assert len(bench.slots._expiries) <= 67
    assert bench.slots.expired(20_000) == []


def test_an_instance_that_dies_takes_its_sequences_with_it() -> None:
    """Those that wait there are returned; who runs keeps its place until its pass has ended, then nobody has it."""
    bench = Bench(lanes=2, size=1)
    running, behind = bench.join(1, start=True), bench.join(1)
    other, next_ = bench.join(2, start=True, end=True), bench.join(3, start=True)
    chain = bench.chain(running)
    bench.slots.begin(chain)
    assert bench.slots.kill(0) == [behind]
    assert (bench.counts, bench.ended) == ((3, 2, 2, 2, 1), {"lost": 1})
    bench.slots.leave(chain, 0)
    assert bench.chain(next_).lane == -1
    bench.run(other)
    assert bench.chain(next_).lane == 1
    assert bench.counts == (1, 1, 1, 3, 0)
    idle = Bench(lanes=2, size=1)
    idle.slots.kill(0)
    assert idle.chain(idle.join(start=True)).lane == 1


def test_a_clear_ends_every_sequence() -> None:
    """Those that wait for a slot, those that wait in one, and the idle ones; who runs is not among the returned."""
    bench = Bench(size=3)
    running, waiting, idle = (bench.join(number, start=True, deadline_ns=99) for number in (1, 2, 3))
    backlog = bench.join(4, start=True)
    bench.run(idle)
    chain = bench.chain(running)
    bench.slots.begin(chain)
    backlog2 = bench.join(5, start=True)
    lost = bench.slots.clear()
    assert {*lost} == {waiting, backlog, backlog2}
    assert not any(bench.slots.knows(number) for number in range(1, 6))
    assert (bench.slots.next_expiry_ns(), bench.counts[:3]) == (NO_DEADLINE, (1, 0, 1))
    assert bench.ended["lost"] == 5
    bench.slots.leave(chain, 0)
    assert (bench.slots.empty(), bench.slots.active) == (True, 0)


def test_a_tally_tells_what_has_changed() -> None:
    """Two batchers of one model, the old one still draining, add up."""
    statistics = SequenceStatistics()
    one, other = Bench(size=1), Bench(size=1)
    tallies = [(Tally(statistics), bench.slots) for bench in (one, other)]
    requests = [one.join(1, start=True), one.join(2, start=True), other.join(3, start=True)]
    for _ in range(2):
        for tally, slots in tallies:
            tally.tell(slots)
        assert (statistics.active, statistics.backlog, statistics.started) == (2, 1, 2)
    one.slots.lose(requests[0], 0, cancelled=True)
    for tally, slots in tallies * 2:
        tally.tell(slots)
    assert (statistics.active, statistics.backlog, statistics.started) == (2, 0, 3)
    assert statistics.ended == dict.fromkeys(Ending, 0) | {Ending.CANCELLED: 1}
