"""What a malformed call is told, by a real Triton and by us: the same status, and Triton's words in our text.

Clients look for these words, or for the status. Where ours differs, the table in transport/README.md says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.support.beside_triton import Sides, both_servers
from tests.support.onnx_models import echo_folder, linear_folder

pytestmark = pytest.mark.e2e

X = np.arange(3, dtype=np.float32)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    folder = tmp_path_factory.mktemp("errors")
    repository = folder / "models"
    linear_folder(repository, "linear", versions=(1, 3), more="version_policy { all {} }")
    echo_folder(repository, "half", datatype="FP16")
    with both_servers(folder, repository) as found:
        yield found


# --- gRPC ---------------------------------------------------------------------------------------------

Change = Callable[[Any], object]


def infer(*changes: Change, raw: bytes | None = X.tobytes(), **tensor: Any) -> Any:
    """A call that is right but for what is said here."""
    message = pb.ModelInferRequest(model_name="linear")
    message.inputs.add(**{"name": "x", "datatype": "FP32", "shape": [1, 3], **tensor})
    if raw is not None:
        message.raw_input_contents.append(raw)
    for change in changes:
        change(message)
    return message


def twice(name: str) -> Change:
    def change(message: Any) -> None:
        message.inputs.add(name=name, datatype="FP32", shape=[1, 3])
        message.raw_input_contents.append(X.tobytes())

    return change


def parameter(name: str, **value: Any) -> Any:
    return infer(lambda m: m.parameters[name].MergeFrom(pb.InferParameter(**value)))


def typed(field: str, *values: object) -> Any:
    return infer(lambda m: getattr(m.inputs[0].contents, field).extend(values), raw=None)


BAD, ABSENT, FINE = "INVALID_ARGUMENT", "NOT_FOUND", "OK"

OVER_GRPC: dict[str, tuple[Any, str, str]] = {
    "an unknown model": (
        infer(lambda m: setattr(m, "model_name", "nobody")),
        ABSENT,
        "Request for unknown model: 'nobody' is not found",
    ),
    "no model": (infer(lambda m: m.ClearField("model_name")), ABSENT, "Request for unknown model: '' is not found"),
    "an unknown version": (
        infer(lambda m: setattr(m, "model_version", "2")),
        ABSENT,
        "Request for unknown model: 'linear' version 2 is not found",
    ),
    "no input": (
        infer(lambda m: (m.ClearField("inputs"), m.ClearField("raw_input_contents"))),
        BAD,
        "expected 1 inputs but got 0 inputs for model 'linear'. Got input(s) [], but missing required input(s) ['x']",
    ),
    "an unknown input": (infer(name="z"), BAD, "unexpected inference input 'z' for model 'linear'"),
    "one input too many": (infer(twice("z")), BAD, "'linear'"),
    "an input twice": (infer(twice("x")), BAD, "input 'x' already exists in request"),
    "another datatype": (
        infer(datatype="INT32"),
        BAD,
        "inference input 'x' data-type is 'INT32', but model 'linear' expects 'FP32'",
    ),
    "an unknown datatype": (infer(datatype="FP31"), BAD, ""),
    "another shape": (
        infer(shape=[1, 4], raw=bytes(16)),
        BAD,
        "unexpected shape for input 'x' for model 'linear'. Expected [-1,3], got [1,4]",
    ),
    "no batch dimension": (
        infer(shape=[3]),
        BAD,
        "unexpected shape for input 'x' for model 'linear'. Expected [-1,3], got [3]",
    ),
    "a dimension below zero": (infer(shape=[-1, 3]), BAD, ""),
    "no rows": (infer(shape=[0, 3], raw=b""), BAD, "'linear'"),
    "too many rows": (
        infer(shape=[9, 3], raw=bytes(108)),
        BAD,
        "inference request batch-size must be <= 8 for 'linear'",
    ),
    "too few bytes": (infer(raw=bytes(8)), BAD, "Expected 12, got 8"),
    "too many bytes": (infer(raw=bytes(16)), BAD, "input byte size mismatch"),
    "no contents": (infer(raw=None), BAD, ""),
    "raw and typed contents": (
        infer(lambda m: m.inputs[0].contents.fp32_contents.extend([1, 2, 3])),
        BAD,
        "contents field must not be specified when using raw_input_contents",
    ),
    "typed contents": (typed("fp32_contents", 1, 2, 3), FINE, ""),
    "typed contents of another type": (typed("int_contents", 1, 2, 3), BAD, "unexpected explicit tensor data"),
    "too few typed contents": (typed("fp32_contents", 1, 2), BAD, ""),
    "an unknown output": (
        infer(lambda m: m.outputs.add(name="q")),
        BAD,
        "unexpected inference output 'q' for model 'linear'",
    ),
    "parameters of the caller's own": (
        infer(
            lambda m: m.parameters["a"].MergeFrom(pb.InferParameter(string_param="x")),
            lambda m: m.parameters["b"].MergeFrom(pb.InferParameter(int64_param=-1)),
            lambda m: m.parameters["c"].MergeFrom(pb.InferParameter(bool_param=True)),
            lambda m: m.parameters["d"].MergeFrom(pb.InferParameter(double_param=0.5)),
            lambda m: m.parameters["headers"].MergeFrom(pb.InferParameter(string_param="x")),
            lambda m: m.parameters["Triton_x"].MergeFrom(pb.InferParameter(bool_param=True)),
        ),
        FINE,
        "",
    ),
    "a reserved parameter": (
        parameter("triton_x", bool_param=True),
        BAD,
        "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with "
        "'triton_' are allowed: triton_enable_empty_final_response",
    ),
    "an answer's parameter": (
        parameter("triton_final_response", bool_param=True),
        BAD,
        "are reserved for Triton usage",
    ),
    "the flag of empty ends": (parameter("triton_enable_empty_final_response", bool_param=True), FINE, ""),
    "that flag as a number": (
        parameter("triton_enable_empty_final_response", int64_param=1),
        BAD,
        "triton_enable_empty_final_response",
    ),
    "a parameter without a value": (infer(lambda m: m.parameters["p"].SetInParent()), BAD, "'p'"),
    "a priority": (parameter("priority", int64_param=1), FINE, ""),
    "an unsigned priority": (parameter("priority", uint64_param=1), FINE, ""),
    "a priority beyond the levels": (parameter("priority", int64_param=99), FINE, ""),
    "a priority as text": (parameter("priority", string_param="1"), BAD, "priority"),
    "a priority below zero": (parameter("priority", int64_param=-1), BAD, "priority"),
    "a priority that is true": (parameter("priority", bool_param=True), BAD, "priority"),
    "a timeout": (parameter("timeout", int64_param=10_000_000), FINE, ""),
    "a timeout as text": (parameter("timeout", string_param="1"), BAD, "timeout"),
    "a timeout as a fraction": (parameter("timeout", double_param=1.5), BAD, "timeout"),
    "no classes": (
        infer(
            lambda m: m.outputs.add(name="y").parameters["classification"].MergeFrom(pb.InferParameter(int64_param=0))
        ),
        BAD,
        "invalid value for 'classification' parameter",
    ),
    "classes as text": (
        infer(
            lambda m: (
                m.outputs.add(name="y").parameters["classification"].MergeFrom(pb.InferParameter(string_param="3"))
            )
        ),
        BAD,
        "invalid value type for 'classification' parameter",
    ),
    "classes in shared memory": (
        infer(
            lambda m: m.outputs.add(name="y").parameters["classification"].MergeFrom(pb.InferParameter(int64_param=1)),
            lambda m: m.outputs[0].parameters["shared_memory_region"].MergeFrom(pb.InferParameter(string_param="r")),
            lambda m: m.outputs[0].parameters["shared_memory_byte_size"].MergeFrom(pb.InferParameter(int64_param=8)),
        ),
        BAD,
        "output can't set both 'shared_memory_region' and 'classification'",
    ),
    "a version that is no number": (infer(lambda m: setattr(m, "model_version", "v1")), BAD, ""),
    "a version with a leading zero": (infer(lambda m: setattr(m, "model_version", "01")), FINE, ""),
    "one raw content too many": (infer(lambda m: m.raw_input_contents.append(b"x")), FINE, ""),
    "an output twice": (infer(lambda m: (m.outputs.add(name="y"), m.outputs.add(name="y"))), FINE, ""),
    "an unsigned timeout": (parameter("timeout", uint64_param=10_000_000), BAD, ""),
    "a timeout below zero": (parameter("timeout", int64_param=-1), FINE, ""),
    "an unsigned number of the caller's own": (parameter("mine", uint64_param=5), BAD, ""),
}
"""What is asked, what Triton says, and the words that both say."""

OURS_OVER_GRPC = {
    "a version that is no number": ABSENT,
    "a version with a leading zero": ABSENT,
    "one raw content too many": BAD,
    "an output twice": BAD,
    "an unsigned timeout": FINE,
    "a timeout below zero": BAD,
    "an unsigned number of the caller's own": FINE,
}
"""Our status, where it is another than Triton's."""


