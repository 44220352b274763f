"""A file in /dev/shm as a client of shared memory makes it, gone at the end of the test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHM = Path("/dev/shm")  # noqa: S108 - the only place where shared memory is


class SharedFile:
    """A file of `size` zero bytes, whose name is a key that nobody else has."""

    def __init__(self, size: int) -> None:
        self.name = f"forwardpass_test_{uuid.uuid4().hex}"
        self._path = SHM / self.name
        self._path.touch()
        self.cut(size)

    def write(self, data: bytes) -> None:
        self._path.write_bytes(data)

    def read(self) -> bytes:
        return self._path.read_bytes()

    def cut(self, size: int) -> None:
        """Make it `size` bytes long, longer or shorter than it is."""
        os.truncate(self._path, size)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


@contextmanager
def shared_file(size: int) -> Iterator[SharedFile]:
    made = SharedFile(size)
    try:
        yield made
    finally:
        made.remove()
