"""The one table of RPCs: what a gRPC transport parses, whom it asks, what it answers.

Whatever is not in the table is UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2

from server.call import Settled, answer, settle_into
from server.errors import InvalidRequest, ServingError, UnknownModel
from server.explain import Explanation, decoded
from server.proto.forwardpass.v1 import prediction_pb2
from server.proto.triton import service_pb2 as pb
from server.security import roles
from server.security.roles import CONTROLS, Need
from server.transport import health, observing, reflection, shared_memory, stream_infer
from server.transport.codec import management, predict_grpc, statistics, v2_grpc
from server.transport.predict_stream import predict_stream
from server.types import NO_DEADLINE, InferRequest, Metadata, PredictRequest, PredictResponse

if TYPE_CHECKING:
    from server.dataplane import DataPlane


TENANT_KEY = "x-tenant"
"""The metadata that says on whose behalf a call is made."""


@dataclass(slots=True)
class CallInfo:
    """What a transport knows of a call beside its message. A call is cancelled by cancelling its task."""

    received_ns: int
    deadline_ns: int = NO_DEADLINE
    tenant: str = ""
    """On whose behalf it is asked: the metadata `x-tenant`."""
    metadata: Metadata = ()
    """What goes along to where the models run."""
    explanation: Explanation | None = None
    """Set by the transport if the metadata asks, by the handler if the message does; the transport tells it."""

    @classmethod
    def arriving(cls, time_remaining_s: float | None) -> CallInfo:
        """A call that arrives now and has so many seconds left (None: all the time in the world)."""
        now_ns = time.monotonic_ns()
        if time_remaining_s is None:
            return cls(now_ns)
        return cls(now_ns, min(now_ns + int(time_remaining_s * 1e9), NO_DEADLINE))


Handler = Callable[["DataPlane", Any, CallInfo], Any]
"""Takes the request message, gives the response message, or a coroutine of it if it has to wait. Of a method with
streams it takes an async iterator of request messages, and is an async generator of response messages."""


Hopeless = Callable[["DataPlane", bytes, int, int, int], ServingError | None]
"""Takes the first bytes of the request message, its size, when it was received and its deadline, both in ns."""


Answered = Callable[[bytes | BaseException], None]
"""Hears of a call's answer, once."""
Later = Callable[[], Awaitable[bytes]]
"""Makes a call's answer, in a task. Raises ServingError."""
Begin = Callable[["DataPlane", Any, CallInfo, Answered], InferRequest | Later]
"""As a handler, in plain calls: see `DataPlane.begin`. In the place of its None is what takes a task."""


class Method(NamedTuple):
    name: str
    """The path of the call, for example ``/inference.GRPCInferenceService/ModelInfer``."""
    request: type[Message]
    response: type[Message]
    handler: Handler
    waits: bool
    explains: bool = False
    """It has an explanation for those who ask."""
    infers: bool = False
    """Its messages are infer requests and nothing more: a transport may hand them to the data plane by itself."""

    streams: bool = False
    """Any number of messages either way."""
    needs: Need = CONTROLS
    """What a caller must have, where callers are asked."""
    hopeless: Hopeless | None = None
    """Says of a large message by its begin that there is no time for it."""
    begin: Begin | None = None
    """The same without a task, for most of its messages."""

    def parse(self, data: bytes) -> Message:
        """Raises InvalidRequest if `data` is no such message."""
        try:
            return self.request.FromString(data)
        except DecodeError as error:
            raise InvalidRequest("message", f"is not a valid {self.request.DESCRIPTOR.full_name}") from error

    def respond_now(self, dataplane: DataPlane, data: bytes, info: CallInfo) -> bytes:
        """The answer to the message in `data`, of a method that does not wait. Raises ServingError."""
        return _encode(self.handler(dataplane, self.parse(data), info), info)

    async def respond(self, dataplane: DataPlane, data: bytes, info: CallInfo) -> bytes:
        """The answer to the message in `data`, of any method without streams. Raises ServingError."""
        answer = self.handler(dataplane, self.parse(data), info)
        return _encode(await answer if self.waits else answer, info)

    async def respond_streams(
        self, dataplane: DataPlane, messages: AsyncIterator[Any], info: CallInfo
    ) -> AsyncIterator[bytes]:
        """The answers to the `messages`, of a method with streams. Raises ServingError."""
        async with aclosing(self.handler(dataplane, messages, info)) as answers:
            async for answer in answers:
                yield answer.SerializeToString()


