"""predict over REST: JSON with rows, texts and base64 images, or one image as the body <-> types.

The keys are ours, so an unknown one is refused: a misspelt option must not be dropped in silence.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from server.errors import InvalidRequest, Unsupported
from server.transport.codec.tensors import quoted
from server.transport.codec.v2_rest import load_json
from server.types import (
    NO_DEADLINE,
    Classification,
    Custom,
    Embedding,
    Entities,
    ImageInput,
    Parameter,
    Prediction,
    PredictRequest,
    PredictResponse,
    Ranking,
    RawInput,
    Regression,
    RowInput,
    Score,
    TextInput,
)

_BODY_KEYS = frozenset({"id", "inputs", "parameters", "top_k"})
_IMAGE_KEYS = frozenset({"b64", "content_type"})
_MAX_TOP_K = 2**31 - 1
_DIGITS = re.compile("[0-9]{1,10}")


def decode_predict(
    model_name: str,
    model_version: str,
    body: bytes,
    content_type: str = "",
    query: Mapping[str, str] | None = None,
    deadline_ns: int = NO_DEADLINE,
    tenant: str = "",
) -> PredictRequest:
    """A request from JSON, or from one image if `content_type` says so (image/* or application/octet-stream).

    `query` may hold `top_k` and `id`, which the body may hold instead; said twice, they must be in the body alone.

    Raises:
        InvalidRequest: the body or the query is wrong.
        Unsupported: a form upload.
    """
    kind = _media_type(content_type)
    options: dict[str, Any] = _query_options(query or {})
    inputs: list[RawInput]
    if is_picture(content_type):
        if not body:
            raise InvalidRequest("body", "is empty, must be an image")
        inputs = [ImageInput(body, kind if kind.startswith("image/") else "")]
        parameters: dict[str, Parameter] = {}
    elif kind == "multipart/form-data":
        raise Unsupported("Content-Type", "forms are not read: send the image alone as the body, or JSON")
    else:
        inputs, parameters = _json(body, options)
    return PredictRequest(
        model_name,
        inputs,
        model_version=model_version,
        id=_id(options.get("id", "")),
        top_k=_top_k(options.get("top_k", 0)),
        deadline_ns=deadline_ns,
        parameters=parameters or None,
        tenant=tenant,
    )


def is_picture(content_type: str) -> bool:
    """Whether the body is one image, and nothing else."""
    kind = _media_type(content_type)
    return kind.startswith("image/") or kind == "application/octet-stream"


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def encode_predict(response: PredictResponse) -> bytes:
    document: dict[str, object] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        document["id"] = response.id
    document["predictions"] = [_prediction(answer) for answer in response.predictions]
    return orjson.dumps(document)


def _prediction(answer: Prediction) -> dict[str, object]:
    match answer:
        case Classification():
            return {"label": answer.label, "score": answer.score, "top_k": _scores(answer.top_k)}
        case Regression():
            return {"value": answer.value, "low": answer.low, "high": answer.high}
        case Ranking():
            return {"items": _scores(answer.items)}
        case Embedding():
            return {"vector": answer.vector}
        case Entities():
            return {"entities": [asdict(one) for one in answer.entities]}
        case Custom():
            return {"custom": answer.value}


def _scores(scores: Sequence[Score]) -> list[dict[str, object]]:
    return [{"label": entry.label, "score": entry.score} for entry in scores]


def _query_options(query: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in query.items():
        if name not in ("id", "top_k"):
            raise InvalidRequest(name, "unknown query parameter, known are id and top_k")
        options[name] = int(value) if name == "top_k" and _DIGITS.fullmatch(value) else value
    return options


def _json(body: bytes, options: dict[str, Any]) -> tuple[list[RawInput], dict[str, Parameter]]:
    """The inputs and free parameters of a JSON body; its `id` and `top_k` are put into `options`."""
    document = load_json("body", body)
    if not isinstance(document, dict):
        raise InvalidRequest("body", 'must be an object like {"inputs": [...]}')
    for name in document:
        if name not in _BODY_KEYS:
            raise InvalidRequest(quoted(name), f"unknown key, known are {', '.join(sorted(_BODY_KEYS))}")
    parameters = _parameters(document.get("parameters", {}))
    said = {name: document[name] for name in ("id", "top_k") if name in document}
    if "top_k" in parameters:
        _put(said, "top_k", parameters.pop("top_k"))
    for name, value in said.items():
        _put(options, name, value)
    entries = document.get("inputs")
    if not isinstance(entries, list):
        raise InvalidRequest("inputs", "must be a list" if "inputs" in document else "is missing")
    if not entries:
        raise InvalidRequest("inputs", "is empty")
    return [_input(f"inputs[{index}]", entry) for index, entry in enumerate(entries)], parameters


def _put(options: dict[str, Any], name: str, value: object) -> None:
    if name in options:
        raise InvalidRequest(name, "is given twice")
    options[name] = value


def _input(field: str, entry: object) -> RawInput:
    match entry:
        case str():
            return TextInput(entry)
        case list():
            return RowInput(entry)
        case dict() if "b64" in entry:
            return _image(field, entry)
        case dict():
            return RowInput(entry)
        case _:
            raise InvalidRequest(field, 'must be a row (an object or a list), a text or an image {"b64": "..."}')


def _image(field: str, entry: dict[str, Any]) -> ImageInput:
    for name in entry:
        if name not in _IMAGE_KEYS:
            raise InvalidRequest(f"{field}.{name}", "unknown key, an image has b64 and content_type")
    encoded, content_type = entry["b64"], entry.get("content_type", "")
    if not isinstance(encoded, str) or not encoded:
        raise InvalidRequest(f"{field}.b64", "must be a string that is not empty")
    if not isinstance(content_type, str):
        raise InvalidRequest(f"{field}.content_type", "must be a string")
    try:
        return ImageInput(base64.b64decode(encoded, validate=True), content_type)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{field}.b64", f"is not base64: {error}") from error


def _parameters(value: object) -> dict[str, Parameter]:
    if not isinstance(value, dict):
        raise InvalidRequest("parameters", "must be an object")
    for name, parameter in value.items():
        if not isinstance(parameter, bool | int | float | str):
            raise InvalidRequest(f"parameters.{name}", "must be a boolean, a number or a string")
    return dict(value)


def _top_k(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_TOP_K:
        raise InvalidRequest("top_k", f"must be a whole number from 0 to {_MAX_TOP_K}, got {quoted(value)}")
    return value


def _id(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequest("id", "must be a string")
    return value
