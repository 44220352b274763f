"""Memory of the host for Tritons to read: a file in /dev/shm, made when it is needed, which they map.

What a server left that was killed, the next that makes one removes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.engine.triton.held_file import FOLDER, PREFIX, make, own_name, remove, sweep
from server.engine.triton.memory import Backing, Copy
from server.engine.triton.methods import SYSTEM_REGIONS
from server.proto.triton import service_pb2 as pb


class HostMemory(Backing):
    """One file of `size_bytes`."""

    aligned = 64
    """A backend may compute by instructions that want it so."""
    methods = SYSTEM_REGIONS

    def __init__(self, size_bytes: int, folder: Path = FOLDER) -> None:
        self.size_bytes = size_bytes
        self.folder = folder
        self.name = own_name()
        """Of the file too."""
        self._file = -1
        self._view = memoryview(b"")

    def open(self) -> None:
        """Also removes files that others left."""
        sweep(self.folder)
        self._file = make(self.folder, self.name, self.size_bytes)
        try:
            self._view = memoryview(mmap.mmap(self._file, self.size_bytes))
        except OSError:
            self.close()
            raise

    def write(self, copies: Sequence[Copy]) -> None:
        """At once."""
        for at, data in copies:
            self._view[at : at + len(data)] = data

    def close(self) -> None:
        self._view = memoryview(b"")
        remove(self.folder, self.name, self._file)

    def registration(self) -> Any:
        return pb.SystemSharedMemoryRegisterRequest(name=self.name, key=self.name, byte_size=self.size_bytes)

    def was_left(self, region: str) -> bool:
        """Its file is gone, which whoever came behind it removed."""
        return region.startswith(PREFIX) and not os.path.lexists(self.folder / region)
