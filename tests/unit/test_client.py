"""The client's two wires against scripted servers: what is sent, what is read, and what an error becomes."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2

from server.client import AsyncClient, Client, ClientError, Explained, IndexEntry, inputs_of_bytes, inputs_of_json
from server.client.errors import code_of_grpc, code_of_http
from server.client.inputs import raw_inputs, tensors
from server.errors import Code
from server.proto.forwardpass.v1 import prediction_pb2
from server.tensor import TensorSpec, pack_bytes
from server.transport.status import STATUS, Failure, status_details
from server.types import Classification, ImageInput, RowInput, Score, TextInput

V2 = "/inference.GRPCInferenceService/"
PREDICT = "/forwardpass.v1.PredictionService/Predict"
PICTURE = b"\x89PNG\r\n\x1a\n not really"

Scripted = tuple[int, dict[str, str], bytes]


class Listener(ThreadingHTTPServer):
    request_queue_size = 64


class Rest:
    """An HTTP server that keeps what it was asked and answers what it was told."""

    def __init__(self) -> None:
        self.answer: Scripted = (200, {}, b"{}")
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        rest = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {key.lower(): value for key, value in self.headers.items()}
                rest.asked.append((self.command, self.path, headers, body))
                status, headers, content = rest.answer
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.server = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.answer = (status, headers, json.dumps(value).encode())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Grpc(grpc.GenericRpcHandler):
    """A gRPC server that keeps what it was asked and answers (or fails) as it was told."""

    def __init__(self) -> None:
        self.answer: Callable[[grpc.ServicerContext], bytes] = lambda context: b""
        self.asked: list[tuple[str, bytes, float | None]] = []
        self.server = grpc.server(ThreadPoolExecutor(2), handlers=[self], options=[("grpc.so_reuseport", 0)])
        self.url = f"grpc://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def call(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.asked.append((details.method, request, context.time_remaining()))
            return self.answer(context)

        return grpc.unary_unary_rpc_method_handler(call)

    def message(self, message: Any) -> None:
        self.answer = lambda context: message.SerializeToString()

    def fail(self, status: grpc.StatusCode, text: str, trailers: tuple[tuple[str, bytes], ...] = ()) -> None:
        def answer(context: grpc.ServicerContext) -> bytes:
            context.set_trailing_metadata(trailers)
            context.abort(status, text)

        self.answer = answer

    def close(self) -> None:
        self.server.stop(0).wait()


@pytest.fixture
def rest() -> Iterator[Rest]:
    server = Rest()
    yield server
    server.close()


@pytest.fixture
def v2() -> Iterator[Grpc]:
    server = Grpc()
    yield server
    server.close()


@pytest.fixture(params=["sync", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Call one method of a client, sync or asyncio, and give what it gives."""

    def sync(url: str, method: str, *args: Any, **kwargs: Any) -> Any:
        with Client(url) as client:
            return getattr(client, method)(*args, **kwargs)

    def awaited(url: str, method: str, *args: Any, **kwargs: Any) -> Any:
        async def main() -> Any:
            async with AsyncClient(url) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(main())

    return sync if request.param == "sync" else awaited


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


BEST = [{"label": "7", "score": 0.75}, {"label": "1", "score": 0.25}]
ANSWER_JSON = {
    "model_name": "digits",
    "model_version": "3",
    "predictions": [{"label": "7", "score": 0.75, "top_k": BEST}],
}
ANSWER = Classification("7", 0.75, (Score("7", 0.75), Score("1", 0.25)))


def answer_message() -> prediction_pb2.PredictResponse:
    one = prediction_pb2.Prediction(
        classification=prediction_pb2.Classification(
            label="7", score=0.75, top_k=[prediction_pb2.Score(**best) for best in BEST]
        )
    )
    return prediction_pb2.PredictResponse(model_name="digits", model_version="3", predictions=[one])


# --- explained latency ---------------------------------------------------------------------------

