"""Regions of POSIX shared memory that clients have registered, read and written without being mapped.

A mapping of memory that somebody else owns is a way to die: whoever cuts the file shorter makes the next access a
SIGBUS, and no check of its length comes close enough before that access. So bytes are copied by pread and pwrite,
which say of a file cut short that it is short, and cost one copy in the kernel. The copy is also what makes checks
worth something: a client can change its memory at any time, and not what was copied of it.

A name leads to a file in /dev/shm and nowhere else. Source: shm_open(3); Triton's extension_shared_memory.md.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from server.errors import InvalidRequest, RegionExists, UnknownRegion
from server.observability.audit import audited
from server.shared_memory.references import Reference
from server.tensor import Buffer

_FOLDER = Path("/dev/shm")  # nosec B108 # noqa: S108 - where shm_open keeps its files
_SEMAPHORES = "sem."
"""How the names of glibc's semaphores begin, which are files of the same folder. Source: sem_overview(7)."""


class Region:
    """A part of one file, open while it is registered or somebody uses it: `with region:`."""

    __slots__ = ("_file", "_users", "byte_size", "key", "name", "offset")

    def __init__(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Raises InvalidRequest: no such file, none that may be opened, or one that is smaller."""
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        self._file = _open(name, key)
        self._users = 1
        if offset + byte_size > os.fstat(self._file).st_size:
            size = os.fstat(self._file).st_size
            self.release()
            raise _not_registered(name, f"byte_size {byte_size} at offset {offset}, key '{key}' has {size} bytes")

    def hold(self) -> None:
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        if not self._users:
            os.close(self._file)

    def check(self, reference: Reference) -> None:
        """Raises InvalidRequest for a piece that is not within the region."""
        _, offset, byte_size = reference
        if offset >= self.byte_size:
            raise InvalidRequest(
                "Invalid offset for shared memory region", f"'{self.name}' has {self.byte_size} bytes, got {offset}"
            )
        if offset + byte_size > self.byte_size:
            raise InvalidRequest(
                "Invalid offset + byte size for shared memory region",
                f"'{self.name}' has {self.byte_size} bytes, got {offset} + {byte_size}",
            )

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


class Regions:
    """The registered regions by name, at most `most` of them with at most `most_bytes` in all. One thread."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._by_name: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Raises RegionExists, InvalidRequest."""
        with audited("shared_memory.register", region=name, key=key, offset=offset, byte_size=byte_size):
            self._register(name, key, offset, byte_size)

    def _register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        if not name:
            raise InvalidRequest("name", "of the shared memory region is empty")
        if name in self._by_name:
            raise RegionExists(name)
        if offset < 0 or byte_size <= 0:
            raise _not_registered(name, f"byte_size must be above 0 and offset not below, got {byte_size} and {offset}")
        if len(self._by_name) >= self._most:
            raise _not_registered(name, f"there are {self._most} already, the limit of shared_memory.max_regions")
        total = sum([region.byte_size for region in self._by_name.values()]) + byte_size
        if total > self._most_bytes:
            raise _not_registered(
                name,
                f"{total} bytes with the others, over the {self._most_bytes} of shared_memory.max_registered_bytes",
            )
        self._by_name[name] = Region(name, key, offset, byte_size)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all of them; those who use one now go on to use it. An unknown name is no error."""
        for known in [name] if name else list(self._by_name):
            region = self._by_name.pop(known, None)
            if region is not None:
                with audited("shared_memory.unregister", region=known):
                    region.release()

    def find(self, reference: Reference) -> Region:
        """The region of a piece that is within it. Raises UnknownRegion, InvalidRequest."""
        region = self._by_name.get(reference.region)
        if region is None:
            raise UnknownRegion(reference.region)
        region.check(reference)
        return region

    def get(self, name: str) -> Region | None:
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[Region]:
        return iter(self._by_name.values())


def _not_registered(name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"failed to register shared memory region '{name}'", problem)


def _open(name: str, key: str) -> int:
    """A descriptor of the key's file. Raises InvalidRequest."""
    plain = key.lstrip("/")
    if not plain or "/" in plain or "\0" in plain or plain in (".", ".."):
        raise _not_registered(name, "key must be the name of a file in /dev/shm")
    if plain.startswith(_SEMAPHORES):
        raise _not_registered(name, f"key '{key}' is the name of a semaphore")
    try:
        # No link leads out of the folder; a FIFO does not keep the server waiting.
        file = os.open(_FOLDER / plain, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest("Unable to open shared memory region", f"'{key}': {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise _not_registered(name, f"key '{key}' is no shared memory")
    return file
