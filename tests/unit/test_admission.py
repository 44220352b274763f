"""The door: foresight, its margin, what is told to whom it refuses, and the load."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.errors import DeadlineExceeded, Overloaded, QueueFull, ServingError
from server.scheduler.admission import Admission, Foreseen, Known, Margin, Outlook, drain_ns, foresee_ns, passes_ns
from server.scheduler.cost import CostModel
from server.scheduler.costs import Costs, CostsByLength
from server.scheduler.load import WINDOW_NS, Load
from server.scheduler.plan import Cost, Limits
from server.scheduler.queue import Line, Priorities, QueuePolicy, RequestQueue
from server.scheduler.statistics import ModelStatistics
from server.scheduler.tenants import FairLine
from server.types import NO_DEADLINE, InferRequest
from tests.support.scheduler import MS, Caller, ManualClock, StillCost, admit


def outlook(left_ns: int = 0, instances: int = 1, turn_ns: int = 0, slowdown: float = 1.0) -> Outlook:
    return Outlook(0, left_ns, instances, False, turn_ns, slowdown)


def costing(cost: Cost, cap: int) -> Callable[[object], Known]:
    """All signatures cost the same."""
    return lambda signature: Known(cost, cap, 0)


@pytest.mark.parametrize(
    ("waiting", "cap", "left_ns", "instances", "expected_ns"),
    [
        (0, 1, 0, 1, 100),
        (0, 1, 70, 1, 170),
        (3, 1, 70, 1, 470),
        (3, 4, 70, 1, 170),
        (4, 4, 0, 1, 200),
        (4, 1, 100, 2, 350),
        (3, 0, 0, 1, 400),
    ],
)
def test_the_wait_is_what_is_ahead_and_the_own_pass(
    waiting: int, cap: int, left_ns: int, instances: int, expected_ns: int
) -> None:
    """Passes of 100 ns, in batches of the cap, spread over the instances, behind what is under way."""
    caller, queue = Caller(ManualClock(0)), RequestQueue(QueuePolicy())
    for _ in range(waiting):
        admit(queue, caller.request([1]), 0)
    request = caller.request([1])
    assert foresee_ns(queue, request, costing(StillCost(100), cap), outlook(left_ns, instances)) == expected_ns


def test_other_signatures_take_passes_of_their_own() -> None:
    """Rows that can't share the request's batch are ahead of it."""
    caller, queue = Caller(ManualClock(0)), RequestQueue(QueuePolicy())
    admit(queue, caller.request([1], columns=2), 0)
    assert foresee_ns(queue, caller.request([1]), costing(StillCost(100), 8), outlook()) == 200


def test_later_deadlines_are_not_ahead() -> None:
    """Only who goes before counts."""
    caller, queue = Caller(ManualClock(0)), RequestQueue(QueuePolicy())
    for deadline_ns in (500, 900, NO_DEADLINE):
        admit(queue, caller.request([1], deadline_ns=deadline_ns), 0)
    assert foresee_ns(queue, caller.request([1], deadline_ns=600), costing(StillCost(100), 1), outlook()) == 200


def test_other_models_make_the_work_ahead_longer() -> None:
    """Passes ahead take so many times as long; the own pass waits for its turn and then has its core."""
    caller, queue = Caller(ManualClock(0)), RequestQueue(QueuePolicy())
    for _ in range(4):
        admit(queue, caller.request([1]), 0)
    request = caller.request([1])
    assert foresee_ns(queue, request, costing(StillCost(100), 2), outlook(0, 1, 30, 2.5)) == 200 * 2.5 + 30 + 100


def test_without_a_cost_nothing_is_foreseen() -> None:
    """None, never a number that looks short."""
    cost: Cost = CostModel()
    assert (
        foresee_ns(RequestQueue(QueuePolicy()), Caller(ManualClock(0)).request(), costing(cost, 1), outlook()) is None
    )


def test_the_margin_covers_nearly_all_errors_and_shrinks_again() -> None:
    """It comes to lie above the usual error, one huge error moves it by a step, and it never is negative."""
    margin = Margin()
    for _ in range(200):
        margin.learn(300, 1000)
    assert margin.ns == pytest.approx(300, abs=70)
    margin.learn(10**9, 1000)
    assert margin.ns < 450
    for _ in range(2_000):
        margin.learn(-500, 1000)
    assert margin.ns == 0


def test_work_is_of_the_time_gone_by_and_is_forgotten() -> None:
    """Half of the time asked for is 0.5; after the window nothing is left."""
    load = Load()
    for ms in range(0, 10_000, 10):
        load.arrive(5_000_000, ms * 1_000_000)
    now_ns = 10_000_000_000
    assert load.work(now_ns) == pytest.approx(0.5, rel=0.1)
    assert load.work(now_ns + 2 * WINDOW_NS) == 0
    assert Load().work(now_ns) == 0


def test_the_load_begins_with_its_first_slice_and_forgets_slice_by_slice() -> None:
    """Within the first 250 ms there is no rate yet; then the time since the begin counts, five seconds at most."""
    load = Load()
    load.arrive(100 * MS, 1000 * MS)
    load.arrive(25 * MS, 1100 * MS)
    assert load.work(1100 * MS) == load.work(1250 * MS) == 0.5
    assert load.work(1500 * MS) == 0.25
    load.arrive(100 * MS, 4000 * MS)
    assert load.work(5999 * MS) == pytest.approx(225 / 4999)
    assert load.work(6000 * MS) == pytest.approx(100 / 5000)
    assert load.work(8999 * MS) == pytest.approx(100 / 5000)
    assert load.work(9000 * MS) == 0


def test_all_levels_above_are_ahead_and_none_below() -> None:
    """With those of them that were delayed; within the own level those with later deadlines are not."""
    queue = RequestQueue(QueuePolicy(), Priorities(levels=3, default_level=2))
    caller = Caller(ManualClock(0))
    for level in (1, 1, 2, 3, 3, 3):
        admit(queue, caller.request([1], parameters={"priority": level}), 0)
    queue._delay(first := next(iter(queue)), *queue.places[first])
    request = caller.request([1], parameters={"priority": 2})
    assert foresee_ns(queue, request, costing(StillCost(100), 1), outlook()) == 400


def test_rows_that_are_still_coming_are_ahead() -> None:
    """Two and the own one in batches of two: a full one, then the own, which others fill by then."""
    cost = CostModel({1: 1000, 2: 1500, 4: 3000})
    request = Caller(ManualClock(0)).request([1])
    queue = RequestQueue(QueuePolicy())
    assert foresee_ns(queue, request, costing(cost, 2), outlook(), 2) == 1500 + (cost.high_ns(2) or 0)
    assert foresee_ns(queue, request, costing(cost, 2), outlook(), 1) == cost.high_ns(2)
    assert foresee_ns(queue, request, costing(cost, 2), outlook()) == cost.high_ns(1)


def test_a_request_larger_than_a_batch_has_its_own_size_of_pass() -> None:
    """Behind a full batch the own pass is of the cap at least, and of all the own rows."""
    cost = CostModel({1: 1000, 2: 1500, 4: 3000})
    request = Caller(ManualClock(0)).request([1] * 4)
    assert foresee_ns(RequestQueue(QueuePolicy()), request, costing(cost, 2), outlook()) == 1500 + (
        cost.high_ns(4) or 0
    )


def test_without_an_instance_it_is_foreseen_as_if_there_were_one() -> None:
    """It may come back; nothing is divided by none."""
    request = Caller(ManualClock(0)).request([1])
    assert foresee_ns(RequestQueue(QueuePolicy()), request, costing(StillCost(100), 1), outlook(70, 0)) == 170


@pytest.mark.parametrize(("rows", "cap", "expected_ns"), [(0, 2, 0), (1, 2, 10), (2, 2, 15), (5, 2, 40), (3, 0, 30)])
def test_rows_are_done_in_full_batches_and_a_rest(rows: int, cap: int, expected_ns: int) -> None:
    """Without a batch dimension each is a pass of its own; what is not known takes no time."""
    assert passes_ns(rows, CostModel({1: 10, 2: 15}), cap) == expected_ns
    assert passes_ns(rows, CostModel(), cap) == 0


def test_a_line_is_done_one_signature_after_the_other() -> None:
    """They share no batch."""
    queue, caller = RequestQueue(QueuePolicy()), Caller(ManualClock(0))
    for columns in (1, 1, 1, 2):
        admit(queue, caller.request([1], columns=columns), 0)
    assert drain_ns(queue.lines[0], costing(CostModel({1: 10, 2: 15}), 2)) == 15 + 10 + 10
    assert drain_ns(queue.lines[1], costing(StillCost(), 2)) == 0


class Door:
    """An admission with what is around it; passes of 100 ms, of four rows at most, unless told otherwise."""

    def __init__(
        self,
        costs: Costs | None = None,
        *,
        policy: QueuePolicy | None = None,
        priorities: Priorities | None = None,
        slo_ns: int = 0,
        largest: int = 4,
        fair: bool = False,
    ) -> None:
        self.clock = ManualClock()
        self.caller = Caller(self.clock)
        self.queue = RequestQueue(policy or QueuePolicy(), priorities, slo_ns, FairLine if fair else Line)
        self.statistics = ModelStatistics("doubler", "1")
        self.admission = Admission(self.queue, costs or StillCost(100 * MS), Limits(largest), self.statistics)

    def request(self, in_ms: float | None = None, rows: int = 1, **more: object) -> InferRequest:
        deadline_ns = NO_DEADLINE if in_ms is None else self.clock.now_ns + int(in_ms * MS)
        return self.caller.request([1] * rows, deadline_ns=deadline_ns, **more)  # type: ignore[arg-type]

    def outlook(self, left_ms: int = 0, instances: float = 1, *, free: bool = False, slowdown: float = 1.0) -> Outlook:
        return Outlook(self.clock.now_ns, left_ms * MS, instances, free, 0, slowdown)

    def admit(self, request: InferRequest, outlook: Outlook | None = None) -> ServingError | None:
        return self.admission.admit(request, outlook or self.outlook())

    def arrived_ms(self) -> float:
        """The work that arrived, all of it within one slice of the window."""
        return self.statistics.load.work(self.clock.now_ns) * 250


def test_whoever_can_be_answered_by_the_deadline_to_the_nanosecond_is_admitted() -> None:
    """A nanosecond less is late; whoever is refused holds no place."""
    door = Door()
    just, late = door.request(100), door.request(100)
    late.deadline_ns -= 1
    assert door.admit(just) is None
    assert (just.enqueued_ns, just.predicted_ns) == (door.clock.now_ns, just.deadline_ns)
    refused = door.admit(late)
    assert isinstance(refused, Overloaded)
    assert list(door.queue) == [just]
    assert door.statistics.admitted == 1


def test_a_refusal_says_when_the_answer_would_come_and_when_to_ask_again() -> None:
    """Rounded up, the one; of all that was admitted, over the instances, the other."""
    door = Door(StillCost(100 * MS + 1), largest=1)
    for _ in range(3):
        door.admit(door.request())
    refused = door.admit(door.request(20), door.outlook(left_ms=100, instances=2, slowdown=3))
    assert isinstance(refused, Overloaded)
    # (100 + 3 * 100) / 2 * 3, then the own one; the requests without a deadline are behind it.
    assert refused.predicted_ms == 251
    assert refused.retry_after_ms == 600


def test_an_idle_instance_refuses_nobody_for_others() -> None:
    """What is late by itself is let in, unless somebody waits, or comes before it."""
    door = Door()
    assert door.admit(door.request(1), door.outlook(free=True)) is None
    assert isinstance(door.admit(door.request(1), door.outlook(free=True)), Overloaded), "one waits"
    again, busy = Door(), Door()
    assert isinstance(busy.admit(busy.request(1), busy.outlook()), Overloaded), "none is idle"
    coming = again.admission.foresee(again.request(1), again.clock(), lambda _: again.outlook(free=True), 1)
    assert isinstance(coming.refusal, Overloaded)
    alone = again.admission.foresee(again.request(1), again.clock(), lambda _: again.outlook(free=True), 0)
    assert alone == Foreseen(None, 100 * MS)


def test_the_margin_takes_a_quarter_of_a_requests_time_at_most() -> None:
    """However wrong the foresight was: of 200 ms 50, so that what is foreseen in 150 is let in."""
    door = Door()
    door.admission.margin.ns = 1000.0 * MS
    assert door.admit(door.request(200), door.outlook(left_ms=50)) is None
    assert isinstance(door.admit(door.request(200), door.outlook(left_ms=51)), Overloaded)
    door.admission.margin.ns = 10.0 * MS
    assert door.admit(door.request(200), door.outlook(left_ms=90)) is None
    assert isinstance(door.admit(door.request(200), door.outlook(left_ms=91)), Overloaded)


def test_what_is_over_when_it_comes_is_told_so_and_is_no_work() -> None:
    """At the very nanosecond of its deadline."""
    door = Door()
    refused = door.admit(door.request(0))
    assert isinstance(refused, DeadlineExceeded)
    assert refused.waited_us == 0
    assert door.arrived_ms() == 0
    assert not len(door.queue)


def test_a_full_line_says_its_limit_and_when_there_is_a_place() -> None:
    """Whoever is refused has arrived all the same; who holds the places matters only where tenants share them."""
    door = Door(policy=QueuePolicy(max_queue_size=2))
    for _ in range(2):
        assert door.admit(door.request()) is None
    refused = door.admit(door.request())
    assert isinstance(refused, QueueFull)
    assert (refused.limit, refused.retry_after_ms, refused.held) == (2, 100, 0)
    assert door.arrived_ms() == pytest.approx(75)

    shared = Door(policy=QueuePolicy(max_queue_size=2), fair=True)
    shared.admit(shared.request(tenant="a"))
    refused = shared.admit(shared.request(tenant="a"))
    assert isinstance(refused, QueueFull)
    assert (refused.limit, refused.held) == (2, 1)


def test_work_arrives_by_the_rows_of_a_batch() -> None:
    """A row takes its part of a pass of the best size: 25 ms of 100. What can't be told yet is none."""
    door = Door()
    door.admit(door.request(rows=2))
    assert door.arrived_ms() == pytest.approx(50)
    door.admission.turn_away(door.request(rows=3), door.clock())
    assert door.arrived_ms() == pytest.approx(125)
    door.admission.admit_all(requests := [door.request(), door.request()], 2, door.clock())
    assert door.arrived_ms() == pytest.approx(175)
    assert [request.enqueued_ns for request in requests] == [door.clock.now_ns] * 2
    assert door.statistics.admitted == 3

    unknown = Door(CostModel())
    unknown.admit(unknown.request())
    unknown.admission.admit_all([unknown.request()], 1, unknown.clock())
    assert unknown.arrived_ms() == 0
    unknown.admission.turn_away(unknown.request(), unknown.clock())
    assert 0 < unknown.arrived_ms() * MS == pytest.approx(1), "somebody asks"


