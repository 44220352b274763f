"""A CUDA driver without a GPU, for a server in a process of its own, and its device memory as the test sees it."""

from __future__ import annotations

import mmap
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.parts import tool
from tests.support.shared_memory import SHM

HANDLE_BYTES = 64
_SOURCE = Path(__file__).with_name("fake_libcuda.c")


def build(folder: Path) -> Path:
    """A folder with its libcuda.so.1, for LD_LIBRARY_PATH."""
    library = folder / "libcuda.so.1"
    subprocess.run([tool("gcc"), "-shared", "-fPIC", "-O1", "-Wall", "-o", library, _SOURCE, "-lrt"], check=True)
    return folder


@contextmanager
def allocated(size: int) -> Iterator[tuple[bytes, mmap.mmap]]:
    """Memory of the device: its handle, and what is in it."""
    path = SHM / f"forwardpass-fake-gpu-{uuid.uuid4().hex}"
    with path.open("w+b") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as memory:
            try:
                yield f"/{path.name}".encode().ljust(HANDLE_BYTES, b"\0"), memory
            finally:
                path.unlink()


def is_open(pid: int, handle: bytes) -> bool:
    """Whether that process has the memory of the handle."""
    return handle.strip(b"/\0") in Path(f"/proc/{pid}/maps").read_bytes()
