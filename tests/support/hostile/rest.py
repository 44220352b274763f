"""Bad requests over REST: paths, headers, bodies, tensors, rows."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

from tests.support.hostile.case import Case, http, raw

BC, DIGITS, FRAUD = "/v2/models/breast_cancer", "/v2/models/digits", "/v2/models/fraud"


def tensor(**changes: Any) -> dict[str, Any]:
    """A valid `features` tensor of breast_cancer, with changes."""
    return {"name": "features", "datatype": "FP32", "shape": [1, 30], "data": [0.0] * 30} | changes


def infer(*tensors: Any, **rest: Any) -> bytes:
    return json.dumps({"inputs": list(tensors)} | rest).encode()


def rows(*values: Any) -> bytes:
    return json.dumps({"inputs": list(values)}).encode()


def binary(head: Any, data: bytes, size: int | str | None = None) -> Case:
    """An infer request with binary tensors; `size` is what is said of the JSON's length."""
    body = json.dumps(head).encode()
    return http(
        "REST, binary tensors",
        "",
        f"{BC}/infer",
        body + data,
        headers={"inference-header-content-length": str(len(body) if size is None else size)},
        kind="application/octet-stream",
    )


def named(name: str, case: Case) -> Case:
    return Case(case.layer, name, case.send)


