"""Some requests are traced: when they came, waited, ran and were answered, in Triton's names.

A request that is not traced costs one look at whether anything is. Source: Triton's docs/user_guide/trace.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from server.errors import ServingError
from server.observability.trace_file import TraceFile
from server.observability.trace_settings import Change, TraceValues, checked, parsed
from server.settings import TraceSettings
from server.types import InferRequest, InferResponse, Outcome


class Sampler:
    """Chooses every `rate`-th request of those that it is shown, `count` of them in all, and keeps their traces."""

    __slots__ = ("_seen", "left", "over", "traces", "values")

    def __init__(self, values: TraceValues) -> None:
        self.values = values
        self.left = values.count
        self.traces: list[str] = []
        """Of the file that is not written yet; empty with a log frequency of 0."""
        self.over = False
        """Others count in its place; what it had chosen before may still end."""
        self._seen = 0

    def chooses(self) -> bool:
        if not self.values.timestamps or not self.left:
            return False
        self._seen += 1
        if self._seen % self.values.rate:
            return False
        if self.left > 0:
            self.left -= 1
        return True


class Tracing:
    """Of one server. All methods are called on the event loop."""

    def __init__(self, settings: TraceSettings) -> None:
        """Raises InvalidRequest for settings that can't be together."""
        self._start = checked(TraceValues.at_start(settings), settings.file)
        self._file = TraceFile(settings.file)
        self._global = Sampler(self._start)
        self._own: dict[str, dict[str, bool | int]] = {}
        """What was set for models, by their names."""
        self._samplers: dict[str, Sampler] = {}
        self._next_id = 1
        self.active = self._start.timestamps
        """Anything is traced."""

    def told(self, model_name: str = "") -> dict[str, list[str]]:
        """The settings in effect, of one model or of all that have none of their own, by Triton's names."""
        return self._sampler(model_name).values.told(self._file.path)

    def update(self, changes: Mapping[str, Change], model_name: str = "") -> None:
        """Change what is named, all of it or nothing. Samples are counted anew. Raises InvalidRequest, Unsupported."""
        found = parsed(changes)
        if not found:
            return
        if model_name:
            kept = {**self._own.get(model_name, {}), **found}
            own = {field: value for field, value in kept.items() if value is not None}
            values = checked(replace(self._global.values, **own), self._file.path)  # type: ignore[arg-type]
            self._set_model(model_name, own, values)
        else:
            start = asdict(self._start)
            new = {field: start[field] if value is None else value for field, value in found.items()}
            values = checked(replace(self._global.values, **new), self._file.path)  # type: ignore[arg-type]
            again = {
                name: checked(replace(values, **own), self._file.path)  # type: ignore[arg-type]
                for name, own in self._own.items()
            }
            self._put_away(self._global)
            self._global.over = True
            self._global = Sampler(values)
            for name, of_model in again.items():
                self._set_model(name, self._own[name], of_model)
        samplers = (self._global, *self._samplers.values())
        self.active = any(sampler.values.timestamps for sampler in samplers)

    def _set_model(self, name: str, own: dict[str, bool | int], values: TraceValues) -> None:
        before = self._samplers.pop(name, None)
        self._own.pop(name, None)
        if before is not None:
            self._put_away(before)
            before.over = True
        if own:
            self._own[name] = own
            self._samplers[name] = Sampler(values)

    def _sampler(self, model_name: str) -> Sampler:
        return self._samplers.get(model_name, self._global)

    def watch(self, requests: Sequence[InferRequest], model_name: str, model_version: str) -> None:
        """Trace those that are chosen of these, which are about to be submitted to that model."""
        sampler = self._sampler(model_name)
        for request in requests:
            if sampler.chooses():
                _Trace(self, sampler, request, model_name, model_version)

    def take(self, sampler: Sampler, trace: list[dict[str, object]]) -> None:
        """A trace that is over; its entries get their number here."""
        number, self._next_id = self._next_id, self._next_id + 1
        text = ",".join([json.dumps({"id": number, **entry}, separators=(",", ":")) for entry in trace])
        if not sampler.values.log_frequency:
            self._file.append(text)
            return
        sampler.traces.append(text)
        if len(sampler.traces) >= sampler.values.log_frequency or sampler.over:
            self._put_away(sampler)

    def _put_away(self, sampler: Sampler) -> None:
        traces, sampler.traces = sampler.traces, []
        self._file.write(traces)
        self._file.flush()

    async def close(self) -> None:
        """Write what was collected."""
        for sampler in (self._global, *self._samplers.values()):
            self._put_away(sampler)
        await self._file.close()


class _Trace:
    __slots__ = ("_sampler", "_settle", "_tracing", "_version")

    def __init__(self, tracing: Tracing, sampler: Sampler, request: InferRequest, name: str, version: str) -> None:
        self._tracing = tracing
        self._sampler = sampler
        self._version = version
        self._settle = request.divert(self._settled)

    def _settled(self, request: InferRequest, outcome: Outcome) -> None:
        """The caller has its answer before the trace is made of it."""
        complete_ns = time.monotonic_ns()
        try:
            self._settle(request, outcome)
        finally:
            self._tracing.take(self._sampler, self._entries(request, outcome, complete_ns))

    def _entries(self, request: InferRequest, outcome: Outcome, complete_ns: int) -> list[dict[str, object]]:
        head: dict[str, object] = {"model_name": request.model_name, "model_version": int(self._version)}
        if request.id:
            head["request_id"] = request.id
        times = [("REQUEST_START", request.received_ns)]
        if request.enqueued_ns:
            times.append(("QUEUE_START", request.enqueued_ns))
        if isinstance(outcome, InferResponse):
            if outcome.timing is not None:
                times += _of_the_pass(request.enqueued_ns, outcome)
            times.append(("INFER_RESPONSE_COMPLETE", complete_ns))
        else:
            head["error"] = str(outcome) if isinstance(outcome, ServingError) else "internal error"
        times.append(("REQUEST_END", time.monotonic_ns()))
        entries: list[dict[str, object]] = [{"timestamps": [{"name": name, "ns": ns}]} for name, ns in times]
        return [head, *entries]


def _of_the_pass(enqueued_ns: int, response: InferResponse) -> list[tuple[str, int]]:
    timing = response.timing
    assert timing is not None
    start_ns = enqueued_ns + timing.queue_ns
    input_ns = start_ns + timing.compute_input_ns
    infer_ns = input_ns + timing.compute_infer_ns
    return [
        ("COMPUTE_START", start_ns),
        ("COMPUTE_INPUT_END", input_ns),
        ("COMPUTE_OUTPUT_START", infer_ns),
        ("COMPUTE_END", infer_ns + timing.compute_output_ns),
    ]