def test_who_is_foreseen_arrives_once() -> None:
    """One refused while it is made ready counts there, one that goes on at its admission, one too late never."""
    door = Door()
    busy = door.outlook(left_ms=200)
    told = door.admission.foresee(door.request(250), door.clock(), lambda _: busy, 0)
    assert isinstance(told.refusal, Overloaded)
    assert door.arrived_ms() == pytest.approx(25)
    assert door.admission.foresee(door.request(300), door.clock(), lambda _: busy, 0) == Foreseen(None, 100 * MS)
    over = door.admission.foresee(door.request(0), door.clock(), lambda _: busy, 0)
    assert isinstance(over.refusal, DeadlineExceeded)
    assert door.arrived_ms() == pytest.approx(25)
    assert not len(door.queue)


def test_who_is_foreseen_has_its_deadline_from_then_on() -> None:
    """The model's own objective, from its receipt."""
    door = Door(slo_ns=70 * MS)
    request = door.request()
    told = door.admission.foresee(request, door.clock(), lambda _: door.outlook(), 0)
    assert request.deadline_ns == request.received_ns + 70 * MS
    assert isinstance(told.refusal, Overloaded)


def test_who_has_no_deadline_is_foreseen_only_where_the_line_is_full() -> None:
    """Nothing has to be reckoned for it."""
    door = Door(policy=QueuePolicy(max_queue_size=1))

    def look_out(now_ns: int) -> Outlook:
        assert len(door.queue), "nobody has to look out"
        return door.outlook()

    assert door.admission.foresee(door.request(), door.clock(), look_out, 5) == Foreseen(None, 0)
    door.admit(door.request())
    assert isinstance(door.admission.foresee(door.request(), door.clock(), look_out, 0).refusal, QueueFull)


