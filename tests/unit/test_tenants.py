"""Tenants of one model: their lines, places and the foresight for them; then through the batcher."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import QueueFull
from server.explain import Explanation, WaitReason
from server.scheduler.admission import Known, Outlook, foresee_ns
from server.scheduler.queue import Line, Priorities, QueuePolicy, RequestQueue
from server.scheduler.tenants import MOST_TENANTS, FairLine
from server.types import InferRequest, InferResponse
from tests.support.scheduler import MS, Bench, Caller, ManualClock, StillCost, admit


def line_of(*arrivals: tuple[str, int], columns: int = 1) -> tuple[FairLine, list[InferRequest]]:
    """A line of requests (tenant, rows)."""
    line, caller = FairLine(), Caller(ManualClock(0))
    requests = []
    for number, (tenant, rows) in enumerate(arrivals):
        requests.append(caller.request([1] * rows, tenant=tenant, columns=columns))
        line.add((100, number, requests[-1]))
    return line, requests


def order(line: Line, signature: object = 1) -> str:
    return "".join(request.tenant for _, _, request in line.lane(signature))


def test_tenants_take_turns() -> None:
    """One request each where all have the same rows, until one has nothing left."""
    assert order(line_of(*[("a", 1)] * 5, ("b", 1), ("b", 1), ("c", 1))[0]) == "abcabaaa"


def test_rows_are_what_is_shared() -> None:
    """A tenant of large requests has fewer of them."""
    assert order(line_of(*[("a", 3)] * 3, *[("b", 1)] * 6)[0]) == "abbbabbba"


def test_to_look_changes_nothing() -> None:
    """The planner asks as often as it likes."""
    line, _ = line_of(*[("a", 1)] * 3, *[("b", 1)] * 3)
    assert order(line) == order(line) == "ababab"


def test_who_was_served_waits_for_the_others() -> None:
    """What a batch took is charged, and the next one begins where it ended."""
    queue, caller = RequestQueue(QueuePolicy(), make_line=FairLine), Caller(ManualClock(0))
    a = [caller.request([1], tenant="a") for _ in range(6)]
    for request in a:
        admit(queue, request, 0)
    queue.take(a[:4])
    for _ in range(3):
        admit(queue, caller.request([1], tenant="b"), 0)
    assert order(queue.levels[0].waiting) == "babab"


def test_who_comes_back_is_not_new() -> None:
    """Having nothing in the line for a moment does not make a tenant first again."""
    queue, caller = RequestQueue(QueuePolicy(), make_line=FairLine), Caller(ManualClock(0))
    a = [caller.request([1], tenant="a") for _ in range(3)]
    b = [caller.request([1] * 4, tenant="b")]
    for request in (*a, *b):
        admit(queue, request, 0)
    queue.take([a[0], *b])
    admit(queue, caller.request([1], tenant="b"), 0)
    assert order(queue.levels[0].waiting) == "aab"


def test_signatures_are_asked_in_the_order_of_turns() -> None:
    """The first is that of the request which is served next, and the tenant of it."""
    line, caller = FairLine(), Caller(ManualClock(0))
    for number, (tenant, columns) in enumerate([("a", 1), ("a", 2), ("b", 2), ("b", 3)]):
        line.add((100 - number, number, caller.request([1], tenant=tenant, columns=columns)))
    assert line.signatures() == [2, 1, 3]
    assert order(line, 2) == "ab"
    assert order(line, 3) == "b"


def test_the_unhashable_leaves_no_trace() -> None:
    """A signature that can't be a key fails its own request, and the line is as before."""
    line, (request,) = line_of(("a", 1))
    bad = Caller(ManualClock(0)).request([1], tenant="b")
    bad.signature = []
    with pytest.raises(TypeError):
        line.add((1, 9, bad))
    assert (line.rows, line.size, list(line.tenants), list(line)) == (1, 1, ["a"], [request])