SERVER_TIMING = 'decode;dur=0.5, queue;dur=1.25;desc="window", loop;dur=0.25, batch_rows;desc="8", total;dur=2'
EXPLAINED = Explained({"decode": 0.5, "queue": 1.25, "loop": 0.25}, 2.0, "window", 8)


def test_rest_asks_for_an_explanation_and_reads_it(rest: Rest, ask: Callable[..., Any]) -> None:
    """`explain` is called with what the header says; who does not give it does not ask."""
    told: list[Explained] = []
    rest.json(ANSWER_JSON, **{"Server-Timing": SERVER_TIMING})
    assert ask(rest.url, "predict", "digits", "seven", explain=told.append).predictions == [ANSWER]
    ask(rest.url, "predict", "digits", "seven")
    rest.json({"outputs": []}, **{"Server-Timing": SERVER_TIMING})
    assert ask(rest.url, "infer", "m", {"x": np.zeros(1, "f4")}, explain=told.append) == {}
    assert told == [EXPLAINED, EXPLAINED]
    assert [headers.get("x-explain") for _, _, headers, _ in rest.asked] == ["1", None, "1"]


def test_grpc_asks_for_an_explanation_and_reads_it(v2: Grpc, ask: Callable[..., Any]) -> None:
    """The same with metadata and trailing metadata."""
    told: list[Explained] = []
    asked: list[str | None] = []

    def answer(context: grpc.ServicerContext) -> bytes:
        asked.append(dict(context.invocation_metadata()).get("x-explain"))
        context.set_trailing_metadata((("server-timing", SERVER_TIMING),))
        return b""

    v2.answer = answer
    assert ask(v2.url, "infer", "m", {"x": np.zeros(1, "f4")}, explain=told.append) == {}
    ask(v2.url, "infer", "m", {"x": np.zeros(1, "f4")})
    assert ask(v2.url, "predict", "digits", "seven", explain=told.append).predictions == []
    assert (told, asked) == ([EXPLAINED, EXPLAINED], ["1", None, "1"])


def test_a_server_that_does_not_tell_is_no_error(rest: Rest, v2: Grpc, ask: Callable[..., Any]) -> None:
    """Without an explanation the answer is the answer, and `explain` is not called."""
    told: list[Explained] = []
    rest.json(ANSWER_JSON)
    v2.message(answer_message())
    for url in (rest.url, v2.url):
        assert ask(url, "predict", "digits", "seven", explain=told.append).predictions == [ANSWER]
    assert told == []


def test_an_explanation_that_is_none_is_internal(rest: Rest, ask: Callable[..., Any]) -> None:
    """A Server-Timing of another kind is named, where one was asked for."""
    rest.json(ANSWER_JSON, **{"Server-Timing": "cache;desc=hit"})
    with pytest.raises(ClientError, match="server-timing") as caught:
        ask(rest.url, "predict", "digits", "seven", explain=print)
    assert caught.value.code is Code.INTERNAL
    assert ask(rest.url, "predict", "digits", "seven").predictions == [ANSWER]


# --- predict -------------------------------------------------------------------------------------


def test_predict_answers_the_same_over_both_wires(rest: Rest, v2: Grpc, ask: Callable[..., Any]) -> None:
    """The answer is the shared dataclass, whatever carried it."""
    rest.json(ANSWER_JSON)
    v2.message(answer_message())

    for url in (rest.url, v2.url):
        answer = ask(url, "predict", "digits", [[1, 2]])

        assert (answer.model_name, answer.model_version, answer.id) == ("digits", "3", "")
        assert answer.predictions == [ANSWER]


