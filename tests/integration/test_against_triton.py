"""The same calls, by Triton's own client, to a real Triton and to our server: answers, shapes, datatypes, errors.

Triton's build has no ONNX Runtime backend; its Python backend runs the same ONNX files, as `forwardpass triton` does.
A Triton that is missing (`make triton` installs one) skips these tests; under CI they fail.
"""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.e2e.conftest import REPOSITORY
from tests.support.beside_triton import Sides, both_servers
from tests.support.onnx_models import echo_folder, linear_folder, text_folder

pytestmark = pytest.mark.e2e

X = np.arange(6, dtype=np.float32).reshape(2, 3)
CLASSES = np.array([[0.5, 2, 1, 2, -1e-9], [3, 3, np.inf, 1e20, 7]], np.float32)
ABSOLUTE = 1e-5


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """Both servers on one repository: the shipped models, a plain one with two versions, and some that give back what
    they get: numbers with labels, one without a batch, FP16."""
    folder = tmp_path_factory.mktemp("compared")
    repository = folder / "models"
    repository.mkdir()
    for model in ("digits", "fraud", "breast_cancer"):
        (repository / model).symlink_to(REPOSITORY / model)
    linear_folder(repository, "linear", versions=(1, 3), more="version_policy { all {} }\ndynamic_batching {}")
    text_folder(repository, "text")
    echo_folder(repository, "echo", labels=["cat", "", "dog"])
    echo_folder(repository, "flat", max_batch_size=0, labels=["cat", "dog"])
    echo_folder(repository, "half", datatype="FP16")
    with both_servers(folder, repository) as found:
        yield found


Client = Any
"""tritonclient's, over gRPC or HTTP; both have the same methods."""


def clients(sides: Sides, transport: str) -> tuple[Client, Client]:
    """Triton's and ours."""
    if transport == "grpc":
        return tuple(triton_grpc.InferenceServerClient(f"127.0.0.1:{side.grpc}") for side in (sides.triton, sides.ours))  # type: ignore[return-value]
    return tuple(triton_http.InferenceServerClient(f"127.0.0.1:{side.http}") for side in (sides.triton, sides.ours))  # type: ignore[return-value]


def infer(
    client: Client,
    transport: str,
    model: str,
    inputs: dict[str, np.ndarray[Any, Any]],
    outputs: tuple[str, ...] = (),
    *,
    datatype: str = "",
    binary: bool = True,
    classes: int = 0,
    **more: Any,
) -> Any:
    """What the answer says, as plain values: the id, and of each output its shape, datatype and elements."""
    module = triton_grpc if transport == "grpc" else triton_http
    tensors = []
    for name, array in inputs.items():
        tensor = module.InferInput(name, list(array.shape), datatype or "FP32")
        if transport == "grpc":
            tensor.set_data_from_numpy(array)
        else:
            tensor.set_data_from_numpy(array, binary_data=binary)
        tensors.append(tensor)
    how = {} if transport == "grpc" else {"binary_data": binary}
    wanted = [module.InferRequestedOutput(name, class_count=classes, **how) for name in outputs] or None
    result = client.infer(model, tensors, outputs=wanted, **more)
    response = result.get_response(as_json=True) if transport == "grpc" else result.get_response()
    found = {one["name"]: (one["datatype"], [int(n) for n in one["shape"]]) for one in response["outputs"]}
    arrays = {name: result.as_numpy(name) for name in found}
    return response.get("id", ""), found, arrays


def outcome(call: Callable[[], Any]) -> Any:
    """The call's value, or its status."""
    try:
        return call()
    except InferenceServerException as error:
        return f"error {error.status()}"


def same(one: Any, other: Any) -> None:
    """Raises AssertionError unless both are equal, floats within `ABSOLUTE`."""
    if isinstance(one, tuple) and len(one) == 3:
        assert one[:2] == other[:2], (one, other)
        for name, array in one[2].items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(other[2][name], array, atol=ABSOLUTE, rtol=1e-4)
            else:
                assert array.tolist() == other[2][name].tolist()
    else:
        assert one == other


Ask = Callable[[Client, str], Any]