def test_beyond_the_limit_tenants_share_a_line() -> None:
    """Which has its turns like one tenant's."""
    line, _ = line_of(*[(f"t{number}", 1) for number in range(MOST_TENANTS)], ("x", 1), ("y", 1), ("t0", 1))
    assert len(line.tenants) == MOST_TENANTS + 1
    places = [request.tenant for _, _, request in line.lane(1)]
    assert places[MOST_TENANTS:] == ["x", "t0", "y"]


def test_a_tenant_of_the_shared_line_is_found_again() -> None:
    """Also when by then it could have a line of its own."""
    queue, caller = RequestQueue(QueuePolicy(), make_line=FairLine), Caller(ManualClock(0))
    crowd = [caller.request([1], tenant=f"t{number}") for number in range(MOST_TENANTS)]
    late = [caller.request([1], tenant="x") for _ in range(2)]
    for request in (*crowd, late[0]):
        admit(queue, request, 0)
    queue.remove(crowd[0])
    admit(queue, late[1], 0)
    assert all(queue.remove(request) for request in (*late, *crowd[1:]))
    assert len(queue) == 0
    assert queue.levels[0].waiting.size == 0


# --- places --------------------------------------------------------------------------------------


def test_a_tenant_may_hold_as_many_places_as_are_free() -> None:
    """One flood takes a half, a second one a third of what there is, and a place is left."""
    queue, caller = RequestQueue(QueuePolicy(12), make_line=FairLine), Caller(ManualClock(0))
    for tenant, places in (("a", 6), ("b", 3), ("c", 2)):
        admitted = [admit(queue, caller.request([1], tenant=tenant), 0) for _ in range(13)]
        assert admitted.count(True) == places


def test_each_level_has_its_own_places() -> None:
    """A tenant's flood at one level leaves its places at another."""
    queue = RequestQueue(QueuePolicy(4), Priorities(2, 2), make_line=FairLine)
    caller = Caller(ManualClock(0))
    admitted = [
        admit(queue, caller.request([1], tenant="a", parameters={"priority": level}), 0) for level in [1] * 3 + [2] * 3
    ]
    assert admitted == [True, True, False] * 2


def test_a_full_share_says_so() -> None:
    """The limit, and how much of it the tenant has; another tenant is admitted."""
    bench = Bench(1, policy=QueuePolicy(max_queue_size=4), fair_by_tenant=True)
    bench.submit(bench.caller.request([1]))
    bench.loop.run()
    requests = [bench.caller.request([1], tenant="a") for _ in range(3)]
    other = bench.caller.request([1], tenant="b")
    bench.submit(*requests, other)
    outcome = bench.caller.outcome(requests[2])
    assert isinstance(outcome, QueueFull)
    assert outcome.public_message.endswith("max_queue_size is 4 requests, shared by tenants, and this one has 2")
    assert bench.caller.outcome(other) is None


# --- foresight -----------------------------------------------------------------------------------


def foreseen(tenant: str, *arrivals: tuple[str, int], deadline_ns: int = 10**18) -> int | None:
    """Passes of one row and 100 ns each, behind (tenant, requests)."""
    queue, caller = RequestQueue(QueuePolicy(), make_line=FairLine), Caller(ManualClock(0))
    for name, number in arrivals:
        for _ in range(number):
            admit(queue, caller.request([1], tenant=name, deadline_ns=500), 0)
    request = caller.request([1], tenant=tenant, deadline_ns=deadline_ns)
    return foresee_ns(queue, request, lambda _: Known(StillCost(100), 1, 0), Outlook(0, 0, 1, False))


@pytest.mark.parametrize(
    ("tenant", "arrivals", "passes"),
    [
        ("a", (), 1),
        ("a", (("a", 20),), 21),
        ("b", (("a", 20),), 2),
        ("b", (("a", 20), ("b", 5)), 12),
        ("b", (("a", 3), ("b", 5)), 9),
        ("c", (("a", 20), ("b", 20)), 3),
    ],
)
def test_others_are_before_a_request_with_as_many_rows_as_its_own_tenant(
    tenant: str, arrivals: tuple[tuple[str, int], ...], passes: int
) -> None:
    """A flood is not ahead of another tenant's request, but for a turn for each of that tenant's own."""
    assert foreseen(tenant, *arrivals) == passes * 100


