"""Memory of a GPU for Tritons to read: one allocation, made at the start, which they open by its handle.

Copies are made on a thread of their own, one behind the other: a driver may be busy with others' work, and the event
loop does not wait for it. The driver frees the allocation with the process, however that ends; a Triton that has opened
it holds on to it until it is told to forget it. A file in /dev/shm without content says who is alive, as that of
`host_memory.py` does; the name of the region says which /dev/shm that is, since a handle can be opened from where
another one is mounted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from server.engine.triton.held_file import FOLDER, PREFIX, make, own_name, remove, sweep
from server.engine.triton.memory import Backing, Copy
from server.engine.triton.methods import CUDA_REGIONS
from server.proto.triton import service_pb2 as pb
from server.shared_memory.cuda_allocation import Allocation
from server.shared_memory.cuda_driver import CudaFault, Driver, driver


class GpuMemory(Backing):
    """`size_bytes` of the device with that number, here and for the Tritons."""

    aligned = 256
    """As cuMemAlloc's own addresses; kernels may be chosen by it."""
    methods = CUDA_REGIONS

    def __init__(
        self, device_id: int, size_bytes: int, folder: Path = FOLDER, load: Callable[[], Driver] = driver
    ) -> None:
        self.device_id = device_id
        self.size_bytes = size_bytes
        self.folder = folder
        self.name = ""
        self._load = load
        self._prefix = ""
        self._file = -1
        self._allocation: Allocation | None = None
        self._thread = ThreadPoolExecutor(1, "gpu-memory")

    def open(self) -> None:
        """Also removes files that others left."""
        self._prefix = f"{PREFIX}gpu-{self.folder.stat().st_dev:x}-"
        self.name = own_name(self._prefix)
        sweep(self.folder)
        self._file = make(self.folder, self.name, 0)
        try:
            self._allocation = Allocation(self._load(), self.device_id, self.size_bytes)
        except (CudaFault, OSError) as error:
            remove(self.folder, self.name, self._file)
            raise OSError(f"GPU {self.device_id}: {error}") from error

    def write(self, copies: Sequence[Copy]) -> asyncio.Future[str]:
        """Soon."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self._write, copies)

    def _write(self, copies: Sequence[Copy]) -> str:
        try:
            self._made.write(copies)
        except CudaFault as error:
            return f"GPU {self.device_id} can't be written to: {error}"
        return ""

    def close(self) -> None:
        """Behind the copies that are still to be made; it does not wait for them."""
        self._thread.submit(self._free)
        self._thread.shutdown(wait=False)
        remove(self.folder, self.name, self._file)

    def _free(self) -> None:
        try:
            self._made.free()
        except CudaFault:
            return  # With the device; the driver frees it with the process.

    @property
    def _made(self) -> Allocation:
        assert self._allocation is not None
        return self._allocation

    def registration(self) -> Any:
        return pb.CudaSharedMemoryRegisterRequest(
            name=self.name, raw_handle=self._made.handle, device_id=self.device_id, byte_size=self.size_bytes
        )

    def was_left(self, region: str) -> bool:
        """It was made where this /dev/shm is, and its file is gone."""
        return region.startswith(self._prefix) and not os.path.lexists(self.folder / region)
