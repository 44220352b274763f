"""Large inputs to Tritons on the same host: faults by a scripted one, and the real one at its word."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from server.client import Client
from server.engine.triton.held_file import FOLDER, PREFIX
from server.errors import CallExpired, TritonRefused
from server.local_triton.process import LocalTriton
from server.over_triton.models import TritonModels
from tests.e2e.conftest import ServerProcess
from tests.integration.test_triton_engine import ask, over, until
from tests.support.fake_triton import FakeTriton, Model, never, refusing
from tests.support.tritons import has_found, in_front_of, program, triton
from tests.support.tritons import until as wait_for

LEAST = 1 << 16
X = np.arange(3 * (1 << 13), dtype=np.float32).reshape(-1, 3)
"""Rows for one request, of more bytes than the threshold."""
CONFIG = """
name: "double" backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1, 3 ] }
"""


def fake() -> FakeTriton:
    return FakeTriton(Model(CONFIG))


def mapped(message: Any) -> bool:
    return "shared_memory_region" in message.inputs[0].parameters


def by_memory(fake: FakeTriton) -> list[bool]:
    """Of each request whether its input was in shared memory."""
    return [mapped(message) for message in fake.requests]


async def warm(models: TritonModels, one: FakeTriton) -> None:
    """The first request that needs it is the reason to share memory. What was asked until then is forgotten."""
    async with asyncio.timeout(20):
        while not (one.requests and mapped(one.requests[-1])):
            assert np.array_equal(await ask(models, X), X * 2)
            await asyncio.sleep(0.01)
    one.requests.clear()


OWN: dict[str, Any] = {"shared_memory_least_bytes": LEAST}


async def test_large_inputs_are_read_from_shared_memory_and_small_ones_from_the_message() -> None:
    """The answers are the same; the region is gone when the server is."""
    one = fake()
    async with over(one, **OWN) as models:
        await warm(models, one)
        assert np.array_equal(await ask(models, X), X * 2)
        assert np.array_equal(await ask(models, X[:2]), X[:2] * 2)
        (region,) = one.regions
        assert (FOLDER / region).exists()

    assert by_memory(one) == [True, False]
    assert not one.regions
    assert not (FOLDER / region).exists()


async def test_many_at_a_time_have_places_of_their_own() -> None:
    """Each answer is of its own input."""
    one = fake()
    async with over(one, **OWN) as models:
        await warm(models, one)
        xs = [X + number for number in range(30)]
        answers = await asyncio.gather(*(ask(models, x) for x in xs))

    assert all(np.array_equal(answer, x * 2) for answer, x in zip(answers, xs, strict=True))
    assert all(by_memory(one))


async def test_off_means_that_nothing_is_shared() -> None:
    """Whatever the size."""
    one = fake()
    async with over(one, shared_memory="off", **OWN) as models:
        for _ in range(3):
            await ask(models, X)

    assert by_memory(one) == [False] * 3
    assert not one.regions


async def test_a_triton_that_can_not_share_gets_messages_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One in another container, for example: it is not asked again with every request."""
    one = fake()
    one.refuses_regions = "Unable to open shared memory region: 'x'"
    with caplog.at_level(logging.INFO, "server.engine.triton.registration"):
        async with over(one, **OWN) as models:
            for _ in range(5):
                assert np.array_equal(await ask(models, X), X * 2)
                await asyncio.sleep(0.05)

    assert by_memory(one) == [False] * 5
    assert ["by message" in record.message for record in caplog.records] == [True]


async def test_a_triton_that_forgot_costs_nobody_anything_and_is_told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that was started anew between two probes."""
    monkeypatch.setattr("server.engine.triton.registration._FORGOT_PAUSE_S", 0.0)
    one = fake()
    async with over(one, **OWN) as models:
        await warm(models, one)
        one.regions.clear()
        assert np.array_equal(await ask(models, X), X * 2)
        assert by_memory(one) == [True, False]
        await warm(models, one)
        await ask(models, X)

    assert by_memory(one) == [True]


async def test_a_triton_that_was_restarted_is_told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection ended, and what it knew."""
    monkeypatch.setattr("server.engine.triton.registration._FORGOT_PAUSE_S", 0.0)
    one = fake()
    async with over(one, **OWN) as models:
        await warm(models, one)
        await one.stop()
        one.regions.clear()
        await until(lambda: not models.pool.up)
        await one.start()
        # It is up, and was asked what it has.
        await until(lambda: models.resolve("double").healthy())
        assert np.array_equal(await ask(models, X), X * 2)
        await warm(models, one)
        await ask(models, X)

    assert by_memory(one) == [True]


async def test_a_request_that_is_given_up_keeps_its_place_and_a_refused_one_does_not() -> None:
    """Triton may still read the one; of the other it has said its word."""
    one = fake()
    async with over(one, **OWN) as models:
        await warm(models, one)
        memory = models.pool._memory
        assert memory is not None
        one.script = refusing(grpc.StatusCode.INVALID_ARGUMENT, "odd")
        with pytest.raises(TritonRefused):
            await ask(models, X)
        assert memory.taken == 0
        one.script = never
        with pytest.raises(CallExpired):
            await ask(models, X, within_s=0.5)
        await until(lambda: one.cancelled == 1)
        assert memory.taken == 1


