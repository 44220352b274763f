"""Memory of this process from which Tritons on this host read large inputs: a file in /dev/shm, made when it is needed.

Each request has a place of its own in it until Triton has said its last word of it. One that was given up may still
be read: its place is kept for a while, or another request's numbers would be computed with its shapes.

The process holds a lock on its file for as long as it lives. A file whose lock can be taken is one that a process left
when it was killed; the next that makes one removes it. Source: shm_open(3) for the folder.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from server.shared_memory.places import Places
from server.tensor import Buffer, Tensor
from server.types import InferRequest

log = logging.getLogger(__name__)

PREFIX = "forwardpass-triton-"
FOLDER = Path("/dev/shm")  # nosec B108 # noqa: S108 - where shm_open keeps its files
_ALIGNED = 64
"""A backend may compute on a tensor where it lies, by instructions that want it so."""
_PAD = bytes(_ALIGNED)
_KEPT_S = 30.0
"""How long the place of a request that was given up is not used. Triton drops those that wait, so that one pass is what
there is to wait for."""


class Piece(NamedTuple):
    """Where one tensor is."""

    region: str
    offset: int
    byte_size: int


class Placed(NamedTuple):
    """The tensors of one request, by their names, and the place that they share."""

    place: int
    pieces: Mapping[str, Piece]


class Memory:
    """One file of `size_bytes`. Everything but `open` on one thread."""

    def __init__(
        self,
        size_bytes: int,
        least_bytes: int,
        folder: Path = FOLDER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`least_bytes`: of a request's tensors, for them to be put here."""
        self.size_bytes = size_bytes
        self.least_bytes = least_bytes
        self.folder = folder
        self.name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
        """Of the file, and of the region at Tritons."""
        self._clock = clock
        self._file = -1
        self._closed = False
        self._places: Places | None = None
        self._kept: deque[tuple[float, int]] = deque()
        """Places that may still be read, and until when, the first to be free first."""

    @property
    def taken(self) -> int:
        """Places that are in use or kept."""
        return self._places.taken if self._places is not None else 0

    def open(self) -> None:
        """Make the file, if it is not there, and remove those that others left. Blocking.

        Raises:
            OSError: there is no such folder, or no room in it.
        """
        if self._places is not None:
            return
        sweep(self.folder)
        # Under its final name only once it is locked: else another process could take it for one that was left.
        hidden = self.folder / f".{self.name}"
        file = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # All of it now: where the folder has no room for a page, writing to it later would end the process.
            os.posix_fallocate(file, 0, self.size_bytes)
            places = Places(file, self.size_bytes)
            hidden.rename(self.folder / self.name)
        except OSError:
            hidden.unlink(missing_ok=True)
            os.close(file)
            raise
        self._file, self._places = file, places
        if self._closed:
            # It was closed meanwhile, on the other thread.
            self.close()

    def wants(self, request: InferRequest) -> bool:
        """Whether its tensors, but for text, are large enough, and not more than there can be room for."""
        size_bytes = sum([memoryview(tensor.data).nbytes for tensor in _plain(request)])
        return self.least_bytes <= size_bytes <= self.size_bytes

    def put(self, request: InferRequest) -> Placed | None:
        """Copy its tensors here, but for text; None: it is none of those that are wanted, or there is no room."""
        if self._places is None or not self.wants(request):
            return None
        self._free_again()
        tensors = _plain(request)
        datas = [memoryview(tensor.data).cast("B") for tensor in tensors]
        padded: list[Buffer] = []
        for data in datas:
            padded += (data, _PAD[: -len(data) % _ALIGNED])
        place = self._places.put(padded)
        if place is None:
            return None
        at, pieces = place, {}
        for tensor, data in zip(tensors, datas, strict=True):
            if data:
                pieces[tensor.name] = Piece(self.name, at, len(data))
            at += len(data) + -len(data) % _ALIGNED
        return Placed(place, pieces)

    def give_back(self, placed: Placed, *, read: bool) -> None:
        """Nobody needs it any more. `read`: nor does Triton read there, by its own word."""
        assert self._places is not None
        if read:
            self._places.give_back(placed.place)
        else:
            self._kept.append((self._clock() + _KEPT_S, placed.place))

    def _free_again(self) -> None:
        assert self._places is not None
        while self._kept and self._kept[0][0] <= self._clock():
            self._places.give_back(self._kept.popleft()[1])

    def close(self) -> None:
        """Remove the file; whoever has it mapped still reads what was in it."""
        self._closed = True
        file, self._file = self._file, -1
        if file >= 0:
            self._places = None
            (self.folder / self.name).unlink(missing_ok=True)
            os.close(file)


def _plain(request: InferRequest) -> list[Tensor]:
    return [tensor for tensor in request.inputs if tensor.datatype != "BYTES"]


def sweep(folder: Path) -> None:
    """Remove what processes left that are no more; what is another user's stays."""
    for left in (*folder.glob(f"{PREFIX}*"), *folder.glob(f".{PREFIX}*")):
        try:
            file = os.open(left, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink(missing_ok=True)
            log.info("removed %s, which a server left that was killed", left)
        except OSError:
            continue
        finally:
            os.close(file)
