"""Some requests are traced: when they came, waited, ran and were answered, in Triton's names. And all are followed,
where spans or an access log are wanted.

Where neither is, a request costs one look at that. Source: Triton's docs/user_guide/trace.md.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from server.errors import ServingError
from server.observability.following import Following
from server.observability.spans import Watched
from server.observability.trace_file import TraceFile
from server.observability.trace_settings import Change, TraceValues, checked, parsed
from server.observability.way import way_of_infer
from server.settings import TraceSettings
from server.types import InferRequest, InferResponse, Outcome

if TYPE_CHECKING:
    from server.scheduler.statistics import ModelStatistics


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

    def __init__(self, settings: TraceSettings, following: Following | None = None) -> None:
        """`following`: who is told of whole requests, beside the file. Raises InvalidRequest for settings that can't be
        together."""
        self.following = following
        self._start = checked(TraceValues.at_start(settings), settings.file)
        self._file = TraceFile(settings.file)
        self._global = Sampler(self._start)
        self._own: dict[str, dict[str, bool | int]] = {}
        """What was set for models, by their names."""
        self._samplers: dict[str, Sampler] = {}
        self._next_id = 1
        self.active = self._start.timestamps or following is not None
        """Anything is traced, or followed."""

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
        self.active = self.following is not None or any(sampler.values.timestamps for sampler in samplers)

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

    def watch(
        self,
        requests: Sequence[InferRequest],
        model_name: str,
        model_version: str,
        statistics: ModelStatistics | None = None,
        *,
        follows: bool = True,
    ) -> None:
        """Of requests that are about to be submitted to that model: trace those that are chosen, follow all.

        `model_version`: empty if there is none, and they are about to be refused. `statistics`: of that version.
        `follows`: they came as they are; else they are the passes of calls that are followed as such.
        """
        sampler = self._sampler(model_name)
        following = self.following if follows else None
        for request in requests:
            chosen = sampler if model_version and sampler.chooses() else None
            if chosen is not None or following is not None:
                _Watch(self, request, model_version, statistics, chosen, following)

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
        """Write what was collected, and send it."""
        if self.following is not None:
            await asyncio.to_thread(self.following.close)
        for sampler in (self._global, *self._samplers.values()):
            self._put_away(sampler)
        await self._file.close()


class _Watch:
    """One request, until it is settled: for the file, and for those who follow it."""

    __slots__ = ("_following", "_sampler", "_settle", "_statistics", "_tracing", "_version", "_watched")

    def __init__(
        self,
        tracing: Tracing,
        request: InferRequest,
        version: str,
        statistics: ModelStatistics | None,
        sampler: Sampler | None,
        following: Following | None,
    ) -> None:
        self._tracing = tracing
        self._version = version
        self._statistics = statistics
        self._sampler = sampler
        self._following = following
        self._watched: Watched | None = None
        if following is not None:
            self._watched = following.begin(request.metadata)
            onward = following.onward(self._watched, request.metadata)
            if onward:
                request.metadata = onward
        self._settle = request.divert(self._settled)

    def _settled(self, request: InferRequest, outcome: Outcome) -> None:
        """The caller has its answer before anything is made of it."""
        settled_ns = time.monotonic_ns()
        if self._following is not None and not isinstance(outcome, InferResponse):
            self._watched, metadata = self._following.failing(self._watched, request.metadata)
            if metadata:
                request.metadata = metadata
        try:
            self._settle(request, outcome)
        finally:
            if self._sampler is not None:
                self._tracing.take(self._sampler, _entries(request, self._version, outcome, settled_ns))
            if self._following is not None:
                ended_ns = time.monotonic_ns()
                self._following.over(
                    self._watched,
                    ended_ns - request.received_ns,
                    not isinstance(outcome, InferResponse),
                    partial(way_of_infer, request, self._version, outcome, settled_ns, ended_ns),
                    self._statistics,
                )


def _entries(request: InferRequest, version: str, outcome: Outcome, complete_ns: int) -> list[dict[str, object]]:
    """What Triton's file has of a request."""
    head: dict[str, object] = {"model_name": request.model_name, "model_version": int(version)}
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
    start_ns = enqueued_ns + timing.queue_ns + timing.prepare_ns
    input_ns = start_ns + timing.compute_input_ns
    infer_ns = input_ns + timing.compute_infer_ns
    return [
        ("COMPUTE_START", start_ns),
        ("COMPUTE_INPUT_END", input_ns),
        ("COMPUTE_OUTPUT_START", infer_ns),
        ("COMPUTE_END", infer_ns + timing.compute_output_ns),
    ]
