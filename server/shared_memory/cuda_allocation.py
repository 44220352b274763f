"""Memory of a GPU that this process has, and that others on this host open by its handle.

The driver frees it with the process, however that ends. Source: CUDA Driver API, "Memory Management" (cuMemAlloc,
cuIpcGetMemHandle); CUDA C++ Programming Guide, "Interprocess Communication".
"""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import byref

from server.shared_memory.cuda_driver import CudaFault, Driver, Handle, Pointer
from server.tensor import Buffer

_WHOLE_BYTES = 2 << 20
"""Smaller allocations may be parts of one block, all of which the handle opens."""


class Allocation:
    """From its making until `free`."""

    def __init__(self, driver: Driver, device_id: int, size_bytes: int) -> None:
        """Raises CudaFault: no such device, no room on it, or it shares no memory."""
        if not 0 <= device_id < driver.num_devices:
            raise CudaFault(f"there is no such GPU, they are 0 to {driver.num_devices - 1}")
        self.device_id = device_id
        self.size_bytes = size_bytes
        self._driver = driver
        address, handle = Pointer(), Handle()
        with driver.on(device_id):
            driver.call("cuMemAlloc_v2", byref(address), -(-size_bytes // _WHOLE_BYTES) * _WHOLE_BYTES)
            try:
                driver.call("cuIpcGetMemHandle", byref(handle), address)
            except CudaFault:
                driver.call("cuMemFree_v2", address)
                raise
        self._address = address.value
        self.handle = bytes(handle.reserved)
        """By which others open it."""

    def write(self, datas: Iterable[tuple[int, Buffer]]) -> None:
        """Copy each to its offset; when this returns, others may read it. Raises CudaFault."""
        self._driver.to_device(self.device_id, ((self._address + at, data) for at, data in datas))

    def free(self) -> None:
        """Nobody reads it any more. Raises CudaFault."""
        with self._driver.on(self.device_id):
            self._driver.call("cuMemFree_v2", self._address)
