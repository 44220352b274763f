"""The engine process's side of the links: requests in, outcomes out, and what the fronts must know.

Each front is a `Guest`. A version that was told to it is held for it, as a prediction under way holds one, until it
says that nothing more will come: so a swap under load loses nothing, whichever front a request comes from. A guest
whose link is lost lets go of everything: its requests are cancelled, and the versions released.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from typing import TYPE_CHECKING, Any

from server.errors import EngineLost, ServingError
from server.observability.rollout_metrics import rollout_rows
from server.scheduler.handoff import HANDOFF_NS
from server.scheduler.statistics import ModelStatistics
from server.served import Served
from server.tasks import Tasks
from server.types import InferRequest, InferResponse, Outcome
from server.workers.counts import Total, summed, told, told_pulse
from server.workers.frames import BadFrame, Kind, frame
from server.workers.link import Link
from server.workers.messages import (
    Infer,
    Shapes,
    number_of,
    numbers_of,
    read_infer,
    write_answer,
    write_failure,
)
from server.workers.streams import Streamed
from server.workers.versions import Announced, Announcement

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.model_control import ModelControl
    from server.observability.machine import Machine, Pulse

log = logging.getLogger(__name__)

_LONG_NS = 4 * HANDOFF_NS
"""No front's loop, nor the core that it shares with others, is kept longer by a pass of a model that runs there."""
_BEAT_S = 0.1
_WATCH_S = 0.5
_REPORT_S = 2.0
"""In which every front answers a question; one that does not hangs."""


def tiny(served: Served) -> bool:
    """Whether a version is better run in each front: a small pass is shorter than the way to a thread and back, which a
    process is further away than, and no pass is a long one; and nothing in its config is between all of its callers,
    as the verdict on a candidate is."""
    config, costs = served.model.config, served.model.costs_ns
    batching = config.dynamic_batching
    shared = (
        config.fair_by_tenant
        or config.response_cache
        or config.rollout is not None
        or bool(
            batching
            and (
                batching.preserve_ordering
                or batching.priority_levels
                or batching.max_queue_delay_microseconds
                or batching.default_queue_policy.max_queue_size
            )
        )
    )
    if shared or config.decoupled or config.sequence_batching is not None or set(costs) != {"cpu"}:
        return False
    measured = [ns for sizes in costs["cpu"].values() for ns in sizes.values()]
    return bool(measured) and min(measured) < HANDOFF_NS and max(measured) < _LONG_NS


class Guest:
    """One front: its link, its requests under way, and the versions that are held for it."""

    def __init__(self, host: Host, name: str, shared: memoryview | None) -> None:
        self._host = host
        self._shared = shared
        self._shapes = Shapes()
        self._requests: dict[int, InferRequest] = {}
        self._held: dict[int, Served] = {}
        self._arrived: list[InferRequest] = []
        self._arrived_for: Served | None = None
        self.link = Link(name, self._take, host.answer)
        self.link.lost = self._lost

    def tell(self, announcement: bytes, held: Mapping[int, Served]) -> None:
        """Hold what is told, and tell it."""
        for handle, served in held.items():
            if handle not in self._held:
                self._held[handle] = served.__enter__()
        self.link.send(announcement)

    async def change_logs(self, changes: Mapping[str, object]) -> None:
        with suppress(ServingError):
            await self.link.ask("logs", changes=dict(changes))

    def _lost(self) -> None:
        requests, self._requests = self._requests, {}
        self._arrived_for, self._arrived = None, []
        for request in requests.values():
            if request.holder is not None:
                request.holder.cancel(request)
        for handle in list(self._held):
            self._release(handle)
        self._host.gone(self)

    def _release(self, handle: int) -> None:
        served = self._held.pop(handle, None)
        if served is not None:
            served.__exit__()

    # --- requests ---------------------------------------------------------------------------------

    def _take(self, kind: int, body: memoryview) -> None:
        if kind == Kind.INFER:
            self._infer(read_infer(self._shapes, body, self._shared))
            return
        self._submit()
        if kind == Kind.CANCEL:
            for number in numbers_of(body):
                request = self._requests.pop(number, None)
                if request is not None and request.holder is not None:
                    request.holder.cancel(request)
        elif kind == Kind.TAKEN:
            for number in numbers_of(body):
                request = self._requests.get(number)
                if request is not None and isinstance(request.caller, Streamed):
                    request.caller.taken()
        elif kind == Kind.RELEASE:
            self._release(number_of(body))
        else:
            raise BadFrame(f"kind {kind} is not for the engine process")

    def _infer(self, read: Infer) -> None:
        served = self._held.get(read.shape.handle)
        if served is None:
            raise BadFrame(f"a request to version {read.shape.handle}, which is not held for it")
        model = served.model
        request = InferRequest(
            model.name,
            read.inputs,
            on_settle=self._settled,
            received_ns=read.received_ns,
            model_version=model.version,
            id=read.id,
            outputs=read.shape.outputs,
            parameters=read.parameters,
            deadline_ns=read.deadline_ns,
            explanation=read.explanation,
            tenant=read.tenant,
            form=read.form,
            caller=read.number,
        )
        if read.metadata:
            request.metadata = read.metadata
        self._requests[read.number] = request
        if model.config.decoupled:
            request.caller = Streamed(read.number, self._piece)
            self._submit()
            served.stream(request)
            return
        if served is not self._arrived_for:
            self._submit()
            self._arrived_for = served
            asyncio.get_running_loop().call_soon(self._submit)
        self._arrived.append(request)

    def _submit(self) -> None:
        """All that came for one version, together."""
        served, requests = self._arrived_for, self._arrived
        if served is not None:
            self._arrived_for, self._arrived = None, []
            served.submit(requests)

    def _settled(self, request: InferRequest, outcome: Outcome) -> None:
        caller = request.caller
        number: int = caller.number if isinstance(caller, Streamed) else caller  # type: ignore[assignment]  # set above
        if self._requests.pop(number, None) is None:
            return  # It was cancelled: nobody waits for it there.
        if isinstance(outcome, InferResponse):
            self.link.send(*write_answer(self._shapes, number, request, outcome))
        else:
            self.link.send(write_failure(number, outcome))

    def _piece(self, number: int, response: InferResponse) -> None:
        self.link.send(*write_answer(self._shapes, number, None, response))


