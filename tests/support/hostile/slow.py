"""Clients that are slow: they begin, and do not go on. The server's patience is half a second here."""

from __future__ import annotations

import socket

from loadtests.soak.h2 import GREETING, head
from server.transport.http2 import frames
from tests.support.hostile.case import TIMEOUT_S, Answer, Case, Target, over_tcp
from tests.support.hostile.rest import BC

LAYER = "slow"


def half(name: str, data: bytes) -> Case:
    return Case(LAYER, name, lambda target: over_tcp(target.http, data))


def _nothing(target: Target) -> Answer:
    with socket.create_connection(("127.0.0.1", target.grpc), timeout=TIMEOUT_S) as connection:
        while connection.recv(1 << 16):
            pass
    return Answer("closed", "")


def _half_a_call(target: Target) -> Answer:
    key = (b"x-api-key", target.keys["ops"].encode())
    with socket.create_connection(("127.0.0.1", target.grpc), timeout=TIMEOUT_S) as connection:
        connection.sendall(GREETING + head(1, key) + frames.frame(frames.DATA, 0, 1, b"\0\0\0\1\0half"))
        received = b""
        while b"grpc-message" not in received and b"not here as a whole" not in received:
            piece = connection.recv(1 << 16)
            if not piece:
                return Answer("closed", "")
            received += piece
            if len(received) > 200:
                break
    return Answer("DEADLINE_EXCEEDED", "")


def cases() -> list[Case]:
    begin = f"POST {BC}/infer HTTP/1.1\r\nHost: x\r\n".encode()
    return [
        half("half of a head", begin),
        half("half of a body", begin + b"Content-Length: 100\r\n\r\n{"),
        half("half of a chunk", begin + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"),
        Case(LAYER, "a connection that says nothing", _nothing),
        Case(LAYER, "half of a call", _half_a_call),
    ]
