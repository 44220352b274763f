"""gRPC: KServe v2's GRPCInferenceService and forwardpass.v1. Messages first, then their two transports."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import SplitResult

import grpc
import numpy as np
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from server.client import answers
from server.client.arrays import array_of
from server.client.calls import Call
from server.client.errors import ClientError, code_of_grpc
from server.client.inputs import invalid
from server.errors import Code
from server.explain import ANSWER_KEY, REQUEST_KEY
from server.proto.forwardpass.v1 import prediction_pb2
from server.proto.triton import service_pb2
from server.tensor import DATATYPES, Array, Tensor, TensorSpec
from server.types import (
    ImageInput,
    IndexEntry,
    ModelMetadata,
    PredictResponse,
    RawInput,
    TextInput,
    Written,
)

T = TypeVar("T")

DEFAULT_PORT = 8001
V2 = "/inference.GRPCInferenceService/"
PREDICT = "/forwardpass.v1.PredictionService/Predict"
PREDICT_STREAM = f"{PREDICT}Stream"
KEY_NAME = "x-api-key"
DETAILS_KEY = "grpc-status-details-bin"
RETRY_INFO_URL = "type.googleapis.com/google.rpc.RetryInfo"
EXACT = 2**53
"""Whole numbers up to here are exact in the doubles of protobuf's Struct."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    message: Message
    reply: type[Message]


# --- messages ------------------------------------------------------------------------------------


class Messages:
    """The calls as protobuf messages."""

    def predict(self, model: str, version: str, inputs: Sequence[RawInput], top_k: int) -> Call[PredictResponse]:
        message = prediction_pb2.PredictRequest(
            model_name=model,
            model_version=version,
            inputs=[_input(f"inputs[{index}]", raw) for index, raw in enumerate(inputs)],
            top_k=top_k,
        )
        return Call(Request(PREDICT, message, prediction_pb2.PredictResponse), _read_predict)

    def predict_stream(self, model: str, version: str, prompt: str, sampling: Mapping[str, object]) -> Call[Written]:
        message = prediction_pb2.PredictRequest(
            model_name=model, model_version=version, inputs=[prediction_pb2.Input(text=prompt)]
        )
        try:
            message.sampling.update(dict[str, Any](sampling))
        except (TypeError, ValueError) as error:
            raise invalid("sampling", str(error)) from error
        return Call(Request(PREDICT_STREAM, message, prediction_pb2.PredictResponse), _read_written)

    def infer(
        self, model: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str]
    ) -> Call[dict[str, Array]]:
        kind = service_pb2.ModelInferRequest
        message = kind(
            model_name=model,
            model_version=version,
            inputs=[kind.InferInputTensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in inputs],
            outputs=[kind.InferRequestedOutputTensor(name=name) for name in outputs],
            raw_input_contents=[bytes(tensor.data) for tensor in inputs],
        )
        return Call(Request(f"{V2}ModelInfer", message, service_pb2.ModelInferResponse), _read_infer)

    def server_ready(self) -> Call[bool]:
        request = Request(f"{V2}ServerReady", service_pb2.ServerReadyRequest(), service_pb2.ServerReadyResponse)
        return Call(request, lambda reply: bool(reply.ready))

    def models(self) -> Call[list[IndexEntry]]:
        message = service_pb2.RepositoryIndexRequest()
        return Call(Request(f"{V2}RepositoryIndex", message, service_pb2.RepositoryIndexResponse), _read_models)

    def model_metadata(self, model: str, version: str) -> Call[ModelMetadata]:
        message = service_pb2.ModelMetadataRequest(name=model, version=version)
        return Call(Request(f"{V2}ModelMetadata", message, service_pb2.ModelMetadataResponse), _read_metadata)


def _input(field: str, raw: RawInput) -> prediction_pb2.Input:
    if isinstance(raw, ImageInput):
        return prediction_pb2.Input(image=prediction_pb2.Image(data=raw.data, content_type=raw.content_type))
    if isinstance(raw, TextInput):
        return prediction_pb2.Input(text=raw.text)
    _check_exact(field, raw.values)
    message = prediction_pb2.Input()
    if isinstance(raw.values, Mapping):
        message.row.SetInParent()
        message.row.update(raw.values)
    else:
        message.values.SetInParent()
        message.values.extend(raw.values)
    return message


def _check_exact(field: str, value: Any) -> None:
    """Struct holds every number as a double: what would come out as another number is refused."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_exact(f"{field}.{key}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_exact(f"{field}[{index}]", inner)
    elif isinstance(value, int) and abs(value) > EXACT:
        raise invalid(field, f"{value} is not exact over gRPC; send it as a string or over http")


def _read_predict(reply: prediction_pb2.PredictResponse) -> PredictResponse:
    predictions = [answers.of_message(one) for one in reply.predictions]
    return PredictResponse(reply.model_name, reply.model_version, predictions, reply.id)


def _read_written(reply: Any) -> Written:
    [one] = reply.predictions
    return answers.written_of_message(one)


def _read_infer(reply: Any) -> dict[str, Array]:
    raw = reply.raw_output_contents
    if raw and len(raw) != len(reply.outputs):
        raise ValueError(f"{len(reply.outputs)} outputs with {len(raw)} raw contents")
    arrays: dict[str, Array] = {}
    for index, output in enumerate(reply.outputs):
        shape = tuple(output.shape)
        if raw:
            arrays[output.name] = array_of(Tensor(output.name, output.datatype, shape, raw[index]))
        else:
            arrays[output.name] = _typed(output.datatype, output.contents).reshape(shape)
    return arrays


_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Source: InferTensorContents in grpc_service.proto. FP16 and BF16 have no typed form."""