def ask(port: int, message: Any) -> tuple[str, str]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=30)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return FINE, ""


@pytest.mark.parametrize("asked", OVER_GRPC)
def test_over_grpc(sides: Sides, asked: str) -> None:
    """The status, but for what the table names, and the words."""
    message, status, words = OVER_GRPC[asked]
    theirs, ours = ask(sides.triton.grpc, message), ask(sides.ours.grpc, message)
    assert (theirs[0], ours[0]) == (status, OURS_OVER_GRPC.get(asked, status)), (theirs, ours)
    assert words in theirs[1]
    assert words in ours[1]


# --- REST ---------------------------------------------------------------------------------------------

MISSING: Any = object()


def body(outputs: Any = MISSING, parameters: Any = MISSING, **tensor: Any) -> dict[str, Any]:
    """A call that is right but for what is said here."""
    said = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3], **tensor}
    found: dict[str, Any] = {"inputs": [{key: value for key, value in said.items() if value is not MISSING}]}
    if outputs is not MISSING:
        found["outputs"] = outputs
    if parameters is not MISSING:
        found["parameters"] = parameters
    return found


OVER_REST: dict[str, tuple[Any, int, int, str]] = {
    "another datatype": (
        body(datatype="INT32"),
        400,
        400,
        "inference input 'x' data-type is 'INT32', but model 'linear' expects 'FP32'",
    ),
    "an unknown datatype": (body(datatype="FP31"), 400, 400, "datatype"),
    "another shape": (
        body(shape=[1, 4], data=[1, 2, 3, 4]),
        400,
        400,
        "unexpected shape for input 'x' for model 'linear'. Expected [-1,3], got [1,4]",
    ),
    "too many rows": (
        body(shape=[9, 3], data=[0] * 27),
        400,
        400,
        "inference request batch-size must be <= 8 for 'linear'",
    ),
    "an unknown input": (body(name="z"), 400, 400, "unexpected inference input 'z' for model 'linear'"),
    "no inputs": ({"inputs": []}, 400, 400, "expected 1 inputs but got 0 inputs for model 'linear'"),
    "an unknown output": (body([{"name": "q"}]), 400, 400, "unexpected inference output 'q' for model 'linear'"),
    "no data": (body(data=MISSING), 400, 400, "data"),
    "no datatype": (body(datatype=MISSING), 500, 400, "datatype"),
    "no shape": (body(shape=MISSING), 500, 400, "shape"),
    "no name": (body(name=MISSING), 500, 400, "name"),
    "too little data": (body(data=[1, 2]), 500, 400, "data"),
    "text for numbers": (body(data=["a", "b", "c"]), 500, 400, "data"),
    "an id that is a number": ({**body(), "id": 5}, 500, 400, "id"),
    "nested data": (body(data=[[1, 2, 3]]), 200, 200, ""),
    "an output twice": (body([{"name": "y"}, {"name": "y"}]), 200, 400, ""),
    "parameters of the caller's own": (
        body(parameters={"a": "x", "b": -1, "c": True, "d": 0.5, "e": 2**64 - 1, "headers": "x", "Triton_": 1}),
        200,
        200,
        "",
    ),
    "no parameters": (body(parameters=None), 500, 200, ""),
    "parameters that are a list": (body(parameters=[]), 500, 400, ""),
    "a parameter that is null": (body(parameters={"a": None}), 400, 400, "a"),
    "a parameter that is a list": (body(parameters={"a": [1]}), 400, 400, "a"),
    "a reserved parameter": (
        body(parameters={"triton_x": 1}),
        400,
        400,
        "parameter keys starting with 'triton_' are reserved for Triton usage",
    ),
    "a priority": (body(parameters={"priority": 1}), 200, 200, ""),
    "a priority as text": (body(parameters={"priority": "1"}), 500, 400, "priority"),
    "a priority below zero": (body(parameters={"priority": -1}), 500, 400, "priority"),
    "a timeout": (body(parameters={"timeout": 10_000_000}), 200, 200, ""),
    "a timeout as a fraction": (body(parameters={"timeout": 1.5}), 500, 400, "timeout"),
    "binary_data_output that is a number": (body(parameters={"binary_data_output": 1}), 500, 400, "binary_data_output"),
    "no classes": (body([{"name": "y", "parameters": {"classification": 0}}]), 200, 200, ""),
    "classes as text": (body([{"name": "y", "parameters": {"classification": "2"}}]), 500, 400, "classification"),
}
"""What is asked, Triton's status and ours, and a word that both say."""


