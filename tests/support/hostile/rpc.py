"""Bad calls over gRPC: messages, fields, metadata, frames, credentials."""

from __future__ import annotations

import gzip
import socket
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from loadtests.soak.broken import BROKEN_FRAMES
from loadtests.soak.h2 import GREETING, call, head, message
from server.proto.forwardpass.v1 import prediction_pb2
from server.transport.http2 import frames
from tests.support.hostile.case import TIMEOUT_S, Answer, Case, Target, http, rpc
from tests.support.hostile.rest import BC, DIGITS, infer, tensor

_V2 = "/inference.GRPCInferenceService/"
INFER, STREAM = f"{_V2}ModelInfer", f"{_V2}ModelStreamInfer"
PREDICT = "/forwardpass.v1.PredictionService/Predict"


def asked(model: str = "breast_cancer", version: str = "", raw: int = 120, **changes: Any) -> bytes:
    """A valid ModelInferRequest of breast_cancer, with changes of its tensor."""
    made = pb.ModelInferRequest(model_name=model, model_version=version)
    made.inputs.add(**({"name": "features", "datatype": "FP32", "shape": [1, 30]} | changes))
    made.raw_input_contents.append(bytes(raw))
    return bytes(made.SerializeToString())


def built(change: Any) -> bytes:
    made = pb.ModelInferRequest.FromString(asked())
    change(made)
    return bytes(made.SerializeToString())


def twice(made: Any) -> None:
    made.inputs.append(made.inputs[0])
    made.raw_input_contents.append(made.raw_input_contents[0])


def typed(made: Any) -> None:
    del made.raw_input_contents[:]
    made.inputs[0].contents.int_contents.extend([0] * 30)


def region(made: Any, **place: Any) -> None:
    del made.raw_input_contents[:]
    parameters = {"shared_memory_region": "nobody", "shared_memory_byte_size": 120} | place
    for name, value in parameters.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(made.inputs[0].parameters[name], kind, value)


MESSAGES: dict[str, bytes] = {
    "no protobuf": b"\xff\xff\xff",
    "an empty message": b"",
    "half of a message": asked()[:-40],
    "a group without an end": b"\x0b",
    "a field of 2^31 bytes": b"\x0a\xff\xff\xff\xff\x07",
    "a name that is no UTF-8": b"\x0a\x02\xff\xfe",
    "an unknown model": asked("nope"),
    "a model that leaves the repository": asked("../../etc/passwd"),
    "a model with a NUL": asked("a\0b"),
    "a model with a name of 100 kB": asked("a" * 100_000),
    "an unknown version": asked(version="99"),
    "a version that is text": asked(version="../1"),
    "a wrong name": asked(name="x"),
    "a wrong datatype": asked(datatype="INT32"),
    "an unknown datatype": asked(datatype="FP31"),
    "a wrong shape": asked(shape=[2, 15]),
    "a shape of 10,000 dimensions": asked(shape=[1] * 10_000),
    "a shape whose product overflows": asked(shape=[2**62, 2**62]),
    "a negative shape": asked(shape=[-1, 30]),
    "an empty batch": asked(shape=[0, 30], raw=0),
    "too many rows": asked(shape=[999, 30], raw=999 * 120),
    "a byte less than the shape": asked(raw=119),
    "no bytes": asked(raw=0),
    "a tensor that is there twice": built(twice),
    "no tensor": bytes(pb.ModelInferRequest(model_name="fraud").SerializeToString()),
    "more contents than tensors": built(lambda made: made.raw_input_contents.append(b"x")),
    "contents of another type": built(typed),
    "10,000 tensors": built(lambda made: [made.inputs.add(name=f"t{n}", datatype="FP32") for n in range(10_000)]),
    "an unknown output": built(lambda made: made.outputs.add(name="y")),
    "10,000 outputs": built(lambda made: [made.outputs.add(name=f"o{n}") for n in range(10_000)]),
    "a time-out below 0": built(lambda made: setattr(made.parameters["timeout"], "int64_param", -1)),
    "a time-out that is text": built(lambda made: setattr(made.parameters["timeout"], "string_param", "1")),
    "a priority beyond its levels": built(lambda made: setattr(made.parameters["priority"], "uint64_param", 2**64 - 1)),
    "a sequence": built(lambda made: setattr(made.parameters["sequence_id"], "int64_param", 7)),
    "a region of nobody": built(region),
    "a region with a size below 0": built(lambda made: region(made, shared_memory_byte_size=-1)),
    "a region with an offset below 0": built(lambda made: region(made, shared_memory_offset=-(2**63))),
}


