"""JSON Schemas of what REST reads and writes: of v2's messages by their descriptors, of everything else by hand.

Source: OpenAPI 3.1, JSON Schema 2020-12; KServe v2 REST; protobuf's "ProtoJSON", as `codec.management` restores it.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from server.observability.trace_settings import TraceValues
from server.proto.triton import model_config_pb2, service_pb2
from server.settings import TraceSettings
from server.tensor import DATATYPES

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_ANSWERS = ("Classification", "Regression", "Ranking", "Embedding", "Entities", "Custom")
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "integer", "minimum": 0}
_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["boolean", "number", "string"]}}
_DATATYPE: Schema = {"enum": list(DATATYPES)}
_SHAPE: Schema = {"type": "array", "items": _NUMBER}

_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_TEXTS = (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_ENUM)
_RANGES: dict[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def array_of(name: str) -> Schema:
    return {"type": "array", "items": reference(name)}


def record(required: dict[str, Schema], optional: dict[str, Schema] | None = None, *, closed: bool = True) -> Schema:
    """An object with these keys; `closed`: and no others."""
    schema: Schema = {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}
    return {**schema, "additionalProperties": False} if closed else schema


def components() -> dict[str, Schema]:
    """Every schema that is referred to, by its name."""
    found: dict[str, Schema] = {}
    for message in (
        service_pb2.ServerMetadataResponse,
        service_pb2.ModelMetadataResponse,
        service_pb2.ModelStatisticsResponse,
        service_pb2.RepositoryIndexResponse.ModelIndex,
        service_pb2.SystemSharedMemoryStatusResponse.RegionStatus,
        service_pb2.CudaSharedMemoryStatusResponse.RegionStatus,
        model_config_pb2.ModelConfig,
    ):
        _add_message(message.DESCRIPTOR, found)
    # REST alone has a place for what predict takes.
    found["ModelMetadataResponse"]["properties"]["predict"] = {"type": "object"}
    return {**found, **_infer(), **_generate(), **_predict(), **_management(), **_openai()}


def _infer() -> dict[str, Schema]:
    data: Schema = {"type": "array", "description": "flat, or nested as the shape says"}
    asked = {"name": _TEXT, "shape": _SHAPE, "datatype": _DATATYPE}
    told = {**asked, "shape": {"type": "array", "items": _NUMBER}}
    wanted = {**_PARAMETERS, "properties": {"binary_data": _FLAG, "classification": _NUMBER}}
    return {
        "Error": record({"error": _TEXT}),
        "InferRequest": record(
            {"inputs": array_of("InferInput")},
            {"id": _TEXT, "outputs": array_of("InferRequestedOutput"), "parameters": _PARAMETERS},
            closed=False,
        ),
        "InferInput": record(asked, {"data": data, "parameters": _PARAMETERS}, closed=False),
        "InferRequestedOutput": record({"name": _TEXT}, {"parameters": wanted}, closed=False),
        "InferResponse": record(
            {"model_name": _TEXT, "model_version": _TEXT, "outputs": array_of("InferOutput")},
            {"id": _TEXT, "parameters": _PARAMETERS},
        ),
        "InferOutput": record(
            told,
            {
                "data": {"type": "array", "items": {"type": ["boolean", "number", "string"]}},
                "parameters": record({}, {"binary_data_size": _NUMBER}),
            },
        ),
    }


def _generate() -> dict[str, Schema]:
    element: Schema = {"type": ["boolean", "number", "string"]}
    elements = {"anyOf": [element, {"type": "array", "items": element}]}
    told = {"anyOf": [reference("GenerateResponse"), reference("Error")]}
    return {
        "GenerateRequest": {
            "type": "object",
            "properties": {"id": _TEXT, "parameters": {"type": "object", "additionalProperties": elements}},
            "additionalProperties": elements,
        },
        "GenerateResponse": {
            **record({"model_name": _TEXT, "model_version": _TEXT}, {"id": _TEXT}),
            "additionalProperties": elements,
        },
        "GenerateEvent": {
            **record({"data": {**_TEXT, "contentMediaType": "application/json", "contentSchema": told}}, closed=False),
            "description": "one event of the stream",
        },
    }


def _openai() -> dict[str, Schema]:
    """What is served of OpenAI's API; its own document has every field."""
    any_of = {"anyOf": [_TEXT, {"type": "object"}]}
    usage = {"anyOf": [{"type": "null"}, {"type": "object", "additionalProperties": _NUMBER}]}
    shared: dict[str, Schema] = {
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 16},
        "stream": {"type": ["boolean", "null"]},
        "max_tokens": {"type": ["integer", "null"], "minimum": 1},
        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
        "seed": {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1},
    }
    prompt = {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _TEXT}]}
    message = record({"role": {"enum": ["system", "developer", "user", "assistant"]}, "content": _TEXT}, closed=False)
    model = {"id": _TEXT, "object": {"const": "model"}, "created": _NUMBER, "owned_by": _TEXT}
    told = {"anyOf": [reference("Completion"), reference("OpenAiError")]}
    return {
        # What fails before a handler has it (a method, a size) is told as everywhere here.
        "OpenAiError": record({"error": any_of}),
        "TextModel": record(model),
        "TextModels": record({"object": {"const": "list"}, "data": array_of("TextModel")}),
        "CompletionRequest": record({"model": _TEXT, "prompt": prompt}, shared, closed=False),
        "ChatRequest": record(
            {"model": _TEXT, "messages": {"type": "array", "minItems": 1, "items": message}}, shared, closed=False
        ),
        "Completion": record(
            {
                **dict.fromkeys(("id", "object", "model"), _TEXT),
                "created": _NUMBER,
                "choices": {"type": "array", "items": {"type": "object"}},
            },
            {"usage": usage},
        ),
        "CompletionEvent": {
            **record({"data": {**_TEXT, "contentMediaType": "application/json", "contentSchema": told}}, closed=False),
            "description": "one event of the stream; the last one's data is [DONE]",
        },
    }


