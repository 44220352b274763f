"""One request on the wire, from a greenlet: gRPC by grpcio, REST by geventhttpclient, as Locust's FastHttpUser does."""

from __future__ import annotations

from math import ceil
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
import grpc.experimental.gevent
from geventhttpclient import HTTPClient

from server.client import rest
from server.client.errors import ClientError, code_of_grpc
from server.load.payloads import Judged, Payload, fault

_CONNECTIONS = 256
_CONNECT_S = 5.0


class Sender(Protocol):
    def send(self, payload: Payload, timeout_s: float) -> Judged:
        """What became of it, and the fault's words."""


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
        asked = payload.call.request
        headers = {**asked.headers, rest.DEADLINE_HEADER: str(ceil(timeout_s * 1000))}
        try:
            response = self._client.request(asked.method, asked.path, asked.content, headers)
            found = {name.lower(): value for name, value in response.items()}
            body = bytes(response.read())
        except Exception as error:  # noqa: BLE001 - whatever a connection may raise, the request has failed
            return "failed", f"{type(error).__name__}: {error}"
        reply = rest.Reply(response.status_code, found, body)
        return payload.judge(body, lambda: reply) if reply.ok else payload.judge_reply(reply)


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