def test_rows_that_are_coming_are_in_what_a_refusal_says() -> None:
    """Six at 25 ms each, and what runs."""
    door = Door()
    told = door.admission.foresee(door.request(50), door.clock(), lambda _: door.outlook(left_ms=100), 6)
    assert isinstance(told.refusal, Overloaded)
    assert (told.refusal.predicted_ms, told.refusal.retry_after_ms) == (300, 250)


def test_when_to_ask_again_is_a_millisecond_at_least_or_not_known() -> None:
    """Nothing to do is 0; without an instance it is as if there were one."""
    door = Door(CostModel())
    assert door.admission.retry_after_ms(door.outlook()) == 0
    assert door.admission.retry_after_ms(Outlook(0, 1, 1, False)) == 1
    assert door.admission.retry_after_ms(door.outlook(left_ms=30), 20 * MS) == 50
    assert door.admission.retry_after_ms(door.outlook(left_ms=30, instances=0)) == 30


def test_what_is_known_of_a_signature_holds_until_the_next_pass() -> None:
    """Where all signatures cost the same it is one knowledge; else one for each."""
    cost = CostModel({1: 1000, 4: 1600})
    door = Door(cost, largest=4)
    known = door.admission.known("any")
    assert known == Known(cost, 4, 400)
    cost.observe(4, 16_000)
    assert door.admission.known("other") is known
    door.admission.learn_pass([], 16_000, 0)
    assert door.admission.known("any").row_ns > 400
    assert Door(cost, largest=0).admission.known(None)[1:] == (0, 1000)
    assert Door(CostModel(), largest=0).admission.known(None)[1:] == (0, 0), "nothing is known"

    by_length = Door(CostsByLength({1: {1: 1000}, 8: {1: 9000}}, buckets=(1, 8))).admission
    assert (by_length.known(1).row_ns, by_length.known(8).row_ns) == (1000, 9000)


