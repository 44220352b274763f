"""Faults of engines, scripted: whoever asked gets an answer, and the next request is answered as ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.engine.fake import FakeEngine, Script
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.errors import DeviceLost, EngineFailure, ModelNotReady
from server.lifecycle import Lifecycle, State
from server.model_control import ModelControl
from server.repository.repository import Repository
from server.tensor import Tensor
from server.types import Batch, InferRequest, InferResponse, Outcome
from tests.support.onnx_models import linear
from tests.support.plane import CONFIG

HANG_S = 0.2


class Served:
    """A model of the scripted engine in service, watched."""

    def __init__(self, folder: Path, script: Script, count: int = 1) -> None:
        (folder / "m" / "1").mkdir(parents=True)
        (folder / "m" / "1" / "model.onnx").write_bytes(b"x")
        text = f'name: "m" {CONFIG} instance_group {{ count: {count} }}'
        (folder / "m" / "config.pbtxt").write_text(text)
        self.engine = FakeEngine(script)
        repository = Repository(folder, self.engine, load_pipeline=_none, warmup_s=0.5)
        self.models = ModelControl(repository, default_max_queue_size=100, hang_s=HANG_S)
        self.lifecycle = Lifecycle()

    async def __aenter__(self) -> Served:
        await self.models.load_all(["m"])
        self.lifecycle.advance(State.READY)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.models.close()

    async def ask(self, *values: float) -> Outcome:
        settled: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        tensor = Tensor.from_numpy("x", np.asarray([values], np.float32))
        request = InferRequest("m", [tensor], on_settle=lambda _, outcome: settled.set_result(outcome), received_ns=0)
        self.models.resolve("m").submit([request])
        async with asyncio.timeout(30):
            return await settled

    def healthy(self) -> bool:
        return self.models.resolve("m").healthy()


def _none(_: Path) -> Any:
    raise AssertionError("there is no processing.yaml")


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not done():  # noqa: ASYNC110 - of a thread's work
            await asyncio.sleep(0.005)


def value(outcome: Outcome) -> float:
    assert isinstance(outcome, InferResponse), outcome
    return float(outcome.outputs[0].numpy().item())


def slow(rows: int) -> float:
    """Too slow for the event loop, so that passes have threads."""
    return 0.002


async def test_a_pass_that_hangs_is_given_up_and_its_instance_replaced(tmp_path: Path) -> None:
    """Its caller is told so, the model is not well meanwhile, and the next request is answered; when the old pass ends
    at last, nobody hears of it."""
    script = Script(latency_s=slow)
    async with Served(tmp_path, script) as served:
        assert value(await served.ask(1, 2)) == 3
        loads = len(served.engine.loaded)
        held = threading.Event()
        script.on_load = lambda: held.wait(5) and None
        served.engine.play(["hang"])
        assert isinstance(await served.ask(1, 2), EngineFailure)
        assert not served.healthy()
        held.set()
        await until(served.healthy)
        assert len(served.engine.loaded) == loads + 1
        assert value(await served.ask(2, 2)) == 4
        script.release.set()
        await asyncio.sleep(0.02)
        assert value(await served.ask(2, 3)) == 5
        assert served.healthy()


async def test_the_other_instance_goes_on_meanwhile(tmp_path: Path) -> None:
    script = Script(latency_s=slow)
    async with Served(tmp_path, script, count=2) as served:
        served.engine.play(["hang"])
        served.engine.batches.clear()
        hanging = asyncio.create_task(served.ask(0, 0))
        await until(lambda: bool(served.engine.batches))
        for number in range(5):
            assert value(await served.ask(number, 1)) == number + 1
        assert isinstance(await hanging, EngineFailure)
        await until(served.healthy)
        script.release.set()


async def test_one_that_can_not_be_replaced_leaves_the_model_unwell(tmp_path: Path) -> None:
    """Liveness tells, and whoever asks is told at once."""
    script = Script(latency_s=slow)
    async with Served(tmp_path, script) as served:
        script.load_problem = "the disk is gone"
        served.engine.play(["hang"])
        assert isinstance(await served.ask(1, 2), EngineFailure)
        await asyncio.sleep(0.05)
        assert not served.healthy()
        assert not isinstance(await served.ask(1, 2), InferResponse)
        script.release.set()


async def test_a_lost_device_costs_the_pass_and_a_new_instance_takes_its_place(tmp_path: Path) -> None:
    """Whoever had a request in that pass is told that it failed; nobody waits for the watchdog to look."""
    script = Script(latency_s=slow)
    async with Served(tmp_path, script) as served:
        loads = len(served.engine.loaded)
        served.engine.play(["lost"])
        assert isinstance(await served.ask(1, 2), EngineFailure)
        await until(served.healthy)
        assert len(served.engine.loaded) == loads + 1
        assert value(await served.ask(2, 2)) == 4


async def test_a_device_that_stays_lost_leaves_the_model_unwell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No session can be made on it: the model says that it is not ready, and the log why."""
    script = Script(latency_s=slow)
    async with Served(tmp_path, script) as served:
        script.load_problem = "CUDA failure 100: no CUDA-capable device is detected"
        served.engine.play(["lost"])
        assert isinstance(await served.ask(1, 2), EngineFailure)
        await until(lambda: "no CUDA-capable device" in caplog.text)
        assert "CUDA failure 700" in caplog.text
        assert not served.healthy()
        assert isinstance(await served.ask(1, 2), ModelNotReady)