def test_rest_sends_rows_texts_and_pictures_as_json(rest: Rest, ask: Callable[..., Any], tmp_path: Path) -> None:
    """A row is an object or an array, a text a string, a picture its base64 with its type if that is known."""
    rest.json(ANSWER_JSON)
    file = tmp_path / "seven.png"
    file.write_bytes(PICTURE)
    row = {"age": np.int64(41), "when": None, "x": np.float32(0.5)}

    ask(rest.url, "predict", "a/b c", [row, (1, "two"), "text", PICTURE, file], version="2", top_k=3, timeout_s=1.5)

    method, path, headers, body = rest.asked[0]
    b64 = base64.b64encode(PICTURE).decode()
    assert (method, path) == ("POST", "/v2/models/a%2Fb%20c/versions/2/predict")
    assert headers["content-type"] == "application/json"
    assert headers["x-request-timeout"] == "1500"
    assert json.loads(body) == {
        "inputs": [
            {"age": 41, "when": None, "x": 0.5},
            [1, "two"],
            "text",
            {"b64": b64},
            {"b64": b64, "content_type": "image/png"},
        ],
        "top_k": 3,
    }


def test_rest_sends_one_picture_of_known_type_as_the_body(rest: Rest, ask: Callable[..., Any], tmp_path: Path) -> None:
    """No base64 where a picture can go as it is; top_k is then in the query."""
    rest.json(ANSWER_JSON)
    file = tmp_path / "seven.jpg"
    file.write_bytes(PICTURE)

    ask(rest.url, "predict", "digits", file, top_k=2)

    _, path, headers, body = rest.asked[0]
    assert (path, headers["content-type"], body) == ("/v2/models/digits/predict?top_k=2", "image/jpeg", PICTURE)
    assert "x-request-timeout" not in headers


def test_grpc_sends_every_kind_of_input(v2: Grpc, ask: Callable[..., Any], tmp_path: Path) -> None:
    """The message holds rows by name and by order, texts and pictures; the deadline is gRPC's own."""
    v2.message(answer_message())
    file = tmp_path / "seven.png"
    file.write_bytes(PICTURE)
    row = {"age": 41, "nested": {"x": [True, None]}}

    ask(
        v2.url, "predict", "digits", [row, {}, (1, "two"), [], "text", PICTURE, file], version="2", top_k=3, timeout_s=9
    )

    method, raw, remaining = v2.asked[0]
    sent = prediction_pb2.PredictRequest.FromString(raw)
    assert method == PREDICT
    assert (sent.model_name, sent.model_version, sent.top_k) == ("digits", "2", 3)
    assert [one.WhichOneof("kind") for one in sent.inputs] == [
        "row",
        "row",
        "values",
        "values",
        "text",
        "image",
        "image",
    ]
    assert MessageToDict(sent.inputs[0].row) == {"age": 41.0, "nested": {"x": [True, None]}}
    assert MessageToDict(sent.inputs[2].values) == [1.0, "two"]
    assert (sent.inputs[4].text, sent.inputs[5].image.data) == ("text", PICTURE)
    assert (sent.inputs[5].image.content_type, sent.inputs[6].image.content_type) == ("", "image/png")
    assert remaining is not None
    # grpcio writes seconds in hundredths on the wire, rounded up: what is left may seem a little more than was given.
    assert 0 < remaining <= 9.01


def test_grpc_refuses_a_number_that_it_would_change(v2: Grpc, ask: Callable[..., Any]) -> None:
    """Protobuf's Struct holds doubles: a whole number beyond 2**53 is named, not rounded."""
    with pytest.raises(ClientError, match=r"inputs\[0\]\.account: 9007199254740993 is not exact"):
        ask(v2.url, "predict", "fraud", {"account": 2**53 + 1})

    assert v2.asked == []


def test_rest_refuses_nan(rest: Rest, ask: Callable[..., Any]) -> None:
    """JSON has no NaN: it is refused, and neither sent as null nor as a word that no parser takes."""
    with pytest.raises(ClientError, match="no NaN") as caught:
        ask(rest.url, "predict", "fraud", {"amount": float("nan")})

    assert caught.value.code is Code.INVALID_ARG
    assert rest.asked == []


# --- inputs --------------------------------------------------------------------------------------


