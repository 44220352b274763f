"""The REST transport: routes, limits, errors; the app in memory, and a few calls of real clients over a socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import shutil
import socket
import ssl
import sys
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import server.transport.rest as rest_module
from server.errors import DeadlineExceeded, Draining, Overloaded, PayloadTooLarge, QueueFull
from server.settings import HttpSettings, TlsSettings
from server.tensor import Tensor, TensorSpec
from server.transport.http1.head import Head
from server.transport.http1.server import Http1Server
from server.transport.inflate import inflate
from server.transport.listen import ListenFailed
from server.transport.openapi.operations import OPERATIONS, operation
from server.transport.rest import RestApp, RestServer
from server.transport.routes import ROUTES
from server.transport.status import STATUS
from server.types import NO_DEADLINE, ImageInput, RowInput
from tests.support.fake_dataplane import MODEL, FakeDataPlane
from tests.support.http1 import Answer, Peer
from tests.support.parts import self_signed

LIMIT = 2000
INFER = f"/v2/models/{MODEL}/infer"
PREDICT = f"/v2/models/{MODEL}/predict"
README = Path(rest_module.__file__).with_name("README.md")


class Client:
    """Calls the app over connections in memory, each with one request."""

    def __init__(self, dataplane: FakeDataPlane, limit: int = LIMIT) -> None:
        self.app = RestApp(dataplane, max_body_bytes=limit)  # type: ignore[arg-type]
        self.server = Http1Server(self.app, "127.0.0.1", 0, HttpSettings(max_body_bytes=limit))
        self.peer: Peer | None = None

    def send(self, method: str, path: str, body: bytes | Iterable[bytes], headers: dict[str, str]) -> Peer:
        """The request on its way. A body in several pieces is chunked."""
        fields = {"Host": "x", **headers}
        if isinstance(body, bytes):
            fields.setdefault("Content-Length", str(len(body)))
            pieces = [body]
        else:
            fields["Transfer-Encoding"] = "chunked"
            pieces = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in body]
            pieces.append(b"0\r\n\r\n")
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        peer = Peer(self.app, self.server)
        peer.send("\r\n".join([*lines, "", ""]).encode() + pieces[0])
        for piece in pieces[1:]:
            peer.send(piece)
        return peer

    async def __call__(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] = b"",
        headers: dict[str, str] | None = None,
        *,
        disconnect: bool = False,
    ) -> Answer:
        self.peer = peer = self.send(method, path, body, headers or {})
        if disconnect:
            await asyncio.sleep(0)  # A task has to begin before it can be cancelled.
            peer.protocol.connection_lost(None)
            for _ in range(3):
                await asyncio.sleep(0)
            assert not peer.transport.sent
            return Answer(0, {}, b"")
        await peer.transport.written.wait()
        [answer] = peer.answers(method)
        return answer


@pytest.fixture
def dataplane() -> FakeDataPlane:
    return FakeDataPlane()


@pytest.fixture
def call(dataplane: FakeDataPlane) -> Client:
    return Client(dataplane)


def document(a: Any = (1, 2, 3, 4), **rest: Any) -> bytes:
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [1, 4], "data": list(a)},
        {"name": "b", "datatype": "FP32", "shape": [1, 4], "data": [10, 20, 30, 40]},
    ]
    return json.dumps({"inputs": inputs, **rest}).encode()


# --- routes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True], ids=["settled inside of submit", "settled later"])
async def test_infer(dataplane: FakeDataPlane, call: Client, later: bool) -> None:
    """A request is answered with its tensors, whenever the data plane settles it."""
    dataplane.later = later
    answer = await call("POST", INFER, document(id="x"))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    [output] = answer.json["outputs"]
    assert (answer.json["id"], output["name"], output["data"]) == ("x", "sum", [11, 22, 33, 44])


async def test_infer_of_a_version(dataplane: FakeDataPlane, call: Client) -> None:
    """The version of the path is the request's."""
    answer = await call("POST", f"/v2/models/{MODEL}/versions/7/infer", document())
    assert answer.json["model_version"] == "7"
    assert dataplane.requests[0].model_version == "7"