@pytest.mark.parametrize(
    ("told", "lost"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; expr=cudaMemcpy", True),
        ("CUDA failure 719: unspecified launch failure ; GPU=1", True),
        ("CUDA failure 100: no CUDA-capable device is detected ; GPU=-1", True),
        ("CUDA failure 214: uncorrectable ECC error encountered ; GPU=0", True),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0", True),
        ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0", True),
        ("CUDA failure 2: out of memory ; GPU=0", False),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", False),
        ("Failed to allocate memory for requested buffer of size 700", False),
        ("Non-zero status code returned while running Add node: 1 by 700", False),
    ],
    ids=lambda value: value[:22] if isinstance(value, str) else "",
)
def test_what_cuda_says_of_a_lost_device_is_known(tmp_path: Path, told: str, lost: bool) -> None:
    """As ONNX Runtime raises it. Memory that is short is no lost device."""
    from tests.integration.test_onnxruntime_engine import spec

    [instance] = OnnxRuntimeEngine(1).load(spec(linear(tmp_path / "1" / "model.onnx"))).instances

    class Broken:
        def run(self, *_: object) -> Any:
            raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {told}")

    instance._session = Broken()
    with pytest.raises(EngineFailure) as failed:
        instance.run(Batch("m", "1", 1, {"x": np.ones((1, 3), np.float32)}))
    assert isinstance(failed.value, DeviceLost) == lost
    assert told[:20] in failed.value.detail


async def test_a_model_that_hangs_can_be_closed(tmp_path: Path) -> None:
    """Whoever unloads it waits for the watchdog, and no longer."""
    script = Script(latency_s=slow)
    served = Served(tmp_path, script)
    await served.models.load_all(["m"])
    served.engine.play(["hang"])
    asking = asyncio.create_task(served.ask(1, 2))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await served.models.close()
    assert not isinstance(await asking, InferResponse)
    script.release.set()


async def test_a_pass_that_is_only_slow_is_not_given_up(tmp_path: Path) -> None:
    """Twenty times of what is foreseen is its due, however little the bound is."""
    script = Script(latency_s=lambda rows: 0.01)
    async with Served(tmp_path, script) as served:
        script.latency_s = lambda rows: 0.12
        assert value(await served.ask(1, 2)) == 3


@pytest.mark.parametrize("error", [MemoryError("no memory"), RuntimeError("out of memory"), KeyError("x")])
async def test_a_pass_that_raises_harms_nobody_else(tmp_path: Path, error: Exception) -> None:
    """Out of memory is a failure of the pass, not of the process."""
    script = Script(latency_s=slow)
    async with Served(tmp_path, script) as served:
        usual = script.answer

        def answer(spec: Any, batch: Batch) -> Any:
            script.answer = usual
            raise error

        script.answer = answer
        assert isinstance(await served.ask(1, 2), EngineFailure)
        assert value(await served.ask(1, 2)) == 3


def test_a_real_session_is_made_anew_and_the_old_one_interrupted(tmp_path: Path) -> None:
    """Unless its file has changed: then it would be another model."""
    from tests.integration.test_onnxruntime_engine import spec

    path = linear(tmp_path / "1" / "model.onnx")
    model = OnnxRuntimeEngine(1).load(spec(path))
    [instance] = model.instances
    batch = Batch("m", "1", 1, {"x": np.ones((1, 3), np.float32)})
    before = instance.run(batch)["y"]
    instance.interrupt()
    with pytest.raises(EngineFailure) as ended:
        instance.run(batch)
    assert "terminate" in ended.value.detail
    after = instance.renew().run(batch)["y"]
    assert np.array_equal(before, after)
    linear(path, weights=np.zeros((3, 2), np.float32))
    with pytest.raises(EngineFailure) as refused:
        instance.renew()
    assert "its file has changed" in refused.value.detail