def test_a_json_file_holds_one_row_or_several(tmp_path: Path) -> None:
    """An array of arrays or objects is several inputs, anything else is one; files mix with other inputs."""
    many, one = tmp_path / "many.json", tmp_path / "one.JSON"
    many.write_text('[{"a": 1}, [2, 3]]')
    one.write_bytes(b"\xef\xbb\xbf[1, 2]")

    assert raw_inputs([many, one, "text"]) == [
        RowInput({"a": 1}),
        RowInput([2, 3]),
        RowInput([1, 2]),
        TextInput("text"),
    ]


def test_a_txt_file_is_one_text(tmp_path: Path) -> None:
    """All of it but the last line break; what is no UTF-8 is refused by the file's name."""
    (tmp_path / "a.txt").write_text("two\nlines\n")
    (tmp_path / "b.txt").write_bytes(b"\xff")

    assert raw_inputs(tmp_path / "a.txt") == [TextInput("two\nlines")]
    with pytest.raises(ClientError, match=r"b.txt: is no UTF-8: .* at byte 0"):
        raw_inputs(tmp_path / "b.txt")


def test_an_array_of_numpy_is_rows() -> None:
    """A matrix is one input for each of its rows, in plain numbers."""
    assert raw_inputs(np.array([[1, 2], [3, 4]], np.int8)) == [RowInput([1, 2]), RowInput([3, 4])]
    assert raw_inputs([np.array([1.5, 2])]) == [RowInput([1.5, 2.0])]


def test_bytes_of_unknown_kind_are_json_if_they_begin_like_it() -> None:
    """Whatever does not begin like JSON is a picture, for the server to judge."""
    assert inputs_of_bytes(b'\n {"a": 1}') == [RowInput({"a": 1})]
    assert inputs_of_bytes(b'"good film"') == [TextInput("good film")]
    assert inputs_of_bytes(PICTURE) == [ImageInput(PICTURE)]
    with pytest.raises(ClientError, match="nothing to read"):
        inputs_of_bytes(b" \n")


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ([], "inputs: there must be at least one"),
        ([5.1, 3.5], r"inputs\[0\]: 5.1 is no input"),
        (7, "inputs: int is neither"),
        ([{"a": object()}], r"inputs\[0\]\.a: object is not a value"),
        ([{"a": [b"x"]}], r"inputs\[0\]\.a\[0\]: bytes is not a value"),
        ([{1: 2}], r"inputs\[0\]: the column name 1 is not a string"),
    ],
)
def test_what_is_no_input_is_named(inputs: Any, problem: str) -> None:
    """An argument that can't be sent is INVALID_ARG, and says where it is wrong."""
    with pytest.raises(ClientError, match=problem) as caught:
        raw_inputs(inputs)

    assert caught.value.code is Code.INVALID_ARG


def test_json_that_is_none_is_refused() -> None:
    """Broken JSON and JSON that is no input are both INVALID_ARG."""
    for document in ('{"a": ', "12", "null"):
        with pytest.raises(ClientError) as caught:
            inputs_of_json(document)
        assert caught.value.code is Code.INVALID_ARG


# --- infer ---------------------------------------------------------------------------------------

INPUTS = {
    "x": np.arange(6, dtype=">f4").reshape(2, 3),
    "words": np.array(["a", "é"], dtype=object),
    "flag": [[True], [False]],
}
RAW_INPUTS = [np.arange(6, dtype="<f4").tobytes(), pack_bytes(["a", "é"]), b"\x01\x00"]
SCORES = np.array([[0.5, 1.5]], np.float16)
LABELS = pack_bytes([b"cat", b"\xff"])


