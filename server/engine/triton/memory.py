"""Memory of this process from which Tritons on this host read large inputs: which request has which place in it.

Each request has a place of its own until Triton has said its last word of it. One that was given up may still be read:
its place is kept for a while, or another request's numbers would be computed with its shapes.

What memory that is: `host_memory.py`, `gpu_memory.py`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from server.engine.triton.methods import RegionMethods
from server.shared_memory.places import Room
from server.tensor import Tensor
from server.types import InferRequest

log = logging.getLogger(__name__)

_KEPT_S = 30.0
"""How long the place of a request that was given up is not used. Triton drops those that wait, so that one pass is what
there is to wait for."""
_LATE_S = 1.0
"""A copy that takes longer is not waited for, and while it goes on there is no other."""

Copy = tuple[int, memoryview]
"""Where to, and what."""


class Piece(NamedTuple):
    """Where one tensor is."""

    region: str
    offset: int
    byte_size: int


class Placed(NamedTuple):
    """The tensors of one request, by their names, and the place that they share."""

    place: int
    pieces: Mapping[str, Piece]
    copying: asyncio.Future[str] | None = None
    """They are there when it is done, if it says no problem; None: they are there."""


class Backing(ABC):
    """What the places are in."""

    aligned: ClassVar[int]
    """To how many bytes tensors are to be, for whoever computes on them where they lie."""
    methods: ClassVar[RegionMethods]
    name: str
    """Of the region at Tritons."""
    size_bytes: int

    @abstractmethod
    def open(self) -> None:
        """Make it. Blocking, any thread. Raises OSError, and leaves nothing then."""

    @abstractmethod
    def write(self, copies: Sequence[Copy]) -> asyncio.Future[str] | None:
        """On the event loop. As of `Placed.copying`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it. No Triton reads it any more, or it reads what it has mapped."""

    @abstractmethod
    def registration(self) -> Any:
        """What a Triton is told to know it."""

    @abstractmethod
    def was_left(self, region: str) -> bool:
        """Whether a region of that name, of this kind, is one of a process that is no more."""


class Memory:
    """Places in `backing`. Everything but `open` on one thread."""

    def __init__(self, backing: Backing, least_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`least_bytes`: of a request's tensors, for them to be put here."""
        self.backing = backing
        self.size_bytes = backing.size_bytes
        self.least_bytes = least_bytes
        self._clock = clock
        self._opening = threading.Lock()
        self._open = self._closed = False
        self.lost = False
        """It can't be written to any more."""
        self._room = Room(backing.size_bytes)
        self._kept: deque[tuple[float, int]] = deque()
        """Places that may still be read, and until when, the first to be free first."""
        self._late: asyncio.Future[str] | None = None
        """The copy that took too long, until it is over."""

    @property
    def taken(self) -> int:
        """Places that are in use or kept."""
        return self._room.taken

    def open(self) -> None:
        """Make the memory, if it is not there. Blocking. Raises OSError: there can't be any."""
        with self._opening:
            if not (self._open or self._closed):
                self.backing.open()
                self._open = True

    def wants(self, request: InferRequest) -> bool:
        """Whether its tensors, but for text, are large enough, and not more than there can be room for."""
        size_bytes = sum([memoryview(tensor.data).nbytes for tensor in _plain(request)])
        return self.least_bytes <= size_bytes <= self.size_bytes

    def put(self, request: InferRequest) -> Placed | None:
        """Copy its tensors here, but for text; None: it is none of those that are wanted, or there is no room."""
        if not self._open or not self.wants(request) or self.lost or self._is_late():
            return None
        self._free_again()
        at, pieces, copies = 0, {}, []
        for tensor in _plain(request):
            data = memoryview(tensor.data).cast("B")
            if data:
                pieces[tensor.name] = at, len(data)
                copies.append((at, data))
            at += len(data) + -len(data) % self.backing.aligned
        place = self._room.take(at)
        if place is None:
            return None
        copying = self.backing.write([(place + offset, data) for offset, data in copies])
        region = self.backing.name
        placed = {name: Piece(region, place + offset, size) for name, (offset, size) in pieces.items()}
        return Placed(place, placed, copying)

    async def copied(self, copying: asyncio.Future[str], within_s: float | None) -> bool:
        """Wait until the tensors are there; False: they are not, in that time or ever."""
        await asyncio.wait((copying,), timeout=min(_LATE_S, _LATE_S if within_s is None else within_s))
        if not copying.done():
            self._late = copying
            return False
        if (problem := copying.result()) and not self.lost:
            # What made one copy fail stays, with the driver's context.
            self.lost = True
            log.error("large inputs go to Tritons by message, not by shared memory any more: %s", problem)
        return not problem

    def _is_late(self) -> bool:
        if self._late is not None and self._late.done():
            self._late = None
        return self._late is not None

    def give_back(self, placed: Placed, *, read: bool) -> None:
        """Nobody needs it any more. `read`: nor does Triton read there, by its own word."""
        if read:
            self._room.give_back(placed.place)
        else:
            self._kept.append((self._clock() + _KEPT_S, placed.place))

    def _free_again(self) -> None:
        while self._kept and self._kept[0][0] <= self._clock():
            self._room.give_back(self._kept.popleft()[1])

    def close(self) -> None:
        """Remove it; whoever has it mapped still reads what was in it."""
        with self._opening:
            self._closed = True
            if self._open:
                self._open = False
                self.backing.close()


def _plain(request: InferRequest) -> list[Tensor]:
    return [tensor for tensor in request.inputs if tensor.datatype != "BYTES"]
