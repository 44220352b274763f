"""forwardpass.v1.PredictRequest and PredictResponse <-> types."""

from __future__ import annotations

from typing import Any

from server.errors import InvalidRequest
from server.proto.forwardpass.v1 import prediction_pb2 as pb
from server.types import (
    NO_DEADLINE,
    Classification,
    ImageInput,
    PredictRequest,
    PredictResponse,
    RawInput,
    RowInput,
    TextInput,
)

_EXACT_INTEGER = 2**53
"""Up to here every double that has no fraction is one whole number, and not the rounding of several."""


def decode_predict(message: pb.PredictRequest, deadline_ns: int = NO_DEADLINE) -> PredictRequest:
    """Raises InvalidRequest for an empty name, no inputs, or an input or value that is not set."""
    if not message.model_name:
        raise InvalidRequest("model_name", "is empty")
    if not message.inputs:
        raise InvalidRequest("inputs", "is empty")
    return PredictRequest(
        message.model_name,
        [_input(f"inputs[{index}]", entry) for index, entry in enumerate(message.inputs)],
        model_version=message.model_version,
        id=message.id,
        top_k=message.top_k,
        deadline_ns=deadline_ns,
    )


def encode_predict(response: PredictResponse) -> pb.PredictResponse:
    return pb.PredictResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        id=response.id,
        predictions=[pb.Prediction(classification=_classification(answer)) for answer in response.predictions],
    )


def _classification(answer: Classification) -> pb.Classification:
    return pb.Classification(
        label=answer.label,
        score=answer.score,
        top_k=[pb.Score(label=entry.label, score=entry.score) for entry in answer.top_k],
    )


def _input(field: str, entry: pb.Input) -> RawInput:
    match entry.WhichOneof("kind"):
        case "image":
            return ImageInput(entry.image.data, entry.image.content_type)
        case "text":
            return TextInput(entry.text)
        case "row":
            return RowInput({name: _value(f"{field}.{name}", value) for name, value in entry.row.fields.items()})
        case "values":
            return RowInput([_value(f"{field}[{i}]", value) for i, value in enumerate(entry.values.values)])
        case _:
            raise InvalidRequest(field, "is not set: must be image, text, row or values")


def _value(field: str, value: Any) -> object:
    """A google.protobuf.Value in Python, as the same value would come out of JSON.

    Protobuf has only doubles; a whole one becomes an int, so that the category 3 is not 3.0 by this way.
    """
    match value.WhichOneof("kind"):
        case "null_value":
            return None
        case "number_value":
            number: float = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _EXACT_INTEGER else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case None:
            raise InvalidRequest(field, "has no value")
        case _:
            raise InvalidRequest(field, "must be a number, a string, a boolean or null")