def test_rest_infer_uses_the_binary_extension(rest: Rest, ask: Callable[..., Any]) -> None:
    """Tensors follow the JSON as little-endian bytes, both ways; an output may still come as JSON."""
    head = json.dumps(
        {
            "model_name": "m",
            "outputs": [
                {"name": "s", "datatype": "FP16", "shape": [1, 2], "parameters": {"binary_data_size": 4}},
                {"name": "j", "datatype": "INT64", "shape": [2, 1], "data": [[1], [2]]},
                {"name": "l", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(LABELS)}},
                {"name": "t", "datatype": "BYTES", "shape": [1, 2], "data": ["é", "b"]},
            ],
        }
    ).encode()
    rest.answer = (200, {"Inference-Header-Content-Length": str(len(head))}, head + SCORES.tobytes() + LABELS)

    out = ask(rest.url, "infer", "m", INPUTS, ["s", "j", "l", "t"], version="1", timeout_s=9.0301)

    _, path, headers, body = rest.asked[0]
    length = int(headers["inference-header-content-length"])
    header = json.loads(body[:length])
    assert path == "/v2/models/m/versions/1/infer"
    assert headers["x-request-timeout"] == "9031"
    assert body[length:] == b"".join(RAW_INPUTS)
    assert header["inputs"] == [
        {"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}},
        {"name": "words", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(RAW_INPUTS[1])}},
        {"name": "flag", "shape": [2, 1], "datatype": "BOOL", "parameters": {"binary_data_size": 2}},
    ]
    assert header["outputs"] == [{"name": name, "parameters": {"binary_data": True}} for name in "sjlt"]
    assert list(out) == ["s", "j", "l", "t"]
    assert np.array_equal(out["s"], SCORES)
    assert out["s"].dtype == np.float16
    assert out["j"].tolist() == [[1], [2]]
    assert out["l"].tolist() == [b"cat", b"\xff"]
    assert out["t"].tolist() == [["é".encode(), b"b"]]


def test_rest_infer_asks_for_all_outputs_in_binary(rest: Rest, ask: Callable[..., Any]) -> None:
    """Without names every output is wanted; an answer without a header length is JSON alone."""
    rest.json({"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [0.5]}]})

    out = ask(rest.url, "infer", "m", {"x": np.zeros((1, 0), np.float32)})

    length = int(rest.asked[0][2]["inference-header-content-length"])
    header = json.loads(rest.asked[0][3][:length])
    assert header["parameters"] == {"binary_data_output": True}
    assert "outputs" not in header
    assert out["y"].dtype == np.float32


def test_grpc_infer_sends_raw_contents_and_reads_both_forms(v2: Grpc, ask: Callable[..., Any]) -> None:
    """Inputs go raw; outputs are read raw, or typed from a server that answers so."""
    tensor = service_pb2.ModelInferResponse.InferOutputTensor
    outputs = [tensor(name="s", datatype="FP16", shape=[1, 2]), tensor(name="l", datatype="BYTES", shape=[2])]
    v2.message(service_pb2.ModelInferResponse(outputs=outputs, raw_output_contents=[SCORES.tobytes(), LABELS]))

    raw = ask(v2.url, "infer", "m", INPUTS, ["s", "l"], version="1", timeout_s=9)

    method, request, _ = v2.asked[0]
    sent = service_pb2.ModelInferRequest.FromString(request)
    assert method == f"{V2}ModelInfer"
    assert (sent.model_name, sent.model_version) == ("m", "1")
    assert [(t.name, t.datatype, list(t.shape)) for t in sent.inputs] == [
        ("x", "FP32", [2, 3]),
        ("words", "BYTES", [2]),
        ("flag", "BOOL", [2, 1]),
    ]
    assert list(sent.raw_input_contents) == RAW_INPUTS
    assert [t.name for t in sent.outputs] == ["s", "l"]
    assert np.array_equal(raw["s"], SCORES)
    assert raw["l"].tolist() == [b"cat", b"\xff"]

    contents = service_pb2.InferTensorContents
    outputs = [
        tensor(name="i", datatype="INT8", shape=[1, 2], contents=contents(int_contents=[1, -2])),
        tensor(name="b", datatype="BYTES", shape=[2], contents=contents(bytes_contents=[b"cat", b""])),
    ]
    v2.message(service_pb2.ModelInferResponse(outputs=outputs))

    typed = ask(v2.url, "infer", "m", INPUTS)

    assert (typed["i"].tolist(), typed["i"].dtype) == ([[1, -2]], np.int8)
    assert typed["b"].tolist() == [b"cat", b""]


def test_bytes_in_a_list_keep_their_zeros() -> None:
    """A list of bytes is sent as it is; numpy's string type would cut zero bytes off the end."""
    words, mixed = tensors({"words": [b"a\0", b"\0"], "mixed": ["\0", b"\xff"]})

    assert words.data == pack_bytes([b"a\0", b"\0"])
    assert mixed.data == pack_bytes([b"\0", b"\xff"])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.zeros(1, np.complex64), "no datatype for numpy's complex64"),
        ([object()], "must hold str or bytes"),
        ([1, "a"], "must hold str or bytes"),
        ([[1, 2], [3]], "numpy makes no array of it"),
        (np.array([b"a", 3], dtype=object), "must hold str or bytes"),
    ],
)
def test_infer_refuses_what_v2_has_no_datatype_for(value: Any, problem: str) -> None:
    """An array that v2 can't carry is INVALID_ARG by the input's name."""
    with Client("http://127.0.0.1:9") as client, pytest.raises(ClientError, match=rf"inputs\['x'\]: .*{problem}"):
        client.infer("m", {"x": value})


