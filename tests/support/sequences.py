"""A batcher of sequences with everything around it: a clock, a loop and workers that do what a test says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from server.scheduler.queue import QueuePolicy
from server.scheduler.sequence_batcher import SequenceBatcher
from server.scheduler.share import Share
from server.scheduler.statistics import ModelStatistics
from server.scheduler.worker import Model
from server.sequences import Control, ControlKind, Direct, InitialState, Oldest, SequenceBatching, State
from server.tensor import Array, Tensor
from server.types import NO_DEADLINE, Batch, InferRequest, InferResponse, Outcome, Parameter
from tests.support.scheduler import POISON, ManualClock, ManualLoop, ManualRunner, StillCost

FALSE, TRUE = b"\x00", b"\x01"
CONTROLS = tuple(
    Control(kind, kind.name, "BOOL", FALSE, TRUE) for kind in (ControlKind.START, ControlKind.END, ControlKind.READY)
)
CORRID = Control(ControlKind.CORRID, "CORRID", "UINT64")
TOTAL = State("total_in", "total_out", "INT64", (1,), InitialState((1,), bytes(8)))


class Adder:
    """A model whose output `y` is the sum of its inputs `x` since the start. Rows of POISON break their pass.

    Rows that are not READY count for nothing. `passes` has, for each pass, the values by row, None where nothing was.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.threads = 1
        self.device = "cpu"
        self.passes: list[list[int | None]] = []
        self.faults: deque[BaseException] = deque()
        """Each is raised by one coming pass."""
        self.done: list[int] = []
        """Values of the passes that succeeded."""

    def run(self, batch: Batch) -> Mapping[str, Array]:
        x, ready = batch.inputs["x"][:, 0], batch.inputs["READY"][:, 0]
        self.passes.append([int(value) if here else None for value, here in zip(x, ready, strict=True)])
        if self.faults:
            raise self.faults.popleft()
        if (x[ready] == POISON).any():
            raise ValueError("poison")
        self.done += [int(value) for value in x[ready]]
        total = batch.inputs["total_in"] + np.where(ready, x, 999)[:, np.newaxis]
        return {"y": total, "total_out": total.copy()}


class SequenceBench:
    """Requests have one value each; an answer is the sum of its sequence so far."""

    def __init__(
        self,
        strategy: Direct | Oldest = Direct(),  # noqa: B008 - frozen
        *,
        max_batch_size: int = 2,
        idle_us: int = 1_000_000,
        instances: int = 1,
        max_queue_size: int = 0,
        slo_ns: int = 0,
        share: Share | None = None,
        cost: StillCost | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.loop = ManualLoop(self.clock)
        self.statistics = ModelStatistics("adder", "1", wall=lambda: 1_700_000_000.5)
        self.outcomes: dict[InferRequest, list[Outcome]] = {}
        self.runners: list[ManualRunner] = []
        model = Model("adder", "1", batched=True)

        def make_runner(instance: object) -> ManualRunner:
            self.runners.append(ManualRunner(instance, model, self.loop, self.clock))
            return self.runners[-1]

        self.batcher = SequenceBatcher(
            "adder",
            "1",
            [Adder(f"adder_{index}") for index in range(instances)],
            SequenceBatching(strategy, idle_us, (*CONTROLS, CORRID), (TOTAL,)),
            max_batch_size,
            QueuePolicy(max_queue_size=max_queue_size),
            cost or StillCost(),
            self.statistics,
            self.loop,  # type: ignore[arg-type]
            self.clock,
            make_runner,  # type: ignore[arg-type]
            outputs=["y"],
            slo_ns=slo_ns,
            share=share,
        )

    @property
    def runner(self) -> ManualRunner:
        return self.runners[0]

    @property
    def passes(self) -> list[list[int | None]]:
        passes: list[list[int | None]] = self.runner.instance.passes
        return passes

    def request(
        self,
        id: int | str,
        value: int = 1,
        *,
        start: bool = False,
        end: bool = False,
        deadline_ns: int = NO_DEADLINE,
        columns: int = 1,
        on_settle: Callable[[InferRequest, Outcome], None] | None = None,
        **parameters: Parameter,
    ) -> InferRequest:
        """Not submitted yet. `columns` is its signature."""
        array = np.full((1, columns), value, np.int64)

        def settled(request: InferRequest, outcome: Outcome) -> None:
            self.outcomes[request].append(outcome)
            if on_settle is not None:
                on_settle(request, outcome)

        flags = {name: True for name, wanted in (("sequence_start", start), ("sequence_end", end)) if wanted}
        request = InferRequest(
            "adder",
            [Tensor("x", "INT64", array.shape, array.tobytes())],
            on_settle=settled,
            received_ns=self.clock(),
            parameters={"sequence_id": id, **flags, **parameters},
            deadline_ns=deadline_ns,
        )
        request.signature = columns
        self.outcomes[request] = []
        return request

    def send(self, id: int | str, value: int = 1, **rest: object) -> InferRequest:
        """It arrives in a turn of the loop of its own."""
        request = self.request(id, value, **rest)  # type: ignore[arg-type]
        self.submit(request)
        return request

    def submit(self, *requests: InferRequest) -> None:
        """They arrive in one turn of the loop."""
        self.batcher.submit(requests)
        self.loop.run()

    def complete(self, runner: int = 0) -> None:
        """The pass under way ends, and what follows from it happens."""
        self.runners[runner].complete()
        self.loop.run()

    def finish(self) -> None:
        """Every pass under way ends, and all that follow from them."""
        while busy := [runner for runner in self.runners if runner.job is not None]:
            for runner in busy:
                runner.complete()
                self.loop.run()

    def advance(self, by_ns: int) -> None:
        self.loop.run()
        self.clock.now_ns += by_ns
        self.loop.run()

    def outcome(self, request: InferRequest) -> Outcome | None:
        """None while it is not settled."""
        outcomes = self.outcomes[request]
        assert len(outcomes) <= 1, "settled more than once"
        return outcomes[0] if outcomes else None

    def answer(self, request: InferRequest) -> int:
        outcome = self.outcome(request)
        assert isinstance(outcome, InferResponse), repr(outcome)
        assert [tensor.name for tensor in outcome.outputs] == ["y"]
        return int(outcome.outputs[0].numpy()[0, 0])

    def answers(self, requests: Sequence[InferRequest]) -> list[int]:
        return [self.answer(request) for request in requests]
