"""The memory of a GPU from which Tritons read, on a driver without a GPU that is stricter than a real one."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.engine.triton.gpu_memory import GpuMemory
from server.engine.triton.memory import Memory, Placed
from server.shared_memory.cuda import CudaRegion
from server.shared_memory.cuda_allocation import Allocation
from server.shared_memory.cuda_driver import CudaFault, Driver
from server.shared_memory.references import Reference
from tests.support.fake_cuda import FakeGpu, build
from tests.unit.test_triton_memory import LEAST, SIZE, Clock, large, request

WHOLE = 2 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def gpu(folder: Path) -> Iterator[FakeGpu]:
    """As this process has it; nothing is left at the end, and nothing was freed under who read it."""
    made = FakeGpu(folder)
    yield made
    assert (made.allocations, made.freed_in_use) == (0, 0)


@pytest.fixture
def other(folder: Path) -> Iterator[FakeGpu]:
    """As another process has it."""
    made = FakeGpu(folder)
    yield made
    assert made.opened == 0


def opened(folder: Path, gpu: FakeGpu, clock: Clock | None = None) -> Memory:
    memory = Memory(GpuMemory(0, SIZE, folder, lambda: gpu.driver), LEAST, clock or Clock())
    memory.open()
    return memory


async def closed(memory: Memory, gpu: FakeGpu) -> None:
    memory.close()
    async with asyncio.timeout(20):
        while gpu.allocations:  # noqa: ASYNC110 - of plain state
            await asyncio.sleep(0.001)


def region_of(memory: Memory, gpu: FakeGpu) -> CudaRegion:
    """As a Triton opens it by what it is told."""
    told = memory.backing.registration()
    return CudaRegion(gpu.driver, told.name, told.raw_handle, told.device_id, told.byte_size)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def prefix_of(folder: Path) -> str:
    """Of the regions that were made where this folder is."""
    return f"forwardpass-triton-gpu-{folder.stat().st_dev:x}-"


def put(memory: Memory, given: Any) -> tuple[Placed, asyncio.Future[str]]:
    placed = memory.put(given)
    assert placed is not None
    assert placed.copying is not None
    return placed, placed.copying


async def test_another_process_reads_what_was_put_there(tmp_path: Path, gpu: FakeGpu, other: FakeGpu) -> None:
    """Each tensor at a multiple of 256 bytes, whatever lies before it; text and what is empty go by message."""
    memory = opened(tmp_path, gpu)
    _, first = put(memory, request(x=np.zeros(LEAST, np.uint8)))
    given = request(
        odd=np.arange(77, dtype=np.uint8).reshape(7, 11),
        text=np.array([b"a" * 5000], dtype=object),
        none=np.zeros((0, 3), np.float32),
        x=np.arange(300, dtype=np.float32),
    )
    placed, copying = put(memory, given)
    assert await memory.copied(copying, None)
    assert first.done()
    region = region_of(memory, other)
    assert set(placed.pieces) == {"odd", "x"}
    for name, piece in placed.pieces.items():
        (wanted,) = (bytes(tensor.data) for tensor in given.inputs if tensor.name == name)
        assert piece.region == region.name
        assert piece.offset % 256 == 0
        assert piece.offset >= placed.place
        assert bytes(region.read(Reference(*piece))) == wanted
    region.release()
    await closed(memory, gpu)
    assert files(tmp_path) == set()
    assert memory.put(large()) is None


async def test_what_is_read_only_and_what_is_not_are_copied_from_where_they_lie(gpu: FakeGpu, other: FakeGpu) -> None:
    """Of one allocation, whose size others see in full."""
    made = Allocation(gpu.driver, 0, 1000)
    made.write([(0, b"abc"), (10, bytearray(b"def")), (20, memoryview(b"xghi")[1:]), (30, b"")])
    region = CudaRegion(other.driver, "r", made.handle, 0, WHOLE)
    found = [bytes(region.read(Reference("r", at, 3))) for at in (0, 10, 20, 30)]
    assert found == [b"abc", b"def", b"ghi", b"\0\0\0"]
    region.release()
    made.free()


def test_the_driver_refuses_what_is_not_within_and_what_was_freed(gpu: FakeGpu, other: FakeGpu) -> None:
    """By its own word. The handle leads nowhere then, and never to who has made it."""
    made = Allocation(gpu.driver, 0, WHOLE)
    made.write([(WHOLE - 2, b"ab")])
    with pytest.raises(CudaFault, match="INVALID_VALUE"):
        made.write([(WHOLE - 1, b"ab")])
    with pytest.raises(Exception, match="can't be opened: CUDA_ERROR_INVALID_CONTEXT"):
        CudaRegion(gpu.driver, "r", made.handle, 0, WHOLE)
    made.free()
    with pytest.raises(CudaFault, match="INVALID_VALUE"):
        made.write([(0, b"ab")])
    with pytest.raises(CudaFault, match="INVALID_VALUE"):
        made.free()
    with pytest.raises(Exception, match="can't be opened: CUDA_ERROR_INVALID_VALUE"):
        CudaRegion(other.driver, "r", made.handle, 0, WHOLE)


@pytest.mark.parametrize(
    ("device_id", "size_bytes", "failing", "words"),
    [
        (1, SIZE, "", "GPU 1: there is no such GPU, they are 0 to 0"),
        (0, 1 << 40, "", "GPU 0: CUDA_ERROR_OUT_OF_MEMORY"),
        (0, SIZE, "cuIpcGetMemHandle", "GPU 0: CUDA_ERROR_ILLEGAL_ADDRESS"),
    ],
    ids=["no such device", "no room on it", "it shares no memory"],
)
def test_what_can_not_be_had_is_said_and_nothing_is_left(
    tmp_path: Path, gpu: FakeGpu, device_id: int, size_bytes: int, failing: str, words: str
) -> None:
    """Neither on the device nor in the folder."""
    memory = Memory(GpuMemory(device_id, size_bytes, tmp_path, lambda: gpu.driver), LEAST)
    with gpu.failing(failing), pytest.raises(OSError, match=words):
        memory.open()
    memory.close()
    assert files(tmp_path) == set()


def test_without_a_driver_there_is_no_memory(tmp_path: Path) -> None:
    """The loader's own words say what is missing."""
    backing = GpuMemory(0, SIZE, tmp_path, lambda: Driver(str(tmp_path / "libcuda.so.1")))
    with pytest.raises(OSError, match=r"GPU 0: .*libcuda\.so\.1: cannot open shared object file"):
        backing.open()
    assert files(tmp_path) == set()


