"""The door of a model that writes text, asked directly: who is let in, and what the others are told."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from server.errors import DeadlineExceeded, Overloaded, QueueFull, ServingError
from server.scheduler.cost import CostModel
from server.scheduler.queue import Line, Priorities, QueuePolicy, RequestQueue
from server.scheduler.statistics import ModelStatistics
from server.scheduler.tenants import FairLine
from server.scheduler.writing_door import Run, WritingDoor
from server.scheduler.writing_foresight import Part, Room, done_ns, first_token_ns
from server.scheduler.writing_worker import Written
from server.types import NO_DEADLINE, InferRequest
from tests.support.scheduler import MS, Caller, ManualClock


@dataclass(eq=False)
class Text:
    prompt_tokens: int
    max_tokens: int
    length: int = 0
    made: int = 0
    finish: str = ""


class Door:
    """Two rows and 300 tokens. A token of a prompt takes 1 ms, a step 10 ms for one text and 14 ms for two."""

    def __init__(self, *, policy: QueuePolicy | None = None, levels: int = 0, fair: bool = False) -> None:
        self.clock = ManualClock()
        self.caller = Caller(self.clock)
        priorities = Priorities(levels, levels)
        self.queue = RequestQueue(policy or QueuePolicy(), priorities, 0, FairLine if fair else Line)
        self.runs: dict[Text, Run] = {}
        self.waiting: dict[InferRequest, tuple[Text, int]] = {}
        self.room = Room(2, 300, lambda waiting, running: 100)
        self.statistics = ModelStatistics("writer", "1")
        self.door = WritingDoor("writer", self.queue, self.runs, self.waiting, self.room, self.statistics)  # type: ignore[arg-type]
        self.costs = self.door.costs
        self.costs.steps, self.costs.prefill_ns = CostModel({1: 10 * MS, 2: 14 * MS}), 1.0 * MS

    def ask(self, job: Text, in_ms: float | None = None, **more: object) -> tuple[InferRequest, ServingError | None]:
        deadline_ns = NO_DEADLINE if in_ms is None else self.clock.now_ns + int(in_ms * MS)
        request = self.caller.request([1], deadline_ns=deadline_ns, **more)  # type: ignore[arg-type]
        self.waiting[request] = job, deadline_ns
        return request, self.door.admit(request, self.clock.now_ns)

    def run(self, job: Text, *, last_ns: int = 1, predicted_ns: int = 0) -> Run:
        request = self.caller.request([1])
        request.predicted_ns = predicted_ns
        run = self.runs[job] = Run(request, job, NO_DEADLINE, self.clock.now_ns, last_ns)  # type: ignore[arg-type]
        return run

    def arrived_ms(self) -> float:
        return self.statistics.load.work(self.clock.now_ns) * 250


def test_who_is_in_time_to_the_nanosecond_is_let_in() -> None:
    """Behind a text that runs: the rest of its step, the step that takes the prompt in, and the prompt."""
    door = Door()
    door.run(Text(50, 30))
    request, refusal = door.ask(Text(20, 50), 35)
    assert refusal is None
    assert request.predicted_ns == request.deadline_ns
    assert (list(door.queue), door.statistics.admitted) == ([request], 1)
    assert request.enqueued_ns == door.clock.now_ns

    late = Door()
    late.run(Text(50, 30))
    late.run(Text(50, 30))
    _, refusal = late.ask(Text(20, 50), 30)
    assert isinstance(refusal, Overloaded)
    assert not len(late.queue)
    assert late.statistics.admitted == 0
    one, own = Part(0, 30, 80), Part(20, 50, 70)
    foreseen_ns = first_token_ns([one, one], [], own, late.room, late.costs)
    assert foreseen_ns is not None
    assert refusal.predicted_ms == -(-foreseen_ns // MS)
    assert refusal.retry_after_ms == done_ns([one, one], [], late.room, late.costs) // MS


def test_who_is_late_by_itself_is_let_in() -> None:
    """As long as nobody waits and there is room: a row, and its part of the budget to the last token."""
    door = Door()
    assert door.ask(Text(200, 100), 1)[1] is None
    assert isinstance(door.ask(Text(20, 10), 1)[1], Overloaded), "one waits"
    for running in ([Text(1, 1)], [Text(1, 1), Text(1, 1)]):
        door = Door()
        for job in running:
            door.run(job)
        assert isinstance(door.ask(Text(200, 99), 1)[1], Overloaded)
    door = Door()
    door.run(Text(1, 1))
    assert door.ask(Text(200, 98), 1)[1] is None


def test_the_margin_takes_a_quarter_of_the_time_at_most() -> None:
    """Whatever was learned. Somebody waits, behind it, so that it is not let in for being alone."""
    for margin_ms, late_ms, in_time_ms in ((10.0, 44, 45), (1000.0, 46, 47)):
        for in_ms, refused in ((late_ms, True), (in_time_ms, False)):
            door = Door()
            door.run(Text(50, 100))
            door.ask(Text(1, 1))
            door.door.margin.ns = margin_ms * MS
            assert isinstance(door.ask(Text(20, 50), in_ms)[1], Overloaded) == refused


def test_who_has_no_deadline_or_an_unknown_cost_is_not_foreseen() -> None:
    """And is let in."""
    door = Door()
    request, refusal = door.ask(Text(20, 50))
    assert (refusal, request.predicted_ns) == (None, 0)
    door.costs.prefill_ns = 0.0
    request, refusal = door.ask(Text(20, 50), 1)
    assert (refusal, request.predicted_ns) == (None, 0)


def test_what_is_over_is_told_so_and_is_no_work() -> None:
    """At the very nanosecond of its deadline."""
    door = Door()
    _, refusal = door.ask(Text(20, 50), 0)
    assert isinstance(refusal, DeadlineExceeded)
    assert refusal.waited_us == 0
    assert door.arrived_ms() == 0


def test_a_full_line_says_its_limit_and_when_it_is_done() -> None:
    """Whoever is refused arrived: its prompt, and its part of full steps. Tenants are told what they hold."""
    door = Door(policy=QueuePolicy(max_queue_size=1))
    door.ask(Text(20, 50))
    _, refusal = door.ask(Text(20, 50))
    assert isinstance(refusal, QueueFull)
    parts = [Part(20, 50, 70)]
    assert (refusal.limit, refusal.held) == (1, 0)
    assert refusal.retry_after_ms == done_ns([], parts, door.room, door.costs) // MS > 20
    assert door.arrived_ms() == pytest.approx(2 * (20 + 50 * 14 / 2))

    shared = Door(policy=QueuePolicy(max_queue_size=2), fair=True)
    shared.ask(Text(20, 50), tenant="a")
    _, refusal = shared.ask(Text(20, 50), tenant="a")
    assert isinstance(refusal, QueueFull)
    assert (refusal.limit, refusal.held) == (2, 1)


def test_when_to_ask_again_is_a_millisecond_at_least_or_not_known() -> None:
    """Without a cost nothing is."""
    door = Door(policy=QueuePolicy(max_queue_size=1))
    door.costs.steps, door.costs.prefill_ns = CostModel(), 0.0
    door.ask(Text(20, 50))
    _, refusal = door.ask(Text(20, 50))
    assert isinstance(refusal, QueueFull)
    assert refusal.retry_after_ms == 0
    door.costs.prefill_ns = 1.0
    _, refusal = door.ask(Text(20, 50))
    assert isinstance(refusal, QueueFull)
    assert refusal.retry_after_ms == 1


def test_the_levels_above_and_earlier_deadlines_are_ahead() -> None:
    """Who goes behind it is not, nor who waits in a level below."""
    door = Door(levels=3)
    for level, in_ms in ((1, None), (2, 900), (2, 5000), (3, 5000)):
        _, refusal = door.ask(Text(20, 5), in_ms, parameters={"priority": level})
        assert refusal is None
    request, refusal = door.ask(Text(30, 5), 900, parameters={"priority": 2})
    assert refusal is None
    foreseen_ns = first_token_ns([], [Part(20, 5, 25)] * 2, Part(30, 5, 35), door.room, door.costs)
    assert request.predicted_ns - door.clock.now_ns == foreseen_ns


def test_a_text_that_runs_is_what_is_left_of_it() -> None:
    """Of its prompt where it has no token yet, of its text else; all that it may come to stays reserved."""
    door = Door()
    door.run(Text(200, 40, length=150), last_ns=0)
    door.run(Text(10, 60, length=30, made=20))
    request, refusal = door.ask(Text(20, 5), 5000)
    assert refusal is None
    running = [Part(50, 40, 240), Part(0, 40, 70)]
    assert request.predicted_ns - door.clock.now_ns == first_token_ns(
        running, [], Part(20, 5, 25), door.room, door.costs
    )


def test_texts_are_taken_for_different_ones_of_those_that_ended() -> None:
    """Those that wait are counted behind those that run."""
    door = Door()
    for tokens in range(1, 65):
        door.costs.lengths.learn(tokens, by_itself=True)
    door.run(Text(10, 100))
    for _ in range(2):
        assert door.ask(Text(20, 100))[1] is None
    request, refusal = door.ask(Text(20, 5, made=0), 5000, parameters={})
    assert refusal is None
    expected = [door.costs.expected(0, 100, number) for number in range(3)]
    assert len(set(expected)) == 3
    # Those without a deadline are behind it.
    foreseen_ns = first_token_ns([Part(0, expected[0], 110)], [], Part(20, 5, 25), door.room, door.costs)
    assert request.predicted_ns - door.clock.now_ns == foreseen_ns
    waiting = [Part(20, tokens, 120) for tokens in expected[1:]] + [Part(20, door.costs.expected(0, 5, 3), 25)]
    done = done_ns([Part(0, expected[0], 110)], waiting, door.room, door.costs)
    assert door.door._retry_after_ms() == done // MS


def test_the_first_token_teaches_what_was_foreseen_wrong() -> None:
    """By a step; of one that nothing was foreseen of, nothing."""
    door = Door()
    began_ns, ended_ns = door.clock.now_ns + 5 * MS, door.clock.now_ns + 21 * MS
    written = Written(None, (), began_ns, began_ns, ended_ns)
    run = door.run(Text(20, 50))
    door.door.learn_first(run, ended_ns + 2 * MS, written)
    assert door.door.margin.ns == 0
    assert door.costs.hand_over.mean_ns(1) == 2 * MS
    assert door.costs.wake.mean_ns(1) == 5 * MS, "it was alone, and nothing ran before"
    run.request.predicted_ns = ended_ns
    door.door.learn_first(run, ended_ns + 2 * MS, written)
    assert door.door.margin.ns == pytest.approx(0.98 * MS)


@pytest.mark.parametrize(
    ("others", "since_ms", "began_ms"), [(1, 5, 5), (0, 0, 5), (0, 0, 0)], ids=["two run", "a step before", "at once"]
)
def test_how_long_a_thread_takes_to_wake_is_told_by_a_text_alone(others: int, since_ms: int, began_ms: int) -> None:
    """With other texts, or behind another step, it waited for these."""
    door = Door()
    run = door.run(Text(20, 50))
    for _ in range(others):
        door.run(Text(1, 1))
    now_ns = door.clock.now_ns
    written = Written(None, (), now_ns + since_ms * MS, now_ns + began_ms * MS, now_ns + 20 * MS)
    door.door.learn_first(run, now_ns + 20 * MS, written)
    assert not door.costs.wake.sizes
    assert door.costs.hand_over.sizes