def test_a_usual_pass_is_of_the_best_size_or_of_the_mean_where_costs_differ() -> None:
    """Both are known after something was measured."""
    door = Door(CostModel({1: 1000, 4: 1600}), largest=4)
    assert door.admission.usual(door.statistics) == (4, 1600)
    assert Door(CostModel({1: 1000}), largest=0).admission.usual(door.statistics) == (1, 1000)
    assert Door(CostModel()).admission.usual(door.statistics) == (4, 0)

    by_length = Door(CostsByLength({1: {1: 1000}, 8: {1: 9000}}, buckets=(1, 8)))
    assert by_length.admission.usual(by_length.statistics) == (1, 0)
    by_length.statistics.execution_count, by_length.statistics.inference_count = 4, 13
    by_length.statistics.busy_ns = 4002
    assert by_length.admission.usual(by_length.statistics) == (3, 1000)


def test_the_margin_learns_from_the_earliest_answer_foreseen_of_a_pass() -> None:
    """By a step of the pass; a pass of whom nothing was foreseen teaches nothing."""
    door = Door()
    early, late, unforeseen = door.request(), door.request(), door.request()
    early.predicted_ns, late.predicted_ns = 1000, 5000
    door.admission.learn_pass([unforeseen, late, early], 1600, 3000)
    assert door.admission.margin.ns == pytest.approx(98)
    door.admission.learn_pass([unforeseen], 1600, 3000)
    assert door.admission.margin.ns == pytest.approx(98)


