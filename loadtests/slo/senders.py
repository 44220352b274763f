"""One request on the wire, from a greenlet: gRPC by grpcio, REST by geventhttpclient, as Locust's FastHttpUser does."""

from __future__ import annotations

import time
from math import ceil
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
import grpc.experimental.gevent
from geventhttpclient import HTTPClient

from loadtests.slo.streams import AsksStream, StreamPayload
from server.client import rest
from server.client.errors import ClientError, code_of_grpc
from server.explain import ANSWER_KEY, REQUEST_KEY, Explained, parse_server_timing
from server.load.payloads import Judged, Payload, fault
from server.proto.triton import service_pb2

Streamed = tuple[Judged, list[float]]
"""What became of a stream, and when each of its answers came, on the monotonic clock."""

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_CONNECTIONS = 256
_CONNECT_S = 5.0


class Sender(Protocol):
    def send(self, payload: Payload, timeout_s: float) -> Judged:
        """What became of it, and the fault's words."""

    def stream(self, payload: AsksStream, timeout_s: float) -> Streamed: ...

    def explain(self, payload: Payload, timeout_s: float) -> Explained | None:
        """Send it, and ask the server where the time went; None where it does not say."""


class RestSender:
    """Keeps its connections. `url`: ``http://HOST:PORT``."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._client = HTTPClient(
            parts.hostname or "",
            parts.port or 80,
            concurrency=_CONNECTIONS,
            connection_timeout=_CONNECT_S,
            network_timeout=timeout_s,
        )

    def send(self, payload: Payload, timeout_s: float) -> Judged:
        """`timeout_s` is told to the server as the request's deadline."""
        try:
            reply = self._ask(payload, {rest.DEADLINE_HEADER: str(ceil(timeout_s * 1000))})
        except Exception as error:  # noqa: BLE001 - whatever a connection may raise, the request has failed
            return "failed", f"{type(error).__name__}: {error}"
        return payload.judge(reply.content, lambda: reply) if reply.ok else payload.judge_reply(reply)

    def _ask(self, payload: Payload, more: dict[str, str]) -> rest.Reply:
        asked = payload.call.request
        response = self._client.request(asked.method, asked.path, asked.content, {**asked.headers, **more})
        found = {name.lower(): value for name, value in response.items()}
        return rest.Reply(response.status_code, found, bytes(response.read()))

    def explain(self, payload: Payload, timeout_s: float) -> Explained | None:
        try:
            reply = self._ask(payload, {REQUEST_KEY: "1", rest.DEADLINE_HEADER: str(ceil(timeout_s * 1000))})
            return _explained(str(reply.headers.get(ANSWER_KEY, "")))
        except Exception:  # noqa: BLE001 - it was asked beside the run, whose requests tell what is wrong
            return None

    def stream(self, payload: AsksStream, timeout_s: float) -> Streamed:
        """By generate_stream, or a chat of OpenAI's: an event for each answer."""
        at: list[float] = []
        given = []
        headers = {"Content-Type": "application/json", rest.DEADLINE_HEADER: str(ceil(timeout_s * 1000))}
        try:
            response = self._client.request("POST", payload.path, payload.body, headers)
            if not 200 <= response.status_code < 300:
                return fault(rest.Reply(response.status_code, {}, bytes(response.read())).error()), at
            while event := bytes(response.readline(b"\n\n")):
                one, answers = payload.read(event.removeprefix(b"data:").strip())
                given.append(one)
                if answers:
                    at.append(time.monotonic())
            response.release()
        except Exception as error:  # noqa: BLE001 - see above
            return ("failed", f"{type(error).__name__}: {error}"), at
        return payload.judge(given), at


class GrpcSender:
    """One channel. `url`: ``grpc://HOST:PORT``. `init_gevent` must have been called before the first one is made."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.insecure_channel(urlsplit(url).netloc, options=[("grpc.enable_http_proxy", 0)])

    def send(self, payload: Payload, timeout_s: float) -> Judged:
        asked = payload.call.request
        method = self._channel.unary_unary(
            asked.method,
            request_serializer=type(asked.message).SerializeToString,
            response_deserializer=None,
        )
        try:
            reply = method(asked.message, timeout=timeout_s)
        except grpc.RpcError as error:
            status: Any = error
            return fault(ClientError(code_of_grpc(status.code().name), status.details() or ""))
        return payload.judge(reply, lambda: asked.reply.FromString(reply))

    def explain(self, payload: Payload, timeout_s: float) -> Explained | None:
        asked = payload.call.request
        method = self._channel.unary_unary(asked.method, type(asked.message).SerializeToString, None)
        try:
            _, call = method.with_call(asked.message, timeout=timeout_s, metadata=((REQUEST_KEY, "1"),))
            return _explained(str(dict(call.trailing_metadata() or ()).get(ANSWER_KEY, "")))
        except (grpc.RpcError, ValueError):
            return None

    def stream(self, payload: AsksStream, timeout_s: float) -> Streamed:
        """By ModelStreamInfer, a stream for each request: one message and the end of what is sent, as a call with one
        request has it on the wire."""
        assert isinstance(payload, StreamPayload), "a chat is asked over REST alone"
        at: list[float] = []
        given = []
        method = self._channel.unary_stream(STREAM, None, service_pb2.ModelStreamInferResponse.FromString)
        try:
            for reply in method(payload.message, timeout=timeout_s):
                if reply.error_message:
                    return ("failed", reply.error_message), at
                if reply.infer_response.outputs:
                    at.append(time.monotonic())
                    given.append(payload.call.answer(reply.infer_response, ""))
        except ClientError as error:
            return fault(error), at
        except grpc.RpcError as error:
            status: Any = error
            return fault(ClientError(code_of_grpc(status.code().name), status.details() or "")), at
        return payload.judge(given), at


def _explained(text: str) -> Explained | None:
    return parse_server_timing(text) if text else None
