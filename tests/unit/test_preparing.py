"""Preprocessing as work with a cost and a queue: who is admitted, in which order, and what it is counted as."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from server.errors import Cancelled, DeadlineExceeded, Draining, InvalidRequest, Overloaded, QueueFull
from server.explain import Explanation
from server.scheduler.cost import CostModel
from server.scheduler.handoff import HANDOFF_NS
from server.scheduler.preparing import OnThread, Work
from server.scheduler.queue import Priorities, QueuePolicy
from server.scheduler.raw import FewTogether, size_class
from server.scheduler.statistics import Refusal
from server.scheduler.worker import Model
from server.types import NO_DEADLINE, ImageInput, InferRequest, InferResponse, Outcome, RowInput, TextInput
from tests.support.preparing import SMALL, PreparingBench
from tests.support.scheduler import MS, StillCost

HANDOVER_NS = MS
"""Long beside what is prepared."""


def test_a_request_is_prepared_then_answered() -> None:
    """Its tensors are what preprocessing made of all of its inputs."""
    bench = PreparingBench()
    request = bench.ask("a", 3, 4)
    bench.prepared(5 * MS)
    assert bench.outcome(request) is None
    bench.answered()
    assert bench.answer(request) == [6, 8]
    assert (bench.statistics.success.count, bench.statistics.fail.count, bench.statistics.admitted) == (1, 0, 1)
    assert bench.statistics.success.ns >= 5 * MS


def test_who_would_be_late_for_the_threads_is_refused_before_anything_is_spent_on_it() -> None:
    """At once, with a hint, and counted as a refusal for overload: as infer would be."""
    bench = PreparingBench()
    bench.learn(10 * MS)
    behind = [bench.ask(f"b{number}", within_ns=34 * MS) for number in range(3)]
    late = bench.ask("late", within_ns=35 * MS)
    outcome = bench.outcome(late)
    assert isinstance(outcome, Overloaded)
    assert 25 <= outcome.retry_after_ms <= 60
    assert all(bench.outcome(request) is None for request in behind)
    assert bench.statistics.refused[Refusal.OVERLOAD] == bench.statistics.fail.count == 1
    for _ in behind:
        bench.prepared(10 * MS)
    assert "late" not in bench.begun


def test_who_would_be_late_for_its_pass_is_refused_before_it_is_prepared() -> None:
    """The batcher behind is asked: what waits there counts, and what is being prepared will come there."""
    bench = PreparingBench(threads=8, max_batch_size=1, cost=StillCost(20 * MS))
    bench.learn(1 * MS)
    for number in range(4):
        bench.ask(f"b{number}", within_ns=85 * MS)
    assert isinstance(bench.outcome(bench.ask("late", within_ns=90 * MS)), Overloaded)
    assert bench.outcome(bench.ask("in time", within_ns=140 * MS)) is None
    assert bench.statistics.refused[Refusal.OVERLOAD] == 1
    for _ in range(5):
        bench.prepared()
    assert isinstance(bench.outcome(bench.ask("late", within_ns=90 * MS)), Overloaded)
    assert "late" not in bench.begun


def test_the_last_one_that_was_asked_tells_of_the_next() -> None:
    """Whoever would be late behind it is refused without being asked; others have to be."""
    bench = PreparingBench()
    bench.learn(10 * MS)
    assert bench.hopeless(1 * MS) is None, "nobody runs"
    bench.ask("running", within_ns=100 * MS)
    assert bench.hopeless(100 * MS) is None, "nobody was asked"
    for number in range(2):
        assert bench.outcome(bench.ask(f"b{number}", within_ns=34 * MS)) is None
    late = bench.outcome(bench.ask("late", within_ns=35 * MS))
    assert isinstance(late, Overloaded)
    again = bench.hopeless(36 * MS)
    assert isinstance(again, Overloaded)
    assert again.public_message == late.public_message
    assert again.retry_after_ms >= late.retry_after_ms
    assert bench.statistics.refused[Refusal.OVERLOAD] == bench.statistics.fail.count == 2
    assert bench.hopeless(34 * MS) is None, "it would go before the one that was late"
    assert bench.hopeless(36 * MS, 10 * SMALL) is None
    bench.clock.now_ns += 2 * MS
    again = bench.hopeless(36 * MS)
    assert isinstance(again, Overloaded)
    assert again.predicted_ms == late.predicted_ms - 2
    assert bench.hopeless(late.predicted_ms * MS) is None
    assert isinstance(bench.hopeless(late.predicted_ms * MS), Overloaded), "it would come behind the one before"


def test_who_was_admitted_tells_of_the_next_too() -> None:
    """It would come behind, a row later; where a thread is idle nobody is refused."""
    bench = PreparingBench()
    bench.learn(10 * MS)
    bench.ask("running", within_ns=100 * MS)
    assert bench.hopeless(100 * MS) is None
    for number in range(2):
        assert bench.outcome(bench.ask(f"b{number}", within_ns=34 * MS)) is None
    assert isinstance(bench.hopeless(35 * MS), Overloaded)
    assert isinstance(bench.outcome(bench.ask("asked", within_ns=35 * MS)), Overloaded)
    for _ in range(3):
        bench.prepared(1 * MS)
    assert bench.hopeless(35 * MS) is None


def test_who_would_be_late_for_its_pass_is_told_by_the_last_one() -> None:
    """The load counts it, as one that was asked."""
    bench = PreparingBench(threads=8, max_batch_size=1, cost=StillCost(20 * MS))
    bench.learn(1 * MS)
    bench.ask("first", within_ns=85 * MS)
    bench.prepared(1 * MS)
    assert bench.hopeless(85 * MS) is None
    for number in range(3):
        bench.ask(f"b{number}", within_ns=85 * MS)
    assert isinstance(bench.outcome(bench.ask("late", within_ns=90 * MS)), Overloaded)
    before = bench.statistics.load.work(bench.clock())
    assert isinstance(bench.hopeless(91 * MS), Overloaded)
    assert bench.statistics.load.work(bench.clock()) > before
    assert bench.hopeless(140 * MS) is None


def test_where_others_may_go_first_everybody_is_asked() -> None:
    bench = PreparingBench(priorities=Priorities(2, 2))
    bench.learn(10 * MS)
    for number in range(3):
        bench.ask(f"b{number}", within_ns=34 * MS)
    assert isinstance(bench.outcome(bench.ask("late", within_ns=35 * MS)), Overloaded)
    assert bench.hopeless(36 * MS) is None


def test_an_idle_server_refuses_nobody() -> None:
    """However long it is believed to take: a cost that was learned too high is found out so."""
    bench = PreparingBench(max_batch_size=1, cost=StillCost(500 * MS))
    bench.learn(300 * MS)
    request = bench.ask("a", within_ns=50 * MS)
    bench.prepared(5 * MS)
    bench.answered()
    assert bench.answer(request) == [14]


def test_the_earliest_deadline_is_prepared_first() -> None:
    bench = PreparingBench()
    for name, within_ms in (("running", 900), ("late", 800), ("soon", 300), ("never", None), ("later", 500)):
        bench.ask(name, within_ns=within_ms and within_ms * MS)
    for _ in range(5):
        bench.prepared(1 * MS)
    assert bench.begun == ["running", "soon", "later", "late", "never"]


def test_priorities_of_the_model_order_its_preprocessing_too() -> None:
    bench = PreparingBench(priorities=Priorities(2, 2))
    for name, level in (("running", 2), ("low", 2), ("high", 1)):
        bench.ask(name, parameters={"priority": level})
    for _ in range(3):
        bench.prepared(1 * MS)
    assert bench.begun == ["running", "high", "low"]


def test_no_more_are_with_the_threads_than_there_are_threads() -> None:
    bench = PreparingBench(threads=2)
    for number in range(5):
        bench.ask(str(number))
    assert len(bench.begun) == 2
    bench.prepared(1 * MS)
    assert len(bench.begun) == 3


def test_one_thread_prepares_several_at_once_where_that_is_worth_it() -> None:
    """Each hand-over takes time of the core: requests that wait go together, each with its own answer."""
    bench = PreparingBench(together=2)
    requests = [bench.ask(str(number), number) for number in range(1, 7)]
    assert bench.begun == ["1"]
    bench.prepared(1 * MS, HANDOVER_NS)
    assert bench.begun == ["1", "2", "3", "4", "5", "6"]
    bench.answered()
    bench.prepared(5 * MS)
    assert bench.statistics.preparing is not None
    assert bench.statistics.preparing.execution_count == 2
    while bench.behind.runner.job is not None:
        bench.answered()
    assert [bench.answer(request) for request in requests] == [[2 * number] for number in range(1, 7)]


@pytest.mark.parametrize(("us", "most"), [(500, 16), (2_350, 16), (3_000, 12), (4_700, 8), (8_000, 4), (50_000, 4)])
def test_more_go_together_as_long_as_that_takes_no_longer_than_four_of_the_longest(us: int, most: int) -> None:
    """Others wait for the thread: so many go as take 40 ms. The fewer turns of the loop are in no pass's cost."""
    cost = CostModel({rows: (rows + 1) * us * 1000 for rows in (1, 2, 4, 8, 16)})
    assert FewTogether(32, few=4).cap(cost) == most
    assert FewTogether(6, few=4).cap(cost) == min(6, most)


