"""What a client gets wrong: the right status, a message that names the field, and nobody else is touched."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import zlib
from typing import Any

import grpc
import httpx
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2

from server.proto.forwardpass.v1 import prediction_pb2
from tests.e2e.conftest import REPOSITORY, ServerProcess

pytestmark = pytest.mark.e2e

PICTURE = (REPOSITORY / "digits" / "example.png").read_bytes()


def jpeg(size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize(size).save(buffer, "JPEG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes, as its header says."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def tensor(**changes: Any) -> dict[str, Any]:
    """A valid `features` tensor of breast_cancer, with changes."""
    return {"name": "features", "datatype": "FP32", "shape": [1, 30], "data": [0.0] * 30} | changes


def infer(*tensors: dict[str, Any], **rest: Any) -> bytes:
    return json.dumps({"inputs": list(tensors)} | rest).encode()


def rows(*values: Any) -> bytes:
    return json.dumps({"inputs": list(values)}).encode()


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


BC_INFER = "/v2/models/breast_cancer/infer"
BC_PREDICT = "/v2/models/breast_cancer/predict"
DIGITS = "/v2/models/digits/predict"
JSON = "application/json"

REST_CASES: dict[str, tuple[str, str, bytes, int, str]] = {
    "an unknown model": ("/v2/models/nope/infer", JSON, infer(tensor()), 404, "nope"),
    "an unknown model in predict": ("/v2/models/nope/predict", JSON, rows([1]), 404, "nope"),
    "an unknown version": ("/v2/models/breast_cancer/versions/99/infer", JSON, infer(tensor()), 404, "99"),
    "a version that is no number": ("/v2/models/breast_cancer/versions/x/infer", JSON, infer(tensor()), 404, "x"),
    "a model that leaves the repository": ("/v2/models/..%2F..%2Fetc/infer", JSON, infer(tensor()), 404, ""),
    "an unknown route": ("/v2/models/breast_cancer/frobnicate", JSON, b"{}", 404, "frobnicate"),
    "a wrong name": (BC_INFER, JSON, infer(tensor(name="feature")), 400, "inputs[0].name"),
    "a wrong datatype": (BC_INFER, JSON, infer(tensor(datatype="INT32", data=[0] * 30)), 400, "inputs[0].datatype"),
    "an unknown datatype": (BC_INFER, JSON, infer(tensor(datatype="FP31")), 400, "inputs[0].datatype"),
    "a wrong width": (BC_INFER, JSON, infer(tensor(shape=[1, 29], data=[0.0] * 29)), 400, "inputs[0].shape"),
    "a missing dimension": (BC_INFER, JSON, infer(tensor(shape=[30])), 400, "inputs[0].shape"),
    "a negative dimension": (BC_INFER, JSON, infer(tensor(shape=[-1, 30])), 400, "inputs[0].shape"),
    "a shape whose product overflows": (BC_INFER, JSON, infer(tensor(shape=[2**62, 2**62])), 400, "inputs[0]"),
    "too few values": (BC_INFER, JSON, infer(tensor(data=[0.0] * 29)), 400, "inputs[0].data"),
    "values of another type": (BC_INFER, JSON, infer(tensor(data=["x"] * 30)), 400, "inputs[0].data"),
    "a missing tensor": (BC_INFER, JSON, infer(), 400, "inputs"),
    "a tensor that is there twice": (BC_INFER, JSON, infer(tensor(), tensor()), 400, "inputs[1].name"),
    "an empty batch": (BC_INFER, JSON, infer(tensor(shape=[0, 30], data=[])), 400, "inputs[0].shape"),
    "too many rows": (BC_INFER, JSON, infer(tensor(shape=[1000, 30], data=[0.0] * 30000)), 400, "max_batch_size"),
    "an unknown output": (BC_INFER, JSON, infer(tensor(), outputs=[{"name": "y"}]), 400, "outputs[0].name"),
    "a timeout that is no number": (BC_INFER, JSON, infer(tensor(), parameters={"timeout": "1s"}), 400, "timeout"),
    "a sequence": (BC_INFER, JSON, infer(tensor(), parameters={"sequence_id": 7}), 501, "sequence_id"),
    "JSON that is not JSON": (BC_INFER, JSON, b"{'inputs': 1}", 400, "body"),
    "JSON that is no object": (BC_INFER, JSON, b"[1, 2]", 400, "body"),
    "no body": (BC_INFER, JSON, b"", 400, "body"),
    "no inputs": (BC_PREDICT, JSON, b"{}", 400, "inputs"),
    "an empty list of inputs": (BC_PREDICT, JSON, rows(), 400, "inputs"),
    "more rows than max_batch_size": (BC_PREDICT, JSON, rows(*[[0.0] * 30] * 1000), 400, "max_batch_size"),
    "a row that is too short": (BC_PREDICT, JSON, rows([1.0, 2.0]), 400, "inputs[0]"),
    "a row with an unknown column": (BC_PREDICT, JSON, rows({"nonsense": 1}), 400, "inputs[0]"),
    "a string where a number belongs": (BC_PREDICT, JSON, rows(["a"] * 30), 400, "inputs[0]"),
    "a picture where a row belongs": (BC_PREDICT, "image/png", PICTURE, 400, "inputs[0]"),
    "a row where a picture belongs": (DIGITS, JSON, rows([1.0]), 400, "inputs[0]"),
    "a file that is no picture": (DIGITS, "image/png", b"this is no picture", 400, "inputs[0]"),
    "an empty file": (DIGITS, "image/png", b"", 400, ""),
    "a truncated PNG": (DIGITS, "image/png", PICTURE[: len(PICTURE) // 2], 400, "inputs[0]"),
    "a truncated JPEG": (DIGITS, "image/jpeg", jpeg()[:-200], 400, "inputs[0]"),
    "a decompression bomb": (DIGITS, "image/png", bomb(), 413, "pixels"),
    "base64 that is none": (DIGITS, JSON, rows({"b64": "%%%"}), 400, "inputs[0]"),
    "one bad picture among good ones": (DIGITS, JSON, rows(b64(PICTURE), b64(b"no")), 400, "inputs[1]"),
    "a top_k that is too large": (DIGITS + "?top_k=1000", "image/png", PICTURE, 400, "top_k"),
    "a top_k that is no number": (DIGITS + "?top_k=x", "image/png", PICTURE, 400, "top_k"),
}


@pytest.mark.parametrize(("path", "kind", "body", "status", "text"), REST_CASES.values(), ids=REST_CASES)
def test_rest_answers_bad_input(
    server: ServerProcess, path: str, kind: str, body: bytes, status: int, text: str
) -> None:
    """The status of the table, a message that names the field; the next good request is answered."""
    with httpx.Client(base_url=server.http) as client:
        answer = client.post(path, content=body, headers={"Content-Type": kind})
        good = client.post(DIGITS, content=PICTURE, headers={"Content-Type": "image/png"})

    assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text
    assert good.status_code == 200


def test_nan_in_a_row_is_refused_where_the_recipe_forbids_it(server: ServerProcess) -> None:
    """JSON has no NaN and null is a missing value; over gRPC a NaN is named with its column."""
    message = prediction_pb2.PredictRequest(model_name="breast_cancer")
    message.inputs.add().values.extend([float("nan")] * 30)
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        call(channel, "/forwardpass.v1.PredictionService/Predict", prediction_pb2.PredictResponse, message)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "inputs[0]" in caught.value.details()


def call(channel: grpc.Channel, method: str, response: Any, message: Any) -> Any:
    return channel.unary_unary(
        method, request_serializer=type(message).SerializeToString, response_deserializer=response.FromString
    )(message, timeout=30)


def proto(
    model: str = "breast_cancer", version: str = "", raw: int = 120, **changes: Any
) -> service_pb2.ModelInferRequest:
    """A valid ModelInferRequest of breast_cancer, with changes of its tensor."""
    message = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    message.inputs.add(**({"name": "features", "datatype": "FP32", "shape": [1, 30]} | changes))
    message.raw_input_contents.append(b"\0" * raw)
    return message


def twice() -> service_pb2.ModelInferRequest:
    message = proto()
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])
    return message


GRPC_CASES: dict[str, tuple[service_pb2.ModelInferRequest, grpc.StatusCode, str]] = {
    "an unknown model": (proto(model="nope"), grpc.StatusCode.NOT_FOUND, "nope"),
    "an unknown version": (proto(version="99"), grpc.StatusCode.NOT_FOUND, "99"),
    "a wrong name": (proto(name="x"), grpc.StatusCode.INVALID_ARGUMENT, "inputs[0].name"),
    "a wrong datatype": (proto(datatype="INT32"), grpc.StatusCode.INVALID_ARGUMENT, "inputs[0].datatype"),
    "a wrong shape": (proto(shape=[2, 15]), grpc.StatusCode.INVALID_ARGUMENT, "inputs[0].shape"),
    "a wrong byte length": (proto(raw=119), grpc.StatusCode.INVALID_ARGUMENT, "119"),
    "an empty batch": (proto(shape=[0, 30], raw=0), grpc.StatusCode.INVALID_ARGUMENT, "inputs[0].shape"),
    "too many rows": (proto(shape=[999, 30], raw=999 * 120), grpc.StatusCode.INVALID_ARGUMENT, "max_batch_size"),
    "a tensor that is there twice": (twice(), grpc.StatusCode.INVALID_ARGUMENT, "inputs[1].name"),
    "no tensor": (service_pb2.ModelInferRequest(model_name="fraud"), grpc.StatusCode.INVALID_ARGUMENT, "inputs"),
}


@pytest.mark.parametrize(("message", "status", "text"), GRPC_CASES.values(), ids=GRPC_CASES)
def test_grpc_answers_bad_input(
    server: ServerProcess, message: service_pb2.ModelInferRequest, status: grpc.StatusCode, text: str
) -> None:
    """The status of the table, a message that names the field; the next good request is answered."""
    method = "/inference.GRPCInferenceService/ModelInfer"
    with grpc.insecure_channel(server.grpc) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, method, service_pb2.ModelInferResponse, message)
        good = call(channel, method, service_pb2.ModelInferResponse, proto())

    assert (caught.value.code(), text in caught.value.details()) == (status, True), caught.value.details()
    assert good.outputs


def test_a_body_over_the_limit_is_refused_unread(server: ServerProcess) -> None:
    """Content-Length alone is enough to answer 413: nothing of the body is waited for."""
    with socket.create_connection(("127.0.0.1", server.port("REST"))) as connection:
        connection.sendall(
            b"POST /v2/models/digits/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        connection.settimeout(10)
        head = connection.recv(4096)

    assert b" 413 " in head.split(b"\r\n")[0]


def test_bad_http_is_not_logged_line_by_line(server: ServerProcess) -> None:
    """A client that sends garbage gets its 400 and can't fill the disk with warnings."""
    before = server.log.stat().st_size
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port("REST"))) as connection:
            connection.sendall(b"\x00garbage\r\n\r\n")
            connection.settimeout(10)
            assert b" 400 " in connection.recv(4096).split(b"\r\n")[0]

    assert server.log.stat().st_size == before
