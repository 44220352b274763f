"""A clock, an event loop and workers that do nothing until a test says so, for tests of the scheduler."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from server.errors import EngineFailure
from server.scheduler.batcher import Batcher
from server.scheduler.cost import CostModel
from server.scheduler.costs import Costs
from server.scheduler.handoff import HANDOFF_NS
from server.scheduler.plan import Limits
from server.scheduler.queue import QueuePolicy, RequestQueue
from server.scheduler.statistics import ModelStatistics
from server.scheduler.worker import Done, Model, Pass, forward
from server.tensor import Array, Tensor
from server.types import NO_DEADLINE, Batch, InferRequest, InferResponse, Outcome, Parameter

MS = 1_000_000
POISON = -1


class StillCost(CostModel):
    """Every pass is expected to take the same, whatever is observed; by default just enough for a worker's thread."""

    def __init__(self, ns: int = HANDOFF_NS, best: int = 10**9) -> None:
        super().__init__({1: ns})
        self.ns = ns
        self.best = best

    def observe(self, rows: int, ns: int, overhead_ns: int = 0) -> None:
        return

    def predict_ns(self, rows: int) -> int:
        return self.ns

    high_ns = compute_ns = predict_ns

    def best_rows(self, largest: int) -> int:
        return min(largest, self.best)


class ManualClock:
    def __init__(self, now_ns: int = 1_000 * MS) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


class ManualTimer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualFuture:
    def __init__(self) -> None:
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, result: None) -> None:
        self._done = True

    def __await__(self) -> Generator[None, None, None]:
        while not self._done:
            yield


class ManualLoop:
    """The four calls of an event loop that the batcher makes, deterministic and on a manual clock."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._ready: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[int, int, ManualTimer, Callable[[], Any]]] = []
        self._ticket = count()
        self.timers_made = 0

    def call_soon(self, callback: Callable[..., Any], *arguments: Any) -> None:
        self._ready.append((callback, arguments))

    def call_later(self, delay_s: float, callback: Callable[[], Any]) -> ManualTimer:
        timer = ManualTimer()
        self.timers_made += 1
        when_ns = self._clock.now_ns + round(delay_s * 1e9)
        heapq.heappush(self._timers, (when_ns, next(self._ticket), timer, callback))
        return timer

    def create_future(self) -> ManualFuture:
        return ManualFuture()

    def run(self) -> None:
        """Everything that is due now, and what follows from it."""
        for _ in range(100_000):
            while self._timers and self._timers[0][0] <= self._clock.now_ns:
                _, _, timer, callback = heapq.heappop(self._timers)
                if not timer.cancelled:
                    self.call_soon(callback)
            if not self._ready:
                return
            callback, arguments = self._ready.popleft()
            callback(*arguments)
        raise AssertionError("the loop spins without the clock moving")

    def next_timer_ns(self) -> int | None:
        live = [entry[0] for entry in self._timers if not entry[2].cancelled]
        return min(live) if live else None


class Doubler:
    """A model whose output `y` is twice its input `x`. Rows of POISON break the pass that they are in."""

    def __init__(self, name: str = "doubler_0", threads: int = 1, device: str = "cpu") -> None:
        self.name = name
        self.threads = threads
        self.device = device
        self.batches: list[list[int]] = []
        self.faults: deque[BaseException] = deque()
        """Each is raised by one coming pass."""

    def run(self, batch: Batch) -> Mapping[str, Array]:
        self.batches.append(batch.inputs["x"][:, 0].tolist())
        if self.faults:
            raise self.faults.popleft()
        if (batch.inputs["x"] == POISON).any():
            raise ValueError("poison")
        return {"y": batch.inputs["x"] * 2}


class ManualRunner:
    """A worker whose pass ends when the test calls `complete` or `die`."""

    def __init__(
        self,
        instance: Any,
        model: Model,
        loop: ManualLoop,
        clock: ManualClock,
        on_begin: Callable[[Sequence[InferRequest]], None] | None = None,
    ) -> None:
        self.instance = instance
        self.model = model
        self.loop = loop
        self.clock = clock
        self.on_begin = on_begin or (lambda requests: None)
        self.alive = True
        self.stopped = False
        self.job: tuple[Sequence[InferRequest], Done] | None = None

    def start(self, requests: Sequence[InferRequest], done: Done) -> None:
        assert self.job is None, "one pass at a time"
        self.on_begin(requests)
        self.job = (requests, done)

    def run_inline(self, requests: Sequence[InferRequest]) -> Pass:
        assert self.job is None, "one pass at a time"
        self.on_begin(requests)
        return forward(self.instance, requests, self.model, self.clock)

    def complete(self) -> None:
        assert self.job is not None
        requests, done = self.job
        self.job = None
        self.loop.call_soon(done, forward(self.instance, requests, self.model, self.clock))

    def die(self) -> None:
        assert self.job is not None
        requests, done = self.job
        self.job = None
        self.alive = False
        rows = sum(request.rows for request in requests)
        error = EngineFailure(self.model.name, "died")
        self.loop.call_soon(done, Pass(rows, self.clock(), error=error, died=True))

    def stop(self) -> None:
        self.stopped = True

    async def join(self) -> None:
        return


class Caller:
    """Makes requests and keeps every outcome that they get."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.outcomes: dict[InferRequest, list[Outcome]] = {}

    def request(
        self,
        values: Sequence[int] = (1,),
        *,
        columns: int = 1,
        id: str = "",
        deadline_ns: int = NO_DEADLINE,
        parameters: Mapping[str, Parameter] | None = None,
        outputs: Sequence[str] = (),
        tenant: str = "",
        on_settle: Callable[[InferRequest, Outcome], None] | None = None,
    ) -> InferRequest:
        """One row for each value; the signature is the number of columns."""
        array = np.repeat(np.array(values, dtype=np.int64).reshape(-1, 1), columns, axis=1)

        def settled(request: InferRequest, outcome: Outcome) -> None:
            self.outcomes[request].append(outcome)
            if on_settle:
                on_settle(request, outcome)

        request = InferRequest(
            "doubler",
            [Tensor("x", "INT64", array.shape, array.tobytes())],
            on_settle=settled,
            received_ns=self._clock(),
            id=id,
            outputs=outputs,
            parameters=parameters,
            deadline_ns=deadline_ns,
            tenant=tenant,
        )
        request.rows = len(values)
        request.signature = columns
        self.outcomes[request] = []
        return request

    def outcome(self, request: InferRequest) -> Outcome | None:
        """None while it is not settled."""
        outcomes = self.outcomes[request]
        assert len(outcomes) <= 1, "settled more than once"
        return outcomes[0] if outcomes else None

    def answer(self, request: InferRequest) -> list[int]:
        """The first column of the answer's output."""
        outcome = self.outcome(request)
        assert isinstance(outcome, InferResponse), repr(outcome)
        result: list[int] = outcome.outputs[0].numpy()[:, 0].tolist()
        return result