@pytest.mark.parametrize("asked", OVER_REST)
def test_over_rest(sides: Sides, asked: str) -> None:
    """The client's mistake is 400, where Triton's JSON reader says 500; the words are the same."""
    document, theirs, ours, words = OVER_REST[asked]
    for port, status in ((sides.triton.http, theirs), (sides.ours.http, ours)):
        answer = httpx.post(f"http://127.0.0.1:{port}/v2/models/linear/infer", json=document, timeout=30)
        assert answer.status_code == status, answer.text
        assert status == 200 or words in answer.json()["error"]


BINARY = body(data=MISSING, parameters=MISSING) | {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}]
}


@pytest.mark.parametrize(
    ("data", "length", "words"),
    [
        (X.tobytes()[:8], None, "unexpected size for input 'x', expecting 4 additional bytes"),
        (X.tobytes() + b"1234", None, "unexpected additional input data"),
        (b"", 10_000, "inference header size should be in range (0, "),
    ],
    ids=["cut short", "with a tail", "a length beyond the body"],
)
def test_binary_data_over_rest(sides: Sides, data: bytes, length: int | None, words: str) -> None:
    """400, in Triton's words."""
    text = httpx.Request("POST", "http://x", json=BINARY).content
    headers = {"Inference-Header-Content-Length": str(length or len(text))}
    for port in (sides.triton.http, sides.ours.http):
        url = f"http://127.0.0.1:{port}/v2/models/linear/infer"
        answer = httpx.post(url, content=text + data, headers=headers, timeout=30)
        assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text


