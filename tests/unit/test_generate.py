"""generate and generate_stream over REST, in memory: statuses, events, errors, cancellation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.errors import EngineFailure, QueueFull
from server.types import NO_DEADLINE
from tests.support.fake_dataplane import MODEL, FakeDataPlane
from tests.support.http1 import Answer
from tests.unit.test_rest import Client

GENERATE = f"/v2/models/{MODEL}/generate"
STREAM = f"/v2/models/{MODEL}/generate_stream"
BODY = json.dumps({"a": [1, 2, 3, 4], "b": [10, 20, 30, 40], "id": "x"}).encode()
TOLD = {"model_name": MODEL, "model_version": "1", "id": "x", "sum": [11, 22, 33, 44]}


@pytest.fixture
def dataplane() -> FakeDataPlane:
    return FakeDataPlane()


@pytest.fixture
def call(dataplane: FakeDataPlane) -> Client:
    return Client(dataplane)


def events(answer: Answer) -> list[Any]:
    """What the events of a stream say. Each is one line of data and an empty one."""
    *lines, rest = answer.body.decode().split("\n\n")
    assert rest == ""
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [json.loads(line[6:]) for line in lines]


async def test_generate_is_answered_by_one_object(dataplane: FakeDataPlane, call: Client) -> None:
    """Outputs by name, in JSON; names are inputs by the model's metadata."""
    answer = await call("POST", GENERATE, BODY)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json == TOLD
    assert [tensor.shape for tensor in dataplane.requests[0].inputs] == [(1, 4), (1, 4)]


async def test_generate_of_a_version(dataplane: FakeDataPlane, call: Client) -> None:
    """The version of the path is the request's, with either route."""
    answer = await call("POST", f"/v2/models/{MODEL}/versions/1/generate", BODY)
    assert answer.json["model_version"] == "1"
    await call("POST", f"/v2/models/{MODEL}/versions/1/generate_stream", BODY)
    assert [request.model_version for request in dataplane.requests] == ["1", "1"]


async def test_generate_stream_is_answered_by_events(call: Client) -> None:
    """One event for each answer, over a body in chunks."""
    answer = await call("POST", STREAM, BODY)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert answer.headers["transfer-encoding"] == "chunked"
    assert events(answer) == [TOLD]


@pytest.mark.parametrize("path", [GENERATE, STREAM])
@pytest.mark.parametrize(
    ("body", "outcome", "status"),
    [
        (b"{", None, 400),
        (b'{"a": "x"}', None, 400),
        (BODY, QueueFull("add", 1, 7), 429),
        (BODY, EngineFailure("add"), 500),
    ],
    ids=["no JSON", "a wrong type", "a full queue", "a failed pass"],
)
async def test_an_error_before_the_first_answer_has_its_status(
    dataplane: FakeDataPlane, call: Client, path: str, body: bytes, outcome: Any, status: int
) -> None:
    """It is told as of any other route: a status, and an object with `error`."""
    dataplane.outcome = outcome
    answer = await call("POST", path, body)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert answer.error


@pytest.mark.parametrize("path", ["/v2/models/nobody/generate", "/v2/models/nobody/generate_stream"])
async def test_an_unknown_model_is_404(call: Client, path: str) -> None:
    """Before the body is looked at."""
    assert (await call("POST", path, b"{")).status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
async def test_other_methods_are_refused(call: Client, method: str) -> None:
    """Only POST asks for an answer."""
    answer = await call(method, STREAM)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_deadlines_and_tenants_are_the_request_s(dataplane: FakeDataPlane, call: Client) -> None:
    """The headers of infer are read here as well."""
    await call("POST", GENERATE, BODY, {"X-Request-Timeout": "1000", "X-Tenant": "t"})
    [request] = dataplane.requests
    assert request.received_ns < request.deadline_ns < NO_DEADLINE
    assert request.tenant == "t"


async def test_generate_is_explained(call: Client) -> None:
    """To whoever asks, by header or parameter; a stream has no place for it."""
    for headers, body in (({"X-Explain": "1"}, BODY), ({}, b'{"a": [1, 2, 3, 4], "explain": true}')):
        answer = await call("POST", GENERATE, body, headers)
        assert "total;dur=" in answer.headers["server-timing"]
        assert (await call("POST", STREAM, body, headers)).status == 501


@pytest.mark.parametrize("path", [GENERATE, STREAM])
async def test_a_caller_that_goes_away_cancels_its_request(dataplane: FakeDataPlane, call: Client, path: str) -> None:
    """The data plane hears of it at once."""
    dataplane.held = True
    await call("POST", path, BODY, disconnect=True)
    assert dataplane.cancelled == dataplane.requests
    assert len(dataplane.cancelled) == 1