def test_the_margin_learns_from_who_expired() -> None:
    """By a step of the pass that it would have had, if it was foreseen."""
    door = Door()
    request = door.request()
    door.admission.learn_expiry(request, door.clock())
    assert door.admission.margin.ns == 0
    request.predicted_ns = door.clock.now_ns - 500 * MS
    door.admission.learn_expiry(request, door.clock())
    assert door.admission.margin.ns == pytest.approx(100 * MS / 16 * 0.98)


def test_the_margin_never_goes_beyond_the_error() -> None:
    """A small error moves it by no more than itself; one that is just met makes it smaller."""
    margin = Margin()
    margin.learn(5, 1600)
    assert margin.ns == 5
    margin.learn(5, 160)
    assert margin.ns == pytest.approx(5 - 10 * 0.02)


# --- the edge: the next one like the last -----------------------------------------------------------------------------


def refused_at(door: Door, in_ms: int, signature: object = 1) -> Overloaded | None:
    return door.admission.hopeless("doubler", signature, door.clock.now_ns + in_ms * MS, door.clock.now_ns)


def test_what_the_last_one_told_is_known_of_the_next_like_it() -> None:
    """Once somebody asks for it. It says when the answer would come, and counts as arrived."""
    door = Door()
    door.admit(door.request(110), door.outlook(left_ms=20))
    assert refused_at(door, 110) is None, "nobody had asked before"
    arrived_ms = door.arrived_ms()
    assert isinstance(door.admit(door.request(110), door.outlook(left_ms=20)), Overloaded)
    told = refused_at(door, 110)
    assert isinstance(told, Overloaded)
    assert (told.predicted_ms, told.retry_after_ms) == (120, 120)
    assert door.arrived_ms() - arrived_ms == pytest.approx(50)
    assert refused_at(door, 109) is None, "it would go before the last"
    assert refused_at(door, 110, signature=2) is None, "it is of another kind"