@pytest.mark.parametrize(
    ("method", "path", "theirs", "ours"),
    [
        ("GET", "/v2/models/nobody", 404, 404),
        ("GET", "/v2/models/linear/versions/2", 404, 404),
        ("GET", "/v2/models/nobody/config", 404, 404),
        ("GET", "/v2/models/nobody/stats", 400, 404),
        ("GET", "/v2/models/linear/versions/2/stats", 400, 404),
        ("GET", "/v2/models/nobody/ready", 400, 404),
        ("GET", "/v2/models/linear/infer", 405, 405),
        ("POST", "/v2/models/linear", 405, 405),
        ("GET", "/v2/models/linear/nope", 404, 404),
        ("GET", "/v2/models/lin%65ar", 404, 200),
        ("GET", "/v2/models/linear/versions/v1", 404, 404),
        ("POST", "/v2/repository/models/linear/load", 503, 503),
    ],
)
def test_other_routes(sides: Sides, method: str, path: str, theirs: int, ours: int) -> None:
    """What is not there is 404 everywhere. Names are percent-decoded here."""
    for port, status in ((sides.triton.http, theirs), (sides.ours.http, ours)):
        assert httpx.request(method, f"http://127.0.0.1:{port}{path}", timeout=30).status_code == status


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_answer_is_told_alike(sides: Sides, encoding: str) -> None:
    """Of binary answers both tell where the tensors begin in what the client makes of the body."""
    rows = np.zeros((8, 1000), np.float16)
    tensor = {"name": "x", "datatype": "FP16", "shape": [8, 1000], "parameters": {"binary_data_size": rows.nbytes}}
    text = httpx.Request(
        "POST", "http://x", json={"inputs": [tensor], "parameters": {"binary_data_output": True}}
    ).content
    headers = {"Inference-Header-Content-Length": str(len(text)), "Accept-Encoding": encoding}
    answers = []
    for port in (sides.triton.http, sides.ours.http):
        url = f"http://127.0.0.1:{port}/v2/models/half/infer"
        answer = httpx.post(url, content=text + rows.tobytes(), headers=headers, timeout=30)
        assert answer.status_code == 200, answer.text
        answers.append(
            (answer.headers["content-encoding"], answer.headers["inference-header-content-length"], answer.content)
        )
    assert answers[0] == answers[1]