def predict(change: Any) -> bytes:
    made = prediction_pb2.PredictRequest(model_name="breast_cancer")
    change(made)
    return bytes(made.SerializeToString())


def of_values(*values: float) -> bytes:
    return predict(lambda made: made.inputs.add().values.extend(values))


PREDICTS: dict[str, bytes] = {
    "no protobuf": b"\xff\xff",
    "no inputs": predict(lambda made: None),
    "an input of nothing": predict(lambda made: made.inputs.add()),
    "a row that is too short": of_values(1.0),
    "a row with NaN": of_values(*[float("nan")] * 30),
    "a row with infinity": of_values(*[float("inf")] * 30),
    "1000 rows": predict(lambda made: [made.inputs.add().values.extend([0.0] * 30) for _ in range(1000)]),
}
METADATA: dict[str, tuple[tuple[str, str], ...]] = {
    "a coding that is not known": (("grpc-encoding", "br"),),
    "metadata of 100 kB": (("x-large", "x" * 100_000),),
    "1000 fields of metadata": tuple((f"x-{n}", "y") for n in range(1000)),
    "a tenant of another": (("x-tenant", "somebody"),),
}


def framed(layer: str, name: str, data: bytes) -> Case:
    """Bytes to the gRPC port: what ends the connection, or the call."""

    def send(target: Target) -> Answer:
        with socket.create_connection(("127.0.0.1", target.grpc), timeout=TIMEOUT_S) as connection:
            received = b""
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(1 << 16):
                    received += piece
            except ConnectionError:
                pass
        kinds = [kind for kind, _ in _frames(received)]
        goaway = next((payload for kind, payload in _frames(received) if kind == frames.GOAWAY), b"")
        if goaway:
            return Answer(f"GOAWAY {frames.ErrorCode(int.from_bytes(goaway[4:8])).name}", goaway[8:].decode())
        return Answer("RST_STREAM" if frames.RST_STREAM in kinds else "closed", "")

    return Case(layer, name, send)


