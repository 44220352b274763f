"""Large inputs to Tritons by a GPU's memory, on a driver without a GPU: a scripted Triton opens it by its handle and
computes on what it reads. The real one, of the CPU, at its word."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from server.app import _serve
from server.engine.triton.gpu_memory import GpuMemory
from server.engine.triton.held_file import FOLDER
from server.errors import CallExpired, DeadlineExceeded, InvalidRequest, TritonRefused
from server.observability.log_control import LogControl
from server.over_triton.models import TritonModels
from server.proto.triton import service_pb2 as pb
from server.settings import Settings
from server.shared_memory.cuda import CudaRegion
from server.shared_memory.cuda_driver import Driver
from server.shared_memory.references import Reference
from tests.e2e.conftest import ROOT
from tests.integration.test_triton_engine import ask, over, until
from tests.integration.test_triton_memory import OWN, X, asked, by_memory, fake, real, warm
from tests.support.fake_cuda import FakeGpu, allocated, allocations_of, build
from tests.support.fake_triton import FakeTriton, never, refusing
from tests.support.tritons import until as wait_for

GPU: dict[str, Any] = {"shared_memory_gpu": 0, **OWN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """This server's. Nothing was freed under a Triton that read it."""
    made = FakeGpu(folder)
    monkeypatch.setattr("server.engine.triton.pool.GpuMemory", partial(GpuMemory, load=lambda: made.driver))
    yield made
    assert made.freed_in_use == 0


@pytest.fixture
def one(folder: Path) -> FakeTriton:
    """A Triton on the same GPU."""
    made = fake()
    made.gpu = FakeGpu(folder).driver
    return made


def own_region(one: FakeTriton) -> str:
    """That of this server, which it knows."""
    (name,) = (name for name in one.cuda_regions if f"-{os.getpid()}-" in name)
    return name


def is_there(region: str) -> bool:
    """The file that says whose it is."""
    return (FOLDER / region).exists()


@asynccontextmanager
async def over_gpu(gpu: FakeGpu, one: FakeTriton, **more: Any) -> AsyncIterator[TritonModels]:
    """Models in front of it, which do share memory; that is freed behind them, and no Triton has it any more."""
    async with over(one, **{**GPU, **more}) as models:
        assert gpu.allocations == 1
        await warm(models, one)
        yield models
    await until(lambda: gpu.allocations == 0)
    assert not one.cuda_regions
    assert not one.regions


async def test_large_inputs_are_read_from_the_gpus_memory_and_small_ones_from_the_message(
    gpu: FakeGpu, one: FakeTriton
) -> None:
    """Each answer is of its own input, however many there are at a time; the region is gone when the server is."""
    async with over_gpu(gpu, one) as models:
        xs = [X + number for number in range(20)]
        answers = await asyncio.gather(*(ask(models, x) for x in xs))
        assert all(np.array_equal(answer, x * 2) for answer, x in zip(answers, xs, strict=True))
        assert np.array_equal(await ask(models, X[:2]), X[:2] * 2)
        region = own_region(one)
        assert is_there(region)
    assert by_memory(one) == [True] * 20 + [False]
    assert not is_there(region)