def _encode(answer: Any, info: CallInfo) -> bytes:
    encoded: bytes = answer.SerializeToString()
    if info.explanation is not None:
        info.explanation.mark("encode")
    return encoded


async def _model_infer(dataplane: DataPlane, message: Any, info: CallInfo) -> Any:
    settled: Settled = asyncio.get_running_loop().create_future()
    request = v2_grpc.decode_infer(
        message, on_settle=settle_into(settled), received_ns=info.received_ns, deadline_ns=info.deadline_ns
    )
    request.tenant = info.tenant
    if info.metadata:
        request.metadata = info.metadata
    request.explanation = decoded(info.explanation, request.parameters, info.received_ns)
    dataplane.submit((request,))
    response = await answer(request, settled, dataplane.cancel)
    info.explanation = request.explanation
    return v2_grpc.encode_infer(response)


async def _predict(dataplane: DataPlane, message: Any, info: CallInfo) -> Any:
    return await _predicted(dataplane, _prediction(message, info), info)


async def _predicted(dataplane: DataPlane, request: PredictRequest, info: CallInfo) -> Any:
    response = await dataplane.predict(request)
    info.explanation = request.explanation
    return predict_grpc.encode_predict(response)


def _begin_predict(dataplane: DataPlane, message: Any, info: CallInfo, answered: Answered) -> InferRequest | Later:
    request = _prediction(message, info)

    async def later() -> bytes:
        return _encode(await _predicted(dataplane, request, info), info)

    begun = dataplane.begin(request, partial(_tell, request, info, answered))
    return later if begun is None else begun


def _prediction(message: Any, info: CallInfo) -> PredictRequest:
    request = predict_grpc.decode_predict(message, info.deadline_ns)
    request.tenant, request.metadata = info.tenant, info.metadata
    request.received_ns = info.received_ns
    request.explanation = decoded(info.explanation, request.parameters, info.received_ns)
    return request


def _tell(
    request: PredictRequest, info: CallInfo, answered: Answered, outcome: PredictResponse | BaseException
) -> None:
    info.explanation = request.explanation
    if isinstance(outcome, BaseException):
        answered(outcome)
        return
    try:
        encoded = _encode(predict_grpc.encode_predict(outcome), info)
    except Exception as error:  # noqa: BLE001 - as of an answer that a task makes
        answered(error)  # Not kept: its frames hold what is here.
        return
    answered(encoded)


def _predict_hopeless(
    dataplane: DataPlane, start: bytes, size: int, received_ns: int, deadline_ns: int
) -> ServingError | None:
    name = predict_grpc.model_in_front(start)
    return dataplane.hopeless(name, size, received_ns, deadline_ns) if name else None


def _server_live(dataplane: DataPlane, _message: Any, _info: CallInfo) -> Any:
    return pb.ServerLiveResponse(live=dataplane.live())


def _server_ready(dataplane: DataPlane, _message: Any, _info: CallInfo) -> Any:
    return pb.ServerReadyResponse(ready=dataplane.ready())


