"""A version's place in the share of the cores, and its batcher's dealings with it, each figure by hand."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest

from server.scheduler.share import Lease, Seat, Share
from server.scheduler.statistics import ModelStatistics
from server.scheduler.turn import FREE, Turn
from server.scheduler.worker import Runner
from server.types import NO_DEADLINE, InferRequest
from tests.support.scheduler import MS

NOW_NS = 1_000 * MS


def nothing() -> None:
    """Nobody is called in these tests."""


def seats(tokens: int, *names: str, demand: int = 4) -> tuple[Share, list[Seat]]:
    share = Share(tokens)
    return share, [share.join(name, demand, nothing) for name in names]


def take(seat: Seat, ms: float | None = 10, tokens: int = 1, now_ns: int = NOW_NS) -> Lease | None:
    return seat.take(tokens, None if ms is None else int(ms * MS), NO_DEADLINE, now_ns)


def begun(seat: Seat, ms: float = 10, tokens: int = 1, now_ns: int = NOW_NS) -> Lease:
    lease = take(seat, ms, tokens, now_ns)
    assert lease is not None
    return lease


def test_a_lease_ends_when_it_is_expected_to_and_is_given_up_far_later() -> None:
    """Twice its time, and a tenth of a second; one that is overdue needs as long again as it is overdue by."""
    _, [seat] = seats(1, "a")
    lease = begun(seat, 10, 3)
    assert (lease.tokens, lease.begun_ns, lease.ends_ns) == (1, NOW_NS, NOW_NS + 10 * MS)
    assert lease.given_up_ns() == NOW_NS + 20 * MS + 100 * MS
    assert [lease.left_ns(NOW_NS + ms * MS) for ms in (0, 4, 10, 13)] == [10 * MS, 6 * MS, 0, 3 * MS]


def test_service_is_charged_by_tokens_as_it_begins_and_put_right_as_it_ends() -> None:
    """A pass starts, in virtual time, where the last one finished."""
    share, [seat] = seats(4, "a")
    lease = begun(seat, 10, 2)
    assert seat.rank()[0] == 20 * MS
    seat.give(lease, NOW_NS + 13 * MS)
    assert seat.rank()[0] == 26 * MS
    begun(seat, 5, 1, NOW_NS + 13 * MS)
    assert (seat.rank()[0], share._virtual_ns) == (31 * MS, 26 * MS)
    seat.charge(2 * MS, NOW_NS)
    assert seat.rank()[0] == 33 * MS


def test_who_waits_keeps_the_claim_that_it_had() -> None:
    """While others are served; it starts no earlier than it began to wait."""
    share, [a, b] = seats(1, "a", "b")
    lease = begun(a, 10)
    assert take(b) is None
    assert b.rank()[0] == 0
    a.give(lease, NOW_NS + 10 * MS)
    a._share._virtual_ns = 50.0 * MS
    assert b.rank()[0] == 0
    b.withdraw(NOW_NS)
    assert b.rank()[0] == 50 * MS
    assert not share._waiting


def test_what_was_used_is_forgotten_by_halves() -> None:
    """Within half a second; one core used all the time adds up to one."""
    _, [seat] = seats(1, "a")
    account = seat._account
    assert account is not None
    account.use(100 * MS, NOW_NS)
    used = account.used_lately(NOW_NS)
    assert used == pytest.approx(0.2 * math.log(2))
    assert account.used_lately(NOW_NS + 500 * MS) == pytest.approx(used / 2)
    account.use(100 * MS, NOW_NS + 500 * MS)
    assert account.used_lately(NOW_NS + 500 * MS) == pytest.approx(1.5 * used)
    for at in range(10_000):
        account.use(MS, NOW_NS + 500 * MS + at * MS)
    assert account.used_lately(NOW_NS + 10_499 * MS) == pytest.approx(1, rel=0.01)


def test_what_many_short_passes_use_adds_up() -> None:
    """However many of them end within a moment."""
    _, [seat] = seats(1, "a")
    account = seat._account
    assert account is not None
    for at in range(100_000):
        account.use(MS // 20, NOW_NS + at * MS // 10)
    assert account.used_lately(NOW_NS + 10_000 * MS) == pytest.approx(0.5, rel=0.01)


def test_it_may_begin_beside_others_where_that_is_sooner() -> None:
    """`pass * excess / tokens < wait`; else it asks again when the one that runs is overdue by so much."""
    share, [a, b] = seats(2, "a", "b")
    for _ in range(2):
        begun(a, 10)
    assert take(b, 20) is None, "20 * 1 / 2 is not less than 10"
    assert b.again_ns == NOW_NS + 10 * MS + 10 * MS + 1
    assert take(b, 19.9) is not None
    assert share.used == 3
    assert b.again_ns == NO_DEADLINE


def test_of_several_tokens_that_are_missing_all_count() -> None:
    """And those of who waits before it."""
    share, [a, b, c] = seats(2, "a", "b", "c")
    for ms in (10, 12):
        begun(a, ms)
    assert take(b, 30, 2) is None
    assert b.again_ns == NOW_NS + 10 * MS + 30 * MS + 1
    assert share._before(c) == 2
    assert take(c, 8) is None
    assert c.again_ns == NOW_NS + 10 * MS + 12 * MS + 1


def test_how_long_until_a_token_is_free() -> None:
    """The first pass to end, or as many as give enough tokens back; none where one is free."""
    share, [a] = seats(3, "a")
    begun(a, 30)
    begun(a, 20)
    assert share._until_free_ns(NOW_NS) == 0
    begun(a, 10)
    assert share._until_free_ns(NOW_NS) == 10 * MS
    begun(a, 40, 2)
    assert share._until_free_ns(NOW_NS) == 30 * MS


def test_a_token_whose_pass_is_about_to_end_is_free() -> None:
    """Within half a millisecond, before or after; never more of them than there are cores."""
    share, [a] = seats(2, "a")
    begun(a, 0.4)
    assert share._taken(NOW_NS) == 1, "one is free anyway"
    begun(a, 10)
    assert share._taken(NOW_NS) == 1
    assert share._taken(NOW_NS - int(0.1 * MS)) == 2
    assert share._taken(NOW_NS + int(0.9 * MS)) == 2
    for _ in range(3):
        begun(a, 0.1)
    assert share._taken(NOW_NS) == 3


def test_an_outlook_has_the_wait_and_how_much_longer_work_takes() -> None:
    """Of what the others leave, its equal share at least; never shorter than alone."""
    _, [a, b, c] = seats(2, "a", "b", "c")
    assert a.outlook(NOW_NS) == (0, 1.0)
    begun(a, 10)
    begun(a, 20)
    assert a.outlook(NOW_NS) == (0, 1.0), "its own passes hold it up nowhere else"
    assert b.outlook(NOW_NS) == (10 * MS, 1.0)
    for seat, cores in ((b, 0.5), (c, 1.0)):
        assert seat._account is not None
        seat._share._use(seat._account, int(cores * 500 * MS / math.log(2)), NOW_NS)
    wait_ns, slowdown = a.outlook(NOW_NS)
    assert (wait_ns, slowdown) == (10 * MS, pytest.approx(4 / (2 / 3)))
    a.demand = 0
    assert a.outlook(NOW_NS)[1] == 1


# --- the batcher's dealings -------------------------------------------------------------------------------------------


class Dealings:
    """Of a version with an instance of two threads and one that runs elsewhere, on two cores."""

    def __init__(self, *, alone: bool = False) -> None:
        self.share, [self.other] = seats(2, "other")
        self.here, self.elsewhere = (cast("Runner", object()) for _ in range(2))
        self.statistics = ModelStatistics("m", "1")
        threads = {self.here: 2, self.elsewhere: 0}
        self.turn = Turn(None if alone else self.share, "m", threads, self.statistics, nothing)

    def take(self, runner: Runner | None = None, now_ns: int = NOW_NS, pass_ns: int = 100 * MS) -> Lease | None:
        request = cast("InferRequest", type("Request", (), {"deadline_ns": NO_DEADLINE})())
        return self.turn.take(runner or self.here, [request], pass_ns, now_ns)

    def block(self) -> list[Lease]:
        return [begun(self.other, 10) for _ in range(2)]


def test_without_a_share_or_a_core_every_pass_may_begin() -> None:
    """And nothing is counted."""
    alone = Dealings(alone=True)
    assert (alone.take(), alone.turn.of_cores(), alone.turn.waiting) == (FREE, 0, False)
    assert alone.turn.outlook(NOW_NS) == (0, 1.0)
    assert alone.turn.choose([alone.elsewhere, alone.here]) is alone.here
    assert not alone.turn.must_wait([alone.here], NOW_NS)
    dealings = Dealings()
    dealings.block()
    assert dealings.take(dealings.elsewhere) is FREE
    assert dealings.turn.of_cores() == 2 / 2 / 2
    assert Turn(dealings.share, "m", {dealings.elsewhere: 0}, dealings.statistics, nothing)._seat is None


def test_the_instance_that_needs_no_token_goes_first() -> None:
    """Else the last that became idle."""
    dealings = Dealings()
    for idle in ([dealings.elsewhere, dealings.here], [dealings.here, dealings.elsewhere]):
        assert dealings.turn.choose(idle) is dealings.elsewhere
    assert dealings.turn.choose([dealings.here]) is dealings.here


def test_the_wait_for_other_models_is_counted_from_the_first_time_that_it_was_told_to() -> None:
    """Until it begins, or has nothing to begin any more."""
    dealings = Dealings()
    leases = dealings.block()
    assert dealings.take() is None
    assert dealings.turn.waiting
    assert dealings.turn.again_ns < NO_DEADLINE
    assert dealings.turn.must_wait([dealings.here], NOW_NS)
    assert not dealings.turn.must_wait([dealings.here, dealings.elsewhere], NOW_NS)
    assert not dealings.turn.must_wait([dealings.here], dealings.turn.again_ns)
    assert dealings.take(now_ns=NOW_NS + 2 * MS) is None
    for lease in leases:
        dealings.other.give(lease, NOW_NS + 5 * MS)
    assert not dealings.turn.must_wait([dealings.here], NOW_NS + 5 * MS), "it was called"
    assert dealings.take(now_ns=NOW_NS + 5 * MS) is not None
    assert (dealings.statistics.turn_wait_ns, dealings.turn.waiting) == (5 * MS, False)
    dealings.turn.withdraw(NOW_NS + 9 * MS)
    assert dealings.statistics.turn_wait_ns == 5 * MS

    away = Dealings()
    away.block()
    away.take()
    away.turn.withdraw(NOW_NS + 3 * MS)
    assert (away.statistics.turn_wait_ns, away.turn.waiting) == (3 * MS, False)


def test_a_pass_gives_back_its_tokens_and_one_on_the_loop_is_charged() -> None:
    """One that ran elsewhere is neither."""
    dealings = Dealings()
    lease = dealings.take()
    assert lease is not None
    assert dealings.share.used == 2
    dealings.turn.give(lease, dealings.here, NOW_NS, NOW_NS + 100 * MS)
    seat = dealings.turn._seat
    assert seat is not None
    assert (dealings.share.used, seat.rank()[0]) == (0, 200 * MS)
    dealings.turn.give(FREE, dealings.elsewhere, NOW_NS, NOW_NS + 7 * MS)
    assert seat.rank()[0] == 200 * MS
    dealings.turn.give(FREE, dealings.here, NOW_NS, NOW_NS + 7 * MS)
    assert seat.rank()[0] == 207 * MS
    dealings.turn.leave(NOW_NS)
    assert list(dealings.share._accounts) == ["other"]


def test_the_earliest_deadline_of_a_batch_is_its_urgency() -> None:
    """By that the share ranks those that have attained the same."""
    dealings = Dealings()
    requests: list[Any] = [type("Request", (), {"deadline_ns": deadline_ns})() for deadline_ns in (9, 5, 7)]
    dealings.turn.take(dealings.here, requests, 1, NOW_NS)
    assert dealings.turn._seat is not None
    assert dealings.turn._seat.urgent_ns == 5
