"""Models that do nothing until a test says so, for tests of ensembles: what they were asked, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from server.ensembles import Ensemble, Step
from server.errors import Cancelled, ServingError
from server.scheduler.ensemble import EnsembleBatcher
from server.scheduler.lineup import Lineup, Member
from server.scheduler.statistics import ModelStatistics
from server.tensor import Tensor
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome, Parameter, Timing
from tests.support.scheduler import MS, ManualClock

Values = Mapping[str, int]
Function = Callable[[Values], Values]


def number(name: str, value: int) -> Tensor:
    """One row of one number."""
    return Tensor.from_numpy(name, np.array([[value]], dtype=np.int64))


def numbers(tensors: Sequence[Tensor]) -> dict[str, int]:
    return {tensor.name: int(tensor.numpy()[0, 0]) for tensor in tensors}


class StillModel:
    """A version in service: `waiting` are the requests that it was given, until the test ends them."""

    def __init__(self, name: str, function: Function, *, keeps_sequences: bool = False) -> None:
        self.name = name
        self.function = function
        self.keeps_sequences = keeps_sequences
        self.refuses: Callable[[InferRequest], ServingError | None] = lambda request: None
        """What is wrong with a request, found out at once."""
        self.waiting: list[InferRequest] = []
        self.came: list[InferRequest] = []
        self.together: list[int] = []
        """How many came at a time."""
        self.in_vain: list[InferRequest] = []
        """Came though they were over already."""
        self.missing: list[InferRequest] = []
        self.held = 0

    def submit(self, requests: Sequence[InferRequest]) -> None:
        self.together.append(len(requests))
        for request in requests:
            if request.settled or request.received_ns >= request.deadline_ns:
                self.in_vain.append(request)
            self.came.append(request)
            refusal = self.refuses(request)
            if refusal is not None:
                request.settle(refusal)
                continue
            request.holder = self
            self.waiting.append(request)

    def lost(self, request: InferRequest) -> None:
        assert request.settled
        self.missing.append(request)

    def cancel(self, request: InferRequest) -> None:
        if request in self.waiting:
            self.waiting.remove(request)
            request.settle(Cancelled())

    def answer(self, request: InferRequest) -> None:
        self.waiting.remove(request)
        given = self.function(numbers(request.inputs))
        outputs = [number(name, given[name]) for name in request.outputs]
        request.settle(InferResponse(self.name, "1", outputs, request.id, timing=Timing(1, 2, 3, 4, 1)))

    def fail(self, request: InferRequest, error: BaseException) -> None:
        self.waiting.remove(request)
        request.settle(error)

    def healthy(self) -> bool:
        return True

    def __enter__(self) -> StillModel:
        self.held += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.held -= 1
        assert self.held >= 0


class Bench:
    """An ensemble over models that stand still, one for each step, and the requests that were made of it."""

    def __init__(
        self, steps: Sequence[Step], outputs: Sequence[str], models: Sequence[StillModel], **rest: object
    ) -> None:
        self.clock = ManualClock()
        self.models = models
        self.statistics = ModelStatistics("e", "1")
        self.batcher = EnsembleBatcher(
            "e",
            "1",
            Ensemble(tuple(steps)),
            dict.fromkeys(outputs, (1,)),
            self.statistics,
            self.clock,
            **{"batched": True, "max_queue_size": 100, **rest},  # type: ignore[arg-type]
        )
        self.steps = steps
        self.outcomes: dict[InferRequest, list[Outcome]] = {}
        self.batcher.use(self.lineup())

    def lineup(self) -> Lineup:
        return Lineup(
            [
                Member(model.name, "1", model, True, dict.fromkeys(step.input_map, (1,)))
                for model, step in zip(self.models, self.steps, strict=True)
            ]
        )

    def request(
        self,
        inputs: Values,
        outputs: Sequence[str] = (),
        *,
        within_ms: float = 0,
        parameters: Mapping[str, Parameter] | None = None,
        id: str = "",
        tenant: str = "",
    ) -> InferRequest:
        request = InferRequest(
            "e",
            [number(name, value) for name, value in inputs.items()],
            on_settle=lambda request, outcome: self.outcomes[request].append(outcome),
            received_ns=self.clock(),
            outputs=outputs,
            deadline_ns=self.clock() + int(within_ms * MS) if within_ms else NO_DEADLINE,
            parameters=parameters,
            id=id,
            tenant=tenant,
        )
        self.outcomes[request] = []
        return request

    def submit(self, *requests: InferRequest) -> None:
        self.batcher.submit(requests)

    def waiting(self) -> list[tuple[int, InferRequest]]:
        """Every step that is under way, by its number."""
        return [(step, request) for step, model in enumerate(self.models) for request in model.waiting]