def test_what_nobody_knows_is_not_taken_to_be_brief() -> None:
    assert FewTogether(16, few=4).cap(CostModel({})) == FewTogether(16, few=4).cap(None) == 4


def test_a_bad_input_spoils_none_that_is_prepared_with_it() -> None:
    """Nor is anything prepared twice."""
    bench = PreparingBench(together=4)
    bench.ask("running", 1)
    good, bad, other = bench.ask("good", 2), bench.ask("bad", 255), bench.ask("other", 3)
    bench.prepared(1 * MS, HANDOVER_NS)
    bench.answered()
    bench.prepared(1 * MS)
    bench.answered()
    assert isinstance(bench.outcome(bad), InvalidRequest)
    assert (bench.answer(good), bench.answer(other)) == ([4], [6])
    assert bench.prepared_bytes == [1, 2, 255, 3]
    assert bench.statistics.fail.count == 0


def test_what_expires_while_others_of_its_pass_are_prepared_is_not_prepared() -> None:
    bench = PreparingBench(together=4)
    bench.ask("running", 1)
    late, patient = bench.ask("late", 2, within_ns=10 * MS), bench.ask("patient", 3)
    bench.prepared(1 * MS, HANDOVER_NS)
    bench.answered()
    bench.advance(11 * MS)
    bench.prepared()
    bench.answered()
    assert isinstance(bench.outcome(late), DeadlineExceeded)
    assert bench.answer(patient) == [6]
    assert bench.prepared_bytes == [1, 3]
    assert (bench.statistics.expired, bench.statistics.fail.count) == (1, 1)


