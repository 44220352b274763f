"""Regions of a GPU's memory: another process has allocated it and exported a handle, by which it is opened here.

What is read is copied to the host and what is written back to the device, by the driver's own calls, which refuse what
is not within an allocation. The driver is loaded when the first region is registered: it is a library of the machine,
with an ABI that stays, and no package has to be installed for it.

Source: CUDA Driver API, "Memory Management" (cuIpcOpenMemHandle, cuMemcpyDtoH) and "Primary Context Management".
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

from server.errors import InvalidRequest, Unsupported
from server.shared_memory.references import Reference
from server.shared_memory.region import Kind, Region, not_registered
from server.tensor import Buffer

_LIBRARY = "libcuda.so.1"
HANDLE_BYTES = 64
"""CU_IPC_HANDLE_SIZE."""
_LAZY_ENABLE_PEER_ACCESS = 1
"""The one flag with which handles are opened."""

_Pointer = c_uint64
"""CUdeviceptr, on 64-bit machines."""


class _Handle(ctypes.Structure):
    """CUipcMemHandle; it goes by value."""

    _fields_ = [("reserved", ctypes.c_ubyte * HANDLE_BYTES)]


_CALLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (c_void_p,),
    "cuIpcOpenMemHandle_v2": (c_void_p, _Handle, c_uint),
    "cuIpcCloseMemHandle": (_Pointer,),
    "cuMemGetAddressRange_v2": (c_void_p, c_void_p, _Pointer),
    "cuMemcpyDtoH_v2": (c_void_p, _Pointer, c_size_t),
    "cuMemcpyHtoD_v2": (_Pointer, c_void_p, c_size_t),
    "cuGetErrorName": (c_int, c_void_p),
}


class CudaFault(Exception):
    """A call of the driver failed; the text is the name of its error."""


class Driver:
    """The calls, each of which raises CudaFault."""

    def __init__(self) -> None:
        """Raises CudaFault, OSError: there is none, or it finds no GPU."""
        self._library = ctypes.CDLL(_LIBRARY)
        for name, types in _CALLS.items():
            call = getattr(self._library, name, None)
            if call is None:
                raise CudaFault(f"{_LIBRARY} has no {name}")
            call.argtypes, call.restype = types, c_int
        self._contexts: dict[int, c_void_p] = {}
        self.call("cuInit", 0)
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        self.num_devices = count.value
        if not self.num_devices:
            raise CudaFault("CUDA_ERROR_NO_DEVICE")

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = c_char_p()
            self._library.cuGetErrorName(code, byref(text))
            raise CudaFault((text.value or b"").decode() or f"error {code}")

    @contextmanager
    def on(self, device_id: int) -> Iterator[None]:
        """What is called meanwhile, on this thread, is of that device."""
        self.call("cuCtxPushCurrent_v2", self._context(device_id))
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def _context(self, device_id: int) -> c_void_p:
        """The device's primary context, which the runtime of this process uses as well. It is kept to the end."""
        context = self._contexts.get(device_id)
        if context is None:
            device, context = c_int(), c_void_p()
            self.call("cuDeviceGet", byref(device), device_id)
            self.call("cuDevicePrimaryCtxRetain", byref(context), device)
            self._contexts[device_id] = context
        return context


@cache
def _driver() -> Driver:
    return Driver()


def has_gpu() -> bool:
    """Whether regions can be opened here."""
    try:
        _driver()
    except (CudaFault, OSError):
        return False
    return True


def open_region(name: str, raw_handle: bytes, device_id: int, byte_size: int) -> CudaRegion:
    """Any thread; the first takes as long as a driver to start.

    Raises:
        Unsupported: no driver, or no GPU.
        InvalidRequest: no such device, no handle of memory that is there, or less memory than that.
    """
    try:
        driver = _driver()
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
        address = _Pointer()
        try:
            with driver.on(device_id):
                handle = _Handle.from_buffer_copy(raw_handle)
                driver.call("cuIpcOpenMemHandle_v2", byref(address), handle, _LAZY_ENABLE_PEER_ACCESS)
        except CudaFault as error:
            raise _refused(name, f"raw_handle can't be opened: {error}") from error
        self._address = address.value
        self._check_size()

    def _check_size(self) -> None:
        base, size = _Pointer(), c_size_t()
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
        data = bytearray(reference.byte_size)
        self._copy("read", "cuMemcpyDtoH_v2", _of(data), self._address + reference.offset, len(data))
        return data

    def write(self, offset: int, data: Buffer) -> None:
        # The driver reads it; what is not writable has no other address that one could ask for.
        view = memoryview(data).cast("B")
        copied = _of(bytearray(view)) if view.readonly else _of(view)
        self._copy("written", "cuMemcpyHtoD_v2", self._address + offset, copied, len(view))

    def _copy(self, done: str, name: str, *arguments: Any) -> None:
        if not arguments[-1]:
            return
        try:
            with self._driver.on(self.device_id):
                self._driver.call(name, *arguments)
        except CudaFault as error:
            raise InvalidRequest(f"shared memory region '{self.name}'", f"can't be {done}: {error}") from error

    def _close(self) -> None:
        try:
            with self._driver.on(self.device_id):
                self._driver.call("cuIpcCloseMemHandle", self._address)
        except CudaFault:
            return  # With its owner, or with the device; there is nothing left to let go of.


def _of(data: Any) -> Any:
    """The memory of a writable buffer, for a call."""
    return (ctypes.c_char * len(data)).from_buffer(data)


def _refused(name: str, problem: str) -> InvalidRequest:
    return not_registered(name, problem, "CUDA ")