def test_within_a_tenant_deadlines_tell_who_is_before() -> None:
    """Its own later ones are behind, and so the others' turns beside them."""
    assert foreseen("b", ("a", 20), ("b", 5), deadline_ns=400) == 200


def test_what_others_were_served_beside_ones_own_is_told_after_some_rows() -> None:
    """An eighth of those that are remembered; of what lies further back the half counts."""
    line, _ = line_of(("a", 1), ("b", 1))
    a, b = line.tenants["a"], line.tenants["b"]
    assert a.others_share() == 0
    a.charge(8)
    b.charge(23)
    assert a.others_share() == 0, "31 rows are too few"
    b.charge(1)
    assert a.others_share() == 3
    assert b.others_share() == pytest.approx(1 / 3)
    b.charge(480)
    assert (a.served, a.since, line.served) == (8, 0, 512)
    a.charge(2)
    assert (a.served, a.since, line.served) == (5, 257, 514)
    assert a.others_share() == (257 - 5) / 5
    c, _ = line_of(("a", 1), ("c", 1))
    c.tenants["a"].charge(100)
    assert c.tenants["c"].others_share() == 0, "it had none of its own"


def test_where_others_were_served_more_they_will_be_again() -> None:
    """Beside a tenant whose requests are few, more of the others' will come before its turn."""
    line, requests = line_of(*[("a", 1)] * 3, ("b", 2), ("b", 2))
    line.tenants["a"].charge(200)
    line.tenants["b"].charge(100)
    ahead = dict(line.rows_before(requests[0]))
    # Three of its own; of b's four at most as many, or half as many as its own by what was served.
    assert ahead == {1: 7}
    line.tenants["b"].charge(700)
    assert line.tenants["a"].others_share() > 3
    assert dict(line.rows_before(requests[0]))[1] > 7


def test_a_newcomer_is_behind_a_turn_of_each_and_one_who_comes_back_behind_its_lead() -> None:
    """In rows, spread over the signatures by what waits of each."""
    caller = Caller(ManualClock(0))
    line, requests = line_of(*[("a", 1)] * 6, *[("b", 1)] * 6)
    new = caller.request([1, 1], tenant="new")
    assert dict(line.rows_before(new)) == {1: 4}
    line._left["new"] = 3
    assert dict(line.rows_before(new)) == {1: 10}
    line._left["new"] = 90
    assert dict(line.rows_before(new)) == {1: 12}
    mixed, _ = line_of(*[("a", 1)] * 3)
    mixed.add((100, 9, caller.request([1] * 9, tenant="b", columns=2)))
    assert dict(mixed.rows_before(new)) == {1: 1, 2: 3}
    assert list(FairLine().rows_before(new)) == []
    assert dict(mixed.rows_by_signature()) == {1: 3, 2: 9}
    assert [line.held(request) for request in (requests[0], new)] == [6, 0]


def test_tags_of_those_who_left_are_bounded_and_forgotten_with_the_last() -> None:
    """Only those ahead of what is served are worth it."""
    queue, caller = RequestQueue(QueuePolicy(), make_line=FairLine), Caller(ManualClock(0))
    stays = caller.request([1], tenant="stays")
    admit(queue, stays, 0)
    line = queue.levels[0].waiting
    assert isinstance(line, FairLine)
    for number in range(MOST_TENANTS + 50):
        request = caller.request([1] * 3, tenant=f"t{number}")
        admit(queue, request, 0)
        queue.take([request])
        assert len(line._left) <= MOST_TENANTS
    assert line._left["t7"] == 3
    queue.take([stays])
    assert (line._left, line._tag, line.tenants, line._order) == ({}, 0, {}, [])
    admit(queue, gone := caller.request([1], tenant="a"), 0)
    admit(queue, caller.request([1], tenant="b"), 0)
    queue.remove(gone)
    assert line._left == {}, "it was not served"


# --- through the batcher -------------------------------------------------------------------------


def busy(**rest: Any) -> Bench:
    """A bench with a pass under way."""
    bench = Bench(2, fair_by_tenant=True, **rest)
    bench.submit(bench.caller.request([0]))
    bench.loop.run()
    return bench