async def test_a_triton_without_a_gpu_gets_messages_and_it_is_said_once(
    gpu: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    """With its own reason."""
    plain = fake()
    with caplog.at_level(logging.INFO, "server.engine.triton.registration"):
        async with over(plain, **GPU) as models:
            assert np.array_equal(await ask(models, X), X * 2)
            await until(lambda: bool(caplog.records))
            for _ in range(3):
                assert np.array_equal(await ask(models, X), X * 2)
    assert by_memory(plain) == [False] * 4
    (record,) = caplog.records
    assert "by message, not by shared memory: " in record.getMessage()
    assert "GPUs not supported" in record.getMessage()
    await until(lambda: gpu.allocations == 0)


@pytest.mark.parametrize("stops", [False, True], ids=["between two probes", "seen to be down"])
async def test_a_triton_that_was_restarted_is_told_anew(
    gpu: FakeGpu, one: FakeTriton, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """No request fails for it."""
    monkeypatch.setattr("server.engine.triton.registration._FORGOT_PAUSE_S", 0.0)
    async with over_gpu(gpu, one) as models:
        if stops:
            await one.stop()
            await until(lambda: not models.pool.up)
        one.forget()
        if stops:
            await one.start()
            await until(lambda: models.resolve("double").healthy())
        assert np.array_equal(await ask(models, X), X * 2)
        assert by_memory(one) == [True, False]
        await warm(models, one)
        assert np.array_equal(await ask(models, X), X * 2)
    assert by_memory(one) == [True]


async def test_the_place_of_a_request_that_is_given_up_is_kept_and_of_a_refused_one_not(
    gpu: FakeGpu, one: FakeTriton
) -> None:
    """Triton may still read the one; of the other it has said its word."""
    async with over_gpu(gpu, one) as models:
        memory = models.pool._memory
        assert memory is not None
        one.script = refusing(grpc.StatusCode.INVALID_ARGUMENT, "odd")
        with pytest.raises(TritonRefused):
            await ask(models, X)
        assert memory.taken == 0
        one.script = never
        one.requests.clear()
        given_up = asyncio.create_task(ask(models, X))
        await until(lambda: bool(one.requests))
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        one.script = None
        assert np.array_equal(await ask(models, X), X * 2)
        assert memory.taken == 1


async def test_where_the_memory_is_full_or_too_small_inputs_go_by_message(gpu: FakeGpu, one: FakeTriton) -> None:
    """Nobody waits for a place."""
    async with over_gpu(gpu, one, shared_memory_bytes=1 << 17) as models:
        large = np.concatenate([X, X])
        assert np.array_equal(await ask(models, large), large * 2)
        xs = [X + number for number in range(10)]
        answers = await asyncio.gather(*(ask(models, x) for x in xs))
        assert all(np.array_equal(answer, x * 2) for answer, x in zip(answers, xs, strict=True))
    assert by_memory(one)[0] is False
    assert set(by_memory(one)[1:]) == {True, False}


async def test_a_request_whose_copy_fails_goes_by_message_and_so_do_the_later_ones(
    gpu: FakeGpu, one: FakeTriton, caplog: pytest.LogCaptureFixture
) -> None:
    """The memory is still freed at the end."""
    async with over_gpu(gpu, one) as models:
        with gpu.failing("cuMemcpyHtoD_v2"):
            assert np.array_equal(await ask(models, X), X * 2)
        assert np.array_equal(await ask(models, X), X * 2)
    assert by_memory(one) == [False, False]
    assert "by shared memory any more: GPU 0 can't be written to: CUDA_ERROR_ILLEGAL_ADDRESS" in caplog.text


async def test_a_device_that_hangs_costs_a_deadline_at_most(gpu: FakeGpu, one: FakeTriton) -> None:
    """Who has no time left is told so; whoever comes meanwhile goes by message."""
    async with over_gpu(gpu, one) as models:
        with gpu.holding():
            with pytest.raises((CallExpired, DeadlineExceeded)):
                await ask(models, X, within_s=0.2)
            assert np.array_equal(await ask(models, X + 1), X * 2 + 2)
        assert by_memory(one)[-1:] == [False]
        await warm(models, one)
        assert np.array_equal(await ask(models, X + 2), X * 2 + 4)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"shared_memory_gpu": 3}, "GPU 3: there is no such GPU, they are 0 to 0"),
        ({"shared_memory_bytes": 1 << 40}, "GPU 0: CUDA_ERROR_OUT_OF_MEMORY"),
    ],
    ids=["no such device", "no room on it"],
)
async def test_a_gpu_that_there_is_not_ends_the_start(gpu: FakeGpu, own: dict[str, Any], words: str) -> None:
    """By the name of the setting, before any Triton is asked."""
    with pytest.raises(InvalidRequest, match=f"--triton-shared-memory-gpu: {words}"):
        async with over(fake(), **{**GPU, **own}):
            pytest.fail("it has started")
    assert gpu.allocations == 0


