"""What each REST route takes and answers beside what all have in common: one entry for each route of `routes.py`.

A route with a version, or with the name of one region, has the entry of the route without.
"""

from __future__ import annotations

from typing import NamedTuple

from server.proto.triton import model_config_pb2, service_pb2
from server.transport.openapi.schemas import Schema, array_of, name_of, record, reference

JSON, BINARY, EVENTS = "application/json", "application/octet-stream", "text/event-stream"
_BYTES: Schema = {"type": "string", "contentMediaType": BINARY}


class Operation(NamedTuple):
    """`body` and `answer` are schemas by content type; no `answer`: it is empty. `statuses`: errors of its own."""

    summary: str
    answer: dict[str, Schema]
    statuses: tuple[int, ...] = ()
    body: dict[str, Schema] | None = None
    body_required: bool = False
    calls: bool = False
    """It has the headers of infer and predict."""
    query: dict[str, Schema] | None = None
    openai: bool = False
    """Errors of its handler have OpenAI's form."""
    health: bool = False
    """503 is an answer like 200."""


def _json(name: str) -> dict[str, Schema]:
    return {JSON: reference(name)}


def _message(message: type) -> str:
    return name_of(message.DESCRIPTOR)  # type: ignore[attr-defined]


def _health(what: str, **more: Schema) -> dict[str, Schema]:
    return {JSON: record({**more, what: {"type": "boolean"}})}


_METADATA = _json(_message(service_pb2.ModelMetadataResponse))
_CONFIG = _json(_message(model_config_pb2.ModelConfig))
_STATISTICS = _json(_message(service_pb2.ModelStatisticsResponse))
_REGIONS = {JSON: array_of(_message(service_pb2.SystemSharedMemoryStatusResponse.RegionStatus))}
_CUDA_REGIONS = {JSON: array_of(_message(service_pb2.CudaSharedMemoryStatusResponse.RegionStatus))}
_MODEL = (404,)
_CALL = (404, 429, 499, 504)
"""What a call of a model may come to."""

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v2/models/{model}/infer"): Operation(
        "Tensors in, tensors out",
        {JSON: reference("InferResponse"), BINARY: _BYTES},
        _CALL,
        {JSON: reference("InferRequest"), BINARY: _BYTES},
        body_required=True,
        calls=True,
    ),
    ("POST", "/v2/models/{model}/predict"): Operation(
        "Pictures, rows or texts in, labels out",
        _json("PredictResponse"),
        _CALL,
        {JSON: reference("PredictRequest"), "image/*": _BYTES, BINARY: _BYTES},
        body_required=True,
        calls=True,
        query={"top_k": {"type": "integer", "minimum": 0}, "id": {"type": "string"}},
    ),
    ("POST", "/v2/models/{model}/generate"): Operation(
        "Inputs by their names in, outputs by theirs out",
        _json("GenerateResponse"),
        _CALL,
        _json("GenerateRequest"),
        body_required=True,
        calls=True,
    ),
    ("POST", "/v2/models/{model}/generate_stream"): Operation(
        "The same, each answer as a server-sent event",
        {EVENTS: reference("GenerateEvent")},
        _CALL,
        _json("GenerateRequest"),
        body_required=True,
        calls=True,
    ),
    ("GET", "/v2"): Operation("The server", _json(_message(service_pb2.ServerMetadataResponse))),
    ("GET", "/v2/health/live"): Operation("Whether the server lives", _health("live"), health=True),
    ("GET", "/v2/health/ready"): Operation("Whether the server is ready", _health("ready"), health=True),
    ("GET", "/v2/models/stats"): Operation("Statistics of all models", _STATISTICS),
    ("GET", "/v2/models/{model}"): Operation("A model", _METADATA, _MODEL),
    ("GET", "/v2/models/{model}/ready"): Operation(
        "Whether a model is ready", _health("ready", name={"type": "string"}), _MODEL, health=True
    ),
    ("GET", "/v2/models/{model}/config"): Operation("A model's config", _CONFIG, _MODEL),
    ("GET", "/v2/models/{model}/stats"): Operation("Statistics of a model", _STATISTICS, _MODEL),
    ("POST", "/v2/repository/index"): Operation(
        "The models and their states",
        {JSON: array_of(_message(service_pb2.RepositoryIndexResponse.ModelIndex))},
        _MODEL,
        body=_json("IndexRequest"),
    ),
    ("POST", "/v2/repository/models/{model}/load"): Operation("Load a model", {}, _MODEL, _json("ControlRequest")),
    ("POST", "/v2/repository/models/{model}/unload"): Operation("Unload a model", {}, _MODEL, _json("ControlRequest")),
    ("GET", "/v2/systemsharedmemory/status"): Operation("The registered regions", _REGIONS, _MODEL),
    ("POST", "/v2/systemsharedmemory/register"): Operation(
        "Register a region", {}, (409,), _json("RegisterRequest"), body_required=True
    ),
    ("POST", "/v2/systemsharedmemory/unregister"): Operation("Forget regions", {}),
    ("GET", "/v2/cudasharedmemory/status"): Operation("The registered regions of GPUs", _CUDA_REGIONS, _MODEL),
    ("POST", "/v2/cudasharedmemory/register"): Operation(
        "Register a region of a GPU's memory", {}, (409,), _json("CudaRegisterRequest"), body_required=True
    ),
    ("POST", "/v2/cudasharedmemory/unregister"): Operation("Forget regions of GPUs", {}),
    ("GET", "/v2/trace/setting"): Operation("The trace settings", _json("TraceSettings")),
    ("POST", "/v2/trace/setting"): Operation(
        "Change trace settings", _json("TraceSettings"), (), _json("TraceChanges"), body_required=True
    ),
    ("GET", "/v2/models/{model}/trace/setting"): Operation("Those of a model", _json("TraceSettings"), _MODEL),
    ("POST", "/v2/models/{model}/trace/setting"): Operation(
        "Change those of a model", _json("TraceSettings"), _MODEL, _json("TraceChanges"), body_required=True
    ),
    ("GET", "/v2/logging"): Operation("The log settings", _json("LogSettings")),
    ("POST", "/v2/logging"): Operation(
        "Change log settings", _json("LogSettings"), (), _json("LogChanges"), body_required=True
    ),
    ("GET", "/v1/models"): Operation("The models that write text, as OpenAI's API has them", _json("TextModels")),
    ("GET", "/v1/models/{model}"): Operation("One of them", _json("TextModel"), _MODEL, openai=True),
    ("POST", "/v1/completions"): Operation(
        "A text that continues a prompt, as OpenAI's API has it",
        {JSON: reference("Completion"), EVENTS: reference("CompletionEvent")},
        _CALL,
        _json("CompletionRequest"),
        body_required=True,
        openai=True,
    ),
    ("POST", "/v1/chat/completions"): Operation(
        "The next message of a conversation, as OpenAI's API has it",
        {JSON: reference("Completion"), EVENTS: reference("CompletionEvent")},
        _CALL,
        _json("ChatRequest"),
        body_required=True,
        openai=True,
    ),
    ("GET", "/v2/docs/openapi.json"): Operation("This document", {JSON: {"type": "object"}}),
}


def operation(method: str, pattern: str) -> Operation:
    """Raises KeyError for a route that nobody has described."""
    for part in ("/versions/{version}", "/region/{region}", "/{repository}"):
        pattern = pattern.replace(part, "")
    return OPERATIONS[method, pattern]