PATHS = {
    "an unknown route": "/v2/models/breast_cancer/frobnicate",
    "an unknown model": "/v2/models/nope/infer",
    "a model that leaves the repository": "/v2/models/..%2F..%2Fetc%2Fpasswd/infer",
    "a model of dots": "/v2/models/../infer",
    "a model that is absolute": "/v2/models/%2Fetc%2Fpasswd/infer",
    "a model with a NUL": "/v2/models/a%00b/infer",
    "a model with a line break": "/v2/models/a%0d%0aset-cookie:x/infer",
    "a model that is no UTF-8": "/v2/models/%ff%fe/infer",
    "an empty model": "/v2/models//infer",
    "a model with a long name": f"/v2/models/{'a' * 4000}/infer",
    "a version that does not exist": "/v2/models/breast_cancer/versions/99/infer",
    "a version that is no number": "/v2/models/breast_cancer/versions/x/infer",
    "a version that leaves the model": "/v2/models/breast_cancer/versions/..%2F..%2F1/infer",
    "a negative version": "/v2/models/breast_cancer/versions/-1/infer",
    "a version of many digits": f"/v2/models/breast_cancer/versions/{'9' * 100}/infer",
    "a half escape": "/v2/models/%/infer",
    "a path of slashes": "/" * 200,
}
TENSORS: dict[str, Any] = {
    "a wrong name": tensor(name="feature"),
    "a name that is a number": tensor(name=1),
    "a name with 100 kB": tensor(name="x" * 100_000),
    "no name": {key: value for key, value in tensor().items() if key != "name"},
    "a wrong datatype": tensor(datatype="INT32", data=[0] * 30),
    "an unknown datatype": tensor(datatype="FP31"),
    "a datatype that is a list": tensor(datatype=[]),
    "a wrong width": tensor(shape=[1, 29], data=[0.0] * 29),
    "a missing dimension": tensor(shape=[30]),
    "too many dimensions": tensor(shape=[1] * 1000 + [30]),
    "a negative dimension": tensor(shape=[-1, 30]),
    "a dimension of 0": tensor(shape=[0, 30], data=[]),
    "a shape whose product overflows": tensor(shape=[2**62, 2**62]),
    "a dimension beyond 64 bits": tensor(shape=[2**70, 30]),
    "a dimension that is a fraction": tensor(shape=[1.5, 30]),
    "a dimension that is text": tensor(shape=["1", 30]),
    "a dimension that is true": tensor(shape=[True, 30]),
    "a shape that is a number": tensor(shape=30),
    "no shape": {key: value for key, value in tensor().items() if key != "shape"},
    "too few values": tensor(data=[0.0] * 29),
    "too many values": tensor(data=[0.0] * 31),
    "values that are text": tensor(data=["x"] * 30),
    "values that are objects": tensor(data=[{}] * 30),
    "values that are null": tensor(data=[None] * 30),
    "values that are true": tensor(data=[True] * 30),
    "values beyond the datatype": tensor(data=[1e300] * 30),
    "ragged values": tensor(data=[[0.0] * 29, [0.0]]),
    "values that are no list": tensor(data="0" * 30),
    "no values": {key: value for key, value in tensor().items() if key != "data"},
    "too many rows": tensor(shape=[1000, 30], data=[0.0] * 30_000),
    "a tensor that is a list": [],
    "a tensor that is null": None,
    "an unknown key": tensor(extra=1),
    "parameters that are a list": tensor(parameters=[]),
}
BODIES: dict[str, bytes] = {
    "no body": b"",
    "no JSON": b"{'inputs': 1}",
    "half of the JSON": infer(tensor())[:-10],
    "JSON with something behind it": infer(tensor()) + b"x",
    "JSON that is a list": b"[1, 2]",
    "JSON that is null": b"null",
    "JSON that is a number of a million digits": b"1" * 1_000_000,
    "JSON of 100,000 brackets": b"[" * 100_000,
    "JSON of 100,000 objects": b'{"a":' * 100_000,
    "JSON in UTF-16": infer(tensor()).decode().encode("utf-16"),
    "JSON that is no UTF-8": b'{"inputs": "\xff\xfe"}',
    "JSON with half a surrogate": b'{"id": "\\ud800", "inputs": []}',
    "JSON with NaN": infer(tensor()).replace(b"0.0", b"NaN"),
    "JSON with infinity": infer(tensor()).replace(b"0.0", b"1e999"),
    "inputs that are an object": b'{"inputs": {}}',
    "inputs that are text": b'{"inputs": "features"}',
    "no inputs": b"{}",
    "a tensor that is there twice": infer(tensor(), tensor()),
    "10,000 tensors": infer(*[tensor(name=f"t{n}", shape=[1, 1], data=[0]) for n in range(10_000)]),
    "an unknown output": infer(tensor(), outputs=[{"name": "y"}]),
    "an output that is there twice": infer(tensor(), outputs=[{"name": "logits"}, {"name": "logits"}]),
    "outputs that are text": infer(tensor(), outputs="logits"),
    "10,000 outputs": infer(tensor(), outputs=[{"name": f"o{n}"} for n in range(10_000)]),
    "an id that is a number": infer(tensor(), id=1),
    "a time-out that is text": infer(tensor(), parameters={"timeout": "1s"}),
    "a time-out below 0": infer(tensor(), parameters={"timeout": -1}),
    "a priority that is text": infer(tensor(), parameters={"priority": "high"}),
    "a sequence": infer(tensor(), parameters={"sequence_id": 7}),
    "parameters that are text": infer(tensor(), parameters="x"),
    "a classification of text": infer(tensor(), outputs=[{"name": "logits", "parameters": {"classification": "x"}}]),
}
HEADERS: dict[str, dict[str, str]] = {
    "a deadline that is text": {"x-request-timeout": "soon"},
    "a deadline that is infinite": {"x-request-timeout": "inf"},
    "a deadline that is NaN": {"x-request-timeout": "nan"},
    "a deadline below 0": {"x-request-timeout": "-5"},
    "an unknown content coding": {"content-encoding": "br"},
    "two content codings": {"content-encoding": "gzip, gzip"},
    "a content coding that it has not": {"content-encoding": "gzip"},
    "nothing that is accepted": {"accept-encoding": "identity;q=0, *;q=0"},
    "an expectation": {"expect": "200-ok"},
    "a page of elsewhere": {"origin": "http://evil.example.com"},
    "a page without a name": {"origin": "null"},
}
PREDICT: dict[str, tuple[str, bytes]] = {
    "no inputs": (BC, b"{}"),
    "an empty list of inputs": (BC, rows()),
    "more rows than max_batch_size": (BC, rows(*[[0.0] * 30] * 1000)),
    "a row that is too short": (BC, rows([1.0, 2.0])),
    "a row that is too long": (BC, rows([0.0] * 31)),
    "a row with an unknown column": (BC, rows({"nonsense": 1})),
    "a row without its columns": (BC, rows({})),
    "a row of text": (BC, rows(["a"] * 30)),
    "a row of lists": (BC, rows([[]] * 30)),
    "a row of numbers beyond doubles": (BC, rows([10**400] * 30)),
    "a row that is a number": (BC, rows(1)),
    "a row that is null": (BC, rows(None)),
    "a row that is text": (BC, rows("x")),
    "a text of a megabyte as a row": (BC, rows("x" * 900_000)),
    "a category that is a list": (FRAUD, rows({"merchant": []})),
    "a picture where a row belongs": (BC, rows({"b64": "AAAA"})),
    "base64 that is none": (DIGITS, rows({"b64": "%%%"})),
    "base64 of nothing": (DIGITS, rows({"b64": ""})),
    "a picture by its address": (DIGITS, rows({"url": "file:///etc/passwd"})),
    "a row where a picture belongs": (DIGITS, rows([1.0])),
    "an unknown key": (BC, json.dumps({"inputs": [[0.0] * 30], "nonsense": 1}).encode()),
    "a top_k that is text": (BC, json.dumps({"inputs": [[0.0] * 30], "top_k": "x"}).encode()),
    "a top_k that is too large": (BC, json.dumps({"inputs": [[0.0] * 30], "top_k": 10**9}).encode()),
}
CONTROL: dict[str, tuple[str, bytes]] = {
    "to load a model that is none": ("/v2/repository/models/nope/load", b"{}"),
    "to load a model that leaves the repository": ("/v2/repository/models/..%2F..%2Fetc/load", b"{}"),
    "to load files that leave the model": (
        "/v2/repository/models/x/load",
        json.dumps({"parameters": {"config": "{}", "file:../../x": "AAAA"}}).encode(),
    ),
    "to load files that are no base64": (
        "/v2/repository/models/x/load",
        json.dumps({"parameters": {"config": "{}", "file:1/model.onnx": "%"}}).encode(),
    ),
    "to load with a config that is none": (
        "/v2/repository/models/digits/load",
        json.dumps({"parameters": {"config": "{"}}).encode(),
    ),
    "to load with an unknown parameter": (
        "/v2/repository/models/digits/load",
        json.dumps({"parameters": {"x": 1}}).encode(),
    ),
    "to load with no JSON": ("/v2/repository/models/digits/load", b"{"),
    "to unload a model that is none": ("/v2/repository/models/nope/unload", b"{}"),
    "an index of a repository that is none": ("/v2/repository/nowhere/index", b"{}"),
    "log settings that are a list": ("/v2/logging", b"[]"),
    "an unknown log setting": ("/v2/logging", b'{"x": true}'),
    "a log file": ("/v2/logging", b'{"log_file": "/etc/passwd"}'),
    "a log setting of another type": ("/v2/logging", b'{"log_info": "yes"}'),
    "an unknown trace setting": ("/v2/trace/setting", b'{"x": "1"}'),
    "a trace file": ("/v2/trace/setting", b'{"trace_file": "/etc/passwd"}'),
    "a trace level that is none": ("/v2/trace/setting", b'{"trace_level": ["LOUD"]}'),
}