def test_behind_one_who_is_admitted_the_next_comes_a_row_later() -> None:
    """A row's part of a pass, over the instances, as slow as they are."""
    door = Door()
    refused_at(door, 0)
    assert door.admit(door.request(200), door.outlook(left_ms=90, instances=2, slowdown=2)) is None
    told = refused_at(door, 200)
    # 90 / 2 * 2 + 100 = 190, and 25 / 2 * 2 more.
    assert told is not None
    assert told.predicted_ms == 215


def test_who_may_be_in_time_is_asked_and_moves_the_edge() -> None:
    """Until it is, others are taken to come behind it."""
    door = Door()
    refused_at(door, 0)
    door.admit(door.request(110), door.outlook(left_ms=20))
    assert refused_at(door, 120) is None
    told = refused_at(door, 130)
    assert told is not None
    assert told.predicted_ms == 145
    assert refused_at(door, 119) is None, "it would go before"
    assert refused_at(door, 145) is None
    assert refused_at(door, 145) is not None


def test_the_edge_has_the_margin_of_the_last() -> None:
    """So that it refuses whom its admission would."""
    door = Door()
    door.admission.margin.ns = 10.0 * MS
    refused_at(door, 0)
    door.admit(door.request(110), door.outlook(left_ms=20))
    told = refused_at(door, 129)
    assert told is not None
    assert told.predicted_ms == 120
    assert refused_at(door, 130) is None


@pytest.mark.parametrize(
    ("more", "rows"),
    [
        ({"slo_ns": 1000 * MS}, 1),
        ({"fair": True}, 1),
        ({"policy": QueuePolicy(default_timeout_ns=1000 * MS)}, 1),
        ({"priorities": Priorities(levels=2, default_level=1)}, 1),
        ({}, 2),
    ],
    ids=["an objective", "tenants", "a timeout", "levels", "several rows"],
)
def test_where_more_than_the_deadline_tells_who_goes_first_everybody_is_asked(
    more: dict[str, object], rows: int
) -> None:
    """The last one tells nothing of the next."""
    door = Door(**more)  # type: ignore[arg-type]
    refused_at(door, 0)
    assert isinstance(door.admit(door.request(110, rows), door.outlook(left_ms=20)), Overloaded)
    assert refused_at(door, 110) is None


def test_an_edge_that_is_past_says_a_millisecond() -> None:
    """There is no other time to come back."""
    door = Door()
    refused_at(door, 0)
    door.admit(door.request(110), door.outlook(left_ms=20))
    door.clock.now_ns += 500 * MS
    told = refused_at(door, -389)
    assert told is not None
    assert told.predicted_ms == 1