async def test_infer_with_binary_tensors(call: Client) -> None:
    """Binary outputs come with the header that says where they begin."""
    answer = await call("POST", INFER, document(parameters={"binary_data_output": True}))
    assert answer.headers["content-type"] == "application/octet-stream"
    header = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:header])["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert np.frombuffer(answer.body[header:], "<f4").tolist() == [11, 22, 33, 44]


async def test_infer_with_a_raw_body(dataplane: FakeDataPlane, call: Client) -> None:
    """A header length of 0 gives the body to the only input, and the answer is binary."""
    dataplane.single_input = TensorSpec("a", "FP32", (-1, 4))
    raw = np.arange(8, dtype="<f4").tobytes()
    answer = await call("POST", INFER, raw, {"Inference-Header-Content-Length": "0"})
    assert answer.body[int(answer.headers["inference-header-content-length"]) :] == raw
    assert dataplane.requests[0].inputs[0].shape == (2, 4)


async def test_predict(dataplane: FakeDataPlane, call: Client) -> None:
    """Rows as JSON, a picture as the body; options from either place."""
    answer = await call("POST", PREDICT, b'{"inputs": [[1, 2], {"x": 1}], "id": "i"}')
    assert (answer.status, answer.json["id"], len(answer.json["predictions"])) == (200, "i", 2)
    answer = await call("POST", f"{PREDICT}?top_k=1", b"\x89PNG", {"Content-Type": "image/png"})
    assert answer.json["predictions"][0]["top_k"] == [{"label": "yes", "score": 0.75}]
    assert dataplane.predicts[0].inputs == [RowInput([1, 2]), RowInput({"x": 1})]
    assert dataplane.predicts[1].inputs == [ImageInput(b"\x89PNG", "image/png")]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        (f"/v2/models/{MODEL}/ready", {"name": MODEL, "ready": True}),
    ],
)
async def test_health_can_fail(dataplane: FakeDataPlane, call: Client, path: str, told: dict[str, object]) -> None:
    """Health is 200 or 503, with what KServe's clients read in the body."""
    answer = await call("GET", path)
    assert (answer.status, answer.json) == (200, told)
    dataplane.ready_now = False
    answer = await call("GET", path)
    assert (answer.status, answer.json) == (503, {name: value is not True and value for name, value in told.items()})