class Host:
    """All fronts of the engine process. All methods run on its event loop."""

    def __init__(self, models: ModelControl, dataplane: DataPlane, pulse: Pulse, machine: Machine) -> None:
        self._models = models
        self._pulse = pulse
        self._machine = machine
        self._dataplane = dataplane
        self._guests: set[Guest] = set()
        self._handles: dict[Served, int] = {}
        self._next = count(1)
        self._announcement = b""
        self._index: list[Any] = []
        self._gone: list[dict[str, Any]] = []
        """The last known counts of fronts that have died, or whose links have."""
        self._closed: dict[str, Counter[str]] = defaultdict(Counter)
        self._refused: Counter[str] = Counter()
        """Of the same: connections by listener and cause, and calls."""
        self._reports: dict[Guest, dict[str, Any]] = {}
        self._log_changes: dict[str, object] = {}
        self._tasks = Tasks()
        models.changed = self.announce

    def add(self, name: str, shared: memoryview | None) -> Link:
        """The side of a new front's link that is here. `shared`: the memory that it shares."""
        guest = Guest(self, name, shared)
        self._guests.add(guest)
        if not self._announcement:
            self.announce()
        else:
            guest.tell(self._announcement, self._by_handle())
        self._tell_health((guest,))
        if self._log_changes:
            self._tasks.start(guest.change_logs(self._log_changes))
        return guest.link

    def gone(self, guest: Guest) -> None:
        self._guests.discard(guest)
        report = self._reports.pop(guest, None)
        if report is not None:
            parts = [*self._gone, *report["models"]]
            totals = summed(parts).values()
            self._gone = [told(_settled_for_good(total), 0) for total in totals]
            for listener, causes in report["closed"].items():
                self._closed[listener].update(causes)
            self._refused.update(report["grpc"]["refused"])

    def close(self) -> None:
        for guest in list(self._guests):
            guest.link.close()

    # --- what is told -----------------------------------------------------------------------------

    def announce(self) -> None:
        """Tell every front which versions are in service."""
        self._index = self._dataplane.repository_index()
        rollouts: list[Served] = [*self._models.rollouts()]
        serving = [*self._models, *rollouts]
        self._handles = {served: self._handles.get(served) or next(self._next) for served in serving}
        versions = [self._announced(served, chooses=served in rollouts) for served in serving]
        body = pickle.dumps(Announcement(versions, self._index))
        self._announcement = frame(Kind.MODELS, body)
        for guest in self._guests:
            guest.tell(self._announcement, self._by_handle())

    def _by_handle(self) -> dict[int, Served]:
        return {handle: served for served, handle in self._handles.items()}

    def _announced(self, served: Served, *, chooses: bool) -> Announced:
        model = served.model
        fingerprint = self._models.fingerprint(model.name)
        config = model.config.message.SerializeToString()
        own = self._models.versions(model.name)
        # All versions of a model are in the same place.
        is_tiny = all(tiny(version) for version in own)
        handle, labels = self._handles[served], model.config.labels
        pipeline, manifest = model.pipeline, model.manifest
        return Announced(
            *(handle, model.name, model.version, chooses, config, labels, pipeline),
            *(manifest, model.chat, is_tiny, fingerprint, model.devices),
        )

    async def beat(self) -> None:
        """Tell of health, until cancelled: a front whose engine process is silent keeps the deadlines itself."""
        while True:
            await asyncio.sleep(_BEAT_S)
            self._tell_health(self._guests)

    async def watch(self) -> None:
        """Tell of changes of the index and keep what the fronts have counted, until cancelled."""
        for turn in count():
            await asyncio.sleep(_WATCH_S)
            if self._index != self._dataplane.repository_index():
                self.announce()
            if turn % 2:
                for guest in list(self._guests):
                    await self._report(guest)

    def _tell_health(self, guests: Any) -> None:
        well = frame(Kind.HEALTH, b"\1" if self._dataplane.live() else b"\0")
        for guest in guests:
            guest.link.send(well)

    # --- what is asked ----------------------------------------------------------------------------

    async def answer(self, question: Mapping[str, Any]) -> Any:
        """A front's question. Raises ServingError."""
        what = question.get("what")
        if what == "counts":
            return await self._counts()
        if what == "index":
            entries = self._dataplane.repository_index(repository_name=question.get("repository_name", ""))
            return [asdict(entry) for entry in entries]
        if what == "logs":
            await self.change_logs(question["changes"])
            return None
        if what in ("load", "unload"):
            try:
                await self._change(**question)
            finally:
                self.announce()
                # Whoever asked may ask another front next: it must know by then.
                await asyncio.gather(*(self._report(guest) for guest in list(self._guests)))
            return None
        raise BadFrame(f"unknown question {what!r}")

    async def _change(
        self,
        what: str,
        name: str,
        repository_name: str,
        parameters: Mapping[str, object] | None = None,
        files: Mapping[str, str] | None = None,
        with_composing: bool = False,
    ) -> None:
        if what == "load":
            given = {**(parameters or {}), **{key: b64decode(text) for key, text in (files or {}).items()}}
            await self._dataplane.load_model(name, given, repository_name)
        else:
            await self._dataplane.unload_model(name, unload_dependents=with_composing, repository_name=repository_name)

    async def change_logs(self, changes: Mapping[str, object]) -> None:
        """As one front was asked, in all processes; a front that comes later is told as well."""
        self._dataplane.logs.follow(changes)
        self._log_changes |= changes
        for guest in list(self._guests):
            await guest.change_logs(changes)

    async def _report(self, guest: Guest) -> dict[str, Any] | None:
        """What a front has counted; None: it is gone, or hangs."""
        try:
            async with asyncio.timeout(_REPORT_S):
                report: dict[str, Any] = await guest.link.ask("counts")
        except EngineLost:
            return None
        except (TimeoutError, ServingError):
            log.warning("a front does not tell what it has counted")
            return None
        if guest in self._guests:
            self._reports[guest] = report
        return report

    def _gone_fronts(self) -> dict[str, Any]:
        """What is left of those that have died, as one of them would tell it."""
        grpc = {"connections": 0, "streams": 0, "held_bytes": 0, "refused": self._refused}
        return {"closed": self._closed, "http_connections": 0, "grpc": grpc}

    async def _counts(self) -> dict[str, Any]:
        reports = await asyncio.gather(*(self._report(guest) for guest in list(self._guests)))
        known = [report for report in reports if report is not None]
        now_ns = time.monotonic_ns()
        own = [told(statistics, now_ns) for statistics in self._models.counted()]
        parts = [*own, *self._gone, *(part for report in known for part in report["models"])]
        in_service = {(served.model.name, served.model.version) for served in self._models}
        totals = summed(parts)
        serving = {key: total for key, total in totals.items() if key in in_service}
        machine = self._machine.rows((*key, total.busy_ns) for key, total in serving.items())
        return {
            "models": [told(total, now_ns) for total in serving.values()],
            "fronts": [*known, self._gone_fronts()],
            "cache": self._models.cache_counts(),
            "rows": {**self._models.load_rows(), **rollout_rows(self._models.rollouts()), **machine},
            "pulses": [told_pulse(self._pulse), *(report["pulse"] for report in known)],
        }


def _settled_for_good(total: Total) -> ModelStatistics:
    """Of a process that is gone nothing waits and nothing is running."""
    total.pending = total.instances = 0
    total.demands = []
    return total