# --- health, index, metadata ---------------------------------------------------------------------


def test_server_ready_is_what_the_server_says(rest: Rest, v2: Grpc, ask: Callable[..., Any]) -> None:
    """REST says no by any status that is no success, gRPC by the field."""
    assert ask(rest.url, "server_ready") is True
    assert rest.asked[0][:2] == ("GET", "/v2/health/ready")
    for status in (400, 503):
        rest.answer = (status, {}, b"")
        assert ask(rest.url, "server_ready") is False
    assert ask(v2.url, "server_ready") is False
    v2.message(service_pb2.ServerReadyResponse(ready=True))
    assert ask(v2.url, "server_ready") is True


def test_models_is_the_repository_index(rest: Rest, v2: Grpc, ask: Callable[..., Any]) -> None:
    """Every version with its state and reason; what a server leaves out is empty."""
    bad = {"name": "bad", "version": "1", "state": "UNAVAILABLE", "reason": "golden"}
    rest.json([bad, {"name": "empty"}])
    index = service_pb2.RepositoryIndexResponse
    v2.message(index(models=[index.ModelIndex(**bad), index.ModelIndex(name="empty")]))

    for url in (rest.url, v2.url):
        assert ask(url, "models") == [IndexEntry(**bad), IndexEntry("empty", "", "", "")]
    assert rest.asked[0][:2] == ("POST", "/v2/repository/index")
    assert v2.asked[0][0] == f"{V2}RepositoryIndex"


def test_model_metadata(rest: Rest, v2: Grpc, ask: Callable[..., Any]) -> None:
    """Names, datatypes and shapes; what `predict` takes only where the wire has a place for it."""
    x = {"name": "x", "datatype": "FP32", "shape": [-1, 30]}
    plain = {"name": "m", "versions": ["1", "2"], "platform": "onnxruntime_onnx", "inputs": [x], "outputs": []}
    rest.json({**plain, "predict": {"task": "tabular"}})
    v2.message(service_pb2.ModelMetadataResponse(**plain))

    for url, predict in ((rest.url, {"task": "tabular"}), (v2.url, None)):
        metadata = ask(url, "model_metadata", "m", version="2")

        assert (metadata.versions, metadata.platform) == (("1", "2"), "onnxruntime_onnx")
        assert metadata.inputs == (TensorSpec("x", "FP32", (-1, 30)),)
        assert metadata.predict == predict
    assert rest.asked[0][:2] == ("GET", "/v2/models/m/versions/2")
    assert service_pb2.ModelMetadataRequest.FromString(v2.asked[0][1]).version == "2"


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", Code)
def test_every_code_of_the_server_comes_back(code: Code) -> None:
    """The client reads the server's own table backwards; gRPC alone has one status for two codes."""
    assert code_of_http(STATUS[code].http) is code
    expected = Code.EXHAUSTED if code is Code.TOO_LARGE else code
    assert code_of_grpc(STATUS[code].grpc.name) is expected