class Bench:
    """A batcher with everything around it."""

    def __init__(
        self,
        max_batch_size: int = 4,
        preferred_batch_size: tuple[int, ...] = (),
        max_queue_delay_ns: int = 0,
        policy: QueuePolicy | None = None,
        seed: Mapping[int, int] | None = None,
        instances: int = 1,
        devices: Sequence[str] = (),
        on_begin: Callable[[Sequence[InferRequest]], None] | None = None,
        cost: Costs | None = None,
        beside: Bench | None = None,
        threads: int = 1,
        model_name: str = "doubler",
        **rest: Any,
    ) -> None:
        """`seed` is of a real cost model; without it, and without `cost`, every pass costs the same.

        `beside`: another bench whose clock and loop this one uses. `threads`: of each instance.
        """
        self.clock = beside.clock if beside else ManualClock()
        self.loop = beside.loop if beside else ManualLoop(self.clock)
        self.caller = Caller(self.clock)
        self.statistics = ModelStatistics("doubler", "1", wall=lambda: 1_700_000_000.5)
        raw = rest.get("raw")
        model = Model("doubler", "1", max_batch_size > 0, rest.get("buckets"), raw)
        self.runners: list[ManualRunner] = []

        def make_runner(instance: Any) -> ManualRunner:
            self.runners.append(ManualRunner(instance, model, self.loop, self.clock, on_begin))
            return self.runners[-1]

        self.batcher = Batcher(
            model_name,
            "1",
            [
                Doubler(f"doubler_{index}", threads, device)
                for index, device in enumerate(devices or ["cpu"] * instances)
            ],
            Limits(max_batch_size, preferred_batch_size, max_queue_delay_ns),
            policy or QueuePolicy(),
            cost or (StillCost() if seed is None else CostModel(seed)),
            self.statistics,
            self.loop,  # type: ignore[arg-type]
            self.clock,
            make_runner,  # type: ignore[arg-type]
            **rest,
        )

    @property
    def runner(self) -> ManualRunner:
        return self.runners[0]

    @property
    def batches(self) -> list[list[int]]:
        return [batch for runner in self.runners for batch in runner.instance.batches]

    def submit(self, *requests: InferRequest) -> None:
        """They arrive in one turn of the loop, at whose end they are looked at."""
        self.batcher.submit(requests)
        self.loop.run()

    def complete(self) -> None:
        """The pass under way ends, and what follows from it happens."""
        self.runner.complete()
        self.loop.run()

    def advance(self, by_ns: int) -> None:
        """Time passes, once the loop has come to rest: it never leaves what arrived for later."""
        self.loop.run()
        self.clock.now_ns += by_ns
        self.loop.run()


def admit(queue: RequestQueue, request: InferRequest, now_ns: int) -> bool:
    """Put a request in its line as the batcher does, but for what is foreseen. False if the line is full."""
    delays_ns = queue.set_deadline(request, now_ns)
    if queue.is_full(request):
        return False
    queue.add(request, now_ns, delays_ns)
    return True
