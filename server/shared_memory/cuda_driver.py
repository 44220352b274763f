"""The CUDA driver by its own calls. It is loaded when it is first needed: it is a library of the machine, with an ABI
that stays, and no package has to be installed for it.

Source: CUDA Driver API, "Initialization", "Primary Context Management", "Memory Management" and "API synchronization
behavior".
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

import numpy as np

from server.tensor import Buffer

LIBRARY = "libcuda.so.1"
HANDLE_BYTES = 64
"""CU_IPC_HANDLE_SIZE."""

Pointer = c_uint64
"""CUdeviceptr, on 64-bit machines."""


class Handle(ctypes.Structure):
    """CUipcMemHandle; it goes by value."""

    _fields_ = [("reserved", ctypes.c_ubyte * HANDLE_BYTES)]


_CALLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (c_void_p,),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (Pointer,),
    "cuIpcGetMemHandle": (c_void_p, Pointer),
    "cuIpcOpenMemHandle_v2": (c_void_p, Handle, c_uint),
    "cuIpcCloseMemHandle": (Pointer,),
    "cuMemGetAddressRange_v2": (c_void_p, c_void_p, Pointer),
    "cuMemcpyDtoH_v2": (c_void_p, Pointer, c_size_t),
    "cuMemcpyHtoD_v2": (Pointer, c_void_p, c_size_t),
    "cuStreamSynchronize": (c_void_p,),
    "cuGetErrorName": (c_int, c_void_p),
}


class CudaFault(Exception):
    """A call of the driver failed; the text is the name of its error."""


class Driver:
    """The calls, each of which raises CudaFault. Any thread."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Raises CudaFault, OSError: there is none, or it finds no GPU."""
        self._library = ctypes.CDLL(library)
        for name, types in _CALLS.items():
            call = getattr(self._library, name, None)
            if call is None:
                raise CudaFault(f"{LIBRARY} has no {name}")
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

    def to_host(self, device_id: int, address: int, byte_size: int) -> bytearray:
        """A copy of what is there."""
        data = bytearray(byte_size)
        if data:
            with self.on(device_id):
                into = (ctypes.c_char * byte_size).from_buffer(data)
                self.call("cuMemcpyDtoH_v2", into, address, byte_size)
        return data

    def to_device(self, device_id: int, datas: Iterable[tuple[int, Buffer]]) -> None:
        """Copy each to its address. When this returns they are there, for other processes too."""
        # The address of what is not writable ctypes does not tell.
        arrays = [(address, np.frombuffer(data, np.uint8)) for address, data in datas if memoryview(data).nbytes]
        if not arrays:
            return
        with self.on(device_id):
            for address, array in arrays:
                self.call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)
            # A copy from memory that is not page-locked may return when the driver has read it, and not yet written.
            self.call("cuStreamSynchronize", None)


@cache
def driver() -> Driver:
    """The process's. Raises CudaFault, OSError, and then again the next time."""
    return Driver()


def has_gpu() -> bool:
    """Whether there is one, and a driver that can be used."""
    try:
        driver()
    except (CudaFault, OSError):
        return False
    return True
