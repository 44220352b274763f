"""What a comparison asks one server, over gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from server.client import Client, ClientError
from server.client.answers import readable
from server.comparison.questions import Question
from server.errors import Code
from server.proto.triton import model_config_pb2, service_pb2
from server.tensor import Array
from server.types import Classification, ModelMetadata, RawInput

_V2 = "/inference.GRPCInferenceService/"
_TIMEOUT_S = 60.0
_SCHEME = "grpc://"

Counts = tuple[int, int, int]
"""Requests answered, rows and passes of a version."""


class Side:
    """One of the servers. Every method but `infer` and `predict` raises ClientError or grpc.RpcError."""

    def __init__(self, client: Client, channel: grpc.Channel) -> None:
        self._client = client
        self._channel = channel

    def infer(self, model: str, version: str, question: Question) -> Mapping[str, Array] | ClientError:
        """The outputs, or why there are none."""
        try:
            return self._client.infer(
                model, question.inputs, question.outputs, version=question.version or version, timeout_s=_TIMEOUT_S
            )
        except ClientError as error:
            return error

    def predict(self, model: str, raw: RawInput) -> str:
        """The answer in a line, the label and its score of a classification, or the code of the refusal."""
        try:
            (one,) = self._client.predict(model, [raw], timeout_s=_TIMEOUT_S).predictions
        except ClientError as error:
            return f"error {error.code}"
        if isinstance(one, Classification):
            return f"{one.label} {one.score:.4f}"
        return " ".join(line.strip() for line in readable(one))

    def metadata(self, model: str) -> ModelMetadata:
        return self._client.model_metadata(model, timeout_s=_TIMEOUT_S)

    def config(self, model: str, version: str) -> model_config_pb2.ModelConfig:
        message = service_pb2.ModelConfigRequest(name=model, version=version)
        config: model_config_pb2.ModelConfig = self._call(
            "ModelConfig", message, service_pb2.ModelConfigResponse
        ).config
        return config

    def counts(self, model: str, version: str) -> Counts:
        message = service_pb2.ModelStatisticsRequest(name=model, version=version)
        (one,) = self._call("ModelStatistics", message, service_pb2.ModelStatisticsResponse).model_stats
        return one.inference_stats.success.count, one.inference_count, one.execution_count

    def _call(self, method: str, message: Any, reply: Any) -> Any:
        call = self._channel.unary_unary(
            _V2 + method,
            request_serializer=type(message).SerializeToString,
            response_deserializer=reply.FromString,
        )
        return call(message, timeout=_TIMEOUT_S)


@contextmanager
def connected(url: str) -> Iterator[Side]:
    """The server at ``grpc://HOST:PORT``. Raises ClientError for a URL of another form."""
    if not url.startswith(_SCHEME):
        raise ClientError(Code.INVALID_ARG, f"url: {url!r} is not of the form grpc://HOST:PORT")
    with Client(url) as client, grpc.insecure_channel(url.removeprefix(_SCHEME)) as channel:
        yield Side(client, channel)