def test_an_unlisted_status_has_a_code() -> None:
    """Another 4xx is the caller's fault; what nobody knows is INTERNAL."""
    assert [code_of_http(status) for status in (405, 302, 505)] == [Code.INVALID_ARG, Code.INTERNAL, Code.INTERNAL]
    assert code_of_grpc("UNKNOWN") is Code.INTERNAL


def test_a_full_queue_says_when_to_come_back(rest: Rest, v2: Grpc, ask: Callable[..., Any]) -> None:
    """Retry-After and RetryInfo are the same hint, in seconds."""
    rest.json({"error": "the queue is full"}, 429, **{"Retry-After": "2"})
    details = status_details(Failure(Code.EXHAUSTED, "the queue is full", 2500))
    v2.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", (("grpc-status-details-bin", details),))

    for url, seconds in ((rest.url, 2.0), (v2.url, 2.5)):
        with pytest.raises(ClientError) as caught:
            ask(url, "predict", "m", "text")
        error = caught.value
        assert (error.code, error.message, error.retry_after_s) == (Code.EXHAUSTED, "the queue is full", seconds)


@pytest.mark.parametrize("details", [b"", b"\xff\xff", b"\x1a\x02\xff\xff", b"\x18\x05"])
def test_broken_details_lose_only_the_hint(v2: Grpc, ask: Callable[..., Any], details: bytes) -> None:
    """The status stands, whatever its details hold."""
    v2.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("grpc-status-details-bin", details),))

    with pytest.raises(ClientError) as caught:
        ask(v2.url, "models")

    assert (caught.value.code, caught.value.retry_after_s) == (Code.EXHAUSTED, None)


def test_an_error_of_the_server_keeps_its_words(rest: Rest, v2: Grpc, ask: Callable[..., Any]) -> None:
    """The message is the server's; one without words (a proxy's page) says its status."""
    rest.json({"error": "unknown model: 'm'"}, 404)
    v2.fail(grpc.StatusCode.NOT_FOUND, "unknown model: 'm'")
    for url in (rest.url, v2.url):
        with pytest.raises(ClientError) as caught:
            ask(url, "infer", "m", {"x": [1.0]})
        assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "unknown model: 'm'")
    for page in (b"<html>", b"[1]", b'"x"', b"\xff"):
        rest.answer = (502, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, page)
        with pytest.raises(ClientError) as caught:
            ask(rest.url, "infer", "m", {"x": [1.0]})
        error = caught.value
        assert (error.code, error.message, error.retry_after_s) == (Code.UNAVAILABLE, "HTTP 502", None)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_is_not_there_is_unavailable_by_its_url(scheme: str, ask: Callable[..., Any]) -> None:
    """Whoever can't be reached is named; so it is for server_ready, which answers False only for a server."""
    url = f"{scheme}://127.0.0.1:{free_port()}"

    for method in ("server_ready", "models"):
        with pytest.raises(ClientError, match=url) as caught:
            ask(url, method)
        assert caught.value.code is Code.UNAVAILABLE


def test_silence_ends_with_the_deadline(ask: Callable[..., Any]) -> None:
    """A server that takes the connection and never answers costs the caller its deadline, and no more."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for scheme in ("http", "grpc"):
            with pytest.raises(ClientError) as caught:
                ask(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", "models", timeout_s=0.05)
            assert caught.value.code is Code.DEADLINE


def test_an_answer_of_another_kind_is_internal(rest: Rest, v2: Grpc, ask: Callable[..., Any]) -> None:
    """Whatever listens there, an answer that is none of the protocol's is an error of this one kind."""
    for content in (b"hello", b"[]", b"{}", b'{"outputs": [{}]}', b'{"predictions": 1, "model_name": ""}', b"\xff\xfe"):
        rest.answer = (200, {}, content)
        for call in (("infer", "m", {"x": [1.0]}), ("predict", "m", "text")):
            with pytest.raises(ClientError, match=rest.url) as caught:
                ask(rest.url, *call)
            assert caught.value.code is Code.INTERNAL
    v2.message(prediction_pb2.PredictResponse(predictions=[prediction_pb2.Prediction()]))
    with pytest.raises(ClientError) as caught:
        ask(v2.url, "predict", "m", "text")
    assert caught.value.code is Code.INTERNAL


