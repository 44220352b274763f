"""The one table from codes to HTTP and gRPC, and what is told of an error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration

import server.transport.status as status_module
from server.errors import Code, EngineFailure, InvalidRequest, ModelNotReady, QueueFull, ServingError
from server.transport.status import STATUS, Failure, GrpcStatus, failure_of, status_details

README = Path(status_module.__file__).with_name("README.md")


@pytest.mark.parametrize("code", Code)
def test_every_code_has_both_columns(code: Code) -> None:
    """Every `Code` maps to an HTTP error status and a gRPC status that is not OK."""
    assert 400 <= STATUS[code].http <= 599
    assert STATUS[code].grpc != 0


@pytest.mark.parametrize("status", GrpcStatus)
def test_the_grpc_statuses_have_grpcs_own_names_and_numbers(status: GrpcStatus) -> None:
    """The server names them without grpcio, which a server on its own transport does not import."""
    assert grpc.StatusCode[status.name].value[0] == status


def test_the_statuses_are_those_of_the_architecture() -> None:
    """The statuses that clients were promised: changing one is a breaking change."""
    assert {code: (status.http, status.grpc.name) for code, status in STATUS.items()} == {
        Code.INVALID_ARG: (400, "INVALID_ARGUMENT"),
        Code.UNAUTHENTICATED: (401, "UNAUTHENTICATED"),
        Code.PERMISSION: (403, "PERMISSION_DENIED"),
        Code.NOT_FOUND: (404, "NOT_FOUND"),
        Code.EXISTS: (409, "ALREADY_EXISTS"),
        Code.TOO_LARGE: (413, "RESOURCE_EXHAUSTED"),
        Code.EXHAUSTED: (429, "RESOURCE_EXHAUSTED"),
        Code.CANCELLED: (499, "CANCELLED"),
        Code.INTERNAL: (500, "INTERNAL"),
        Code.UNSUPPORTED: (501, "UNIMPLEMENTED"),
        Code.UNAVAILABLE: (503, "UNAVAILABLE"),
        Code.DEADLINE: (504, "DEADLINE_EXCEEDED"),
    }


def test_the_readme_has_the_table() -> None:
    """The README's status table is the one in the code, row by row."""
    rows = [f"| {code} | {status.http} | {status.grpc.name} |" for code, status in STATUS.items()]
    lines = README.read_text().splitlines()
    first = lines.index(rows[0])
    assert lines[first : first + len(rows)] == rows


def test_a_serving_error_shows_its_public_message(caplog: pytest.LogCaptureFixture) -> None:
    """A client's own error is told in full and is nothing for our log."""
    failure = failure_of(InvalidRequest("inputs[0].shape", "must be [1, 4]"))
    assert failure == Failure(Code.INVALID_ARG, "inputs[0].shape: must be [1, 4]")
    assert failure_of(ModelNotReady("m", "", "loading")).http == 503
    assert not caplog.records


def test_a_foreign_error_is_withheld_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is no ServingError is INTERNAL; its text goes to the log with its traceback, not to the client."""
    try:
        raise KeyError("/secret/path")
    except KeyError as error:
        failure = failure_of(error)
    assert (failure.http, failure.grpc, failure.message) == (500, GrpcStatus.INTERNAL, "internal error")
    assert "/secret/path" in caplog.text
    assert "Traceback" in caplog.text


def test_a_failed_batch_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The error that settles all requests of a batch is logged once, with its detail; clients never see the detail."""
    error = EngineFailure("digits", "CUDA out of memory")
    with caplog.at_level(logging.ERROR):
        failures = [failure_of(error) for _ in range(3)]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "CUDA out of memory" in caplog.text
    assert all("CUDA" not in failure.message for failure in failures)


def test_two_failures_are_logged_twice(caplog: pytest.LogCaptureFixture) -> None:
    """Only the same error object is logged once; an equal one is another failure."""
    failure_of(ValueError("x"))
    failure_of(ValueError("x"))
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("ms", "seconds"), [(1, 1), (1000, 1), (1001, 2), (0, 0)])
def test_retry_after_is_rounded_up(ms: int, seconds: int) -> None:
    """Retry-After is in whole seconds and never too early."""
    assert failure_of(QueueFull("m", 4, ms)).retry_after_s == seconds


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Read a protobuf message's fields without its descriptor."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            assert key & 7 == 2
            length = varint()
            yield key >> 3, data[position : position + length]
            position += length


@pytest.mark.parametrize("model_name", ["m", "m" * 300], ids=["short", "a length of two bytes"])
def test_retry_info_is_a_google_rpc_status(model_name: str) -> None:
    """A full queue's details are google.rpc.Status {code, message, RetryInfo {retry_delay}}."""
    failure = failure_of(QueueFull(model_name, 4, 1250))
    fields = dict(_fields(status_details(failure)))
    assert fields[1] == 8
    assert fields[2] == failure.message.encode()
    detail = Any.FromString(fields[3])
    assert detail.type_url == "type.googleapis.com/google.rpc.RetryInfo"
    [(number, payload)] = _fields(detail.value)
    assert number == 1
    assert Duration.FromString(payload).ToMilliseconds() == 1250


def test_without_a_hint_there_are_no_details() -> None:
    """Nobody is told to come back at a time that nobody knows."""
    assert status_details(failure_of(QueueFull("m", 4))) == b""
    assert status_details(failure_of(ServingError())) == b""
