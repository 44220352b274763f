"""A CUDA driver without a GPU, and its device memory as the test sees it."""

from __future__ import annotations

import ctypes
import mmap
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.shared_memory.cuda_driver import Driver
from tests.support.parts import tool
from tests.support.shared_memory import SHM

HANDLE_BYTES = 64
ILLEGAL_ADDRESS = 700
"""CUDA_ERROR_ILLEGAL_ADDRESS"""
_SOURCE = Path(__file__).with_name("fake_libcuda.c")
_LIBRARY = "libcuda.so.1"


def build(folder: Path) -> Path:
    """A folder with its libcuda.so.1, for LD_LIBRARY_PATH."""
    subprocess.run([tool("gcc"), "-shared", "-fPIC", "-O1", "-Wall", "-o", folder / _LIBRARY, _SOURCE], check=True)
    return folder


@contextmanager
def allocated(size: int) -> Iterator[tuple[bytes, mmap.mmap]]:
    """Memory of the device: its handle, and what is in it."""
    path = SHM / f"forwardpass-fake-gpu-{uuid.uuid4().hex}"
    with path.open("w+b") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as memory:
            try:
                yield str(path).encode().ljust(HANDLE_BYTES, b"\0"), memory
            finally:
                path.unlink()


def is_open(pid: int, handle: bytes) -> bool:
    """Whether that process has the memory of the handle."""
    return handle.strip(b"\0") in Path(f"/proc/{pid}/maps").read_bytes()


def allocations_of(pid: int) -> int:
    """How many that process has, of its own and of others."""
    return len(re.findall(r"/memfd:fake-gpu", Path(f"/proc/{pid}/maps").read_text()))


class FakeGpu:
    """The driver as one process has loaded it; this one may play several."""

    def __init__(self, folder: Path) -> None:
        """`folder`: with the driver."""
        copy = folder / f"{uuid.uuid4().hex}.so"
        shutil.copy(folder / _LIBRARY, copy)
        self.driver = Driver(str(copy))
        self._library = ctypes.CDLL(str(copy))

    @property
    def allocations(self) -> int:
        return int(self._library.fake_count(0))

    @property
    def opened(self) -> int:
        """Of others' memory."""
        return int(self._library.fake_count(1))

    @property
    def freed_in_use(self) -> int:
        """Allocations that were freed while another process had them open, whose reads are undefined then."""
        return int(self._library.fake_count(2))

    @contextmanager
    def failing(self, call: str, code: int = ILLEGAL_ADDRESS) -> Iterator[None]:
        """That call fails meanwhile."""
        self._library.fake_fail(call.encode(), code)
        try:
            yield
        finally:
            self._library.fake_fail(b"", 0)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """No copy to the device ends meanwhile."""
        self._library.fake_hold(1)
        try:
            yield
        finally:
            self._library.fake_hold(0)
