"""The OpenAPI document and the server say the same."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
import pytest
import schemathesis
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import response_headers_conformance, response_schema_conformance

from tests.e2e.conftest import REPOSITORY, ServerProcess
from tests.support.rest_fuzz import CHECKS, explore

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]

EXAMPLES = 6
INFER, PREDICT = "/v2/models/{model}/infer", "/v2/models/{model}/predict"
ROW = struct.pack("<30f", *[0.0] * 30)


@pytest.fixture(scope="module")
def schema(server: ServerProcess) -> Any:
    return schemathesis.openapi.from_url(f"{server.http}/v2/docs/openapi.json")


def test_made_up_calls_meet_no_fault(server: ServerProcess) -> None:
    """Valid and invalid calls of each operation: no fault of the server, and no answer outside of the document."""
    statuses = explore(server.http, EXAMPLES, seed=1)
    assert {200, 400, 404} <= statuses.keys()


def infer(**tensor: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 30], **tensor}]}


BINARY = json.dumps(
    {**infer(parameters={"binary_data_size": len(ROW)}), "parameters": {"binary_data_output": True}}
).encode()
PICTURE = (REPOSITORY / "digits" / "example.png").read_bytes()
B64 = {"b64": "iVBORw0KGgo="}

GENERATE = {"features": [0.0] * 30, "id": "x", "parameters": {"temperature": 0.5}}

ANSWERED: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "infer by JSON": (INFER, "breast_cancer", {"json": infer(data=[0.0] * 30)}, 200),
    "infer by JSON, explained": (
        INFER,
        "breast_cancer",
        {"json": infer(data=[0.0] * 30), "headers": {"X-Explain": "1"}},
        200,
    ),
    "infer, binary": (
        INFER,
        "breast_cancer",
        {"content": BINARY + ROW, "headers": {"Inference-Header-Content-Length": str(len(BINARY))}},
        200,
    ),
    "infer, raw": (
        INFER,
        "breast_cancer",
        {"content": ROW, "headers": {"Inference-Header-Content-Length": "0"}},
        200,
    ),
    "infer of nobody": (INFER, "nobody", {"json": infer(data=[0.0] * 30)}, 404),
    "a deadline that can't be kept": (
        INFER,
        "breast_cancer",
        {"json": infer(data=[0.0] * 30), "headers": {"X-Request-Timeout": "0.0001"}},
        504,
    ),
    "generate": ("/v2/models/{model}/generate", "breast_cancer", {"json": GENERATE}, 200),
    "generate, in events": ("/v2/models/{model}/generate_stream", "breast_cancer", {"json": GENERATE}, 200),
    "predict a picture": (PREDICT, "digits", {"content": PICTURE, "headers": {"Content-Type": "image/png"}}, 200),
    "predict rows": (PREDICT, "breast_cancer", {"json": {"inputs": [[0.0] * 30, [1.0] * 30], "id": "x"}}, 200),
    "predict what is no picture": (PREDICT, "digits", {"json": {"inputs": [B64]}}, 400),
    "a form": (
        PREDICT,
        "digits",
        {"content": b"--x--", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        501,
    ),
}


@pytest.mark.parametrize(("path", "model", "call", "status"), ANSWERED.values(), ids=ANSWERED.keys())
def test_calls_that_mean_something(
    server: ServerProcess, schema: Any, path: str, model: str, call: dict[str, Any], status: int
) -> None:
    """What made-up calls hardly find: answers of models, in each of their forms."""
    response = httpx.post(server.http + path.format(model=model), **call)
    assert response.status_code == status
    operation = schema[path]["POST"]
    operation.Case(path_parameters={"model": model}).validate_response(response, checks=CHECKS)


def test_the_document_would_find_an_answer_that_is_not_in_it(server: ServerProcess, schema: Any) -> None:
    """The checks can fail: another operation's answer is found out."""
    other = httpx.get(f"{server.http}/v2/logging")
    case = schema["/v2"]["GET"].Case()
    with pytest.raises(FailureGroup):
        case.validate_response(other, checks=[response_schema_conformance, response_headers_conformance])
