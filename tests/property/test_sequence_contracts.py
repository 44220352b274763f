"""Sequences held against a plain accumulator, in any order of arrivals, ends of passes, failures, cancels and time.

The machine keeps a book of what was sent and what came of it. At the end each sequence is added up anew, with plain
numbers, from the requests that were answered; whatever the scheduler did in between must not show.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    SequenceLost,
    SequenceUnknown,
)
from server.scheduler.handoff import HANDOFF_NS
from server.scheduler.share import Share
from server.sequences import Direct, Oldest
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome
from tests.support.scheduler import POISON, StillCost
from tests.support.sequences import SequenceBench

TICK_NS = 1_000_000
IDLE_TICKS = 5
NAMES = (1, 2, "one")


@dataclass(eq=False)
class Book:
    """What the machine knows of a request."""

    value: int
    start: bool
    end: bool
    sent: int
    sent_ns: int
    deadline_ns: int
    lone: bool
    """None of its name was under way when it was sent."""
    rested_ns: int
    """When the last one of its name before it was settled."""
    cancelled: bool = False
    settled: int = 0
    settled_ns: int = 0
    outcome: Outcome | None = None


class SequenceMachine(RuleBasedStateMachine):
    @initialize(
        oldest=st.booleans(),
        max_batch_size=st.sampled_from([1, 2, 4]),
        candidates=st.sampled_from([0, 1, 3]),
        delay=st.sampled_from([0, 0, 1, 3]),
        utilization=st.sampled_from([0.0, 0.5, 1.0]),
        preferred=st.booleans(),
        preserve_ordering=st.booleans(),
        instances=st.integers(1, 2),
        max_queue_size=st.sampled_from([0, 0, 3]),
        inline=st.booleans(),
        shared=st.booleans(),
    )
    def make(
        self,
        oldest: bool,
        max_batch_size: int,
        candidates: int,
        delay: int,
        utilization: float,
        preferred: bool,
        preserve_ordering: bool,
        instances: int,
        max_queue_size: int,
        inline: bool,
        shared: bool,
    ) -> None:
        delay_us = delay * TICK_NS // 1000
        strategy: Direct | Oldest = Direct(delay_us, utilization)
        if oldest:
            strategy = Oldest(candidates, (max_batch_size,) if preferred else (), delay_us, preserve_ordering)
        self.direct = not oldest
        self.max_batch_size = max_batch_size
        self.slots = (candidates if oldest and candidates else max_batch_size) * instances
        self.max_queue_size = max_queue_size
        self.bench = SequenceBench(
            strategy,
            max_batch_size=max_batch_size,
            idle_us=IDLE_TICKS * TICK_NS // 1000,
            instances=instances,
            max_queue_size=max_queue_size,
            cost=StillCost(HANDOFF_NS // 2 if inline else HANDOFF_NS),
            share=Share(1) if shared else None,
        )
        self.books: dict[int | str, list[Book]] = {name: [] for name in NAMES}
        self.requests: dict[InferRequest, Book] = {}
        self.steps = 0
        self.values = 0
        self.draining = False
        self.someone_died = False
        self.faults = 0

    # --- rules --------------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from(NAMES),
        start=st.sampled_from([False, False, True]),
        end=st.sampled_from([False, False, False, True]),
        bad=st.sampled_from([False] * 7 + [True]),
        patience=st.sampled_from([0, 0, 0, 1, 4]),
        together=st.booleans(),
    )
    def send(self, name: int | str, start: bool, end: bool, bad: bool, patience: int, together: bool) -> None:
        """No two values are alike, and most are powers, so that a sum says which values are in it."""
        self.steps += 1
        self.values += 1
        value = POISON if bad else 3**self.values if self.values < 38 else -self.values
        now_ns = self.bench.clock.now_ns
        before = self.books[name]
        book = Book(
            value,
            # Whoever sends to a name that it never started starts it, mostly: else little would happen.
            start or not before,
            end,
            self.steps,
            now_ns,
            now_ns + patience * TICK_NS if patience else NO_DEADLINE,
            lone=all(other.outcome is not None for other in before),
            rested_ns=max((other.settled_ns for other in before), default=0),
        )
        request = self.bench.request(
            name,
            value,
            start=book.start,
            end=end,
            deadline_ns=book.deadline_ns,
            on_settle=lambda _, outcome: self.settled(book, outcome),
        )
        before.append(book)
        self.requests[request] = book
        self.bench.batcher.submit((request,))
        if not together:
            self.bench.loop.run()

    def settled(self, book: Book, outcome: Outcome) -> None:
        assert book.outcome is None, "settled twice"
        self.steps += 1
        book.outcome, book.settled, book.settled_ns = outcome, self.steps, self.bench.clock.now_ns

    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        busy = [runner for runner in self.bench.runners if runner.job is not None]
        if busy:
            data.draw(st.sampled_from(busy)).complete()
        self.bench.loop.run()

    @rule(data=st.data())
    def fault(self, data: st.DataObject) -> None:
        """The next pass of an instance fails, whoever is in it."""
        runner = data.draw(st.sampled_from(self.bench.runners))
        if len(runner.instance.faults) < 2:
            self.faults += 1
            runner.instance.faults.append(RuntimeError("fault"))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = [request for request, book in self.requests.items() if book.outcome is None]
        if waiting:
            request = data.draw(st.sampled_from(waiting))
            self.requests[request].cancelled = True
            self.bench.batcher.cancel(request)
            self.bench.loop.run()

    @rule(name=st.sampled_from(NAMES))
    def give_up(self, name: int | str) -> None:
        """A caller that waits for its answers goes away from one request, and comes back for the next."""
        quiet = {"end": False, "bad": False, "patience": 0, "together": False}
        self.send(name, start=True, **quiet)
        self.bench.finish()
        self.send(name, start=False, **quiet)
        for request, book in list(self.requests.items()):
            if book is self.books[name][-1] and book.outcome is None:
                book.cancelled = True
                self.bench.batcher.cancel(request)
        self.send(name, start=False, **quiet)

    @rule(ticks=st.integers(1, 3))
    def advance(self, ticks: int) -> None:
        for _ in range(ticks):
            self.bench.advance(TICK_NS)

    @rule()
    def rest(self) -> None:
        """Nothing comes for as long as makes a sequence idle."""
        for _ in range(IDLE_TICKS):
            self.bench.advance(TICK_NS)

    @precondition(lambda self: self.steps > 12)
    @rule()
    def die(self) -> None:
        runner = self.bench.runners[-1]
        if runner.job is not None and runner.alive:
            self.someone_died = True
            runner.die()
            self.bench.loop.run()

    @precondition(lambda self: self.steps > 25 and not self.draining)
    @rule()
    def drain(self) -> None:
        self.draining = True
        self.bench.loop.run()
        # One step: the rest is done by the loop.
        self.drained = self.bench.batcher.drain(self.bench.clock.now_ns + 20 * TICK_NS)
        self.drained.send(None)
        self.bench.loop.run()

    # --- what always holds ----------------------------------------------------------------------------

    @invariant()
    def passes_are_sound(self) -> None:
        """Never more rows than the largest batch, and a value runs at most twice, and succeeds at most once."""
        if not hasattr(self, "bench"):
            return
        done: list[int] = []
        for runner in self.bench.runners:
            assert all(len(rows) <= self.max_batch_size for rows in runner.instance.passes)
            if not self.direct:
                assert all(None not in rows for rows in runner.instance.passes)
            done += runner.instance.done
        values = [value for value in done if value != POISON]
        assert len(values) == len(set(values))

    @invariant()
    def the_books_of_the_metrics_are_sound(self) -> None:
        if not hasattr(self, "bench"):
            return
        sequences = self.bench.statistics.sequences
        assert sequences is not None
        assert 0 <= sequences.active <= self.slots
        assert sequences.backlog >= 0
        assert self.bench.statistics.pending >= 0

    # --- the end --------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        for _ in range(60):
            self.bench.finish()
            self.bench.advance(TICK_NS)
        assert all(book.outcome is not None for book in self.requests.values()), "somebody waits for ever"
        for books in self.books.values():
            self.add_up(books)
        self.check_statistics()

    def add_up(self, books: list[Book]) -> None:
        total, begun = 0, False
        gap: Book | None = None
        last_end = False
        for book in books:
            outcome = book.outcome
            self.check_error(book)
            if book.start and isinstance(outcome, InferResponse):
                total, begun, gap, last_end = 0, True, None, False
            if isinstance(outcome, InferResponse):
                assert begun, "answered without a start"
                assert not last_end, "answered behind the end"
                # Across a gap goes only who could have heard of it.
                assert gap is None or (gap.settled < book.sent and not gap.cancelled), "served across a gap"
                total += book.value
                assert outcome.outputs[0].numpy()[0, 0] == total
                gap = None
            elif not isinstance(outcome, (SequenceUnknown, SequenceLost)) and gap is None:
                gap = book
            if book.end and isinstance(outcome, InferResponse):
                last_end = True
            if book.start and not isinstance(outcome, InferResponse):
                # Whatever became of it, what follows was meant for a sequence that never began.
                begun = False
            idle_ns = book.sent_ns - book.rested_ns
            if book.lone and not book.start and idle_ns > (IDLE_TICKS + 1) * TICK_NS:
                assert not isinstance(outcome, InferResponse), "answered after it was idle for too long"

    def check_error(self, book: Book) -> None:
        """Every error has its reason."""
        outcome = book.outcome
        if isinstance(outcome, Cancelled):
            assert book.cancelled
        elif isinstance(outcome, DeadlineExceeded):
            assert book.deadline_ns <= book.settled_ns
        elif isinstance(outcome, EngineFailure):
            assert book.value == POISON or self.faults or self.someone_died
        elif isinstance(outcome, Draining):
            assert self.draining
        elif isinstance(outcome, QueueFull):
            assert self.max_queue_size
        elif isinstance(outcome, SequenceUnknown):
            assert not book.start
        else:
            assert isinstance(outcome, (InferResponse, SequenceLost, ModelNotReady)), repr(outcome)

    def check_statistics(self) -> None:
        statistics = self.bench.statistics
        answered = [book for book in self.requests.values() if isinstance(book.outcome, InferResponse)]
        assert statistics.success.count == len(answered)
        assert statistics.fail.count == len(self.requests) - len(answered)
        assert statistics.pending == 0
        assert statistics.inference_count == sum(len(runner.instance.done) for runner in self.bench.runners)
        sequences = statistics.sequences
        assert sequences is not None
        assert (sequences.active, sequences.backlog) == (0, 0)


TestSequences = SequenceMachine.TestCase
TestSequences.settings = settings(max_examples=200, stateful_step_count=40)