async def test_a_full_memory_takes_no_more_and_kept_places_are_kept(tmp_path: Path, gpu: FakeGpu) -> None:
    """As in the host's memory."""
    clock = Clock()
    memory = opened(tmp_path, gpu, clock)
    (first, _), (second, _) = put(memory, large(1)), put(memory, large(2))
    assert memory.put(large(3)) is None
    memory.give_back(first, read=False)
    assert memory.put(large(3)) is None
    memory.give_back(second, read=True)
    assert put(memory, large(3))[0].place == second.place
    clock.now = 30.5
    assert put(memory, large(4))[0].place == first.place
    await closed(memory, gpu)


async def test_nobody_waits_for_a_device_that_hangs(tmp_path: Path, gpu: FakeGpu, other: FakeGpu) -> None:
    """Until the copy is over there is no other; then all is as before, and what is to be freed is freed behind it."""
    memory = opened(tmp_path, gpu)
    with gpu.holding():
        placed, copying = put(memory, large(7))
        assert not await memory.copied(copying, 0.01)
        memory.give_back(placed, read=False)
        assert memory.put(large(8)) is None
    assert await copying == ""
    after, copying = put(memory, large(9))
    assert await memory.copied(copying, None)
    region = region_of(memory, other)
    assert [region.read(Reference("", piece.place, 1))[0] for piece in (placed, after)] == [7, 9]
    region.release()
    memory.give_back(after, read=True)

    with gpu.holding():
        put(memory, large(10))
        memory.close()
        assert gpu.allocations == 1
    await closed(memory, gpu)


async def test_a_device_that_fails_is_used_no_more_and_it_is_said_once(
    tmp_path: Path, gpu: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    """What breaks a context breaks all that comes behind."""
    memory = opened(tmp_path, gpu)
    with gpu.failing("cuMemcpyHtoD_v2"):
        copies = [put(memory, large())[1] for _ in range(2)]
        assert [await memory.copied(copying, None) for copying in copies] == [False, False]
    assert memory.lost
    assert memory.put(large()) is None
    (record,) = caplog.records
    assert "any more: GPU 0 can't be written to: CUDA_ERROR_ILLEGAL_ADDRESS" in record.getMessage()
    await closed(memory, gpu)


async def test_who_is_alive_is_told_by_files_and_only_of_this_folder(tmp_path: Path, gpu: FakeGpu) -> None:
    """Those of killed processes go; of a region that was made where another folder is nobody knows."""
    prefix = prefix_of(tmp_path)
    dead, alive, elsewhere = f"{prefix}1-dead", f"{prefix}2-alive", "forwardpass-triton-gpu-0-3-elsewhere"
    (tmp_path / dead).touch()
    living = os.open(tmp_path / alive, os.O_CREAT | os.O_RDWR)
    fcntl.flock(living, fcntl.LOCK_EX)
    memory = opened(tmp_path, gpu)
    backing = memory.backing
    assert backing.name.startswith(prefix)
    assert files(tmp_path) == {alive, backing.name}
    regions = (dead, alive, elsewhere, "somebodys", backing.name, "forwardpass-triton-4-host")
    assert [name for name in regions if backing.was_left(name)] == [dead]
    os.close(living)
    await closed(memory, gpu)