async def test_metadata(call: Client) -> None:
    """Server and model metadata have v2's shape; the model's also says what predict takes."""
    assert (await call("GET", "/v2")).json == {
        "name": "forwardpass",
        "version": "0.0.0",
        "extensions": ["binary_tensor_data", "statistics"],
    }
    for path in (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/1"):
        metadata = (await call("GET", path)).json
        assert metadata["inputs"][0] == {"name": "a", "datatype": "FP32", "shape": [-1, 4]}
        assert (metadata["versions"], metadata["platform"]) == (["1"], "onnxruntime_onnx")
        assert metadata["predict"] == {"task": "adding"}


async def test_the_config(call: Client) -> None:
    """The config has the names of model_config.proto, with 64-bit numbers as numbers, exactly."""
    config = (await call("GET", f"/v2/models/{MODEL}/config")).json
    assert config["max_batch_size"] == 8
    assert config["input"][0]["dims"] == [4]
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["parameters"] == {"k": {"string_value": "v"}}
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 9007199254740993
    assert "sequence_batching" not in config


@pytest.mark.parametrize(
    "path", ["/v2/models/stats", f"/v2/models/{MODEL}/stats", f"/v2/models/{MODEL}/versions/1/stats"]
)
async def test_statistics(call: Client, path: str) -> None:
    """Statistics are v2's, with 64-bit numbers as numbers."""
    await call("POST", INFER, document())
    [model] = (await call("GET", path)).json["model_stats"]
    assert (model["name"], model["version"], model["last_inference"]) == (MODEL, "1", 1_700_000_000_500)
    assert (model["inference_count"], model["execution_count"]) == (3, 1)
    assert model["inference_stats"]["success"]["count"] == 1
    assert isinstance(model["inference_stats"]["success"]["ns"], int)
    assert model["batch_stats"] == [
        {
            "batch_size": 3,
            "compute_input": {"count": 1, "ns": 10},
            "compute_infer": {"count": 1, "ns": 20},
            "compute_output": {"count": 1, "ns": 30},
        }
    ]


async def test_model_control(dataplane: FakeDataPlane, call: Client) -> None:
    """The index, load and unload with their parameters, of a repository by name too; files come in base64."""
    assert [m["name"] for m in (await call("POST", "/v2/repository/index")).json] == [MODEL, "broken"]
    assert [m["name"] for m in (await call("POST", "/v2/repository/index", b'{"ready": true}')).json] == [MODEL]
    base = "/v2/repository/models"
    assert (await call("POST", f"{base}/{MODEL}/load")).status == 200
    unload = b'{"parameters": {"unload_dependents": false}}'
    assert (await call("POST", f"{base}/{MODEL}/unload", unload)).status == 200
    assert dataplane.control == [("load", MODEL), ("unload", MODEL)]
    files = b'{"parameters": {"config": "{}", "file:1/model.onnx": "AAEC"}}'
    assert (await call("POST", f"{base}/{MODEL}/load", files)).status == 200
    assert dataplane.parameters == {"config": "{}", "file:1/model.onnx": b"\0\1\2"}
    dependents = unload.replace(b"false", b"true")
    assert (await call("POST", f"{base}/{MODEL}/unload", dependents)).status == 200
    assert dataplane.parameters == {"unload_dependents": True}
    assert [m["name"] for m in (await call("POST", "/v2/repository/models/index")).json] == [MODEL, "broken"]
    assert (await call("POST", "/v2/repository/nope/index")).status == 404
    assert (await call("POST", f"{base}/broken/load")).status == 400
    assert len(dataplane.control) == 4


@pytest.mark.parametrize(
    ("action", "body", "field"),
    [
        ("load", b'{"parameters": {"file:1/m": "no base64!"}}', "parameters.file:1/m:"),
        ("load", b'{"parameters": {"file:1/m": 7}}', "parameters.file:1/m:"),
        ("load", b'{"parameters": []}', "parameters:"),
        ("unload", b'{"parameters": {"unload_dependents": "yes"}}', "parameters.unload_dependents:"),
        ("unload", b'{"parameters": {"force": true}}', "parameters.force:"),
    ],
)
async def test_malformed_control_parameters(
    dataplane: FakeDataPlane, call: Client, action: str, body: bytes, field: str
) -> None:
    """What can't be understood is refused by name, and nothing is done."""
    answer = await call("POST", f"/v2/repository/models/{MODEL}/{action}", body)
    assert (answer.status, answer.error[: len(field)]) == (400, field)
    assert not dataplane.control


@pytest.mark.parametrize(
    ("body", "field"),
    [(b"[]", "body:"), (b"{", "body:"), (b'{"ready": 1}', "ready:"), (b'{"ready": null}', "ready:")],
)
async def test_a_malformed_index_request(call: Client, body: bytes, field: str) -> None:
    """Management bodies are checked as others are."""
    answer = await call("POST", "/v2/repository/index", body)
    assert (answer.status, answer.error[: len(field)]) == (400, field)


async def test_names_are_percent_decoded(dataplane: FakeDataPlane, call: Client) -> None:
    """A name is decoded after the path was split: an encoded slash belongs to the name."""
    answer = await call("POST", "/v2/models/a%2Fb%20%C3%A9/infer", document())
    assert answer.status == 404
    assert dataplane.requests[0].model_name == "a/b é"
    assert "a/b é" in answer.error


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        ("/v1/models/add", 404),
        ("/v2/", 404),
        ("/v2/models", 404),
        ("/v2/models/add/", 404),
        ("/v2/models/add/versions", 404),
        ("/v2/models/add/versions/1/nothing", 404),
        ("/v2/models//ready", 400),
        ("/v2/models/%FF/ready", 400),
        ("/v2/models/nobody/ready", 404),
        ("/v2/models/add/versions/9", 404),
        ("/v2/health/unknown", 404),
    ],
)
async def test_paths_that_lead_nowhere(call: Client, path: str, status: int) -> None:
    """An unknown path, model or version is 404, a path that is no name 400, each with a reason."""
    answer = await call("GET", path)
    assert answer.status == status
    assert answer.error


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", INFER, "POST"),
        ("POST", "/v2", "GET, HEAD"),
        ("DELETE", f"/v2/models/{MODEL}", "GET, HEAD"),
        ("HEAD", PREDICT, "POST"),
    ],
)
async def test_another_method_is_405(call: Client, method: str, path: str, allow: str) -> None:
    """A known path with another method says which it takes."""
    answer = await call(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allow)


