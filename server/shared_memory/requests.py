"""Requests with tensors in shared memory: inputs are read before the request is queued, outputs written before its
answer leaves. To everybody between these two it is a request like any other.

    take -> hold the regions, the bytes -> read, check -> submit -> ... -> settle -> write -> let go -> the caller

What is large is copied on a thread. All else happens on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from server.errors import (
    Cancelled,
    Draining,
    InvalidRequest,
    ServingError,
    SharedMemoryBusy,
    SharedMemoryTooSmall,
    Unsupported,
)
from server.observability.audit import audited
from server.offload import Offload
from server.settings import SharedMemorySettings
from server.shared_memory.cuda import open_region
from server.shared_memory.cuda_driver import has_gpu
from server.shared_memory.references import SharedTensors
from server.shared_memory.region import Region
from server.shared_memory.regions import Regions
from server.tensor import Buffer, Tensor
from server.types import InferRequest, InferResponse, Outcome

_ON_LOOP_BYTES = 64 * 1024
"""A copy of that size costs less than the way to a thread and back."""
_THREADS = 2
"""A copy keeps the memory bus busy: more threads would not be faster, only in each other's way."""

Submit = Callable[[Sequence[InferRequest]], None]


class SharedMemory:
    """The regions of a server's clients, and the way of the requests that use them."""

    def __init__(self, settings: SharedMemorySettings, *, enabled: bool) -> None:
        self.enabled = enabled
        self._regions = Regions(settings.max_regions, settings.max_registered_bytes)
        self._most_bytes = settings.max_in_flight_bytes
        self.in_flight_bytes = 0
        """Of the inputs and outputs of requests under way."""
        self.offload = Offload(_THREADS, "shared_memory")

    def extensions(self) -> list[str]:
        """What clients may use, by v2's names."""
        if not self.enabled:
            return []
        return ["system_shared_memory", "cuda_shared_memory"] if has_gpu() else ["system_shared_memory"]

    def regions(self) -> Regions:
        """Raises Unsupported where clients may not use shared memory."""
        if not self.enabled:
            raise Unsupported("shared_memory", "is not allowed to clients of this server (--allow-client-shm)")
        return self._regions

    async def register_cuda(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        """A region of a GPU's memory, by the handle of whoever allocated it. On a thread: drivers take their time.

        Raises:
            Unsupported: no GPU here, or clients may not use shared memory.
            RegionExists, InvalidRequest: see `Regions.check_room`, `open_region`.
        """
        regions = self.regions()
        with audited("shared_memory.register", region=name, device=device_id, byte_size=byte_size):
            regions.check_room(name, byte_size)
            opening = self.offload.run(lambda _: open_region(name, raw_handle, device_id, byte_size), None)
            try:
                region = await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_let_go_of)
                raise
            try:
                # Another one may have come first.
                regions.check_room(name, byte_size)
            except ServingError:
                region.release()
                raise
            regions.add(region)

    def take(self, request: InferRequest, shared: SharedTensors, submit: Submit) -> None:
        """Read the request's `shared` inputs and `submit` it, or settle it with what is wrong. Never raises."""
        try:
            _Use(self, request, shared).begin(submit)
        except ServingError as error:
            request.settle(error)

    def reserve(self, byte_size: int) -> None:
        """Raises SharedMemoryBusy, InvalidRequest for a request that is never possible."""
        if byte_size > self._most_bytes:
            raise InvalidRequest(
                "shared_memory_byte_size", f"{byte_size} in all, over {self._most_bytes} (max_in_flight_bytes)"
            )
        if self.in_flight_bytes + byte_size > self._most_bytes:
            raise SharedMemoryBusy(self._most_bytes)
        self.in_flight_bytes += byte_size

    def close(self) -> None:
        self._regions.close()
        self.offload.close()


