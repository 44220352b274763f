"""One request of an ensemble under way: its tensors by now, what its steps are asked, and what its answer is made of.

No clock, and nothing is submitted here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.ensembles import Ensemble
from server.scheduler.ensemble_plan import Plan, Progress
from server.scheduler.lineup import Lineup, converted
from server.tensor import Tensor
from server.types import InferRequest, InferResponse, Outcome, Parameter

OnStep = Callable[[InferRequest, Outcome], None]

_OF_SEQUENCES = frozenset({"sequence_id", "sequence_start", "sequence_end"})


@dataclass(frozen=True, slots=True)
class Shape:
    """What all requests of one ensemble have in common."""

    ensemble: Ensemble
    outputs: Mapping[str, tuple[int, ...]]
    """Their dims, without the batch dimension."""
    batched: bool


class Run:
    """One request, on one lineup."""

    __slots__ = ("_shape", "_tensors", "began_ns", "durations_ns", "lineup", "plan", "progress", "request", "under_way")

    def __init__(self, shape: Shape, request: InferRequest, plan: Plan, lineup: Lineup, began_ns: int) -> None:
        self._shape = shape
        self.began_ns = began_ns
        self.request = request
        self.plan = plan
        self.lineup = lineup
        self.progress = Progress(plan)
        self.under_way: dict[int, InferRequest] = {}
        """By step."""
        self.durations_ns = (0, 0, 0)
        """Of compute input, infer and output, of all steps together."""
        self._tensors = {tensor.name: (tensor, shape.batched) for tensor in request.inputs}
        """By the ensemble's name, and whether it has a batch dimension."""

    def ask(self, step: int, on_step: OnStep, now_ns: int) -> InferRequest:
        """The request that a step is; it is under way from here on."""
        member, request = self.lineup.members[step], self.request
        inputs = self._inputs(step)
        parameters = self._parameters(step) if request.parameters else request.parameters
        form = member.form(inputs) if len(inputs) == len(member.inputs) and not request.parameters else None
        said = member.name, member.version, self.plan.outputs[step], parameters, form, None
        inner = self.under_way[step] = InferRequest.received(
            said, request.id, inputs, on_step, now_ns, request.deadline_ns, self
        )
        inner.tenant = request.tenant
        if request.metadata:
            inner.metadata = request.metadata
        return inner

    def take(self, step: int, response: InferResponse) -> list[int]:
        """A step ended: keep what it gave; returns the steps that may run now."""
        del self.under_way[step]
        names, batched = self._shape.ensemble.steps[step].output_map, self.lineup.members[step].batched
        got = []
        for tensor in response.outputs:
            name = names[tensor.name]
            self._tensors[name] = tensor, batched
            got.append(name)
        timing = response.timing
        if timing is not None:
            input_ns, infer_ns, output_ns = self.durations_ns
            self.durations_ns = (
                input_ns + timing.compute_input_ns,
                infer_ns + timing.compute_infer_ns,
                output_ns + timing.compute_output_ns,
            )
        return self.progress.ended(got)

    def outputs(self) -> list[Tensor]:
        """Of the answer, in the order in which they are wanted."""
        dims, batched = self._shape.outputs, self._shape.batched
        return [self._tensor(name, name, dims[name], batched) for name in self.plan.wanted]

    def _inputs(self, step: int) -> list[Tensor]:
        """One that the request left out, which an optional input may be, is left out again."""
        member = self.lineup.members[step]
        return [
            self._tensor(name, source, member.inputs[name], member.batched)
            for name, source in self._shape.ensemble.steps[step].input_map.items()
            if source in self._tensors
        ]

    def _tensor(self, name: str, source: str, dims: tuple[int, ...], batched: bool) -> Tensor:
        tensor, source_batched = self._tensors[source]
        if batched is source_batched:
            return Tensor(name, tensor.datatype, tensor.shape, tensor.data)
        return converted(name, tensor, dims, batched=batched)

    def _parameters(self, step: int) -> Mapping[str, Parameter]:
        """Of the request; those of its sequence only for a model that keeps some."""
        parameters = self.request.parameters
        if self.lineup.members[step].model.keeps_sequences:
            return parameters
        return {key: value for key, value in parameters.items() if key not in _OF_SEQUENCES}