async def test_every_route_is_in_the_readme() -> None:
    """The README's table of routes is the one in the code, row by row."""
    rows = re.findall(r"^\| (GET|POST) \| `(/v[12][^`]*)` \|", README.read_text(), re.MULTILINE)
    assert rows == [(route.method, route.pattern) for route in ROUTES]


async def test_every_route_is_in_the_openapi_document(call: Client) -> None:
    """A route has an entry in `openapi/operations.py`, and no entry is of a route that is gone."""
    paths = (await call("GET", "/v2/docs/openapi.json")).json["paths"]
    told = {(method.upper(), path) for path, methods in paths.items() for method in methods.keys() - {"parameters"}}
    routes = {(route.method, route.pattern) for route in ROUTES}
    assert told == routes | {("HEAD", path) for method, path in routes if method == "GET"}
    used = {id(operation(*route)) for route in routes}
    assert used == {id(described) for described in OPERATIONS.values()}


async def test_the_openapi_document_has_every_error(call: Client) -> None:
    """Each status of the table stands at some operation; each error has its schema, but for HEAD and health."""
    paths = (await call("GET", "/v2/docs/openapi.json")).json["paths"]
    infer = paths["/v2/models/{model}/infer"]["post"]["responses"]
    register = paths["/v2/systemsharedmemory/region/{region}/register"]["post"]["responses"]
    assert {str(status.http) for status in STATUS.values()} <= infer.keys() | register.keys()
    assert all(
        told["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
        for status, told in infer.items()
        if status != "200"
    )
    assert set(infer["200"]["content"]) == {"application/json", "application/octet-stream"}


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(DeadlineExceeded(MODEL, 5), 504), (Draining(), 503), (QueueFull(MODEL, 4), 429)],
    ids=["deadline", "draining", "queue full"],
)
async def test_outcomes_become_statuses(
    dataplane: FakeDataPlane, call: Client, outcome: Exception, status: int
) -> None:
    """However a request is settled, its caller gets the status of the table and the public message."""
    dataplane.outcome = outcome
    answer = await call("POST", INFER, document())
    assert (answer.status, answer.error) == (status, str(outcome))
    assert (await call("POST", PREDICT, b'{"inputs": ["t"]}')).status == status
    assert "retry-after" not in answer.headers


async def test_a_full_queue_says_when_to_come_back(dataplane: FakeDataPlane, call: Client) -> None:
    """Retry-After is in whole seconds, rounded up."""
    dataplane.outcome = QueueFull(MODEL, 4, 1200)
    assert (await call("POST", INFER, document())).headers["retry-after"] == "2"


