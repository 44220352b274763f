"""The scheduler's contracts, held against any order of arrivals, ticks, ends of passes, failures and drains.

The machine below keeps its own books of every request and compares them with what the batcher does. Time
moves only by rule; workers end their passes only by rule.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    ModelNotReady,
    QueueFull,
)
from server.scheduler.queue import QueuePolicy
from server.scheduler.statistics import FailureReason
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome
from tests.support.scheduler import DEAR, POISON, Bench, ManualRunner

TICK_NS = 1_000_000


@dataclass(eq=False)
class Book:
    """What the machine knows of a request."""

    number: int
    values: list[int]
    admitted_ns: int
    rejects_ns: int = NO_DEADLINE
    delays_ns: int = NO_DEADLINE
    runs: int = 0
    cancelled: bool = False
    worker_died: bool = False
    queue_was_full: bool = False
    came_while_draining: bool = False
    settled_ns: int = 0
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Arrival:
    """A request to come; times in ticks from then."""

    rows: int
    columns: int
    poison: bool
    deadline: int | None
    timeout: int | None


arrivals = st.builds(
    Arrival,
    rows=st.sampled_from([1, 1, 2, 4]),
    columns=st.sampled_from([1, 1, 1, 2]),
    poison=st.sampled_from([False] * 9 + [True]),
    deadline=st.sampled_from([None, None, None, 0, 1, 4]),
    timeout=st.sampled_from([None, None, None, 1, 3, 8]),
)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        max_batch_size=st.sampled_from([7, 4, 2, 7, 1, 0]),
        preferred=st.lists(st.integers(1, 6), max_size=2, unique=True).map(tuple),
        delay=st.sampled_from([0, 0, 1, 3]),
        max_queue_size=st.sampled_from([0, 0, 4, 9]),
        timeout=st.sampled_from([0, 2, 5]),
        action=st.sampled_from(["REJECT", "DELAY"]),
        override=st.booleans(),
        instances=st.sampled_from([1, 1, 2, 3]),
        inline=st.sampled_from([False, False, True]),
    )
    def make(
        self,
        max_batch_size: int,
        preferred: tuple[int, ...],
        delay: int,
        max_queue_size: int,
        timeout: int,
        action: Any,
        override: bool,
        instances: int,
        inline: bool,
    ) -> None:
        self.max_rows = max_batch_size
        self.delay_ns = delay * TICK_NS
        self.policy = QueuePolicy(max_queue_size, timeout * TICK_NS, action, override)
        sizes = tuple(size for size in preferred if size <= max_batch_size)
        self.inline = inline
        seed = {1: 1} if inline else DEAR
        self.bench = Bench(max_batch_size, sizes, self.delay_ns, self.policy, seed, instances, self.began)
        self.books: dict[InferRequest, Book] = {}
        self.draining_since: int | None = None
        self.drain_until = NO_DEADLINE
        self.drain: Coroutine[Any, Any, None] | None = None
        self.rows_run = 0
        self.passes_run = 0

    # --- what may happen ---------------------------------------------------------------------------

    @rule(arrivals=st.lists(arrivals, min_size=1, max_size=6))
    def submit(self, arrivals: list[Arrival]) -> None:
        for arrival in arrivals:
            self.submit_one(arrival)

    def submit_one(self, arrival: Arrival) -> None:
        number = len(self.books)
        rows = min(arrival.rows, self.max_rows or arrival.rows)
        values = [number * 10 + row for row in range(rows)]
        if arrival.poison:
            values[-1] = POISON
        now_ns = self.bench.clock.now_ns
        book = Book(number, values, now_ns)
        request = self.bench.caller.request(
            values,
            columns=arrival.columns,
            id=f"r{number}",
            deadline_ns=NO_DEADLINE if arrival.deadline is None else now_ns + arrival.deadline * TICK_NS,
            parameters=None if arrival.timeout is None else {"timeout": arrival.timeout * TICK_NS // 1000},
            on_settle=self.settled,
        )
        if not self.max_rows:
            request.rows = 1
        self.set_expiry(book, request, arrival.timeout)
        book.queue_was_full = 0 < self.policy.max_queue_size <= self.waiting()
        book.came_while_draining = self.draining_since is not None
        self.books[request] = book
        self.bench.batcher.submit(request)

    @rule()
    def tick(self) -> None:
        self.bench.loop.run()
        self.check_that_nothing_waits_in_vain()

    @rule(ticks=st.integers(1, 4))
    def advance(self, ticks: int) -> None:
        self.bench.advance(ticks * TICK_NS)
        self.check_that_nothing_waits_in_vain()

    @rule(ns=st.integers(1, TICK_NS))
    def advance_a_little(self, ns: int) -> None:
        self.bench.advance(ns)
        self.check_that_nothing_waits_in_vain()

    @rule()
    def the_alarm_rings_early(self) -> None:
        """As uvloop's does: the old timer is gone, and somebody has to set a new one."""
        self.bench.batcher._alarm.cancel()
        self.bench.batcher._alarm._ring()

    @precondition(lambda self: any(runner.job for runner in self.bench.runners))
    @rule(data=st.data(), fails=st.sampled_from([False, False, True]))
    def complete(self, data: st.DataObject, fails: bool) -> None:
        """A pass ends. Its end reaches the loop with the next tick, after whatever else happens until then."""
        busy = [runner for runner in self.bench.runners if runner.job]
        self.end_pass(data.draw(st.sampled_from(busy)), fails)

    @rule(rounds=st.integers(1, 4), fails=st.sampled_from([False, False, True]))
    def serve(self, rounds: int, fails: bool) -> None:
        """The loop runs and the passes under way end, several times; the first of them may fail."""
        for number in range(rounds):
            self.tick()
            for runner in self.bench.runners:
                if runner.job:
                    self.end_pass(runner, fails and not number)
        self.tick()

    def end_pass(self, runner: ManualRunner, fails: bool) -> None:
        assert runner.job is not None
        requests = runner.job[0]
        # A failure that nobody is guilty of strikes a pass of several only: alone it would be final.
        if fails and len(requests) > 1:
            runner.instance.faults.append(RuntimeError("scripted"))
        elif not self.poisoned(requests):
            self.count_pass(requests)
        runner.complete()

    @precondition(lambda self: any(runner.job for runner in self.bench.runners) and len(self.books) > 8)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        runner = data.draw(st.sampled_from([runner for runner in self.bench.runners if runner.job]))
        assert runner.job is not None
        for request in runner.job[0]:
            self.books[request].worker_died = True
        runner.die()

    @precondition(lambda self: self.books)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.books)))
        if not request.settled:
            self.books[request].cancelled = True
        self.bench.batcher.cancel(request)

    @precondition(lambda self: self.draining_since is None and len(self.books) > 12)
    @rule(ticks=st.integers(0, 5))
    def begin_drain(self, ticks: int) -> None:
        self.draining_since = self.bench.clock.now_ns
        self.drain_until = self.draining_since + ticks * TICK_NS
        self.drain = self.bench.batcher.drain(self.drain_until)
        self.drain.send(None)

    # --- the machine's own books -------------------------------------------------------------------

    def set_expiry(self, book: Book, request: InferRequest, timeout: int | None) -> None:
        default_ns = self.policy.default_timeout_ns
        own_ns = (timeout or 0) * TICK_NS
        if not default_ns:
            effective_ns = own_ns
        else:
            effective_ns = min(own_ns or default_ns, default_ns) if self.policy.allow_timeout_override else default_ns
        book.rejects_ns = request.deadline_ns
        if effective_ns and self.policy.timeout_action == "REJECT":
            book.rejects_ns = min(book.rejects_ns, book.admitted_ns + effective_ns)
        elif effective_ns:
            book.delays_ns = book.admitted_ns + effective_ns

    def waiting(self) -> int:
        return sum(not request.settled and not book.runs for request, book in self.books.items())

    def poisoned(self, requests: Sequence[InferRequest]) -> bool:
        return any(POISON in self.books[request].values for request in requests)

    def count_pass(self, requests: Sequence[InferRequest]) -> None:
        self.passes_run += 1
        self.rows_run += sum(request.rows for request in requests)

    def settled(self, request: InferRequest, outcome: Outcome) -> None:
        book = self.books[request]
        assert book.outcome is None, "settled twice"
        book.outcome = outcome
        book.settled_ns = self.bench.clock.now_ns

    def began(self, requests: Sequence[InferRequest]) -> None:
        """A pass begins: everything that must hold of its requests is checked here."""
        now_ns = self.bench.clock.now_ns
        books = [self.books[request] for request in requests]
        assert not any(request.settled for request in requests), "executed though settled"
        assert sum(request.rows for request in requests) <= max(1, self.max_rows)
        assert self.max_rows or len(requests) == 1
        assert len({request.signature for request in requests}) == 1, "signatures mixed"
        assert all(request.deadline_ns > now_ns for request in requests), "executed though expired"
        for book in books:
            book.runs += 1
            assert book.runs == 1 or (book.runs == 2 and len(books) == 1), "run again, but not alone or not once"
            assert book.runs == 2 or book.rejects_ns > now_ns, "executed though its queue timeout was over"
        if books[0].runs == 1:
            self.check_order(requests, books, now_ns)
        if self.inline and not self.poisoned(requests):
            self.count_pass(requests)

    def check_order(self, requests: Sequence[InferRequest], books: list[Book], now_ns: int) -> None:
        """FIFO within a signature: not-delayed ones in order and before delayed ones, nobody left out."""
        punctual = [book.number for book in books if book.delays_ns > now_ns]
        assert punctual == sorted(punctual), "overtaken within a batch"
        assert [book.number for book in books[: len(punctual)]] == punctual, "a delayed one went before others"
        last = books[-1] if len(punctual) < len(books) else books[len(punctual) - 1]
        for request, book in self.books.items():
            left_behind = not book.runs and not request.settled and request.signature == requests[0].signature
            if left_behind and book.delays_ns > now_ns:
                assert last.delays_ns > now_ns, "a delayed one was taken before one that is not"
                assert book.number > last.number, "an older one of the same signature was left behind"

    # --- what must hold at any time ----------------------------------------------------------------

    @invariant()
    def every_outcome_has_its_own_reason(self) -> None:
        for request, book in self.books.items():
            if book.outcome is not None:
                self.check_outcome(request, book, book.outcome)

    def check_outcome(self, request: InferRequest, book: Book, outcome: Outcome) -> None:
        if isinstance(outcome, InferResponse):
            assert outcome.id == request.id
            assert outcome.outputs[0].numpy()[:, 0].tolist() == [value * 2 for value in book.values]
            assert outcome.timing is not None
            assert outcome.timing.queue_ns >= 0
            return
        reasons = {
            Cancelled: book.cancelled,
            EngineFailure: POISON in book.values or book.worker_died,
            QueueFull: book.queue_was_full and not book.runs,
            DeadlineExceeded: (request.deadline_ns if book.runs else book.rejects_ns) <= book.settled_ns,
            Draining: book.came_while_draining or book.settled_ns >= self.drain_until,
            ModelNotReady: not any(runner.alive for runner in self.bench.runners),
        }
        assert reasons.get(type(outcome), False), f"{outcome!r} is not the fault of {book}"

    @invariant()
    def statistics_tell_what_happened(self) -> None:
        outcomes = [book.outcome for book in self.books.values() if book.outcome is not None]
        statistics = self.bench.statistics
        assert statistics.success.count == sum(isinstance(outcome, InferResponse) for outcome in outcomes)
        assert statistics.success.count + statistics.fail.count == len(outcomes)
        assert statistics.request_duration.count == statistics.queue_duration.count == statistics.success.count
        expected = {
            FailureReason.CANCELED: (Cancelled,),
            FailureReason.REJECTED: (QueueFull, DeadlineExceeded),
            FailureReason.BACKEND: (EngineFailure,),
            FailureReason.OTHER: (Draining, ModelNotReady),
        }
        for reason, kinds in expected.items():
            assert statistics.failures[reason] == sum(isinstance(outcome, kinds) for outcome in outcomes)

    def check_that_nothing_waits_in_vain(self) -> None:
        """When the loop has run: nobody expired still waits, and no instance idles beside due work."""
        now_ns = self.bench.clock.now_ns
        waiting = {request: book for request, book in self.books.items() if not request.settled}
        statistics = self.bench.statistics
        assert (statistics.execution_count, statistics.inference_count) == (self.passes_run, self.rows_run)
        held = {request for runner in self.bench.runners if runner.job for request in runner.job[0]}
        still = {request: book for request, book in waiting.items() if request not in held}
        assert self.bench.batcher.pending == statistics.pending == len(still)
        for request, book in still.items():
            assert (request.deadline_ns if book.runs else book.rejects_ns) > now_ns, "expired and not told"
        if any(runner.alive and not runner.job for runner in self.bench.runners):
            patience_ns = 0 if self.draining_since is not None else self.delay_ns
            for book in still.values():
                assert book.runs == 0, "its second run is due"
                assert book.admitted_ns + patience_ns > now_ns, "an instance idles beside it"
        if now_ns >= self.drain_until:
            assert not waiting

    # --- the end -----------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Whatever the state: complete what runs, let time pass, and everybody is settled, exactly once."""
        if not hasattr(self, "bench"):
            return
        for _ in range(2 * len(self.books) + 2):
            self.bench.advance(20 * TICK_NS)
            for runner in self.bench.runners:
                if runner.job:
                    self.end_pass(runner, fails=False)
        self.bench.loop.run()
        assert all(book.outcome is not None for book in self.books.values())
        assert all(len(outcomes) == 1 for outcomes in self.bench.caller.outcomes.values())
        self.every_outcome_has_its_own_reason()
        self.statistics_tell_what_happened()
        assert self.bench.batcher.pending == self.bench.statistics.pending == 0
        if self.drain is not None:
            try:
                self.drain.send(None)
            except StopIteration:
                return
            raise AssertionError("the drain did not end")


SchedulerMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestSchedulerContracts = SchedulerMachine.TestCase
TestSchedulerContracts.__doc__ = "Every contract of the scheduler holds in every state that the rules can reach."
