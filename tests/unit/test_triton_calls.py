"""A request as Triton is asked it, and its answer as ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from server.engine.triton.calls import answer_of, message_of
from server.engine.triton.failures import NotAnsweredError, failure_of
from server.errors import (
    CallExpired,
    DeadlineExceeded,
    EngineFailure,
    TritonCannot,
    TritonDeclined,
    TritonHasNo,
    TritonLost,
    TritonNotServing,
    TritonQueueFull,
    TritonRefused,
    TritonUnreached,
)
from server.proto.triton import service_pb2 as pb
from server.tensor import Tensor
from server.types import NO_DEADLINE, InferRequest, Special

X = np.arange(6, dtype=np.float32).reshape(2, 3)
TEXT = np.array([[b"a"], [b"\xff\x00"]], dtype=object)


def request(**more: Any) -> InferRequest:
    tensors = [Tensor.from_numpy("x", X), Tensor.from_numpy("t", TEXT)]
    return InferRequest("m", tensors, on_settle=lambda *_: None, received_ns=0, id="seven", **more)


def response(**outputs: Any) -> Any:
    message = pb.ModelInferResponse(model_name="m", model_version="3", id="other")
    for name, array in outputs.items():
        tensor = Tensor.from_numpy(name, array)
        message.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_output_contents.append(bytes(tensor.data))
    return message


def test_a_request_is_asked_as_it_came() -> None:
    """Names, types, shapes, bytes, parameters of every kind, the id; the version is the one meant."""
    given = {"n": 1, "huge": 2**63, "flag": True, "x": 0.5, "text": "t"}
    message = message_of(request(outputs=("y",), parameters=given), "3", 0)

    assert (message.model_name, message.model_version, message.id) == ("m", "3", "seven")
    assert [(one.name, one.datatype, list(one.shape)) for one in message.inputs] == [
        ("x", "FP32", [2, 3]),
        ("t", "BYTES", [2, 1]),
    ]
    assert message.raw_input_contents[0] == X.tobytes()
    assert [one.name for one in message.outputs] == ["y"]
    kinds = {name: value.WhichOneof("parameter_choice") for name, value in message.parameters.items()}
    assert kinds == {
        "n": "int64_param",
        "huge": "uint64_param",
        "flag": "bool_param",
        "x": "double_param",
        "text": "string_param",
    }


@pytest.mark.parametrize(
    ("deadline_ns", "own", "told"),
    [
        (NO_DEADLINE, None, None),
        (5_000_000, None, 4_000),
        (5_000_000, 100, 100),
        (5_000_000, 9_000, 4_000),
        (1, None, 1),
    ],
    ids=["no deadline", "what is left", "a shorter one of its own", "a longer one of its own", "nothing left"],
)
def test_what_is_left_of_the_deadline_is_told(deadline_ns: int, own: int | None, told: int | None) -> None:
    """As `timeout`, in microseconds, one at least."""
    parameters = {} if own is None else {"timeout": own}
    message = message_of(request(deadline_ns=deadline_ns, parameters=parameters), "1", 1_000_000)

    assert (message.parameters["timeout"].int64_param if told else None) == told
    assert bool(told) == ("timeout" in message.parameters)


def test_classes_are_asked_of_triton() -> None:
    """Of the outputs that are wanted so; a number that Triton would cut to its lower 32 bits is as many as it takes."""
    asked = request(outputs=("y", "z", "all"))
    asked.special = Special(None, {"y": 3, "all": 1 << 32})
    y, z, every = message_of(asked, "3", 0).outputs

    assert y.parameters["classification"].int64_param == 3
    assert not z.parameters
    assert every.parameters["classification"].int64_param == (1 << 32) - 1


def test_an_answer_is_in_the_order_of_the_model() -> None:
    """Whatever the order of Triton's; the id is the request's own."""
    answer = answer_of(response(b=X, a=TEXT), request(), ["a", "b"])

    assert (answer.model_version, answer.id) == ("3", "seven")
    assert [tensor.name for tensor in answer.outputs] == ["a", "b"]
    assert answer.outputs[0].numpy().tolist() == TEXT.tolist()
    assert np.array_equal(answer.outputs[1].numpy(), X)


def test_an_answer_is_in_the_order_asked_for() -> None:
    """And nothing else is in it."""
    answer = answer_of(response(a=X, b=X, c=X), request(outputs=("c", "a")), ["a", "b", "c"])

    assert [tensor.name for tensor in answer.outputs] == ["c", "a"]


def test_the_parameters_of_an_answer_are_handed_on() -> None:
    """Backends tell by them."""
    message = response(a=X)
    message.parameters["finish_reason"].string_param = "length"

    assert answer_of(message, request(), ["a"]).parameters == {"finish_reason": "length"}


def broken(case: str) -> Any:
    message = response(a=X)
    if case == "too few bytes":
        message.raw_output_contents[0] = b"123"
    elif case == "an unknown datatype":
        message.outputs[0].datatype = "FP7"
    elif case == "no contents":
        del message.raw_output_contents[:]
    return message


@pytest.mark.parametrize("case", ["too few bytes", "an unknown datatype", "no contents", "an output missing"])
def test_an_answer_that_contradicts_itself_is_none(case: str) -> None:
    """Nobody is given bytes that are no tensor."""
    with pytest.raises(EngineFailure):
        answer_of(broken(case), request(outputs=("z",) if case == "an output missing" else ()), ["a"])


@pytest.mark.parametrize(
    ("code", "details", "error"),
    [
        (StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: refused", TritonUnreached),
        (StatusCode.UNAVAILABLE, "Server is stopping to serve requests.", TritonUnreached),
        (StatusCode.UNAVAILABLE, "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))", TritonDeclined),
        (StatusCode.UNAVAILABLE, "Stream removed (GOAWAY received; Error code: 0; Debug Text: )", TritonDeclined),
        (StatusCode.UNAVAILABLE, "Request for unknown model: 'm' has no available versions", TritonDeclined),
        (StatusCode.UNAVAILABLE, "Request for unknown model: 'm' version 1 is not at ready state", TritonDeclined),
        (StatusCode.UNAVAILABLE, "in ensemble 'm', Request for unknown model: 's' is not ready", TritonNotServing),
        (StatusCode.UNAVAILABLE, "Stream removed (Socket closed (GOAWAY received; Error code: 0))", TritonLost),
        (StatusCode.UNAVAILABLE, "Socket closed", TritonLost),
        (StatusCode.UNAVAILABLE, "keepalive watchdog timeout", TritonLost),
        (StatusCode.INTERNAL, "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))", TritonLost),
        (StatusCode.CANCELLED, "Channel closed!", TritonLost),
        (StatusCode.UNAVAILABLE, "[request id: <id_unknown>] Exceeds maximum queue size", TritonQueueFull),
        (StatusCode.UNAVAILABLE, "[request id: 7] Request timeout expired", DeadlineExceeded),
        (StatusCode.UNAVAILABLE, "the weather", TritonNotServing),
        (StatusCode.INVALID_ARGUMENT, "unexpected shape", TritonRefused),
        (StatusCode.NOT_FOUND, "unknown", TritonHasNo),
        (StatusCode.UNIMPLEMENTED, "decoupled", TritonCannot),
        (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", CallExpired),
        (StatusCode.INTERNAL, "model blew up at /a/path", EngineFailure),
        (StatusCode.UNKNOWN, "whatever", EngineFailure),
    ],
)
def test_a_failed_call_is_the_error_that_it_is(code: StatusCode, details: str, error: type[Exception]) -> None:
    """What may have been executed is never taken for what was not."""
    found = failure_of("m", NotAnsweredError(code, details))

    assert type(found) is error
    assert "/a/path" not in found.public_message
