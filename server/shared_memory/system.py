"""Regions of POSIX shared memory, read and written without being mapped.

A mapping of memory that somebody else owns is a way to die: whoever cuts the file shorter makes the next access a
SIGBUS, and no check of its length comes close enough before that access. So bytes are copied by pread and pwrite,
which say of a file cut short that it is short, and cost one copy in the kernel.

A name leads to a file in /dev/shm and nowhere else. Source: shm_open(3); Triton's extension_shared_memory.md.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from server.errors import InvalidRequest
from server.shared_memory.references import Reference
from server.shared_memory.region import Kind, Region, not_registered
from server.tensor import Buffer

_FOLDER = Path("/dev/shm")  # nosec B108 # noqa: S108 - where shm_open keeps its files
_SEMAPHORES = "sem."
"""How the names of glibc's semaphores begin, which are files of the same folder. Source: sem_overview(7)."""


class SystemRegion(Region):
    """A part of one file."""

    __slots__ = ("_file", "key", "offset")

    kind: Kind = "system"

    def __init__(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Raises InvalidRequest: no such file, none that may be opened, or one that is smaller."""
        super().__init__(name, byte_size)
        self.key = key
        self.offset = offset
        self._file = _open(name, key)
        if offset + byte_size > os.fstat(self._file).st_size:
            size = os.fstat(self._file).st_size
            self.release()
            raise not_registered(name, f"byte_size {byte_size} at offset {offset}, key '{key}' has {size} bytes")

    def _close(self) -> None:
        os.close(self._file)

    def read(self, reference: Reference) -> bytes:
        """A copy of the piece. Any thread. Raises InvalidRequest if the file has become shorter than that."""
        at, left = self.offset + reference.offset, reference.byte_size
        data = os.pread(self._file, left, at)
        while len(data) < left:
            # One call gives at most 2 GiB.
            more = os.pread(self._file, left - len(data), at + len(data))
            if not more:
                raise self._cut_short(at + left)
            data += more
        return data

    def write(self, offset: int, data: Buffer) -> None:
        """Any thread. Raises InvalidRequest if the file has become shorter, or there is no memory for it.

        A file that is cut while it is written to has, at worst, the length again that it was registered with.
        """
        view = memoryview(data).cast("B")
        at = self.offset + offset
        if os.fstat(self._file).st_size < at + len(view):
            raise self._cut_short(at + len(view))
        try:
            while view:
                written = os.pwrite(self._file, view, at)
                at, view = at + written, view[written:]
        except OSError as error:
            raise InvalidRequest(
                f"shared memory region '{self.name}'", f"can't be written: {error.strerror}"
            ) from error

    def _cut_short(self, wanted: int) -> InvalidRequest:
        size = os.fstat(self._file).st_size
        return InvalidRequest(
            f"shared memory region '{self.name}'", f"key '{self.key}' was cut to {size} bytes, {wanted} are needed"
        )


def _open(name: str, key: str) -> int:
    """A descriptor of the key's file. Raises InvalidRequest."""
    plain = key.lstrip("/")
    if not plain or "/" in plain or "\0" in plain or plain in (".", ".."):
        raise not_registered(name, "key must be the name of a file in /dev/shm")
    if plain.startswith(_SEMAPHORES):
        raise not_registered(name, f"key '{key}' is the name of a semaphore")
    try:
        # No link leads out of the folder; a FIFO does not keep the server waiting.
        file = os.open(_FOLDER / plain, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest("Unable to open shared memory region", f"'{key}': {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise not_registered(name, f"key '{key}' is no shared memory")
    return file
