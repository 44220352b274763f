"""The data plane as one caller may use it: what names a model is refused unless it is among the caller's, requests are
counted against its limits, and what it changes is written down under its name.

What is not here goes through as it is: that a caller may make a call at all is checked before, by what the call needs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from server.errors import ServingError, UnknownRegion
from server.observability.audit import acting
from server.security.caller import Caller

if TYPE_CHECKING:
    from server.security.gate import Entry, Owners
    from server.shared_memory.region import Kind
    from server.types import IndexEntry, InferRequest, PredictRequest, PredictResponse

_OF_A_MODEL = frozenset(
    ("model_ready", "model_metadata", "pipeline", "manifest", "model_config", "decoupled", "chat_template")
)
"""Methods whose first argument names a model."""


class GuardedPlane:
    def __init__(self, plane: Any, caller: Caller, entry: Entry, owners: Owners) -> None:
        """`plane` is the whole one, a `DataPlane`."""
        self._plane = plane
        self._caller = caller
        self._entry = entry
        self._owners = owners

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._plane, name)
        if name not in _OF_A_MODEL:
            return found

        def of_a_model(model_name: str, *more: Any) -> Any:
            self._caller.check_model(model_name)
            return found(model_name, *more)

        return of_a_model

    # --- requests -----------------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        self._plane.submit(self._admitted(requests))

    def stream(self, requests: Sequence[InferRequest]) -> None:
        self._plane.stream(self._admitted(requests))

    def _admitted(self, requests: Sequence[InferRequest]) -> list[InferRequest]:
        admitted = []
        for request in requests:
            try:
                self._entry.admit(request)
            except ServingError as error:
                request.settle(error)
            else:
                admitted.append(request)
        return admitted

    async def predict(self, request: PredictRequest) -> PredictResponse:
        request.tenant = self._caller.check_tenant(request.tenant)
        with self._caller.holding(request.model_name, time.monotonic_ns()):
            response: PredictResponse = await self._plane.predict(request)
        return response

    def begin(self, request: PredictRequest, _answered: object) -> None:
        """None: all go by `predict`, which counts them."""

    # --- what there is ------------------------------------------------------------------------------

    def statistics(self, name: str = "", version: str = "") -> list[Any]:
        return self._own(name, self._plane.statistics(name, version))

    async def total_statistics(self, name: str = "", version: str = "") -> list[Any]:
        return self._own(name, await self._plane.total_statistics(name, version))

    def repository_index(self, ready: bool = False, repository_name: str = "") -> list[IndexEntry]:
        return self._own("", self._plane.repository_index(ready, repository_name))

    async def current_index(self, ready: bool = False, repository_name: str = "") -> list[IndexEntry]:
        return self._own("", await self._plane.current_index(ready, repository_name))

    def _own(self, name: str, entries: list[Any]) -> list[Any]:
        if name:
            self._caller.check_model(name)
        return [entry for entry in entries if self._caller.may_use(entry.name)]

    # --- what is changed ----------------------------------------------------------------------------

    async def load_model(
        self, name: str, parameters: Mapping[str, object] | None = None, repository_name: str = ""
    ) -> None:
        self._caller.check_model(name)
        with acting(self._caller.name):
            await self._plane.load_model(name, parameters, repository_name)

    async def unload_model(self, name: str, *, unload_dependents: bool = False, repository_name: str = "") -> None:
        self._caller.check_model(name)
        with acting(self._caller.name):
            await self._plane.unload_model(name, unload_dependents=unload_dependents, repository_name=repository_name)

    def trace_settings(self, model_name: str, changes: Mapping[str, Any]) -> dict[str, list[str]]:
        if model_name:
            self._caller.check_model(model_name)
        with acting(self._caller.name):
            told: dict[str, list[str]] = self._plane.trace_settings(model_name, changes)
        return told

    @property
    def logs(self) -> Any:
        return _Acting(self._plane.logs, self._caller.name)

    @property
    def shared_memory(self) -> _OwnMemory:
        return _OwnMemory(self._plane.shared_memory, self._caller.name, self._owners)


class _Acting:
    """Calls of what is behind it are made by `name`."""

    def __init__(self, behind: Any, name: str) -> None:
        self._behind = behind
        self._name = name

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._behind, method)

        def call(*given: Any, **more: Any) -> Any:
            with acting(self._name):
                return found(*given, **more)

        return call


class _OwnMemory:
    """The regions that a caller registered itself; those of others are not there for it."""

    def __init__(self, memory: Any, name: str, owners: Owners) -> None:
        self._memory = memory
        self._name = name
        self._owners = owners

    @property
    def enabled(self) -> bool:
        return bool(self._memory.enabled)

    def regions(self) -> _OwnMemory:
        """Raises Unsupported: clients may not use shared memory here."""
        self._regions = self._memory.regions()
        return self

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        with acting(self._name):
            self._regions.register(name, key, offset, byte_size)
        self._owners[name] = self._name

    async def register_cuda(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        with acting(self._name):
            await self._memory.register_cuda(name, raw_handle, device_id, byte_size)
        self._owners[name] = self._name

    def unregister(self, kind: Kind, name: str = "") -> None:
        if name and self._regions.get(name) is not None and self._owners.get(name) != self._name:
            raise UnknownRegion(name)
        for own in [region.name for region in self.of(kind) if name in ("", region.name)]:
            with acting(self._name):
                self._regions.unregister(kind, own)
            self._owners.pop(own, None)

    def get(self, name: str) -> Any:
        return self._regions.get(name) if self._owners.get(name) == self._name else None

    def of(self, kind: Kind) -> list[Any]:
        return [region for region in self._regions.of(kind) if self._owners.get(region.name) == self._name]