def test_an_output_shorter_than_its_shape_is_internal(rest: Rest, v2: Grpc, ask: Callable[..., Any]) -> None:
    """Bytes that do not make the shape are no array."""
    output = {"name": "y", "datatype": "FP32", "shape": [2]}
    head = json.dumps({"outputs": [{**output, "parameters": {"binary_data_size": 8}}]}).encode()
    rest.answer = (200, {"Inference-Header-Content-Length": str(len(head))}, head + b"\0\0\0\0")
    tensor = service_pb2.ModelInferResponse.InferOutputTensor(**output)
    v2.message(service_pb2.ModelInferResponse(outputs=[tensor], raw_output_contents=[b"\0\0\0\0"]))

    for url in (rest.url, v2.url):
        with pytest.raises(ClientError) as caught:
            ask(url, "infer", "m", {"x": [1.0]})
        assert caught.value.code is Code.INTERNAL


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://h:1", "http://", "grpc://:8001", "http://h:x", "grpc://h:99999", "http://h:0"]
)
def test_a_url_of_another_form_is_refused(url: str) -> None:
    """The constructor says what a URL looks like, for both clients."""
    for kind in (Client, AsyncClient):
        with pytest.raises(ClientError, match="http://HOST:PORT") as caught:
            kind(url)
        assert caught.value.code is Code.INVALID_ARG


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"top_k": -1}, "top_k"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"model": ""}, "model"),
    ],
)
def test_arguments_out_of_range_are_refused(
    rest: Rest, ask: Callable[..., Any], arguments: dict[str, Any], field: str
) -> None:
    """What no server could make sense of is not sent."""
    with pytest.raises(ClientError, match=f"INVALID_ARG: {field}"):
        ask(rest.url, "predict", **{"model": "m", "inputs": "text", **arguments})

    assert rest.asked == []


def test_a_proxy_is_not_asked_for_a_loopback_address(
    rest: Rest, v2: Grpc, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in the environment can't reach this machine's own addresses."""
    for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    v2.message(service_pb2.ServerReadyResponse(ready=True))

    assert ask(rest.url, "server_ready")
    assert ask(v2.url, "server_ready")


def test_a_large_answer_is_read(v2: Grpc, ask: Callable[..., Any]) -> None:
    """grpc's default limit of 4 MiB on what is received does not bind the client."""
    tensor = service_pb2.ModelInferResponse.InferOutputTensor(name="y", datatype="UINT8", shape=[5 << 20])
    v2.message(service_pb2.ModelInferResponse(outputs=[tensor], raw_output_contents=[bytes(5 << 20)]))

    assert ask(v2.url, "infer", "m", {"x": [1.0]})["y"].shape == (5 << 20,)


def test_one_async_client_has_many_calls_in_flight(rest: Rest, v2: Grpc) -> None:
    """Calls do not wait for each other, and each gets an answer."""
    rest.json(ANSWER_JSON)
    v2.message(answer_message())

    async def main(url: str) -> list[Any]:
        async with AsyncClient(url) as client:
            return await asyncio.gather(*(client.predict("digits", "text") for _ in range(20)))

    for server in (rest, v2):
        assert [answer.predictions for answer in asyncio.run(main(server.url))] == [[ANSWER]] * 20
        assert len(server.asked) == 20


def test_importing_the_client_imports_no_wire() -> None:
    """Only the wire that a URL names is imported, and no part of the server's machinery ever."""
    code = """
import sys
from server.client import Client
heavy = {"httpx", "grpc", "onnxruntime", "httptools", "pydantic", "typer", "PIL"} & set(sys.modules)
Client("http://127.0.0.1:1").close()
late = {"grpc", "onnxruntime", "httptools", "server.transport"} & set(sys.modules)
sys.exit(str(heavy | late) if heavy | late else 0)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