async def test_our_own_fault_is_withheld(
    dataplane: FakeDataPlane, call: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that is none of ours is 500, its text is in the log and not in the answer."""
    dataplane.outcome = RuntimeError("secret")
    answer = await call("POST", INFER, document())
    assert (answer.status, answer.error) == (500, "internal error")
    assert caplog.text.count("secret") >= 1


async def test_an_output_that_json_can_not_carry(dataplane: FakeDataPlane, call: Client) -> None:
    """NaN in a JSON answer is an error that says what to do."""
    dataplane.answers = [Tensor.from_numpy("sum", np.array([np.nan], "<f4"))]
    answer = await call("POST", INFER, document())
    assert (answer.status, "binary_data" in answer.error) == (501, True)


# --- bodies -------------------------------------------------------------------------------------------


async def test_a_declared_length_over_the_limit(dataplane: FakeDataPlane, call: Client) -> None:
    """A Content-Length over the limit is 413 before a byte is here."""
    answer = await call("POST", INFER, b"", {"Content-Length": str(LIMIT + 1)})
    assert answer.status == 413
    assert answer.error == f"body: {LIMIT + 1} bytes, over the limit of {LIMIT} bytes"
    assert answer.headers["connection"] == "close"
    assert not dataplane.requests


async def test_chunks_over_the_limit(call: Client) -> None:
    """Without a length the chunks are counted, and what goes over the limit is not waited for."""
    peer = call.send("POST", INFER, [b" " * 900] * 3, {})
    [answer] = peer.answers()
    assert (answer.status, answer.error) == (413, f"body: over the limit of {LIMIT} bytes")


async def test_a_body_at_the_limit(call: Client) -> None:
    """The limit itself is allowed, in one piece and in many."""
    body = document().ljust(LIMIT)
    assert (await call("POST", INFER, body, {"Content-Length": str(LIMIT)})).status == 200
    assert (await call("POST", INFER, [body[i : i + 100] for i in range(0, LIMIT, 100)])).status == 200
    assert (await call("POST", INFER, body + b" ")).status == 413


COMPRESSED = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", COMPRESSED)
async def test_compressed_bodies(call: Client, encoding: str) -> None:
    """gzip and deflate are inflated, in whatever chunks they come."""
    body = COMPRESSED[encoding](document())
    headers = {"Content-Encoding": encoding}
    assert (await call("POST", INFER, body, headers)).status == 200
    assert (await call("POST", INFER, [bytes([byte]) for byte in body], headers)).status == 200


@pytest.mark.parametrize("encoding", COMPRESSED)
async def test_large_compressed_bodies(dataplane: FakeDataPlane, encoding: str) -> None:
    """Bodies that are inflated on a thread come out as those that are not."""
    padding = np.random.default_rng(0).bytes(6000).hex()
    body = COMPRESSED[encoding](document(parameters={"p": padding}))
    assert len(body) > 4096
    call = Client(dataplane, limit=100_000)
    assert (await call("POST", INFER, body, {"Content-Encoding": encoding})).status == 200
    assert dataplane.requests[0].parameters["p"] == padding


@pytest.mark.parametrize("encoding", COMPRESSED)
async def test_a_bomb_is_defused(call: Client, encoding: str) -> None:
    """The limit holds for the inflated size: one byte over it is 413."""
    headers = {"Content-Encoding": encoding}
    bomb = COMPRESSED[encoding](b" " * 1_000_000)
    assert len(bomb) < LIMIT
    assert (await call("POST", INFER, bomb, headers)).status == 413
    fits = COMPRESSED[encoding](document().ljust(LIMIT))
    assert (await call("POST", INFER, fits, headers)).status == 200
    over = COMPRESSED[encoding](document().ljust(LIMIT + 1))
    assert (await call("POST", INFER, over, headers)).status == 413


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_bomb_takes_no_memory(encoding: str) -> None:
    """However much a body would inflate to, no more than the limit is ever made of it."""
    bomb = COMPRESSED[encoding](b" " * 20_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            inflate("body", bomb, encoding, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("encoding", COMPRESSED)
@pytest.mark.parametrize(
    "spoil",
    [lambda b: b"", lambda b: b"hello", lambda b: b[:-6], lambda b: b + b"x", lambda b: b[:12] + b"\xff" * 20],
    ids=["empty", "plain", "cut short", "with a tail", "damaged"],
)
async def test_a_body_that_does_not_inflate(call: Client, encoding: str, spoil: Any) -> None:
    """A broken stream is the client's error."""
    body = spoil(COMPRESSED[encoding](document()))
    answer = await call("POST", INFER, body, {"Content-Encoding": encoding})
    assert (answer.status, answer.error[:5]) == (400, "body:")


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
async def test_other_encodings_are_refused(call: Client, encoding: str) -> None:
    """An encoding that is not read is refused by name."""
    answer = await call("POST", INFER, b"x", {"Content-Encoding": encoding})
    assert (answer.status, answer.error[:17]) == (501, "Content-Encoding:")


# --- deadlines and leaving --------------------------------------------------------------------------------


async def test_the_deadline_is_absolute(dataplane: FakeDataPlane, call: Client) -> None:
    """X-Request-Timeout is milliseconds from the request's arrival, for infer and predict."""
    before = time.monotonic_ns()
    headers = {"X-Request-Timeout": "1500"}
    await call("POST", INFER, document(), headers)
    await call("POST", PREDICT, b'{"inputs": ["t"]}', headers)
    after = time.monotonic_ns()
    for deadline_ns in (dataplane.requests[0].deadline_ns, dataplane.predicts[0].deadline_ns):
        assert before + 1_500_000_000 <= deadline_ns <= after + 1_500_000_000
    await call("POST", INFER, document())
    await call("POST", INFER, document(), {"X-Request-Timeout": "3e307"})
    assert [request.deadline_ns for request in dataplane.requests[1:]] == [NO_DEADLINE, NO_DEADLINE]


@pytest.mark.parametrize("text", ["0", "-5", "soon", "nan", "inf", "1e999", "1s"])
async def test_a_deadline_that_is_none(dataplane: FakeDataPlane, call: Client, text: str) -> None:
    """A time-out that is no positive number is refused by name, and nothing is executed."""
    answer = await call("POST", INFER, document(), {"X-Request-Timeout": text})
    assert (answer.status, answer.error[:18]) == (400, "X-Request-Timeout:")
    assert not dataplane.requests


async def test_a_client_that_leaves_cancels_its_infer(dataplane: FakeDataPlane, call: Client) -> None:
    """A disconnect while the data plane works cancels the request; nothing is sent to nobody."""
    dataplane.held = True
    assert (await call("POST", INFER, document(), disconnect=True)).status == 0
    assert dataplane.cancelled == dataplane.requests != []


PICTURE = {"Content-Type": "image/jpeg", "X-Request-Timeout": "50"}


async def test_a_picture_for_which_there_is_no_time_is_not_read(dataplane: FakeDataPlane, call: Client) -> None:
    """Its size is what there is to know of it; the connection is as good as before, also if it comes in pieces."""
    dataplane.refusal = Overloaded("add", 80, 1500)
    for picture in (b"no picture", [b"no", b" pic", b"ture"]):
        answer = await call("POST", PREDICT, picture, PICTURE)
        assert (answer.status, answer.headers["retry-after"]) == (429, "2")
        assert "80 ms" in answer.json["error"]
        assert dataplane.looked_at.pop() == (MODEL, 10)
        assert not dataplane.predicts
        assert call.peer is not None
        call.peer.transport.written.clear()
        call.peer.send(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        await call.peer.transport.written.wait()
        assert [each.status for each in call.peer.answers()] == [200]


async def test_a_picture_for_which_there_is_time_is_read(dataplane: FakeDataPlane, call: Client) -> None:
    """Nobody says that it is late."""
    assert (await call("POST", PREDICT, b"picture", PICTURE)).status == 200
    assert dataplane.looked_at == [(MODEL, 7)]
    assert dataplane.predicts[0].inputs == [ImageInput(b"picture", "image/jpeg")]


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        (PREDICT, b'{"inputs": [[1]]}', {"Content-Type": "application/json"}),
        (f"/v2/models/{MODEL}/versions/1/predict", b"x", {}),
        (PREDICT, b"x", {"X-Request-Timeout": ""}),
        (PREDICT, gzip.compress(b"x"), {"Content-Encoding": "gzip"}),
        (PREDICT, b"x", {"X-Explain": "1"}),
    ],
    ids=["JSON", "of a version", "no deadline", "compressed", "explained"],
)
async def test_what_can_not_be_told_by_its_size_is_read(
    dataplane: FakeDataPlane, call: Client, path: str, body: bytes, headers: dict[str, str]
) -> None:
    """By its size there is nothing known of it, or more is to be said."""
    dataplane.refusal = Overloaded("add", 80, 1500)
    assert (await call("POST", path, body, {**PICTURE, **headers})).status == 200
    assert not dataplane.looked_at


