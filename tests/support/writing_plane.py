"""A data plane whose model writes text, and what it is asked."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from server.call import Responses, each
from server.dataplane import DataPlane
from server.engine.by_backend import ByBackend
from server.engine.fake import FakeEngine
from server.engine.genai.engine import GenaiEngine
from server.engine.genai.instance import GenaiInstance
from server.lifecycle import Lifecycle, State
from server.model_control import ModelControl
from server.repository.repository import Repository
from server.scheduler.writing import WritingBatcher
from server.settings import RepositorySettings
from server.tensor import Tensor
from server.types import NO_DEADLINE, InferRequest, InferResponse
from tests.support.writing import FOLDER, said


def write_model(root: Path, extra: str = "", name: str = "writer") -> None:
    """The tiny model as a folder of a repository; `extra` goes into its config."""
    shutil.copytree(FOLDER, root / name)
    config = root / name / "config.pbtxt"
    config.write_text(config.read_text() + extra)


def parameter(key: str, value: object) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


@dataclass
class WritingPlane:
    dataplane: DataPlane
    models: ModelControl

    @property
    def batcher(self) -> WritingBatcher:
        batcher = self.models.resolve("writer").batcher
        assert isinstance(batcher, WritingBatcher)
        return batcher

    @property
    def instance(self) -> GenaiInstance:
        instance = self.batcher._instance
        assert isinstance(instance, GenaiInstance)
        return instance

    def ask(
        self, prompt: str, *, deadline_ns: int = NO_DEADLINE, priority: int = 0, tenant: str = "", **sampling: object
    ) -> tuple[InferRequest, AsyncGenerator[InferResponse]]:
        arrived = asyncio.Event()
        responses = Responses(arrived.set)
        request = InferRequest(
            "writer",
            [Tensor.from_numpy(name, array) for name, array in said(prompt, **sampling).items()],
            on_settle=responses.settle,
            received_ns=time.monotonic_ns(),
            deadline_ns=deadline_ns,
            parameters={"priority": priority} if priority else {},
            tenant=tenant,
            caller=responses,
        )
        self.dataplane.stream((request,))
        return request, each(request, responses, arrived, self.dataplane.cancel)

    async def text(self, prompt: str, **said: object) -> str:
        return await text_of(self.ask(prompt, **said)[1])

    async def settled(self) -> None:
        """Everybody has left."""
        for _ in range(1000):
            if not self.batcher._runs and not self.instance.busy and not self.instance.tokens:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("somebody is left")


async def text_of(stream: AsyncGenerator[InferResponse]) -> str:
    return "".join([response.outputs[0].numpy()[0].decode() async for response in stream])


@asynccontextmanager
async def writing_plane(root: Path, extra: str = "") -> AsyncIterator[WritingPlane]:
    write_model(root, extra)
    engine = ByBackend(FakeEngine(), {"onnxruntime-genai": GenaiEngine})
    lifecycle = Lifecycle()
    repository = Repository(root, engine, load_pipeline=lambda _: None, warmup_s=1.0)
    models = ModelControl(repository, default_max_queue_size=2000, load_threads=1)
    settings = RepositorySettings.model_validate({"path": root, "control_mode": "explicit"})
    dataplane = DataPlane(models, lifecycle, settings, pipeline_threads=1)
    await models.load_all(models.names())
    lifecycle.advance(State.READY)
    try:
        yield WritingPlane(dataplane, models)
    finally:
        await models.close()
        dataplane.close()
