"""What became of one request, from its receipt to its answer: what spans, and lines of the access log, are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from server.errors import Code, ServingError
from server.explain import Explanation
from server.types import InferRequest, InferResponse, Outcome

Stage = tuple[str, int, int]
"""A name, its begin and its end."""

_COMPUTE = ("compute_input", "compute", "compute_output")


class Way(NamedTuple):
    """Times are of `time.monotonic_ns`."""

    method: str
    """infer or predict."""
    model_name: str
    model_version: str
    """Empty: no version was found for it."""
    id: str
    received_ns: int
    ended_ns: int
    stages: Sequence[Stage] = ()
    """One behind the other; those of the pass are in `compute`."""
    compute: Sequence[Stage] = ()
    """compute_input, compute_infer, compute_output."""
    error: BaseException | None = None
    rows: int = 0
    """Of the batch that it was in; 0: it was in none."""
    waited: str = ""
    """For what, if anybody looked."""

    @property
    def duration_ns(self) -> int:
        return self.ended_ns - self.received_ns

    @property
    def model_ns(self) -> int:
        """What metrics have for its duration: until its pass was over; 0: it had none."""
        compute = self.stage("compute")
        return 0 if compute is None else compute[2] - self.received_ns

    @property
    def code(self) -> str:
        """OK, or that of the error."""
        if self.error is None:
            return "OK"
        return self.error.code.name if isinstance(self.error, ServingError) else Code.INTERNAL.name

    def stage(self, name: str) -> Stage | None:
        return next((stage for stage in self.stages if stage[0] == name), None)


def way_of_infer(request: InferRequest, version: str, outcome: Outcome, settled_ns: int, ended_ns: int) -> Way:
    """Of a request that was settled with `outcome` at `settled_ns`, which took until `ended_ns`."""
    received_ns, enqueued_ns = request.received_ns, request.enqueued_ns
    stages: list[Stage] = []
    compute: list[Stage] = []
    error = None if isinstance(outcome, InferResponse) else outcome
    rows = 0
    if enqueued_ns:
        stages.append(("decode", received_ns, enqueued_ns))
    if isinstance(outcome, InferResponse):
        timing = outcome.timing
        if timing is not None:
            rows = timing.batch_rows
            start_ns = enqueued_ns + timing.queue_ns
            stages.append(("queue", enqueued_ns, start_ns))
            compute = _one_behind_the_other(start_ns, timing[1:4])
            stages.append(("compute", start_ns, compute[-1][2]))
        stages.append(("encode", settled_ns, ended_ns))
    elif enqueued_ns:
        stages.append(("queue", enqueued_ns, settled_ns))
    waited = str(request.explanation.waited) if request.explanation is not None else ""
    head = ("infer", request.model_name, version, request.id, received_ns, ended_ns)
    return Way(*head, stages, compute, error, rows, waited)


def way_of_call(
    model_name: str, version: str, id: str, explanation: Explanation, error: BaseException | None, ended_ns: int
) -> Way:
    """Of a predict call, by its explanation, which ends early if there is an `error`."""
    stages: list[Stage] = []
    compute: list[Stage] = []
    before_ns = explanation.received_ns
    for part, at_ns in explanation.marks:
        if part in _COMPUTE:
            compute.append(("compute_infer" if part == "compute" else part, before_ns, at_ns))
        elif part != "loop":
            stages.append((part, before_ns, at_ns))
        before_ns = at_ns
    if compute:
        stages.append(("compute", compute[0][1], compute[-1][2]))
        stages.sort(key=lambda stage: stage[1])
    head = ("predict", model_name, version, id, explanation.received_ns, ended_ns)
    return Way(*head, stages, compute, error, explanation.batch_rows, str(explanation.waited))


def _one_behind_the_other(start_ns: int, durations_ns: Sequence[int]) -> list[Stage]:
    found: list[Stage] = []
    for name, duration_ns in zip(("compute_input", "compute_infer", "compute_output"), durations_ns, strict=True):
        found.append((name, start_ns, start_ns + duration_ns))
        start_ns += duration_ns
    return found
