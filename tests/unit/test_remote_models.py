"""What a front tells those who wait for an engine process that it loses. The link is real, the process is a socket."""

from __future__ import annotations

import asyncio
import pickle
import socket
import time
from pathlib import Path
from typing import Any, cast

import pytest

from server.errors import EngineLost
from server.model_control import ModelControl
from server.repository.model_config import read_model_config
from server.scheduler.statistics import ModelStatistics
from server.tensor import Tensor
from server.types import InferRequest, Outcome
from server.workers.frames import Kind, frame
from server.workers.remote import RemoteModels
from server.workers.versions import Announced, Announcement

HANDLE = 3
ROW = Tensor("features", "FP32", (1, 30), bytes(120))
SHIPPED = Path(__file__).parents[2] / "model_repository" / "breast_cancer"


class Local:
    """No model runs in this front."""

    def statistics_of(self, name: str, version: str) -> ModelStatistics:
        return ModelStatistics(name, version)

    async def drain(self, until_ns: int) -> None:
        return


async def remote() -> tuple[RemoteModels, socket.socket]:
    """Of an engine process that serves one model; and its side of the link."""

    async def no_answer(_question: dict[str, Any]) -> None:
        return

    models = RemoteModels(cast("ModelControl", Local()), no_answer, max_unsent_bytes=1 << 20)
    ours, theirs = socket.socketpair()
    link = models.attach(None, lambda: None)
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
    config = read_model_config(SHIPPED).message.SerializeToString()
    told = Announced(HANDLE, "breast_cancer", "1", False, config, {}, None, None, None, False, None, ("gpu0", "gpu1"))
    theirs.sendall(frame(Kind.MODELS, pickle.dumps(Announcement([told], []))))
    await asyncio.wait_for(models.told.wait(), 10)
    return models, theirs


class Waiting:
    """Requests, and what each of them was told."""

    def __init__(self, models: RemoteModels, number: int, angry: int = -1) -> None:
        """The caller of request `angry` fails when it is told."""
        self.told: list[tuple[str, Outcome]] = []
        self._angry = str(angry)
        requests = [
            InferRequest("breast_cancer", [ROW], on_settle=self._on_settle, received_ns=time.monotonic_ns(), id=str(n))
            for n in range(number)
        ]
        models.submit(HANDLE, requests)

    def _on_settle(self, request: InferRequest, outcome: Outcome) -> None:
        self.told.append((request.id, outcome))
        if request.id == self._angry:
            raise ZeroDivisionError


async def test_of_thousands_who_wait_the_first_are_told_before_the_last(caplog: pytest.LogCaptureFixture) -> None:
    """The loop turns meanwhile, so that answers are written; all are told once, also after one that fails."""
    models, theirs = await remote()
    waiting = Waiting(models, 1000, angry=500)
    turns = []
    theirs.close()
    while len(waiting.told) < 1000:
        await asyncio.sleep(0)
        turns.append(len(waiting.told))

    assert len([one for one in {*turns} if 0 < one < 1000]) > 5
    assert [name for name, _ in waiting.told] == [str(n) for n in range(1000)]
    assert all(isinstance(outcome, EngineLost) for _, outcome in waiting.told)
    assert models.resolve("breast_cancer").statistics.fail.count == 1000
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]
    await models.drain(time.monotonic_ns())


async def test_a_front_knows_where_the_instances_of_another_process_run() -> None:
    """It tells clients so in a model's config."""
    models, theirs = await remote()
    assert models.resolve("breast_cancer").model.devices == ("gpu0", "gpu1")
    theirs.close()
    await models.drain(time.monotonic_ns())


async def test_who_is_not_told_yet_is_told_before_the_end_of_a_drain() -> None:
    """Also where it begins right after the loss."""
    models, theirs = await remote()
    waiting = Waiting(models, 1000)
    theirs.close()
    for _ in range(1000):
        if not waiting.told:
            await asyncio.sleep(0)
    assert len(waiting.told) < 1000
    await models.drain(time.monotonic_ns() + 10**10)
    assert len(waiting.told) == 1000


async def test_a_drain_that_may_not_wait_tells_everybody_at_once() -> None:
    """Its time is over as it begins, and nobody is left without an answer."""
    models, theirs = await remote()
    waiting = Waiting(models, 1000)
    theirs.close()
    for _ in range(1000):
        if not waiting.told:
            await asyncio.sleep(0)
    assert len(waiting.told) < 1000
    await models.drain(time.monotonic_ns())
    assert len(waiting.told) == 1000
