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

from server.buckets import Buckets
from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    ModelNotReady,
    Overloaded,
    QueueFull,
)
from server.scheduler.handoff import HANDOFF_NS, ONE_CORE
from server.scheduler.queue import Priorities, QueuePolicy
from server.scheduler.share import Lease, Share
from server.scheduler.statistics import FailureReason
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome
from tests.support.scheduler import POISON, Bench, StillCost

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
    columns: int = 1
    level: int = 0
    tenant: str = ""
    nobody_ahead: bool = False
    queue_was_full: bool = False
    came_while_draining: bool = False
    settled_ns: int = 0
    outcome: Outcome | None = None


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        max_batch_size=st.sampled_from([0, 1, 2, 4, 7]),
        preferred=st.lists(st.integers(1, 6), max_size=2, unique=True).map(tuple),
        delay=st.sampled_from([0, 0, 1, 3]),
        max_queue_size=st.sampled_from([0, 3, 6]),
        timeout=st.sampled_from([0, 2, 5]),
        action=st.sampled_from(["REJECT", "DELAY"]),
        override=st.booleans(),
        instances=st.integers(1, 3),
        inline=st.booleans(),
        pass_ns=st.sampled_from([ONE_CORE * HANDOFF_NS, TICK_NS, 3 * TICK_NS]),
        best=st.sampled_from([1, 3, 100]),
        levels=st.sampled_from([0, 0, 2, 3]),
        slo=st.sampled_from([0, 0, 6]),
        preserve_ordering=st.booleans(),
        tokens=st.sampled_from([0, 0, 1, 2]),
        fair=st.booleans(),
        one_bucket=st.booleans(),
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
        pass_ns: int,
        best: int,
        levels: int,
        slo: int,
        preserve_ordering: bool,
        tokens: int,
        fair: bool,
        one_bucket: bool,
    ) -> None:
        self.buckets = Buckets((2,), {"x": 0}, {"y": (0,)}, {"x": 5}) if one_bucket and max_batch_size else None
        self.max_rows = max_batch_size
        self.delay_ns = delay * TICK_NS
        self.policy = QueuePolicy(max_queue_size, timeout * TICK_NS, action, override)
        sizes = tuple(size for size in preferred if size <= max_batch_size)
        self.inline = inline
        self.pass_ns = 1 if inline else pass_ns
        self.most_rows = max_batch_size if sizes else min(max_batch_size, best)
        self.urgent_policy = QueuePolicy(2, 3 * TICK_NS)
        self.priorities = Priorities(levels, levels, {1: self.urgent_policy} if levels else {})
        self.slo_ns = slo * TICK_NS
        self.in_order = preserve_ordering and not levels
        self.fair = fair
        self.last_answered = -1
        self.bench = Bench(
            max_batch_size,
            sizes,
            self.delay_ns,
            self.policy,
            instances=instances,
            on_begin=self.began,
            cost=StillCost(self.pass_ns, best),
            priorities=self.priorities,
            slo_ns=self.slo_ns,
            preserve_ordering=self.in_order,
            share=self.make_share(tokens),
            fair_by_tenant=fair,
            buckets=self.buckets,
        )
        self.books: dict[InferRequest, Book] = {}
        self.draining_since: int | None = None
        self.drain_until = NO_DEADLINE
        self.drain: Coroutine[Any, Any, None] | None = None
        self.rows_run = 0
        self.passes_run = 0

    def make_share(self, tokens: int) -> Share | None:
        """Of the cores, with another model that wants them; 0: none."""
        self.share = Share(tokens) if tokens else None
        self.rival_leases: list[Lease] = []
        self.rival = self.share.join("rival", 2, self.rival_is_called) if self.share else None
        return self.share

    def rival_is_called(self) -> None:
        self.bench.loop.call_soon(self.rival_asks)

    def rival_asks(self) -> None:
        if self.rival is None:
            return
        lease = self.rival.take(1, 4 * TICK_NS, NO_DEADLINE, self.bench.clock.now_ns)
        if lease is not None:
            self.rival_leases.append(lease)

    # --- what may happen ---------------------------------------------------------------------------

    @rule(
        rows=st.integers(1, 4),
        columns=st.sampled_from([1, 1, 1, 2]),
        poison=st.sampled_from([False] * 7 + [True]),
        deadline=st.sampled_from([None, None, 0, 1, 4]),
        timeout=st.sampled_from([None, None, 1, 3, 8]),
        priority=st.sampled_from([None, 0, 1, 2, 9]),
        tenant=st.sampled_from(["", "a", "a", "b"]),
    )
    def submit(
        self,
        rows: int,
        columns: int,
        poison: bool,
        deadline: int | None,
        timeout: int | None,
        priority: int | None,
        tenant: str,
    ) -> None:
        if 0 < self.max_rows < rows:
            rows = self.max_rows
        number = len(self.books)
        values = [number * 10 + row for row in range(rows)]
        if poison:
            values[-1] = POISON
        now_ns = self.bench.clock.now_ns
        book = Book(number, values, now_ns, tenant=tenant, columns=columns)
        parameters = {} if timeout is None else {"timeout": timeout * TICK_NS // 1000}
        if priority is not None:
            parameters["priority"] = priority
        if levels := self.priorities.levels:
            book.level = priority if priority and priority <= levels else levels
        request = self.bench.caller.request(
            values,
            columns=columns,
            id=f"r{number}",
            deadline_ns=NO_DEADLINE if deadline is None else now_ns + deadline * TICK_NS,
            parameters=parameters,
            tenant=tenant,
            on_settle=self.settled,
        )
        if not self.max_rows:
            request.rows = 1
        if self.buckets is not None:
            request.signature = self.buckets.padded(columns)
        self.set_expiry(book, request, timeout)
        book.queue_was_full = self.is_full(book)
        # A pass whose end the loop has not heard yet is still ahead.
        book.nobody_ahead = bool(self.bench.batcher._instances.idle) and not self.bench.batcher.pending
        book.came_while_draining = self.draining_since is not None
        self.books[request] = book
        self.bench.batcher.submit((request,))

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
        self.bench.loop.run()
        self.bench.batcher._alarm.cancel()
        self.bench.batcher._alarm._ring()

    @precondition(lambda self: any(runner.job for runner in self.bench.runners))
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def complete(self, data: st.DataObject, fails: bool) -> None:
        runner = data.draw(st.sampled_from([runner for runner in self.bench.runners if runner.job]))
        assert runner.job is not None
        requests = runner.job[0]
        # A failure that nobody is guilty of strikes a pass of several only: alone it would be final.
        if fails and len(requests) > 1:
            runner.instance.faults.append(RuntimeError("scripted"))
        elif not any(POISON in self.books[request].values for request in requests):
            self.count_pass(requests)
        runner.complete()

    @precondition(lambda self: any(runner.job for runner in self.bench.runners))
    @rule(data=st.data(), sure=st.sampled_from([False, False, False, True]))
    def die(self, data: st.DataObject, sure: bool) -> None:
        if not sure:
            return
        runner = data.draw(st.sampled_from([runner for runner in self.bench.runners if runner.job]))
        assert runner.job is not None
        for request in runner.job[0]:
            self.books[request].worker_died = True
        runner.die()

    @precondition(lambda self: self.rival is not None)
    @rule()
    def the_rival_begins(self) -> None:
        self.rival_asks()

    @precondition(lambda self: self.rival_leases)
    @rule()
    def the_rival_ends(self) -> None:
        assert self.rival is not None
        self.rival.give(self.rival_leases.pop(), self.bench.clock.now_ns)

    @precondition(lambda self: self.books)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.books)))
        if not request.settled:
            self.books[request].cancelled = True
        self.bench.batcher.cancel(request)

    @precondition(lambda self: self.draining_since is None)
    @rule(ticks=st.integers(0, 5), sure=st.sampled_from([False, False, True]))
    def begin_drain(self, ticks: int, sure: bool) -> None:
        if not sure:
            return
        self.draining_since = self.bench.clock.now_ns
        self.drain_until = self.draining_since + ticks * TICK_NS
        self.drain = self.bench.batcher.drain(self.drain_until)
        self.drain.send(None)

    # --- the machine's own books -------------------------------------------------------------------

    def set_expiry(self, book: Book, request: InferRequest, timeout: int | None) -> None:
        policy = self.policy_of(book)
        default_ns = policy.default_timeout_ns
        own_ns = (timeout or 0) * TICK_NS
        if not default_ns:
            effective_ns = own_ns
        else:
            effective_ns = min(own_ns or default_ns, default_ns) if policy.allow_timeout_override else default_ns
        book.rejects_ns = request.deadline_ns
        if self.slo_ns:
            book.rejects_ns = min(book.rejects_ns, book.admitted_ns + self.slo_ns)
        if effective_ns and policy.timeout_action == "REJECT":
            book.rejects_ns = min(book.rejects_ns, book.admitted_ns + effective_ns)
        elif effective_ns:
            book.delays_ns = book.admitted_ns + effective_ns

    def policy_of(self, book: Book) -> QueuePolicy:
        return self.urgent_policy if book.level == 1 else self.policy

    def is_full(self, book: Book) -> bool:
        """Of a level's places; where tenants share them, whether the tenant has as many as are free."""
        places = self.policy_of(book).max_queue_size
        waiting = [
            other
            for request, other in self.books.items()
            if not request.settled and not other.runs and other.level == book.level
        ]
        if not self.fair:
            return 0 < places <= len(waiting)
        held = sum(other.tenant == book.tenant for other in waiting)
        return places > 0 and held >= places - len(waiting)

    def count_pass(self, requests: Sequence[InferRequest]) -> None:
        self.passes_run += 1
        self.rows_run += sum(request.rows for request in requests)

    def settled(self, request: InferRequest, outcome: Outcome) -> None:
        book = self.books[request]
        assert book.outcome is None, "settled twice"
        book.outcome = outcome
        book.settled_ns = self.bench.clock.now_ns
        if self.in_order and isinstance(outcome, InferResponse):
            assert book.number > self.last_answered, "answered out of order"
            self.last_answered = book.number

    def began(self, requests: Sequence[InferRequest]) -> None:
        """A pass begins: everything that must hold of its requests is checked here."""
        now_ns = self.bench.clock.now_ns
        books = [self.books[request] for request in requests]
        assert not any(request.settled for request in requests), "executed though settled"
        rows = sum(request.rows for request in requests)
        assert rows <= max(1, self.max_rows)
        assert rows <= max(1, self.most_rows) or len(requests) == 1, "larger than is worth it"
        assert self.max_rows or len(requests) == 1
        assert len({request.signature for request in requests}) == 1, "signatures mixed"
        assert all(request.deadline_ns > now_ns for request in requests), "executed though expired"
        for book in books:
            book.runs += 1
            assert book.runs == 1 or (book.runs == 2 and len(books) == 1), "run again, but not alone or not once"
            assert book.runs == 2 or book.rejects_ns > now_ns, "executed though its queue timeout was over"
        if books[0].runs == 1:
            self.check_order(requests, books, now_ns)
        if self.inline and not any(POISON in book.values for book in books):
            self.count_pass(requests)

    def urgency(self, book: Book, now_ns: int) -> tuple[int, bool, int, int]:
        """Who has less goes first: level, then not delayed, then deadline, then arrival."""
        delayed = book.delays_ns <= now_ns
        return book.level, delayed, book.rejects_ns, 0 if delayed else book.number

    def check_order(self, requests: Sequence[InferRequest], books: list[Book], now_ns: int) -> None:
        """The most urgent first within a signature, nobody left out who could still be answered in time."""
        least_urgent = max(self.urgency(book, now_ns)[:2] for book in books)
        late = [book.rejects_ns < now_ns + self.pass_ns for book in books]
        assert all(late) or not any(late), "a late one makes another late"
        if not any(late) and len(books) > 1:
            assert min(book.rejects_ns for book in books) >= now_ns + self.pass_ns
        for request, book in self.books.items():
            left_behind = not book.runs and not request.settled and request.signature == requests[0].signature
            if left_behind and book.rejects_ns >= now_ns + self.pass_ns:
                assert not any(late), "a late one was taken before one that is not"
                assert self.urgency(book, now_ns)[:2] >= least_urgent, "a higher level was left behind"
                same = [other for other in books if not self.fair or other.tenant == book.tenant]
                least = max([self.urgency(other, now_ns) for other in same], default=self.urgency(book, now_ns))
                assert self.urgency(book, now_ns) >= least, "a more urgent one of the signature was left behind"

    # --- what must hold at any time ----------------------------------------------------------------

    @invariant()
    def every_outcome_has_its_own_reason(self) -> None:
        for request, book in self.books.items():
            if book.outcome is not None:
                self.check_outcome(request, book, book.outcome)

    def check_outcome(self, request: InferRequest, book: Book, outcome: Outcome) -> None:
        if isinstance(outcome, InferResponse):
            assert outcome.id == request.id
            (output,) = outcome.outputs
            assert output.shape[1] == book.columns
            assert output.numpy().tolist() == [[value * 2] * book.columns for value in book.values]
            assert outcome.timing is not None
            assert outcome.timing.queue_ns >= 0
            return
        reasons = {
            Cancelled: book.cancelled,
            EngineFailure: POISON in book.values or book.worker_died,
            QueueFull: book.queue_was_full and not book.runs,
            DeadlineExceeded: (request.deadline_ns if book.runs else book.rejects_ns) <= book.settled_ns,
            Overloaded: book.rejects_ns < NO_DEADLINE and not book.nobody_ahead and not book.runs,
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
            FailureReason.REJECTED: (QueueFull, Overloaded, DeadlineExceeded),
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
        if self.bench.batcher._settling._in_order is not None:
            held |= set(self.bench.batcher._settling._in_order._ready)
        still = {request: book for request, book in waiting.items() if request not in held}
        assert self.bench.batcher.pending == statistics.pending == len(still)
        for request, book in still.items():
            assert (request.deadline_ns if book.runs else book.rejects_ns) > now_ns, "expired and not told"
        turn = self.bench.batcher._instances.turn
        if turn.waiting:
            assert self.share is not None
            assert self.bench.batcher.pending
            assert self.share.used >= self.share.tokens, "a core idles beside it"
            assert self.bench.loop.next_timer_ns() is not None or self.share.used, "nobody will wake it"
        elif any(runner.alive and not runner.job for runner in self.bench.runners):
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
        if self.rival is not None:
            self.rival.leave(self.bench.clock.now_ns)
            self.rival = None
        for _ in range(2 * len(self.books) + 2):
            self.bench.advance(20 * TICK_NS)
            for runner in self.bench.runners:
                if runner.job:
                    if not any(POISON in self.books[request].values for request in runner.job[0]):
                        self.count_pass(runner.job[0])
                    runner.complete()
        self.bench.loop.run()
        assert all(book.outcome is not None for book in self.books.values())
        assert all(len(outcomes) == 1 for outcomes in self.bench.caller.outcomes.values())
        self.every_outcome_has_its_own_reason()
        self.statistics_tell_what_happened()
        assert self.bench.batcher.pending == self.bench.statistics.pending == 0
        if self.share is not None:
            assert (self.share.used, self.bench.batcher._instances.turn.waiting) == (0, False), "tokens are lost"
        if self.drain is not None:
            try:
                self.drain.send(None)
            except StopIteration:
                return
            raise AssertionError("the drain did not end")


SchedulerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestSchedulerContracts = SchedulerMachine.TestCase
TestSchedulerContracts.__doc__ = "Every contract of the scheduler holds in every state that the rules can reach."
