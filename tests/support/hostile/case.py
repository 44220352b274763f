"""One bad input, how it is sent, and what came of it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Target:
    """The server that is asked: its ports, and the keys that it knows."""

    http: int
    grpc: int
    keys: dict[str, str]
    channel: grpc.Channel = field(compare=False)


@dataclass(frozen=True)
class Answer:
    """`status` is HTTP's number or gRPC's name; `closed` where the connection ended without an answer."""

    status: str
    message: str


@dataclass(frozen=True)
class Case:
    layer: str
    name: str
    send: Callable[[Target], Answer]


def read_http(connection: socket.socket) -> Answer:
    """The first final answer on a connection, of which nothing else is to be read."""
    received = b""
    try:
        while True:
            head, end, rest = received.partition(b"\r\n\r\n")
            if end and head.startswith(b"HTTP/1.1 1"):
                received = rest
                continue
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if end and len(rest) >= int(length[1] if length else 0):
                break
            piece = connection.recv(1 << 16)
            if not piece:
                break
            received += piece
    except ConnectionError:
        pass
    if not received:
        return Answer("closed", "")
    head, _, body = received.partition(b"\r\n\r\n")
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        message = ""
    return Answer(head.split(b" ", 2)[1].decode(), message)


def over_tcp(port: int, *pieces: bytes) -> Answer:
    """Send bytes, read one answer. A server that answers before all is sent is heard."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except ConnectionError:
            pass
        return read_http(connection)


def http(
    layer: str,
    name: str,
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    who: str = "ops",
    kind: str = "application/json",
    headers: dict[str, str] | None = None,
) -> Case:
    """A well-formed request of HTTP/1.1 with something bad in it."""

    def send(target: Target) -> Answer:
        shown = {"x-api-key": target.keys[who]} if who else {}
        fields = {"host": "x", "content-type": kind, "content-length": str(len(body)), **shown, **(headers or {})}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in fields.items())
        return over_tcp(target.http, head.encode("latin-1") + b"\r\n" + body)

    return Case(layer, name, send)


def raw(layer: str, name: str, data: bytes) -> Case:
    """Bytes to the REST port, as they are."""
    return Case(layer, name, lambda target: over_tcp(target.http, data))


def rpc(
    layer: str,
    name: str,
    method: str,
    message: bytes,
    *,
    who: str = "ops",
    metadata: tuple[tuple[str, str], ...] = (),
    streams: bool = False,
) -> Case:
    """A gRPC call with something bad in it."""

    def send(target: Target) -> Answer:
        shown = (("x-api-key", target.keys[who]),) if who else ()
        kind = target.channel.stream_stream if streams else target.channel.unary_unary
        call = kind(method, request_serializer=None, response_deserializer=None)
        try:
            if streams:
                list(call(iter([message]), timeout=TIMEOUT_S, metadata=(*shown, *metadata)))
            else:
                call(message, timeout=TIMEOUT_S, metadata=(*shown, *metadata))
        except grpc.RpcError as error:
            return Answer(error.code().name, error.details() or "")
        except ValueError as error:
            return Answer("not sent", str(error))
        return Answer("OK", "")

    return Case(layer, name, send)