def _frames(received: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at + 9 <= len(received):
        high, low, kind, _, _ = frames.read_header(received, at)
        size = high << 8 | low
        found.append((kind, received[at + 9 : at + 9 + size]))
        at += 9 + size
    return found


def compressed() -> Case:
    """A message of 100 kB that becomes 100 MB, on a connection by hand: clients compress for themselves."""
    bomb = gzip.compress(bytes(100_000_000), 1)
    data = b"\1" + len(bomb).to_bytes(4, "big") + bomb

    def send(target: Target) -> Answer:
        key = (b"x-api-key", target.keys["ops"].encode())
        opened = GREETING + head(1, (b"grpc-encoding", b"gzip"), key)
        pieces = [data[at : at + 16_000] for at in range(0, len(data), 16_000)]
        last = len(pieces) - 1
        parts = [frames.frame(frames.DATA, frames.END_STREAM if n == last else 0, 1, p) for n, p in enumerate(pieces)]
        with socket.create_connection(("127.0.0.1", target.grpc), timeout=TIMEOUT_S) as connection:
            connection.sendall(opened + b"".join(parts))
            received = b""
            while b"grpc-message" not in received and b"over the limit" not in received:
                piece = connection.recv(1 << 16)
                if not piece:
                    break
                received += piece
        found = [payload for kind, payload in _frames(received) if kind == frames.HEADERS]
        return Answer("RESOURCE_EXHAUSTED" if found and b"8" in found[-1] else "closed", "")

    return Case("gRPC, compression", "a gzip bomb", send)


def credentials() -> list[Case]:
    good, message_ = infer(tensor()), asked()
    layer = "credentials"
    wrong = "fp_000000000000_" + "A" * 43
    return [
        http(layer, "REST without any", f"{BC}/infer", good, who=""),
        http(layer, "REST, a wrong key", f"{BC}/infer", good, who="", headers={"x-api-key": wrong}),
        http(layer, "REST, a key that has expired", f"{BC}/infer", good, who="old"),
        http(layer, "REST, another scheme", f"{BC}/infer", good, who="", headers={"authorization": "Basic eDp5"}),
        http(layer, "REST, two keys", f"{BC}/infer", good, headers={"authorization": f"Bearer {wrong}"}),
        http(layer, "REST, a key of 20 kB", f"{BC}/infer", good, who="", headers={"x-api-key": "fp_" + "a" * 20_000}),
        http(layer, "REST, another's model", f"{BC}/infer", good, who="small"),
        http(layer, "REST, another's model in predict", f"{BC}/predict", b"{}", who="small"),
        http(layer, "REST, a role that it lacks", "/v2/repository/models/digits/unload", b"{}", who="small"),
        http(layer, "REST, another's tenant", f"{DIGITS}/infer", good, who="small", headers={"x-tenant": "red"}),
        rpc(layer, "gRPC without any", INFER, message_, who=""),
        rpc(layer, "gRPC, a wrong key", INFER, message_, who="", metadata=(("x-api-key", wrong),)),
        rpc(layer, "gRPC, a key that has expired", INFER, message_, who="old"),
        rpc(layer, "gRPC, another's model", INFER, message_, who="small"),
        rpc(layer, "gRPC, another's model in a stream", STREAM, message_, who="small", streams=True),
        rpc(layer, "gRPC, a role that it lacks", f"{_V2}RepositoryModelUnload", b"", who="small"),
    ]


def cases() -> list[Case]:
    other = GREETING + call(1, asked())
    return [
        *(rpc("gRPC, ModelInfer", name, INFER, data) for name, data in MESSAGES.items()),
        *(rpc("gRPC, Predict", name, PREDICT, data) for name, data in PREDICTS.items()),
        *(rpc("gRPC, metadata", name, INFER, asked(), who="small", metadata=more) for name, more in METADATA.items()),
        rpc("gRPC, method", "an unknown method", f"{_V2}Frobnicate", b""),
        rpc("gRPC, method", "an unknown service", "/a.B/C", b""),
        rpc("gRPC, method", "a message over the limit", INFER, bytes(2_000_000)),
        rpc("gRPC, method", "a trace file", f"{_V2}TraceSetting", _trace_file()),
        rpc("gRPC, method", "a region by a path", f"{_V2}SystemSharedMemoryRegister", _region_by_path()),
        compressed(),
        *(framed("HTTP/2", name, data) for name, data in BROKEN_FRAMES.items()),
        framed("HTTP/2", "a stream that is used twice", other + call(1, asked())),
        framed(
            "HTTP/2",
            "10,000 resets",
            GREETING + b"".join(head(n) + frames.rst_stream(n, 8) for n in range(1, 20_001, 2)),
        ),
        framed("HTTP/2", "10,000 pings", GREETING + frames.ping(bytes(8)) * 10_000),
        framed("HTTP/2", "1000 SETTINGS", GREETING + frames.settings({}) * 1000),
        framed("HTTP/2", "a header block without an end", GREETING + _endless()),
        framed(
            "HTTP/2",
            "more DATA than content-length",
            GREETING + head(1, (b"content-length", b"1")) + message(1, asked(), 1),
        ),
        *credentials(),
    ]


def _resets() -> bytes:
    """CVE-2023-44487."""
    return b"".join(head(n) + frames.rst_stream(n, frames.ErrorCode.CANCEL) for n in range(1, 20_001, 2))


def _short() -> bytes:
    return head(1, (b"content-length", b"1"))


def _endless() -> bytes:
    """CVE-2024-27316 and its kin."""
    begin = frames.frame(frames.HEADERS, 0, 1, b"\x83")
    return begin + frames.frame(frames.CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 100) * 1000


def _trace_file() -> bytes:
    made = pb.TraceSettingRequest()
    made.settings["trace_file"].value.append("/etc/passwd")
    return bytes(made.SerializeToString())


def _region_by_path() -> bytes:
    made = pb.SystemSharedMemoryRegisterRequest(name="r", key="../../etc/passwd", byte_size=8)
    return bytes(made.SerializeToString())