async def test_memory_that_nobody_can_read_is_said_to_be_so(
    tmp_path: Path, gpu: FakeGpu, one: FakeTriton, caplog: pytest.LogCaptureFixture
) -> None:
    """It was asked for, and does nothing."""
    one.socket = tmp_path / "s"
    async with over(one, url=f"unix://{tmp_path}/s", **GPU) as models:
        assert np.array_equal(await ask(models, X), X * 2)
    assert "--triton-shared-memory-gpu: no Triton is at a loopback address" in caplog.text
    await until(lambda: gpu.allocations == 0)


async def test_a_server_without_a_driver_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says which setting asks for one, and what is missing."""
    library = str(tmp_path / "libcuda.so.1")
    monkeypatch.setattr("server.engine.triton.pool.GpuMemory", partial(GpuMemory, load=lambda: Driver(library)))
    ports = {"http": {"port": 0}, "grpc": {"port": 0}, "metrics": {"port": 0}}
    triton = {"url": "grpc://127.0.0.1:1", "shared_memory_gpu": 0}
    settings = Settings.model_validate({"engine": {"kind": "triton"}, "triton": triton, **ports})
    assert await _serve(settings, LogControl(settings.log)) == 1
    wanted = f"can't start: --triton-shared-memory-gpu: GPU 0: {library}: cannot open shared object file"
    assert any(record.getMessage().startswith(wanted) for record in caplog.records)


_KILLED = """
import sys, time
from server.engine.triton.gpu_memory import GpuMemory
from server.shared_memory.cuda_driver import Driver

memory = GpuMemory(0, 1 << 20, load=lambda: Driver(sys.argv[1]))
memory.open()
print(memory.registration().SerializeToString().hex(), flush=True)
time.sleep(600)
"""


async def test_a_killed_servers_memory_is_freed_when_the_next_lets_triton_forget_it(
    folder: Path, gpu: FakeGpu, one: FakeTriton
) -> None:
    """Triton alone still has it, and its name stands in the folder; those of others stay."""
    assert one.gpu is not None
    with allocated(1 << 20) as (foreign, _):
        one.cuda_regions["somebodys"] = CudaRegion(one.gpu, "somebodys", foreign, 0, 1 << 20)
        killed = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _KILLED, str(folder / "libcuda.so.1"), cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert killed.stdout is not None
        told = pb.CudaSharedMemoryRegisterRequest.FromString(bytes.fromhex((await killed.stdout.readline()).decode()))
        await one.cuda_register(told, None)
        assert allocations_of(killed.pid) == 1
        assert is_there(told.name)
        killed.kill()
        await killed.wait()
        assert one.cuda_regions[told.name].read(Reference("", 0, 4)) == bytes(4)

        async with over(one, **GPU) as models:
            await warm(models, one)
            await until(lambda: told.name not in one.cuda_regions)
            assert not is_there(told.name)
            assert set(one.cuda_regions) == {"somebodys", own_region(one)}
        assert list(one.cuda_regions) == ["somebodys"]
        one.forget()
    await until(lambda: gpu.allocations == 0)


@pytest.mark.e2e
def test_the_real_triton_refuses_where_there_is_no_gpu_and_is_used_without(tmp_path: Path, folder: Path) -> None:
    """Its own words are in the log, once. The server frees its memory and ends well."""
    with real(tmp_path) as (_, in_front):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_LIBRARY_PATH", str(folder))
            patch.setenv("FORWARDPASS_TRITON__SHARED_MEMORY_GPU", "0")
            gateway = in_front()
        assert allocations_of(gateway.process.pid) == 1
        for number in range(20):
            asked(gateway, number)
        wait_for(lambda: "by message, not by shared memory" in gateway.log.read_text())
        asked(gateway, 1.0)
        assert gateway.terminate() == 0
    said = [line for line in gateway.log.read_text().splitlines() if "by message, not by shared memory" in line]
    assert len(said) == 1
    assert "failed to register" in said[0]