async def test_a_client_that_leaves_cancels_its_predict(dataplane: FakeDataPlane, call: Client) -> None:
    """The same for predict, whose task is cancelled."""
    dataplane.held = True
    assert (await call("POST", PREDICT, b'{"inputs": ["t"]}', disconnect=True)).status == 0
    assert dataplane.cancelled_predicts == 1


async def test_a_client_that_leaves_before_its_body_ends(dataplane: FakeDataPlane, call: Client) -> None:
    """Half a body is no request."""
    await call("POST", INFER, b"{", {"Content-Length": "100"}, disconnect=True)
    assert not dataplane.requests


async def test_a_slow_answer(dataplane: FakeDataPlane, call: Client) -> None:
    """A request that is settled later is answered then."""
    dataplane.held = True
    peer = call.send("POST", INFER, document(), {})
    assert not peer.transport.sent
    dataplane.release()
    [answer] = peer.answers()
    assert answer.status == 200
    assert not dataplane.cancelled


async def test_the_tenant(dataplane: FakeDataPlane, call: Client) -> None:
    """X-Tenant says on whose behalf it is asked, for infer and predict; without it nobody's."""
    for headers in ({"X-Tenant": "blue"}, {}):
        await call("POST", INFER, document(), headers)
        await call("POST", PREDICT, b'{"inputs": ["t"]}', headers)
    assert [r.tenant for r in dataplane.requests] == [r.tenant for r in dataplane.predicts] == ["blue", ""]