def _model_ready(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    try:
        ready = dataplane.model_ready(message.name, message.version)
    except UnknownModel:
        ready = False  # As Triton's: clients ask until a model comes.
    return pb.ModelReadyResponse(ready=ready)


def _server_metadata(dataplane: DataPlane, _message: Any, _info: CallInfo) -> Any:
    return management.encode_server_metadata(dataplane.server_metadata())


def _model_metadata(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    return management.encode_model_metadata(dataplane.model_metadata(message.name, message.version))


def _model_config(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    return pb.ModelConfigResponse(config=dataplane.model_config(message.name, message.version))


async def _model_statistics(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    return statistics.encode_statistics(await dataplane.total_statistics(message.name, message.version))


async def _repository_index(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    return management.encode_index(await dataplane.current_index(message.ready, message.repository_name))


async def _repository_model_load(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    parameters = dict(_parameter_values(message.parameters))
    await dataplane.load_model(message.model_name, parameters, message.repository_name)
    return pb.RepositoryModelLoadResponse()


async def _repository_model_unload(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    unload_dependents = management.unload_dependents(dict(_parameter_values(message.parameters)))
    await dataplane.unload_model(
        message.model_name, unload_dependents=unload_dependents, repository_name=message.repository_name
    )
    return pb.RepositoryModelUnloadResponse()


def _parameter_values(parameters: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        yield name, getattr(parameter, choice) if choice else None


def _v2(name: str, handler: Handler, needs: Need, *, explains: bool = False, infers: bool = False) -> Method:
    """A row for `name` of v2's service, whose messages are all called <name>Request and <name>Response."""
    path = f"/inference.GRPCInferenceService/{name}"
    request, response = getattr(pb, f"{name}Request"), getattr(pb, f"{name}Response")
    return Method(path, request, response, handler, iscoroutinefunction(handler), explains, infers, needs=needs)


METHODS: tuple[Method, ...] = (
    _v2("ModelInfer", _model_infer, roles.PREDICTS, explains=True, infers=True),
    Method(
        "/forwardpass.v1.PredictionService/Predict",
        prediction_pb2.PredictRequest,
        prediction_pb2.PredictResponse,
        _predict,
        waits=True,
        explains=True,
        needs=roles.PREDICTS,
        hopeless=_predict_hopeless,
        begin=_begin_predict,
    ),
    Method(
        "/forwardpass.v1.PredictionService/PredictStream",
        prediction_pb2.PredictRequest,
        prediction_pb2.PredictResponse,
        predict_stream,
        waits=True,
        streams=True,
        needs=roles.PREDICTS,
    ),
    _v2("ServerLive", _server_live, roles.OPEN),
    _v2("ServerReady", _server_ready, roles.OPEN),
    _v2("ModelReady", _model_ready, roles.READS),
    _v2("ServerMetadata", _server_metadata, roles.READS),
    _v2("ModelMetadata", _model_metadata, roles.READS),
    _v2("ModelConfig", _model_config, roles.READS),
    _v2("ModelStatistics", _model_statistics, roles.READS_STATISTICS),
    _v2("RepositoryIndex", _repository_index, roles.READS_REPOSITORY),
    _v2("RepositoryModelLoad", _repository_model_load, roles.CONTROLS_REPOSITORY),
    _v2("RepositoryModelUnload", _repository_model_unload, roles.CONTROLS_REPOSITORY),
    _v2("SystemSharedMemoryStatus", shared_memory.system_status, roles.SHARES_MEMORY),
    _v2("SystemSharedMemoryRegister", shared_memory.system_register, roles.SHARES_MEMORY),
    _v2("SystemSharedMemoryUnregister", shared_memory.system_unregister, roles.SHARES_MEMORY),
    _v2("CudaSharedMemoryStatus", shared_memory.cuda_status, roles.SHARES_MEMORY),
    _v2("CudaSharedMemoryRegister", shared_memory.cuda_register, roles.SHARES_MEMORY),
    _v2("CudaSharedMemoryUnregister", shared_memory.cuda_unregister, roles.SHARES_MEMORY),
    _v2("TraceSetting", observing.trace_setting, roles.CONTROLS_TRACE),
    _v2("LogSettings", observing.log_settings, roles.CONTROLS_LOGGING),
    Method(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        pb.ModelInferRequest,
        pb.ModelStreamInferResponse,
        stream_infer.stream_infer,
        waits=True,
        streams=True,
        needs=roles.PREDICTS,
    ),
    Method(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest,
        health_pb2.HealthCheckResponse,
        health.check,
        waits=False,
        needs=roles.OPEN,
    ),
    Method(
        "/grpc.health.v1.Health/Watch",
        health_pb2.HealthCheckRequest,
        health_pb2.HealthCheckResponse,
        health.watch,
        waits=True,
        streams=True,
        needs=roles.OPEN,
    ),
    Method(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection.V1_REQUEST,
        reflection.V1_RESPONSE,
        reflection.reflecting(reflection.V1_RESPONSE),
        waits=True,
        streams=True,
        needs=roles.READS,
    ),
    Method(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection.ALPHA_REQUEST,
        reflection.ALPHA_RESPONSE,
        reflection.reflecting(reflection.ALPHA_RESPONSE),
        waits=True,
        streams=True,
        needs=roles.READS,
    ),
)
