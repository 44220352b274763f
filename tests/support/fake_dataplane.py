"""A data plane for the tests of the transports: one model that adds two inputs, with scripted outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from server.errors import Cancelled, ModelLoadFailed, ServingError, UnknownModel, UnknownRepository
from server.observability.log_control import LogControl
from server.observability.tracing import Tracing
from server.pipeline.base import Pipeline
from server.repository.certificate import Manifest
from server.scheduler.statistics import ModelStatistics
from server.security.gate import Gate
from server.settings import LogSettings, SharedMemorySettings, TraceSettings
from server.shared_memory.requests import SharedMemory
from server.tensor import Tensor, TensorSpec
from server.types import (
    Classification,
    ImageInput,
    IndexEntry,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Outcome,
    Prediction,
    PredictRequest,
    PredictResponse,
    Score,
    ServerMetadata,
)

MODEL = "add"
CONFIG = """
name: "add" platform: "onnxruntime_onnx" max_batch_size: 8
input { name: "a" data_type: TYPE_FP32 dims: 4 }
input { name: "b" data_type: TYPE_FP32 dims: 4 }
output { name: "sum" data_type: TYPE_FP32 dims: 4 }
parameters { key: "k" value { string_value: "v" } }
dynamic_batching { max_queue_delay_microseconds: 9007199254740993 }
"""


@dataclass
class FakeDataPlane:
    """`add` answers ``a + b`` (a missing b is zero); any other model is unknown.

    `held` keeps requests back until `release` or `cancel`; `outcome`, where set, settles every request.
    `later` settles from a callback of the loop instead of inside of `submit`.
    """

    held: bool = False
    later: bool = False
    outcome: Outcome | None = None
    without_tasks: bool = False
    """Predictions begin by plain calls, as requests do."""
    ready_now: bool = True
    draining_now: bool = False
    forwards: Sequence[str] = ()
    gate: Gate | None = None
    single_input: TensorSpec | None = None
    answers: list[Tensor] | None = None
    requests: list[InferRequest] = field(default_factory=list)
    predicts: list[PredictRequest] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    cancelled: list[InferRequest] = field(default_factory=list)
    cancelled_predicts: int = 0
    refusal: ServingError | None = None
    """Of every prediction that is looked at by its begin."""
    looked_at: list[tuple[str, int]] = field(default_factory=list)
    """The model and the size of each."""
    parameters: dict[str, object] = field(default_factory=dict)
    control: list[tuple[str, str]] = field(default_factory=list)
    shared_memory: SharedMemory = field(default_factory=lambda: SharedMemory(SharedMemorySettings(), enabled=True))
    tracing: Tracing = field(default_factory=lambda: Tracing(TraceSettings(file="/nowhere/trace.json")))
    logs: LogControl = field(default_factory=lambda: LogControl(LogSettings()))
    control_mode: str = "none"
    certificate: Manifest | None = None
    runs: Pipeline | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, requests: Sequence[InferRequest]) -> None:
        for request in requests:
            if request.special is not None and request.special.shared is not None:
                shared, request.special = request.special.shared, None
                self.shared_memory.take(request, shared, self.submit)
                continue
            self.requests.append(request)
            self.arrived.set()
            if self.held:
                continue
            if self.later:
                asyncio.get_running_loop().call_soon(request.settle, self._answer(request))
            else:
                request.settle(self._answer(request))

    def stream(self, requests: Sequence[InferRequest]) -> None:
        self.submit(requests)

    def decoupled(self, name: str, version: str = "") -> bool:
        return False

    def release(self) -> None:
        self.held = False
        for request in self.requests:
            request.settle(self._answer(request))

    def _answer(self, request: InferRequest) -> Outcome:
        if self.outcome is not None:
            return self.outcome
        if request.model_name != MODEL:
            return UnknownModel(request.model_name, request.model_version)
        total = np.sum([tensor.numpy() for tensor in request.inputs], axis=0) if self.answers is None else None
        outputs = self.answers if total is None else [Tensor.from_numpy("sum", total)]
        return InferResponse(MODEL, request.model_version or "1", outputs or [], request.id)

    def cancel(self, request: InferRequest) -> None:
        self.cancelled.append(request)
        if request.holder is not None:
            request.holder.cancel(request)
        request.settle(Cancelled())
        self.gone.set()

    def hopeless(self, model_name: str, size: int, received_ns: int, deadline_ns: int) -> ServingError | None:
        assert received_ns < deadline_ns
        self.looked_at.append((model_name, size))
        return self.refusal

    async def predict(self, request: PredictRequest) -> PredictResponse:
        self.predicts.append(request)
        self.arrived.set()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        if self.held:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled_predicts += 1
                self.gone.set()
                raise
        return self._predicted(request)

    def begin(
        self, request: PredictRequest, answered: Callable[[PredictResponse | BaseException], None]
    ) -> InferRequest | None:
        if not self.without_tasks:
            return None

        def on_settle(_request: InferRequest, outcome: Outcome) -> None:
            answered(outcome if isinstance(outcome, BaseException) else self._predicted(request))

        self.predicts.append(request)
        inner = InferRequest(MODEL, (), on_settle=on_settle, received_ns=request.received_ns)
        self.submit([inner])
        return inner

    def _predicted(self, request: PredictRequest) -> PredictResponse:
        best = (Score("yes", 0.75), Score("no", 0.25))
        label = "yes" if not isinstance(request.inputs[0], ImageInput) else "image"
        answers: list[Prediction] = self.predictions or [
            Classification(label, 0.75, best[: request.top_k or 2]) for _ in request.inputs
        ]
        return PredictResponse(request.model_name, request.model_version or "1", answers, request.id)

    def live(self) -> bool:
        return self.ready_now

    def ready(self) -> bool:
        return self.ready_now

    def draining(self) -> bool:
        return self.draining_now

    def model_ready(self, name: str, version: str = "") -> bool:
        self._known(name, version)
        return self.ready_now

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata("forwardpass", "0.0.0", ("binary_tensor_data", "statistics"))

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        self._known(name, version)
        inputs = (TensorSpec("a", "FP32", (-1, 4)), TensorSpec("b", "FP32", (-1, 4)))
        if self.single_input is not None:
            inputs = (self.single_input,)
        outputs = (TensorSpec("sum", "FP32", (-1, 4)),)
        return ModelMetadata(MODEL, ("1",), "onnxruntime_onnx", inputs, outputs, {"task": "adding"})

    def manifest(self, name: str, version: str = "") -> Manifest | None:
        self._known(name, version)
        return self.certificate

    def pipeline(self, name: str, version: str = "") -> Pipeline | None:
        self._known(name, version)
        return self.runs

    def model_config(self, name: str, version: str = "") -> model_config_pb2.ModelConfig:
        self._known(name, version)
        return text_format.Parse(CONFIG, model_config_pb2.ModelConfig())

    def statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        if name:
            self._known(name, version)
        statistics = ModelStatistics(MODEL, "1", wall=lambda: 1_700_000_000.5)
        statistics.count_pass(3, 10, 20, 30)
        request = self.requests[-1:]
        statistics.count_success(request, 1000, 2**60, 10, 20, 30)
        return [statistics]

    async def total_statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        return self.statistics(name, version)

    async def current_index(self, ready: bool = False, repository_name: str = "") -> list[IndexEntry]:
        return self.repository_index(ready, repository_name)

    def trace_settings(self, model_name: str, changes: Mapping[str, list[str] | None]) -> dict[str, list[str]]:
        if model_name:
            self._known(model_name, "")
        self.tracing.update(changes, model_name)
        return self.tracing.told(model_name)

    def repository_index(self, ready: bool = False, repository_name: str = "") -> list[IndexEntry]:
        if repository_name not in ("", "models"):
            raise UnknownRepository(repository_name)
        broken = [] if ready else [IndexEntry("broken", "", "UNAVAILABLE", "no model file")]
        return [IndexEntry(MODEL, "1", "READY", ""), *broken]

    async def load_model(
        self, name: str, parameters: Mapping[str, object] | None = None, repository_name: str = ""
    ) -> None:
        self.parameters = dict(parameters or {})
        if name == "broken":
            raise ModelLoadFailed(name, "config.pbtxt", "no such field")
        self._known(name, "")
        self.control.append(("load", name))

    async def unload_model(self, name: str, *, unload_dependents: bool = False, repository_name: str = "") -> None:
        self._known(name, "")
        self.parameters = {"unload_dependents": unload_dependents}
        self.control.append(("unload", name))

    def _known(self, name: str, version: str) -> None:
        if name != MODEL or version not in ("", "1"):
            raise UnknownModel(name, version)