def test_a_request_of_many_rows_goes_alone() -> None:
    bench = PreparingBench(together=2)
    bench.ask("running", 1)
    many = bench.ask("many", 2, 3, 4, 5)
    bench.ask("one", 6)
    bench.prepared()
    bench.answered()
    assert bench.begun == ["running", "many"]
    bench.prepared()
    bench.answered()
    assert bench.answer(many) == [4, 6, 8, 10]


def test_what_expired_waiting_is_never_prepared() -> None:
    """It is told at its deadline, less what its own pass would have taken, and counted once."""
    bench = PreparingBench()
    bench.ask("running")
    waiting = bench.ask("waiting", within_ns=20 * MS)
    bench.advance(21 * MS)
    assert isinstance(bench.outcome(waiting), DeadlineExceeded)
    bench.prepared()
    assert bench.begun == ["running"]
    assert (bench.statistics.expired, bench.statistics.fail.count) == (1, 1)


def test_a_deadline_that_is_over_is_told_so() -> None:
    bench = PreparingBench()
    assert isinstance(bench.outcome(bench.ask("over", within_ns=0)), DeadlineExceeded)
    assert bench.begun == []
    assert bench.statistics.expired == 1


def test_a_queue_timeout_counts_from_the_door() -> None:
    """The wait for preprocessing is a part of it."""
    bench = PreparingBench(policy=QueuePolicy(default_timeout_ns=10 * MS))
    bench.ask("running")
    waiting = bench.ask("waiting")
    bench.advance(11 * MS)
    assert isinstance(bench.outcome(waiting), DeadlineExceeded)