async def test_head_is_get_without_the_body(dataplane: FakeDataPlane) -> None:
    """HEAD gives the headers of GET, with the length of the body that it leaves out."""
    server = RestServer(dataplane, "127.0.0.1", HttpSettings(port=0, max_body_bytes=LIMIT))
    port = await server.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        got, head = await client.get("/v2"), await client.head("/v2")
    await server.stop(1)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(got.content))
    assert "server" not in got.headers


# --- over a socket ----------------------------------------------------------------------------------------


@pytest.fixture
async def served(dataplane: FakeDataPlane) -> AsyncIterator[tuple[RestServer, int]]:
    server = RestServer(dataplane, "127.0.0.1", HttpSettings(port=0, max_body_bytes=1_000_000))
    port = await server.start()
    yield server, port
    await server.stop(1)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
async def test_tritonclient(served: tuple[RestServer, int], dataplane: FakeDataPlane, binary: bool) -> None:
    """tritonclient.http works unmodified, with binary and JSON tensors and compressed requests."""
    form = "binary" if binary else "json"
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.triton_http", str(served[1]), form), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await program.communicate()
    assert program.returncode == 0, errors.decode()
    assert dataplane.control == [("load", MODEL), ("unload", MODEL)]


async def test_too_large_a_body_still_gets_its_answer(served: tuple[RestServer, int]) -> None:
    """A client that sends all of its body before it reads gets 413 and not a reset, and may go on."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served[1]}", timeout=30) as client:
        answer = await client.post(INFER, content=b"x" * 8_000_000)
        assert (answer.status_code, answer.json()["error"][:5]) == (413, "body:")
        assert (await client.get("/v2/health/live")).status_code == 200


async def test_a_disconnect_over_a_socket(served: tuple[RestServer, int], dataplane: FakeDataPlane) -> None:
    """A connection that is closed while its request waits cancels the request."""
    dataplane.held = True
    _, writer = await asyncio.open_connection("127.0.0.1", served[1])
    body = document()
    writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (INFER.encode(), len(body), body))
    await dataplane.arrived.wait()
    writer.close()
    await dataplane.gone.wait()
    assert dataplane.cancelled == dataplane.requests


async def test_stop_answers_what_is_in_flight(served: tuple[RestServer, int], dataplane: FakeDataPlane) -> None:
    """Stopping waits for the answers, closes idle connections and refuses new ones."""
    server, port = served
    dataplane.held = True
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        waiting = asyncio.create_task(client.post(INFER, content=document()))
        await dataplane.arrived.wait()
        stopping = asyncio.create_task(server.stop(10))
        assert await idle_reader.read() == b""
        idle_writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert not stopping.done()
        dataplane.release()
        answer = await waiting
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        await stopping


async def test_stop_ends_with_the_grace(served: tuple[RestServer, int], dataplane: FakeDataPlane) -> None:
    """What is not answered when the grace is over is cancelled, and its caller told that the server leaves."""
    server, port = served
    dataplane.held = True
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        waiting = asyncio.create_task(client.post(INFER, content=document()))
        await dataplane.arrived.wait()
        await server.stop(0.01)
        answer = await waiting
    assert (answer.status_code, answer.json()) == (503, {"error": "the server is shutting down"})
    assert dataplane.cancelled == dataplane.requests


async def test_a_port_that_is_taken(dataplane: FakeDataPlane) -> None:
    """A port that can't be had is an error that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = RestServer(dataplane, "127.0.0.1", HttpSettings(port=port, max_body_bytes=LIMIT))
        with pytest.raises(ListenFailed, match=f"127.0.0.1:{port}: .*in use"):
            await server.start()
        await server.stop(1)