async def test_where_the_memory_is_full_inputs_go_by_message() -> None:
    """Nobody waits for a place."""
    one = fake()
    async with over(one, shared_memory_bytes=1 << 17, **OWN) as models:
        await warm(models, one)
        xs = [X + number for number in range(10)]
        answers = await asyncio.gather(*(ask(models, x) for x in xs))

    assert all(np.array_equal(answer, x * 2) for answer, x in zip(answers, xs, strict=True))
    assert set(by_memory(one)) == {True, False}


async def test_regions_of_killed_servers_are_forgotten_by_triton() -> None:
    """It would hold their memory for ever; those of others stay."""
    one = fake()
    left, foreign = f"{PREFIX}1-dead", "somebodys"
    for name in (left, foreign):
        one.regions[name] = type("Region", (), {"key": name})
    (FOLDER / left).touch()
    async with over(one, **OWN) as models:
        await warm(models, one)
        assert left not in one.regions
        assert foreign in one.regions
        assert not (FOLDER / left).exists()


async def test_a_socket_of_this_host_is_an_address(tmp_path: Path) -> None:
    """Of a proxy, since Triton has none; no memory is shared with who may be anywhere."""
    one = fake()
    one.socket = tmp_path / "s"
    async with over(one, url=f"unix://{tmp_path}/s", shared_memory_least_bytes=1) as models:
        (server,) = models.pool.servers
        assert np.array_equal(await ask(models, X), X * 2)
        assert server.name == f"unix:{tmp_path}/s"
        assert not server.may_share_memory


# --- the real one -------------------------------------------------------------------------------------

_MODEL = """
import sys

sys.path[:0] = [{packages!r}]

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x, t, n = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in "xtn")
            y = x * 2 + n.astype(np.float32).sum()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y), pb_utils.Tensor("u", t[:, ::-1])]))
        return answers
"""
_REAL = """
name: "mixed" backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] }
input { name: "t" data_type: TYPE_STRING dims: [ 1, -1 ] }
input { name: "n" data_type: TYPE_UINT8 dims: [ -1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1, 3 ] }
output { name: "u" data_type: TYPE_STRING dims: [ 1, -1 ] }
"""
FLAGS = ("--triton-shared-memory-least-bytes", str(LEAST))


@contextmanager
def real(folder: Path) -> Iterator[tuple[LocalTriton, Callable[[], ServerProcess]]]:
    """A Triton with a model of numbers and text, and what starts a server in front of it."""
    repository = folder / "mixed_models"
    (repository / "mixed" / "1").mkdir(parents=True)
    (repository / "mixed" / "config.pbtxt").write_text(_REAL)
    with ExitStack() as stack:
        (repository / "mixed" / "1" / "model.py").write_text(_MODEL.format(packages=str(program().packages)))
        one = triton(stack, folder, repository)
        yield one, lambda: stack.enter_context(in_front_of(folder, one, flags=FLAGS))


def regions(one: LocalTriton) -> dict[str, str]:
    """Those that it knows, and their keys."""
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{one.ports.grpc}") as client:
        found = client.get_system_shared_memory_status().regions
        return {name: region.key for name, region in found.items()}


def asked(gateway: ServerProcess, value: float) -> None:
    """A large request of numbers and text is answered rightly."""
    x, t, n = X + np.float32(value), np.array([[b"a", b"", b"\xff\x00c"]], dtype=object), np.ones(7, np.uint8)
    with Client(f"grpc://{gateway.grpc}") as client:
        answer = client.infer("mixed", {"n": n, "t": t, "x": x})
    np.testing.assert_array_equal(answer["y"], x * 2 + 7)
    assert answer["u"].tolist() == [[b"\xff\x00c", b"", b"a"]]


def shared(one: LocalTriton, gateway: ServerProcess) -> str:
    """Ask until the memory is shared; the region's name."""

    def found() -> list[str]:
        asked(gateway, 2.0)
        return [name for name in regions(one) if name.startswith(f"{PREFIX}{gateway.process.pid}-")]

    wait_for(lambda: bool(found()))
    return found()[0]


@pytest.mark.e2e
def test_the_real_triton_reads_numbers_from_memory_and_text_from_the_message(tmp_path: Path) -> None:
    """In one request; the region goes with the server."""
    with real(tmp_path) as (one, in_front):
        gateway = in_front()
        name = shared(one, gateway)
        for number in range(20):
            asked(gateway, number)
        written = (FOLDER / name).read_bytes()
        assert (X + np.float32(19)).tobytes() in written
        assert gateway.terminate() == 0
        assert regions(one) == {}
        assert not (FOLDER / name).exists()


@pytest.mark.e2e
def test_the_real_triton_that_was_restarted_is_told_anew(tmp_path: Path) -> None:
    """No request fails for it."""
    with real(tmp_path) as (one, in_front):
        gateway = in_front()
        shared(one, gateway)
        one.stop()
        one.start()
        one.wait_ready(90)
        # Not only up: it has said what it has.
        wait_for(lambda: has_found(gateway, one))
        asked(gateway, 1.0)
        shared(one, gateway)
        asked(gateway, 3.0)


@pytest.mark.e2e
def test_what_a_killed_server_left_at_the_real_triton_goes_with_the_next(tmp_path: Path) -> None:
    """Its file, and Triton's hold on it."""
    with real(tmp_path) as (one, in_front):
        first = in_front()
        left = shared(one, first)
        # Not afterwards: whoever makes a memory on this machine may be the next.
        assert (FOLDER / left).exists()
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        second = in_front()
        kept = shared(one, second)
        wait_for(lambda: list(regions(one)) == [kept])
        assert not (FOLDER / left).exists()