def test_the_models_limit_of_waiting_requests_holds() -> None:
    bench = PreparingBench(policy=QueuePolicy(max_queue_size=2))
    requests = [bench.ask(str(number)) for number in range(4)]
    assert [type(bench.outcome(request)) for request in requests] == [type(None)] * 3 + [QueueFull]
    assert bench.statistics.pending == 2
    assert bench.statistics.refused[Refusal.QUEUE_FULL] == 1


def test_a_caller_that_goes_away_frees_its_place_at_once() -> None:
    bench = PreparingBench(policy=QueuePolicy(max_queue_size=1))
    running, waiting = bench.ask("running"), bench.ask("waiting")
    for request in (waiting, running):
        assert request.holder is not None
        request.holder.cancel(request)
        bench.loop.run()
        assert isinstance(bench.outcome(request), Cancelled)
    assert bench.statistics.pending == 0
    assert bench.statistics.cancelled == bench.statistics.fail.count == 2
    bench.prepared()
    assert bench.begun == ["running"]
    assert not bench.behind.batcher.pending


def test_a_bad_input_is_its_callers_and_counts_as_nobodys_failure() -> None:
    """As what contradicts a model's config: v2 statistics count what is sound."""
    bench = PreparingBench()
    request = bench.ask("bad", 3, 255)
    bench.prepared()
    outcome = bench.outcome(request)
    assert isinstance(outcome, InvalidRequest)
    assert outcome.field == "inputs[1]"
    assert bench.statistics.fail.count == 0


def test_costs_are_learned_by_the_size_of_an_input() -> None:
    """A large picture is refused where a small one is not."""
    bench = PreparingBench()
    bench.learn(2 * MS, size=1000)
    bench.learn(80 * MS, size=1_000_000)
    bench.ask("running", size=1000)
    assert bench.outcome(bench.ask("small", within_ns=60 * MS, size=1000)) is None
    assert isinstance(bench.outcome(bench.ask("large", within_ns=60 * MS, size=1_000_000)), Overloaded)


def test_sizes_are_of_one_input_in_classes() -> None:
    picture = ImageInput(bytes(50_000))
    assert size_class([picture]) == size_class([picture, picture]) == 1 << 16
    assert size_class([TextInput("x" * 100)]) == 128
    assert size_class([RowInput([1, 2])]) == 0


def test_saturation_is_that_of_the_fuller_of_the_two() -> None:
    """Else nothing would say that more replicas are needed where it is the pictures that take the time."""
    bench = PreparingBench()
    bench.learn(10 * MS)
    for _ in range(100):
        bench.ask(within_ns=30 * MS)
    now_ns = bench.clock()
    assert bench.statistics.saturation(now_ns) > 2
    assert bench.statistics.saturation(now_ns) > 10 * bench.statistics.load.work(now_ns)


def test_a_wait_for_the_threads_is_explained_as_one_in_the_queue() -> None:
    bench = PreparingBench()
    bench.ask("running")
    explanation = Explanation(bench.clock(), bench.clock)
    bench.ask("asks", explanation=explanation)
    bench.prepared(30 * MS)
    bench.prepared(4 * MS)
    parts = explanation.parts_ns()
    assert parts["queue"] + parts["preprocess"] == 34 * MS