ASKED: dict[str, Ask] = {
    "the server lives": lambda client, _: client.is_server_live(),
    "the server is ready": lambda client, _: client.is_server_ready(),
    "a model is ready": lambda client, _: client.is_model_ready("linear"),
    "a version is ready": lambda client, _: client.is_model_ready("linear", "3"),
    "a version that is not there is not ready": lambda client, _: client.is_model_ready("linear", "2"),
    "two rows": lambda client, kind: infer(client, kind, "linear", {"x": X}),
    "an older version": lambda client, kind: infer(client, kind, "linear", {"x": X}, model_version="1"),
    "an id": lambda client, kind: infer(client, kind, "linear", {"x": X}, request_id="seven"),
    "a named output": lambda client, kind: infer(client, kind, "linear", {"x": X}, ("y",)),
    "a digit": lambda client, kind: infer(
        client, kind, "digits", {"image": np.full((3, 1, 20, 20), 0.25, dtype=np.float32)}
    ),
    "an unknown model": lambda client, kind: infer(client, kind, "nobody", {"x": X}),
    "an unknown version": lambda client, kind: infer(client, kind, "linear", {"x": X}, model_version="2"),
    "a version that is no number": lambda client, kind: infer(client, kind, "linear", {"x": X}, model_version="v1"),
    "an unknown input": lambda client, kind: infer(client, kind, "linear", {"z": X}),
    "an unknown output": lambda client, kind: infer(client, kind, "linear", {"x": X}, ("z",)),
    "a missing input": lambda client, kind: infer(client, kind, "linear", {}),
    "a wrong shape": lambda client, kind: infer(client, kind, "linear", {"x": X.reshape(3, 2)}),
    "a missing batch dimension": lambda client, kind: infer(client, kind, "linear", {"x": X[0]}),
    "too many rows": lambda client, kind: infer(client, kind, "linear", {"x": np.zeros((9, 3), np.float32)}),
    "a wrong datatype": lambda client, kind: infer(client, kind, "linear", {"x": X.astype(np.int32)}, datatype="INT32"),
    "an input that is there twice over": lambda client, kind: infer(client, kind, "linear", {"x": X, "z": X}),
    "two classes": lambda client, kind: infer(client, kind, "echo", {"x": CLASSES}, ("y",), classes=2),
    "more classes than there are": lambda client, kind: infer(client, kind, "echo", {"x": CLASSES}, ("y",), classes=9),
    "classes without a batch": lambda client, kind: infer(client, kind, "flat", {"x": CLASSES[0]}, ("y",), classes=2),
    "classes as JSON": lambda client, kind: infer(
        client, kind, "digits", {"image": np.ones((1, 1, 20, 20), np.float32)}, ("logits",), classes=3, binary=False
    ),
    "classes below zero": lambda client, kind: infer(client, kind, "echo", {"x": CLASSES}, ("y",), classes=-1),
    "classes of a datatype that has none": lambda client, kind: infer(
        client, kind, "half", {"x": X.astype(np.float16)}, ("y",), datatype="FP16", classes=2
    ),
    "metadata of an unknown model": lambda client, _: client.get_model_metadata("nobody"),
    "the config of an unknown model": lambda client, _: client.get_model_config("nobody"),
    "statistics of an unknown model": lambda client, _: client.get_inference_statistics("nobody"),
}
_BAD, _ABSENT = "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND"
STATUS_DIFFERS = {
    ("a version that is no number", "grpc"): (_BAD, _ABSENT),
    ("statistics of an unknown model", "grpc"): (_BAD, _ABSENT),
    ("statistics of an unknown model", "http"): ("400", "404"),
    ("classes below zero", "http"): ("500", "400"),
}
"""Triton's status and ours, by the call and the transport, where they differ; each is in transport/README.md."""


@pytest.mark.parametrize("transport", ["grpc", "http"])
@pytest.mark.parametrize("asked", ASKED)
def test_an_answer_is_that_of_triton(sides: Sides, asked: str, transport: str) -> None:
    """A client that moves from Triton to us sees the same values, shapes, datatypes and status codes."""
    theirs, ours = (outcome(partial(ASKED[asked], client, transport)) for client in clients(sides, transport))
    differs = STATUS_DIFFERS.get((asked, transport))
    if differs:
        assert (theirs, ours) == tuple(f"error {status}" for status in differs)
    else:
        same(theirs, ours)