def memory(region: str = "r", **place: Any) -> tuple[str, bytes]:
    body = {"key": "/nothing-of-that-name", "byte_size": 16, "offset": 0} | place
    return f"/v2/systemsharedmemory/region/{region}/register", json.dumps(body).encode()


MEMORY: dict[str, tuple[str, bytes]] = {
    "a file that is not there": memory(),
    "a file of elsewhere": memory(key="../../etc/passwd"),
    "a file by its path": memory(key="/etc/passwd"),
    "a folder": memory(key="/."),
    "a name of a semaphore": memory(key="/sem.x"),
    "a key with a NUL": memory(key="/a\0b"),
    "a key that is a number": memory(key=1),
    "a size below 0": memory(byte_size=-1),
    "a size of 0": memory(byte_size=0),
    "a size beyond 64 bits": memory(byte_size=2**64),
    "a size that is a fraction": memory(byte_size=1.5),
    "an offset that overflows": memory(offset=2**64 - 1),
    "a tensor in a region of nobody": (
        f"{BC}/infer",
        infer(
            {key: value for key, value in tensor().items() if key != "data"}
            | {"parameters": {"shared_memory_region": "nobody", "shared_memory_byte_size": 120}}
        ),
    ),
    "a tensor in a region, and here": (
        f"{BC}/infer",
        infer(tensor(parameters={"shared_memory_region": "nobody", "shared_memory_byte_size": 120})),
    ),
    "a region that is a list": (
        f"{BC}/infer",
        infer(
            {key: value for key, value in tensor().items() if key != "data"}
            | {"parameters": {"shared_memory_region": [], "shared_memory_byte_size": 120}}
        ),
    ),
}