def test_a_batcher_that_foresees_nothing_has_its_requests_prepared_all_the_same() -> None:
    bench = PreparingBench(foresees=False)
    bench.learn(10 * MS)
    request = bench.ask("a", 5)
    assert isinstance(bench.outcome(bench.ask("late", within_ns=12 * MS)), Overloaded)
    bench.prepared()
    bench.answered()
    assert bench.answer(request) == [10]


def test_what_is_brief_is_prepared_at_once() -> None:
    """No thread has it, also where all of them are busy with more."""
    bench = PreparingBench(brief=2)
    bench.ask("long", 1, 2, 3)
    explanation = Explanation(bench.clock(), bench.clock)
    request = bench.ask("brief", 3, 4, explanation=explanation)
    assert bench.begun == ["long"]
    bench.answered()
    assert bench.answer(request) == [6, 8]
    assert [part for part, _ in explanation.marks][:1] == ["preprocess"]
    assert (bench.statistics.success.count, bench.statistics.admitted) == (1, 1)


def test_what_is_brief_and_bad_is_its_callers_alone() -> None:
    """Told at once; nobody else's pass, and nobody's failure."""
    bench = PreparingBench(brief=2)
    other, bad = bench.ask("other"), bench.ask("bad", 3, 255)
    outcome = bench.outcome(bad)
    assert isinstance(outcome, InvalidRequest)
    assert outcome.field == "inputs[1]"
    bench.answered()
    assert bench.answer(other) == [14]
    assert bench.statistics.fail.count == 0


def test_what_is_brief_is_admitted_by_the_batcher_behind() -> None:
    """Where the last one tells that there is no time for the next, that is not even prepared."""
    bench = PreparingBench(brief=1, max_batch_size=1, cost=StillCost(20 * MS))
    bench.ask("running")
    in_time = bench.ask("in time", within_ns=55 * MS)
    assert bench.outcome(in_time) is None
    for number in range(2):
        assert isinstance(bench.outcome(bench.ask(f"late{number}", 9 + number, within_ns=56 * MS)), Overloaded)
    assert bench.prepared_bytes == [7, 7]
    assert bench.statistics.refused[Refusal.OVERLOAD] == bench.statistics.fail.count == 2


def test_a_brief_one_whose_caller_goes_away_is_not_executed() -> None:
    bench = PreparingBench(brief=1, max_batch_size=1)
    bench.ask("running")
    request = bench.ask("gone")
    assert request.holder is not None
    request.holder.cancel(request)
    assert isinstance(bench.outcome(request), Cancelled)


def test_at_the_end_everybody_is_told() -> None:
    bench = PreparingBench()
    running, waiting = bench.ask("running"), bench.ask("waiting")
    asyncio.run(bench.preparing.close())
    assert isinstance(bench.outcome(running), Draining)
    assert isinstance(bench.outcome(waiting), Draining)
    assert isinstance(bench.outcome(bench.ask("new")), Draining)
    assert bench.statistics.pending == 0