async def run(*command: str) -> tuple[int, bytes]:
    program = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await program.communicate()
    assert program.returncode is not None
    return program.returncode, out


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    "flags",
    [(), ("-0",), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect: 100-continue"), ("-H", "Connection: close")],
    ids=["HTTP/1.1", "HTTP/1.0", "chunked", "told to wait", "close"],
)
async def test_curl(served: tuple[RestServer, int], tmp_path: Path, flags: tuple[str, ...]) -> None:
    """curl gets its answers, in every way in which it sends a body; twice over one connection where it is kept."""
    body = tmp_path / "body"
    body.write_bytes(document(parameters={"p": "x" * 50_000}))
    url = f"http://127.0.0.1:{served[1]}{INFER}"
    rest = ("-sS", "--max-time", "20", "--data-binary", f"@{body}", *flags, url, url, "-w", "%{http_code} ")
    status, out = await run("curl", *rest)
    assert (status, out.count(b"[11.0,22.0,33.0,44.0]"), out.count(b"200 ")) == (0, 2, 2)


async def test_urllib3(served: tuple[RestServer, int]) -> None:
    """Its pool keeps the connection over good answers and errors alike."""
    program = (
        "import sys, urllib3\n"
        "pool = urllib3.PoolManager()\n"
        "for _ in range(3):\n"
        "    for path, body, status in (('infer', sys.argv[2], 200), ('infer', '{', 400), ('nothing', '{', 404)):\n"
        "        answer = pool.request('POST', sys.argv[1] + path, body=body.encode())\n"
        "        assert answer.status == status, answer.data\n"
        "[connections] = [p.num_connections for p in [pool.connection_from_url(sys.argv[1])]]\n"
        "assert connections == 1, connections\n"
    )
    url = f"http://127.0.0.1:{served[1]}/v2/models/{MODEL}/"
    status, _ = await run(sys.executable, "-c", program, url, document().decode())
    assert status == 0


async def test_tls(dataplane: FakeDataPlane, tmp_path: Path) -> None:
    """The same over TLS: answers, a body over the limit, and the way out."""
    tls = self_signed(tmp_path)
    server = RestServer(dataplane, "127.0.0.1", HttpSettings(port=0, max_body_bytes=LIMIT), tls)
    port = await server.start()
    trust = ssl.create_default_context(cafile=tls.certificate)
    async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trust) as client:
        assert (await client.post(INFER, content=document())).status_code == 200
        assert (await client.post(INFER, content=b"x" * 300_000)).status_code == 413
        assert (await client.get("/v2/health/live")).status_code == 200
    offered = ssl.create_default_context(cafile=tls.certificate)
    offered.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=offered)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    writer.close()
    await server.stop(1)


@pytest.mark.parametrize(
    ("certificate", "key", "said"), [("c.pem", "", "one of them is not set"), ("c.pem", "k.pem", "No such file")]
)
async def test_tls_without_a_usable_certificate_does_not_start(
    dataplane: FakeDataPlane, tmp_path: Path, certificate: str, key: str, said: str
) -> None:
    """Nobody who asked for TLS gets a listener without it."""
    tls = TlsSettings(certificate=str(tmp_path / certificate), key=str(tmp_path / key) if key else "")
    server = RestServer(dataplane, "127.0.0.1", HttpSettings(port=0), tls)
    with pytest.raises(ListenFailed, match=said):
        await server.start()


def test_what_is_handed_on_is_read_of_each_head() -> None:
    """The rest of what differs from call to call is not: heads with another trace are one head, but where traces are
    handed on."""
    heads: dict[str, list[Head]] = {}
    for forwards in ("", "traceparent"):
        plane = FakeDataPlane()
        plane.forwards = (forwards,) if forwards else ()
        server = RestServer(plane, "127.0.0.1", HttpSettings(port=0))  # type: ignore[arg-type]
        begin = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\ntraceparent: %d\r\n\r\n"
        heads[forwards] = [server.listener.heads.find((begin % (n, n % 2)).encode()) for n in range(3)]
    first, second, third = heads[""]
    assert (first is second is third, first.plan.metadata) == (True, ())
    first, second, third = heads["traceparent"]
    assert (first is third, first is second) == (True, False)
    assert [head.plan.metadata for head in (first, second)] == [(("traceparent", "0"),), (("traceparent", "1"),)]
