"""A data plane over the scripted engine, with its parts in reach."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from server.dataplane import DataPlane
from server.engine.fake import FakeEngine, Script
from server.lifecycle import Lifecycle, State
from server.model_control import ModelControl
from server.repository.repository import Repository
from server.scheduler.share import Share
from server.settings import RepositorySettings
from server.tensor import Array, Tensor
from server.types import Classification, InferRequest, Outcome, Prediction, RawInput, RowInput

CONFIG = """
platform: "onnxruntime_onnx" max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
dynamic_batching { default_queue_policy { max_queue_size: 100 } }
"""


class Rows:
    """A pipeline of rows of two numbers; `gate` holds preprocessing until it is opened."""

    task = "test"
    gate = threading.Event()

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        assert self.gate.wait(10)
        rows = [raw.values for raw in inputs if isinstance(raw, RowInput)]
        return {"x": np.asarray(rows, dtype=np.float32)}

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        return [Classification(f"{value:g}", 1.0, ()) for value in outputs["y"][:, 0]]

    def describe(self) -> Mapping[str, object]:
        return {"task": self.task, "input": {"kind": "row", "columns": []}, "labels": []}

    def example(self) -> RawInput:
        return RowInput([1, 2])


class Plane:
    """A data plane with its parts in reach."""

    def __init__(
        self, root: Path, script: Script, control_mode: str = "explicit", cores: int = 0, pipeline_threads: int = 2
    ) -> None:
        """`cores`: that the models share; 0: they know of none."""
        self.root = root
        self.script = script
        self.engine = FakeEngine(script)
        self.lifecycle = Lifecycle()
        repository = Repository(root, self.engine, load_pipeline=lambda _: Rows(), warmup_s=1.0)
        share = Share(cores) if cores else None
        self.models = ModelControl(repository, default_max_queue_size=100, share=share, load_threads=2)
        settings = RepositorySettings.model_validate({"path": root, "control_mode": control_mode})
        self.dataplane = DataPlane(self.models, self.lifecycle, settings, pipeline_threads, share=share)

    def write(self, name: str, *versions: str, config: str = CONFIG) -> None:
        for version in versions:
            (self.root / name / version).mkdir(parents=True, exist_ok=True)
            (self.root / name / version / "model.onnx").write_text("the scripted engine reads no file")
        (self.root / name / "config.pbtxt").write_text(f'name: "{name}" {config}')

    async def start(self) -> None:
        await self.models.load_all(self.models.names())
        self.lifecycle.advance(State.READY)

    def ask(self, *values: float, model: str = "m", version: str = "", **rest: object) -> asyncio.Future[Outcome]:
        """Submit one row; the future holds the outcome, be it an answer or an error."""
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        tensor = Tensor.from_numpy("x", np.asarray([values], dtype=np.float32))
        request = InferRequest(
            model,
            [tensor],
            on_settle=lambda _, outcome: done.set_result(outcome),
            received_ns=time.monotonic_ns(),
            model_version=version,
            **rest,  # type: ignore[arg-type]
        )
        self.dataplane.submit([request])
        return done
