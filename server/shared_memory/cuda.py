"""Regions of a GPU's memory: another process has allocated it and exported a handle, by which it is opened here.

What is read is copied to the host and what is written back to the device, by the driver's own calls, which refuse what
is not within an allocation.

Source: CUDA Driver API, "Memory Management" (cuIpcOpenMemHandle).
"""

from __future__ import annotations

from ctypes import byref, c_size_t

from server.errors import InvalidRequest, Unsupported
from server.shared_memory.cuda_driver import HANDLE_BYTES, CudaFault, Driver, Handle, Pointer
from server.shared_memory.cuda_driver import driver as own_driver
from server.shared_memory.references import Reference
from server.shared_memory.region import Kind, Region, not_registered
from server.tensor import Buffer

_LAZY_ENABLE_PEER_ACCESS = 1
"""The one flag with which handles are opened."""


def open_region(name: str, raw_handle: bytes, device_id: int, byte_size: int) -> CudaRegion:
    """Any thread; the first takes as long as a driver to start.

    Raises:
        Unsupported: no driver, or no GPU.
        InvalidRequest: no such device, no handle of memory that is there, or less memory than that.
    """
    try:
        driver = own_driver()
    except (CudaFault, OSError) as error:
        feature = f"failed to register CUDA shared memory region: '{name}'"
        raise Unsupported(feature, f"GPUs are not supported on this server ({error})") from error
    return CudaRegion(driver, name, raw_handle, device_id, byte_size)


class CudaRegion(Region):
    """Memory of one device, from the address for which the handle was made."""

    __slots__ = ("_address", "_driver", "device_id")

    kind: Kind = "cuda"

    def __init__(self, driver: Driver, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        """Raises InvalidRequest."""
        super().__init__(name, byte_size)
        if not 0 <= device_id < driver.num_devices:
            raise _refused(name, f"device_id must be 0 to {driver.num_devices - 1}, got {device_id}")
        if len(raw_handle) != HANDLE_BYTES:
            raise _refused(name, f"raw_handle must have {HANDLE_BYTES} bytes, got {len(raw_handle)}")
        self._driver = driver
        self.device_id = device_id
        address = Pointer()
        try:
            with driver.on(device_id):
                handle = Handle.from_buffer_copy(raw_handle)
                driver.call("cuIpcOpenMemHandle_v2", byref(address), handle, _LAZY_ENABLE_PEER_ACCESS)
        except CudaFault as error:
            raise _refused(name, f"raw_handle can't be opened: {error}") from error
        self._address = address.value
        self._check_size()

    def _check_size(self) -> None:
        base, size = Pointer(), c_size_t()
        try:
            with self._driver.on(self.device_id):
                self._driver.call("cuMemGetAddressRange_v2", byref(base), byref(size), self._address)
            there = base.value + size.value - self._address
            problem = f"byte_size {self.byte_size}, raw_handle is of {there} bytes" if self.byte_size > there else ""
        except CudaFault as error:
            problem = f"its size can't be told: {error}"
        if problem:
            self.release()
            raise _refused(self.name, problem)

    def read(self, reference: Reference) -> Buffer:
        try:
            return self._driver.to_host(self.device_id, self._address + reference.offset, reference.byte_size)
        except CudaFault as error:
            raise self._failed("read", error) from error

    def write(self, offset: int, data: Buffer) -> None:
        try:
            self._driver.to_device(self.device_id, [(self._address + offset, data)])
        except CudaFault as error:
            raise self._failed("written", error) from error

    def _failed(self, done: str, error: CudaFault) -> InvalidRequest:
        return InvalidRequest(f"shared memory region '{self.name}'", f"can't be {done}: {error}")

    def _close(self) -> None:
        try:
            with self._driver.on(self.device_id):
                self._driver.call("cuIpcCloseMemHandle", self._address)
        except CudaFault:
            return  # With its owner, or with the device; there is nothing left to let go of.


def _refused(name: str, problem: str) -> InvalidRequest:
    return not_registered(name, problem, "CUDA ")