class Simulation:
    """Open-loop callers of pictures on one core, which preprocessing and passes take turns on."""

    def __init__(self, prepare_ms: float, pass_ms: float, together: int) -> None:
        self.bench = PreparingBench(together=together, max_batch_size=1, seed={1: int(pass_ms * MS)})
        self._ms = {"prepare": prepare_ms, "pass": pass_ms}
        self._random = random.Random(0)
        self._events: list[tuple[int, float, Callable[[], None]]] = []
        self._core_busy = False
        self.outcomes: Counter[str] = Counter()

    def run(self, rate: float, seconds: float, deadline_ms: float) -> float:
        """Answers in time, a second."""
        clock, loop = self.bench.clock, self.bench.loop
        end_ns = clock.now_ns + int(seconds * 1000 * MS)
        self._arrive(rate, end_ns, deadline_ms)
        while self._events:
            timer_ns = loop.next_timer_ns()
            clock.now_ns = max(clock.now_ns, min(self._events[0][0], timer_ns or self._events[0][0]))
            while self._events and self._events[0][0] <= clock.now_ns:
                heapq.heappop(self._events)[2]()
            loop.run()
            self._next()
        return self.outcomes["in time"] / seconds

    def _later(self, ms: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.bench.clock.now_ns + int(ms * MS), self._random.random(), what))

    def _arrive(self, rate: float, end_ns: int, deadline_ms: float) -> None:
        request = self.bench.ask(within_ns=int(deadline_ms * MS))
        self.bench.outcomes[request] = Told(self, request, self.bench.outcomes[request])
        if self.bench.clock.now_ns < end_ns:
            self._later(self._random.expovariate(rate) * 1000, lambda: self._arrive(rate, end_ns, deadline_ms))

    def _next(self) -> None:
        """The core goes to a pass, where there is one, else to preprocessing."""
        if self._core_busy:
            return
        runner = self.bench.behind.runner
        if runner.job is not None:
            self._take("pass", runner.complete)
        elif self.bench.busy:
            thread = self.bench.busy[0]
            self._take("prepare", thread.complete, len(thread.job[0]) if thread.job else 1)

    def _take(self, kind: str, complete: Callable[[], None], times: int = 1) -> None:
        self._core_busy = True

        def end() -> None:
            self._core_busy = False
            complete()

        self._later(times * self._ms[kind], end)


class Told(list[Outcome]):
    """The outcomes of one request, counted as they come."""

    def __init__(self, simulation: Simulation, request: InferRequest, before: list[Outcome]) -> None:
        super().__init__()
        self._simulation, self._request = simulation, request
        for outcome in before:
            self.append(outcome)

    def append(self, outcome: Outcome) -> None:
        super().append(outcome)
        in_time = (
            isinstance(outcome, InferResponse) and self._simulation.bench.clock.now_ns <= self._request.deadline_ns
        )
        self._simulation.outcomes["in time" if in_time else type(outcome).__name__] += 1


@pytest.mark.parametrize(
    ("prepare_ms", "pass_ms"),
    [(4.0, HANDOFF_NS * 2 / MS), (3.0, 3.0), (1.0, 10.0)],
    ids=["dear pictures", "both alike", "dear passes"],
)
@pytest.mark.parametrize("together", [1, 8])
def test_overload_costs_little_of_the_capacity_whatever_takes_the_time(
    prepare_ms: float, pass_ms: float, together: int
) -> None:
    """Twice what one core can do: nearly all of that is answered in time, the rest refused before it is decoded."""
    simulation = Simulation(prepare_ms, pass_ms, together)
    capacity = 1000 / (prepare_ms + pass_ms)
    assert simulation.run(2 * capacity, 4, 100) > 0.9 * capacity
    begun = len(simulation.bench.begun)
    assert begun < 1.1 * simulation.outcomes["in time"]
    assert simulation.outcomes["Overloaded"] > 0.8 * (sum(simulation.outcomes.values()) - begun)


def test_a_pass_of_preprocessing_takes_from_its_begin_to_its_end() -> None:
    """By a clock that goes on by one with each look at it; one that fails alone has no answer."""
    ticks = count(100)
    nobody: Any = SimpleNamespace()
    made = OnThread(Model("m", "1", batched=False), lambda raw: {"x": np.ones(1)}, nobody, lambda: next(ticks))
    request = InferRequest("m", (), on_settle=lambda _, __: None, received_ns=0)
    work = Work(request, [TextInput("a"), TextInput("b")], lambda _, __: None, NO_DEADLINE)
    told = made.run_inline([work])
    assert (told.rows, told.started_ns, told.compute_infer_ns, told.error) == (2, 100, 2, None)
    assert len(told.responses) == 1
    request.deadline_ns = 0
    told = made.run_inline([work])
    assert (told.rows, told.started_ns) == (2, 103)
    assert isinstance(told.error, DeadlineExceeded)