def test_a_batch_mixes_tenants() -> None:
    """They share a pass as they share the queue."""
    bench = busy()
    bench.submit(*(bench.caller.request([1], tenant="a") for _ in range(5)), bench.caller.request([2], tenant="b"))
    for _ in range(4):
        bench.complete()
    assert bench.batches == [[0], [1, 2], [1, 1], [1, 1]]


def test_without_fair_by_tenants_do_not_matter() -> None:
    """Who came first goes first."""
    bench = Bench(2)
    bench.submit(*(bench.caller.request([1], tenant="a") for _ in range(4)), bench.caller.request([2], tenant="b"))
    bench.loop.run()
    for _ in range(3):
        bench.complete()
    assert bench.batches == [[1, 1], [1, 1], [2]]


def test_levels_come_before_tenants() -> None:
    """The share is that of a level: a more urgent one goes first, whoever's it is."""
    bench = busy(priorities=Priorities(2, 2))
    urgent = [bench.caller.request([1], tenant="a", parameters={"priority": 1}) for _ in range(3)]
    bench.submit(bench.caller.request([2], tenant="b"), *urgent)
    for _ in range(3):
        bench.complete()
    assert bench.batches == [[0], [1, 1], [1, 2]]


def test_who_timed_out_still_shares() -> None:
    """Under DELAY the line behind is shared as well."""
    policy = QueuePolicy(default_timeout_ns=MS, timeout_action="DELAY")
    bench = busy(policy=policy)
    bench.submit(*(bench.caller.request([1], tenant="a") for _ in range(4)), bench.caller.request([2], tenant="b"))
    bench.advance(2 * MS)
    bench.submit(bench.caller.request([3], tenant="a"))
    for _ in range(4):
        bench.complete()
    assert bench.batches == [[0], [3, 1], [2, 1], [1, 1]]


def test_the_cancelled_and_the_expired_are_not_charged() -> None:
    """Only what is executed counts."""
    bench = busy()
    requests = [bench.caller.request([1], tenant="a", deadline_ns=bench.clock() + MS) for _ in range(4)]
    bench.submit(*requests)
    bench.batcher.cancel(requests[0])
    bench.advance(MS)
    bench.submit(bench.caller.request([2], tenant="b"), bench.caller.request([1], tenant="a"))
    bench.submit(bench.caller.request([2], tenant="b"))
    bench.complete()
    bench.complete()
    assert bench.batches[1] == [2, 1]


def test_answers_in_order_stay_in_order() -> None:
    """preserve_ordering is about all of the model's requests: an answer still waits for another tenant's before it."""
    bench = busy(preserve_ordering=True)
    flood = [bench.caller.request([1], tenant="a") for _ in range(4)]
    few = bench.caller.request([2], tenant="b")
    bench.submit(*flood, few)
    bench.complete()
    bench.complete()
    assert bench.caller.outcome(few) is None
    bench.complete()
    bench.complete()
    assert isinstance(bench.caller.outcome(few), InferResponse)


def test_a_turn_of_another_tenant_is_explained() -> None:
    """Overtaken for another's share it waited for other tenants; overtaken by its own, for their priority."""
    bench = busy()
    reasons = []
    for tenant, overtaker in (("a", "b"), ("a", "a")):
        requests = [bench.caller.request([1], tenant=tenant, deadline_ns=bench.clock() + 900 * MS) for _ in range(4)]
        requests[3].explanation = Explanation(bench.clock(), bench.clock)
        bench.submit(*requests)
        bench.advance(MS)
        deadline_ns = bench.clock() + 800 * MS
        bench.submit(*(bench.caller.request([2], tenant=overtaker, deadline_ns=deadline_ns) for _ in range(4)))
        for _ in range(5):
            bench.advance(MS)
            bench.complete()
        assert requests[3].explanation is not None
        reasons.append(requests[3].explanation.waited)
        bench.submit(bench.caller.request([0]))
        bench.loop.run()
    assert reasons == [WaitReason.OTHER_TENANTS, WaitReason.PRIORITY]