class _Use:
    """One request's use of regions. It is the request's holder while it is read, and while it is written."""

    __slots__ = ("_byte_size", "_inputs", "_memory", "_outputs", "_over", "_reading", "_request", "_settle", "_shared")

    def __init__(self, memory: SharedMemory, request: InferRequest, shared: SharedTensors) -> None:
        """Raises ServingError: no such region, a piece beyond its end, too much memory in use."""
        self._memory = memory
        self._request = request
        self._shared = shared
        regions = memory.regions()
        self._inputs = [regions.find(piece.reference) for piece in shared.inputs]
        self._outputs = {name: regions.find(reference) for name, reference in shared.outputs.items()}
        read = sum([piece.reference.byte_size for piece in shared.inputs])
        self._byte_size = read + sum([reference.byte_size for reference in shared.outputs.values()])
        memory.reserve(self._byte_size)
        for region in self._all():
            region.hold()
        self._reading = False
        self._over = False
        """The caller has its outcome."""
        self._settle = request.divert(self._settled)

    def _all(self) -> list[Region]:
        return [*self._inputs, *self._outputs.values()]

    def begin(self, submit: Submit) -> None:
        request, shared = self._request, self._shared
        request.holder = self
        size = sum([piece.reference.byte_size for piece in shared.inputs])
        if size <= _ON_LOOP_BYTES:
            try:
                self._take_over(self._read(None), submit)
            except ServingError as error:
                request.settle(error)
            return
        self._reading = True
        reading = self._memory.offload.run(self._read, None)
        reading.add_done_callback(lambda done: self._was_read(done, submit))

    def _read(self, _: None) -> list[Buffer]:
        """The bytes of the inputs, which are what the request says of them. Any thread."""
        read: list[Buffer] = []
        for piece, region in zip(self._shared.inputs, self._inputs, strict=True):
            data = region.read(piece.reference)
            piece.check(data)
            read.append(data)
        return read

    def _was_read(self, done: asyncio.Future[list[Buffer]], submit: Submit) -> None:
        self._reading = False
        failure = _failure(done)
        if self._request.settled:
            self._let_go()
        elif failure is not None:
            self._request.settle(failure)
        else:
            self._take_over(done.result(), submit)

    def _take_over(self, read: list[Buffer], submit: Submit) -> None:
        request = self._request
        inputs = list(request.inputs)
        for piece, data in zip(self._shared.inputs, read, strict=True):
            tensor = inputs[piece.position]
            inputs[piece.position] = Tensor(tensor.name, tensor.datatype, tensor.shape, data)
        request.inputs = inputs
        if request.explanation is not None:
            request.explanation.mark("receive")
        submit((request,))

    def _settled(self, request: InferRequest, outcome: Outcome) -> None:
        """Instead of the caller: an answer's outputs are written first."""
        request.holder = self
        if not isinstance(outcome, InferResponse) or not self._outputs:
            self._tell(outcome)
            return
        size = sum([memoryview(tensor.data).nbytes for tensor in outcome.outputs if tensor.name in self._outputs])
        if size <= _ON_LOOP_BYTES:
            try:
                self._write(outcome)
            except ServingError as error:
                self._tell(error)
            else:
                self._tell(outcome)
            return
        self._reading = True
        writing = self._memory.offload.run(self._write, outcome)
        writing.add_done_callback(lambda done: self._was_written(done, outcome))

    def _write(self, response: InferResponse) -> None:
        """Write the outputs to their places; the response then says where they are. Any thread."""
        outputs, places = [], {}
        for tensor in response.outputs:
            reference = self._shared.outputs.get(tensor.name)
            if reference is None:
                outputs.append(tensor)
                continue
            size = memoryview(tensor.data).nbytes
            if size > reference.byte_size:
                raise SharedMemoryTooSmall(tensor.name, reference.byte_size, size)
            self._outputs[tensor.name].write(reference.offset, tensor.data)
            outputs.append(Tensor(tensor.name, tensor.datatype, tensor.shape, b""))
            places[tensor.name] = reference._replace(byte_size=size)
        response.outputs = outputs
        response.shared = places

    def _was_written(self, done: asyncio.Future[None], response: InferResponse) -> None:
        self._reading = False
        failure = _failure(done)
        if self._over:
            self._let_go()
        else:
            self._tell(response if failure is None else failure)

    def cancel(self, request: InferRequest) -> None:
        """The caller has gone: it is told so now, the regions are let go when no thread works on them."""
        if not request.settle(Cancelled()):
            self._tell(Cancelled())

    def _tell(self, outcome: Outcome) -> None:
        if self._over:
            return
        self._over = True
        if not self._reading:
            self._let_go()
        self._settle(self._request, outcome)

    def _let_go(self) -> None:
        self._memory.in_flight_bytes -= self._byte_size
        for region in self._all():
            region.release()


def _let_go_of(opening: asyncio.Future[Any]) -> None:
    """A region whose client has gone while it was opened."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().release()


def _failure(done: asyncio.Future[Any]) -> BaseException | None:
    return Draining() if done.cancelled() else done.exception()
