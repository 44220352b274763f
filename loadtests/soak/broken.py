"""What no client should send, as bytes; with the status that it must get where there is one."""

from __future__ import annotations

import json

from tritonclient.grpc import service_pb2 as pb

from loadtests.soak.h2 import GREETING, head
from loadtests.soak.models import STEADY
from server.transport.http2 import frames

BROKEN_FRAMES: dict[str, bytes] = {
    "no preface": b"GET / HTTP/1.1\r\nHost: soak\r\n\r\n",
    "a frame that is too large": GREETING + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(100),
    "headers on stream 0": GREETING + frames.frame(frames.HEADERS, frames.END_HEADERS, 0, b"\x83"),
    "headers on an even stream": GREETING + frames.frame(frames.HEADERS, frames.END_HEADERS, 2, b"\x83"),
    "data on an idle stream": GREETING + frames.frame(frames.DATA, 0, 5, b"x"),
    "a block that is no HPACK": GREETING + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
    "a ping of 7 octets": GREETING + frames.frame(frames.PING, 0, 0, bytes(7)),
    "a window that overflows": GREETING + frames.window_update(0, 2**31 - 1),
    "another frame inside a block": GREETING
    + frames.frame(frames.HEADERS, 0, 1, b"\x83")
    + frames.frame(frames.PING, 0, 0, bytes(8)),
    "a push": GREETING + head(1) + frames.frame(frames.PUSH_PROMISE, frames.END_HEADERS, 1, bytes(4) + b"\x82"),
}
"""Each ends its connection, with GOAWAY."""


def _infer(model: str = STEADY, shape: tuple[int, ...] = (1, 2), datatype: str = "FP32") -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape)
    data: bytes = pb.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[bytes(8)]
    ).SerializeToString()
    return data


WRONG_MESSAGES: dict[str, tuple[bytes, str]] = {
    "no protobuf": (b"\xff\xff\xff", "3"),
    "an unknown model": (_infer("nobody"), "5"),
    "a wrong shape": (_infer(), "3"),
    "a shape that is not the data's": (_infer(shape=(1, 30)), "3"),
    "an unknown datatype": (_infer(datatype="FP33"), "3"),
}
"""ModelInfer messages, and their grpc-status."""

_POST = f"POST /v2/models/{STEADY}/infer HTTP/1.1\r\n".encode()

BROKEN_HTTP: dict[str, tuple[bytes, int]] = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no host": (_POST + b"\r\n", 400),
    "two lengths": (_POST + b"Host: soak\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
    "a length and chunks": (_POST + b"Host: soak\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "a chunk without a size": (_POST + b"Host: soak\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    "a head without end": (_POST + b"Host: soak\r\nX: " + b"x" * 70_000, 431),
}
"""Each ends its connection, with that status."""

_JSON = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()

WRONG_JSON: dict[str, tuple[str, bytes, int]] = {
    "no JSON": (f"/v2/models/{STEADY}/infer", b'{"inputs": [', 400),
    "no inputs": (f"/v2/models/{STEADY}/infer", b"{}", 400),
    "an unknown model": ("/v2/models/nobody/infer", _JSON, 404),
    "an unknown path": ("/v3/models", b"", 404),
    "a wrong shape": (f"/v2/models/{STEADY}/infer", _JSON, 400),
}
"""Path, body, status."""