def _predict() -> dict[str, Schema]:
    image = record({"b64": {**_TEXT, "contentEncoding": "base64"}}, {"content_type": _TEXT})
    score = {"label": _TEXT, "score": {"type": "number"}}
    return {
        "PredictRequest": record(
            {"inputs": {"type": "array", "minItems": 1, "items": reference("PredictInput")}},
            {"id": _TEXT, "top_k": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "parameters": _PARAMETERS},
        ),
        "PredictInput": {"anyOf": [image, {"type": "object"}, {"type": "array"}, _TEXT]},
        "PredictResponse": record(
            {"model_name": _TEXT, "model_version": _TEXT, "predictions": array_of("Prediction")}, {"id": _TEXT}
        ),
        "Prediction": {"anyOf": [reference(kind) for kind in _ANSWERS]},
        "Classification": record({**score, "top_k": array_of("Score")}),
        "Regression": record({key: {"type": "number"} for key in ("value", "low", "high")}),
        "Ranking": record({"items": array_of("Score")}),
        "Embedding": record({"vector": {"type": "array", "items": {"type": "number"}}}),
        "Entities": record({"entities": array_of("Entity")}),
        "Entity": record({**score, "start": _NUMBER, "end": _NUMBER, "text": _TEXT}),
        "Custom": record({"custom": {}}),
        "Score": record(score),
    }


def _management() -> dict[str, Schema]:
    number = {"type": "string", "pattern": "^-?[0-9]+$"}
    level: Schema = {"type": "array", "items": {"enum": ["OFF", "TIMESTAMPS"]}}
    text_or_null = {"type": ["string", "null"]}
    names = list(TraceValues.at_start(TraceSettings()).told(""))
    kinds: dict[str, Schema] = dict.fromkeys(names, number)
    kinds |= {"trace_level": level, "trace_file": _TEXT, "trace_mode": _TEXT}
    changes: dict[str, Schema] = dict.fromkeys(names, text_or_null)
    changes["trace_level"] = {"anyOf": [level, {"type": "null"}]}
    logs = {
        "log_file": _TEXT,
        "log_info": _FLAG,
        "log_warning": _FLAG,
        "log_error": _FLAG,
        "log_verbose_level": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
        "log_format": {"enum": ["default", "ISO8601"]},
    }
    return {
        "IndexRequest": record({}, {"ready": _FLAG}, closed=False),
        "ControlRequest": record({}, {"parameters": {"type": "object"}}, closed=False),
        "RegisterRequest": record({"key": _TEXT, "byte_size": _NUMBER}, {"offset": _NUMBER}, closed=False),
        "CudaRegisterRequest": record(
            {"raw_handle": record({"b64": _TEXT}), "device_id": _NUMBER, "byte_size": _NUMBER}, closed=False
        ),
        "TraceSettings": record(kinds),
        "TraceChanges": record({}, changes),
        "LogSettings": record(logs),
        "LogChanges": record({}, logs),
    }


def name_of(descriptor: Descriptor) -> str:
    """Of a message, inside of another if need be."""
    return str(descriptor.full_name).removeprefix("inference.")


def _add_message(descriptor: Descriptor, found: dict[str, Schema]) -> None:
    name = name_of(descriptor)
    if name in found:
        return
    found[name] = {}  # Messages may hold each other.
    required: dict[str, Schema] = {}
    optional: dict[str, Schema] = {}
    for field in descriptor.fields:
        # What has no presence is always written.
        (optional if field.has_presence else required)[field.name] = _field(field, found)
    found[name] = record(required, optional)


def _field(field: FieldDescriptor, found: dict[str, Schema]) -> Schema:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _one(field.message_type.fields_by_name["value"], found)}
    repeated = not field.has_presence and field.containing_oneof is None and _repeats(field)
    return {"type": "array", "items": _one(field, found)} if repeated else _one(field, found)


def _repeats(field: FieldDescriptor) -> bool:
    return isinstance(field.default_value, list)


def _one(field: FieldDescriptor, found: dict[str, Schema]) -> Schema:
    if field.message_type is not None:
        _add_message(field.message_type, found)
        return reference(name_of(field.message_type))
    if field.enum_type is not None:
        return {"enum": [value.name for value in field.enum_type.values]}
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _FLAG
    if field.cpp_type in _TEXTS:
        return _TEXT
    if field.cpp_type in _FLOATS:
        return {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
    least, most = _RANGES[field.cpp_type]
    return {"type": "integer", "minimum": least, "maximum": most}