def bombs() -> list[Case]:
    """A few hundred kilobytes that become 100 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join([packer.compress(bytes(1 << 20)) for _ in range(100)]) + packer.flush()
    layer = "REST, compression"
    coded = {"content-encoding": "gzip"}
    deflated = zlib.compress(bytes(50_000_000), 9)
    return [
        http(layer, "a gzip bomb to infer", f"{BC}/infer", packed, headers=coded),
        http(layer, "a gzip bomb to predict", f"{DIGITS}/predict", packed, headers=coded, kind="image/png"),
        http(layer, "a gzip bomb to control", "/v2/logging", packed, headers=coded),
        http(layer, "a deflate bomb", f"{BC}/infer", deflated, headers={"content-encoding": "deflate"}),
        http(layer, "a bomb in a bomb", f"{BC}/infer", gzip.compress(packed), headers=coded),
        http(layer, "half of a gzip", f"{BC}/infer", gzip.compress(infer(tensor()))[:-9], headers=coded),
        http(
            layer,
            "a gzip with something behind it",
            f"{BC}/infer",
            gzip.compress(infer(tensor())) + b"x",
            headers=coded,
        ),
        http(layer, "a gzip of nothing", f"{BC}/infer", gzip.compress(b""), headers=coded),
    ]


_PLAIN = {"name": "features", "datatype": "FP32", "shape": [1, 30]}
_SIZED = {**_PLAIN, "parameters": {"binary_data_size": 120}}


def _of_size(size: object, data: int = 120) -> Case:
    return binary({"inputs": [{**_PLAIN, "parameters": {"binary_data_size": size}}]}, bytes(data))


BINARY = [
    named("fewer bytes than it says", _of_size(120, 119)),
    named("more bytes than it says", _of_size(120, 121)),
    named("bytes that are not the shape's", _of_size(8, 8)),
    named("a size below 0", _of_size(-1)),
    named("a size beyond 64 bits", _of_size(2**70)),
    named("a size that is text", _of_size("120")),
    named("values in both ways", binary({"inputs": [{**_SIZED, "data": [0] * 30}]}, bytes(120))),
    named("a JSON longer than the body", binary({"inputs": [_SIZED]}, bytes(120), 10**6)),
    named("a JSON length below 0", binary({"inputs": [_SIZED]}, bytes(120), -1)),
    named("a JSON length that is text", binary({"inputs": [_SIZED]}, bytes(120), "x")),
]

_POST = f"POST {BC}/infer HTTP/1.1\r\n".encode()
RAW: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/0.9": b"GET /v2\r\n\r\n",
    "HTTP/3.0": b"GET /v2 HTTP/3.0\r\nHost: x\r\n\r\n",
    "no host": _POST + b"\r\n",
    "two hosts": _POST + b"Host: a\r\nHost: b\r\n\r\n",
    "a host with a path": _POST + b"Host: a/b\r\n\r\n",
    "two lengths": _POST + b"Host: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "a length below 0": _POST + b"Host: x\r\nContent-Length: -1\r\n\r\n",
    "a length in hex": _POST + b"Host: x\r\nContent-Length: 0x10\r\n\r\n",
    "a length of 10^11": _POST + b"Host: x\r\nContent-Length: 99999999999\r\n\r\n",
    "a length of 30 digits": _POST + b"Host: x\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
    "a length and chunks": _POST + b"Host: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks twice": _POST + b"Host: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
    "an unknown transfer coding": _POST + b"Host: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a chunk without a size": _POST + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a chunk beyond 64 bits": _POST + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n",
    "chunks beyond the limit": _POST
    + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    + (b"10000\r\n" + bytes(0x10000) + b"\r\n") * 20,
    "a head without an end": _POST + b"Host: x\r\nX: " + b"x" * 70_000,
    "a target without an end": b"GET /" + b"x" * 70_000,
    "10,000 header fields": _POST + b"Host: x\r\n" + b"a: b\r\n" * 4000 + b"\r\n",
    "a field name with a blank": _POST + b"Host: x\r\na b: c\r\n\r\n",
    "a field with a NUL": _POST + b"Host: x\r\na: \x00\r\n\r\n",
    "a field that is folded": _POST + b"Host: x\r\na: b\r\n c\r\n\r\n",
    "lines without CR": b"GET /v2 HTTP/1.1\nHost: x\n\n",
    "a fragment in the target": b"GET /v2#x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method that is none": b"FROB /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an upgrade to HTTP/2": b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    "a proxy's CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
}


def cases() -> list[Case]:
    good = infer(tensor())
    return [
        *(http("REST, path", name, path, good) for name, path in PATHS.items()),
        http("REST, path", "a wrong method", f"{BC}/infer", method="DELETE"),
        http("REST, path", "a parameter twice", f"{DIGITS}/predict?top_k=1&top_k=2", b"x", kind="image/png"),
        http("REST, path", "a top_k that is text", f"{DIGITS}/predict?top_k=x", b"x", kind="image/png"),
        http("REST, path", "an unknown parameter", f"{DIGITS}/predict?x=1", b"x", kind="image/png"),
        *(http("REST, tensor", name, f"{BC}/infer", infer(each)) for name, each in TENSORS.items()),
        *(http("REST, body", name, f"{BC}/infer", body) for name, body in BODIES.items()),
        *(http("REST, header", name, f"{BC}/infer", good, headers=headers) for name, headers in HEADERS.items()),
        *(http("REST, predict", name, f"{model}/predict", body) for name, (model, body) in PREDICT.items()),
        http("REST, predict", "a type that is none", f"{DIGITS}/predict", b"x", kind="text/html"),
        *(http("REST, control", name, path, body) for name, (path, body) in CONTROL.items()),
        *(http("shared memory", name, path, body) for name, (path, body) in MEMORY.items()),
        *BINARY,
        *bombs(),
        *(raw("HTTP/1.1", name, data) for name, data in RAW.items()),
    ]