def _typed(datatype: str, contents: Any) -> Array:
    return np.array(getattr(contents, _CONTENTS[datatype]), DATATYPES[datatype].numpy)


def _read_models(reply: Any) -> list[IndexEntry]:
    return [IndexEntry(one.name, one.version, one.state, one.reason) for one in reply.models]


def _read_metadata(reply: Any) -> ModelMetadata:
    return ModelMetadata(
        reply.name, tuple(reply.versions), reply.platform, _specs(reply.inputs), _specs(reply.outputs), None
    )


def _specs(described: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(one.name, one.datatype, tuple(one.shape)) for one in described)


# --- transports ----------------------------------------------------------------------------------


class Transport:
    """One channel. `proxy`: whether the environment's proxy is to be used."""

    def __init__(self, url: SplitResult, *, proxy: bool, api_key: str = "") -> None:
        self._url = url.geturl()
        self._shown = ((KEY_NAME, api_key),) if api_key else ()
        self._channel = grpc.insecure_channel(_target(url), options=_options(proxy))

    def send(self, call: Call[T], timeout_s: float | None) -> T:
        request: Request = call.request
        method = _method(self._channel.unary_unary, request)
        try:
            reply, rpc = method.with_call(request.message, timeout=timeout_s, metadata=self._shown + _metadata(call))
        except grpc.RpcError as error:
            raise _failure(error, self._url) from error
        return call.answer(reply, self._url, _server_timing(rpc.trailing_metadata()))

    def stream(self, call: Call[T], timeout_s: float | None) -> Iterator[T]:
        request: Request = call.request
        method = _method(self._channel.unary_stream, request)
        rpc = method(request.message, timeout=timeout_s, metadata=self._shown)
        try:
            for reply in rpc:
                yield call.answer(reply, self._url)
        except grpc.RpcError as error:
            raise _failure(error, self._url) from error
        finally:
            rpc.cancel()

    def close(self) -> None:
        self._channel.close()


class AsyncTransport:
    """`Transport` for asyncio. The channel is made at the first call: it belongs to the loop that runs then."""

    def __init__(self, url: SplitResult, *, proxy: bool, api_key: str = "") -> None:
        self._url = url.geturl()
        self._shown = ((KEY_NAME, api_key),) if api_key else ()
        self._target = _target(url)
        self._options = _options(proxy)
        self._channel: grpc.aio.Channel | None = None

    async def send(self, call: Call[T], timeout_s: float | None) -> T:
        request: Request = call.request
        method = _method(self._opened().unary_unary, request)
        try:
            rpc = method(request.message, timeout=timeout_s, metadata=self._shown + _metadata(call))
            reply = await rpc
            trailers = await rpc.trailing_metadata()
        except grpc.RpcError as error:
            raise _failure(error, self._url) from error
        return call.answer(reply, self._url, _server_timing(trailers))

    async def stream(self, call: Call[T], timeout_s: float | None) -> AsyncGenerator[T]:
        request: Request = call.request
        method = _method(self._opened().unary_stream, request)
        rpc = method(request.message, timeout=timeout_s, metadata=self._shown)
        try:
            async for reply in rpc:
                yield call.answer(reply, self._url)
        except grpc.RpcError as error:
            raise _failure(error, self._url) from error
        finally:
            rpc.cancel()

    def _opened(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=self._options)
        return self._channel

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close(grace=None)


def _method(make: Callable[..., Any], request: Request) -> Any:
    """The call of a channel that `make`, one of its four kinds, has for the request's method."""
    return make(
        request.method,
        request_serializer=type(request.message).SerializeToString,
        response_deserializer=request.reply.FromString,
    )


def _target(url: SplitResult) -> str:
    return url.netloc if url.port else f"{url.netloc.rstrip(':')}:{DEFAULT_PORT}"


def _metadata(call: Call[Any]) -> tuple[tuple[str, str], ...]:
    return () if call.explain is None else ((REQUEST_KEY, "1"),)


def _server_timing(trailers: Any) -> str:
    return str(dict(trailers or ()).get(ANSWER_KEY, ""))


def _options(proxy: bool) -> list[tuple[str, int]]:
    # grpc's own limit of 4 MiB on what is received is less than a batch of outputs; the server has its own.
    return [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", int(proxy)),
    ]


def _failure(error: Any, url: str) -> ClientError:
    """The ClientError for a call that ended with a status, the server's or grpc's own."""
    code = code_of_grpc(error.code().name)
    details = error.details() or error.code().name
    # An UNAVAILABLE is mostly of the connection, and then its text names no server.
    message = f"{url}: {details}" if code is Code.UNAVAILABLE else details
    return ClientError(code, message, _retry_after_s(error))


def _retry_after_s(error: Any) -> float | None:
    """The delay of a RetryInfo in the richer error model's details; None if there is none."""
    trailers = dict(error.trailing_metadata() or ())
    try:
        for detail in _fields(trailers.get(DETAILS_KEY, b""), 3):
            packed = AnyMessage.FromString(detail)
            if packed.type_url == RETRY_INFO_URL:
                return sum(Duration.FromString(delay).ToMilliseconds() for delay in _fields(packed.value, 1)) / 1000
    except (DecodeError, TypeError):
        return None  # The status is known all the same; only the hint is lost.
    return None


def _fields(data: bytes, number: int) -> list[bytes]:
    """The fields of that number in a message whose descriptor is no dependency of ours.

    Source: google/rpc/status.proto (details = 3), google/rpc/error_details.proto (RetryInfo.retry_delay = 1).
    """
    unknown = UnknownFieldSet(Empty.FromString(data))
    fields = [unknown[index] for index in range(len(unknown))]
    return [field.data for field in fields if field.field_number == number]