@pytest.mark.parametrize("model", ["linear", "digits", "fraud", "breast_cancer"])
def test_metadata_are_those_of_triton_but_for_the_platform(sides: Sides, model: str) -> None:
    """Names, versions, datatypes and shapes are equal; Triton here runs the models by its Python backend."""
    theirs, ours = (client.get_model_metadata(model, as_json=True) for client in clients(sides, "grpc"))
    assert theirs.pop("platform") == "python"
    assert ours.pop("platform") == "onnxruntime_onnx"
    assert theirs == ours


def test_plain_json_is_answered_alike(sides: Sides) -> None:
    """REST without the binary extension, as curl sends it."""
    body = {"id": "1", "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], "data": X.tolist()}]}
    answers = [
        httpx.post(f"http://127.0.0.1:{side.http}/v2/models/linear/infer", json=body).raise_for_status().json()
        for side in (sides.triton, sides.ours)
    ]
    assert answers[0] == answers[1]


def test_statistics_count_alike(sides: Sides) -> None:
    """The same calls add the same to the counts of successes, rows and passes."""
    for client in clients(sides, "grpc"):
        before = counts(client)
        for _ in range(5):
            infer(client, "grpc", "linear", {"x": X})
        until = time.monotonic() + 30
        # Triton answers first and counts then, maybe a while later.
        while (added := [late - early for early, late in zip(before, counts(client), strict=True)]) < [5, 10, 5]:
            assert time.monotonic() < until, added
            time.sleep(0.02)
        assert added == [5, 10, 5]


def counts(client: Client) -> list[int]:
    stats = client.get_inference_statistics("linear", "3", as_json=True)["model_stats"][0]
    success = stats.get("inference_stats", {}).get("success", {})
    return [int(n) for n in (success.get("count", 0), stats.get("inference_count", 0), stats.get("execution_count", 0))]


# --- generate -------------------------------------------------------------------------------------------

TEXT = {"text_input": "hi", "repeat": 2}
GENERATED: dict[str, tuple[str, bytes | dict[str, Any]]] = {
    "text and a number": ("text", TEXT),
    "an id": ("text", {**TEXT, "id": "seven"}),
    "an empty id": ("text", {**TEXT, "id": ""}),
    "parameters": ("text", {**TEXT, "a": 1, "b": True, "c": "x", "d": 0.5, "parameters": {"e": 1, "id": "not an id"}}),
    "inputs in parameters": ("text", {"parameters": TEXT}),
    "lists of one": ("text", {"text_input": ["hi"], "repeat": [2]}),
    "rows": ("text", {"text_input": ["hi", "ho"], "repeat": [1, 2]}),
    "text that is not ASCII": ("text", {"text_input": '\u00e9 \U0001f600 "\n', "repeat": -1}),
    "numbers": ("linear", {"x": [1, 2.5, -3]}),
    "rows of numbers": ("linear", {"x": [1, 2, 3, 4, 5, 6]}),
    "elements that fit no shape": ("linear", {"x": [1, 2, 3, 4]}),
    "nested lists": ("linear", {"x": [[1, 2, 3]]}),
    "an input that is there twice": ("text", {**TEXT, "parameters": {"repeat": 1}}),
    "a missing input": ("text", {"text_input": "hi"}),
    "rows that differ": ("text", {"text_input": ["hi", "ho"], "repeat": [1]}),
    "no rows": ("text", {"text_input": [], "repeat": []}),
    "too many rows": ("text", {"text_input": ["a"] * 9, "repeat": [1] * 9}),
    "a parameter that is null": ("text", {**TEXT, "z": None}),
    "a parameter that is a list": ("text", {**TEXT, "z": [1]}),
    "an unknown model": ("nobody", TEXT),
    "an unknown version": ("text/versions/9", TEXT),
    "a version": ("linear/versions/1", {"x": [1, 2, 3]}),
    "text that is a number": ("text", {**TEXT, "text_input": 5}),
    "a number that is text": ("text", {**TEXT, "repeat": "5"}),
    "an id that is a number": ("text", {**TEXT, "id": 5}),
    "parameters that are none": ("text", {**TEXT, "parameters": 5}),
    "no object": ("text", b"[]"),
    "no JSON": ("text", b"{"),
    "a number beyond FP32": ("linear", {"x": [1e40, 0, 0]}),
    "a sequence": ("text", {**TEXT, "sequence_id": 3}),
    "a reserved parameter": ("text", {**TEXT, "triton_any": 3}),
}
GENERATE_DIFFERS = {
    **dict.fromkeys(
        (
            "text that is a number",
            "a number that is text",
            "an id that is a number",
            "parameters that are none",
            "no object",
            "no JSON",
        ),
        (500, 400),
    ),
    "a number beyond FP32": (200, 400),
    "a sequence": (200, 501),
    "a reserved parameter": (200, 400),
}
"""Triton's status and ours, where they differ; each is in transport/README.md."""


def events(text: str) -> list[Any]:
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
@pytest.mark.parametrize("asked", GENERATED)
def test_generate_is_that_of_triton(sides: Sides, asked: str, kind: str) -> None:
    """The same status, the same content type and the same JSON, in an object or in events."""
    model, body = GENERATED[asked]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    theirs, ours = (
        httpx.post(f"http://127.0.0.1:{side.http}/v2/models/{model}/{kind}", content=content)
        for side in (sides.triton, sides.ours)
    )
    statuses = theirs.status_code, ours.status_code
    if asked in GENERATE_DIFFERS:
        assert statuses == GENERATE_DIFFERS[asked]
        return
    assert statuses[0] == statuses[1], (theirs.text, ours.text)
    assert theirs.headers["content-type"] == ours.headers["content-type"]
    if theirs.status_code != 200:
        assert theirs.json().keys() == ours.json().keys() == {"error"}
    elif kind == "generate":
        assert theirs.json() == ours.json()
    else:
        assert events(theirs.text) == events(ours.text)


# --- ModelStreamInfer -----------------------------------------------------------------------------------


def streamed(port: int, asked: list[tuple[str, np.ndarray[Any, Any]]], **more: Any) -> list[Any]:
    """What tritonclient's stream gives for these models and inputs: each answer's id, outputs and parameters, or that
    it is an error."""
    told: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.start_stream(lambda result, error: told.put((result, error)))
        answers = []
        for index, (model, array) in enumerate(asked):
            x = triton_grpc.InferInput("x", list(array.shape), "FP32").set_data_from_numpy(array)
            client.async_stream_infer(model, [x], request_id=str(index), **more)
            result, error = told.get(timeout=10)
            if error is not None:
                answers.append("error")
                continue
            response = result.get_response(as_json=True)
            answers.append((response["id"], response["parameters"], result.as_numpy("y").tolist()))
        client.stop_stream()
    return answers


@pytest.mark.parametrize("empty_final", [False, True])
def test_a_stream_tells_the_final_response_as_triton_does(sides: Sides, empty_final: bool) -> None:
    """Every answer says that it is the final one, asked for an empty one or not; an error does not end the stream."""
    asked = [("linear", X), ("nobody", X), ("linear", X.reshape(3, 2)), ("linear", X[:1])]
    theirs, ours = (
        streamed(side.grpc, asked, enable_empty_final_response=empty_final) for side in (sides.triton, sides.ours)
    )
    assert theirs == ours
    assert theirs[0][1] == {"triton_final_response": {"bool_param": True}}
    assert theirs[1:3] == ["error", "error"]


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("triton_enable_empty_final_response", True, None),
        ("triton_enable_empty_final_response", "yes", grpc.StatusCode.INVALID_ARGUMENT),
        ("triton_final_response", True, grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["the known one", "of another type", "another one"],
)
def test_reserved_parameters_are_refused_as_by_triton(
    sides: Sides, name: str, value: bool | str, status: grpc.StatusCode | None
) -> None:
    """Of the keys that Triton keeps to itself a request may have one, which is true or false."""
    message = service_pb2.ModelInferRequest(model_name="linear", raw_input_contents=[X.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=X.shape)
    kind = "bool_param" if isinstance(value, bool) else "string_param"
    setattr(message.parameters[name], kind, value)
    for side in (sides.triton, sides.ours):
        with grpc.insecure_channel(f"127.0.0.1:{side.grpc}") as channel:
            call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.with_call
            if status is None:
                answer, _ = call(message)
                assert dict(answer.parameters) == {}
                continue
            with pytest.raises(grpc.RpcError) as caught:
                call(message)
            assert caught.value.code() is status  # type: ignore[attr-defined]  # what is raised is a call, too
