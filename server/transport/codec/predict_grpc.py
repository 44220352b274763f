"""forwardpass.v1.PredictRequest and PredictResponse <-> types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value

from server.errors import InvalidRequest
from server.proto.forwardpass.v1 import prediction_pb2 as pb
from server.types import (
    NO_DEADLINE,
    Classification,
    Custom,
    Embedding,
    Entities,
    ImageInput,
    Prediction,
    PredictRequest,
    PredictResponse,
    Ranking,
    RawInput,
    Regression,
    RowInput,
    Score,
    TextInput,
    Written,
)

_MODEL_NAME, _MODEL_VERSION = b"\x0a", b"\x12"
"""The keys of the two fields, whose lengths follow."""
_SHORT_NAME = 2 + 127
"""A length up to here is one byte."""
_EXACT_INTEGER = 2**53
"""Up to here every double that has no fraction is one whole number, and not the rounding of several."""


def model_in_front(start: bytes) -> str:
    """The model's name, of the first bytes of a PredictRequest, as every writer orders them; empty: it is not there,
    or too long to be looked for, or a version stands behind it."""
    end = 2 + start[1] if start[:1] == _MODEL_NAME and len(start) > 1 else 0
    if not 2 < end < len(start) or end > _SHORT_NAME or start[end : end + 1] == _MODEL_VERSION:
        return ""
    return start[2:end].decode(errors="replace")


def decode_predict(
    message: pb.PredictRequest, deadline_ns: int = NO_DEADLINE, *, streams: bool = False
) -> PredictRequest:
    """Of Predict; of PredictStream if it `streams`.

    Raises InvalidRequest for an empty name, no inputs, or an input or value that is not set.
    """
    if not message.model_name:
        raise InvalidRequest("model_name", "is empty")
    if not message.inputs:
        raise InvalidRequest("inputs", "is empty")
    if message.HasField("sampling") and not streams:
        raise InvalidRequest("sampling", "is of PredictStream alone")
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
        predictions=[_prediction(answer) for answer in response.predictions],
    )


def sampling_of(message: pb.PredictRequest) -> dict[str, Any]:
    """By name, whole numbers as such. `top_k` of the message names labels, this one's tokens."""
    return {name: _plain(value) for name, value in MessageToDict(message.sampling).items()}


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_INTEGER else value


def encode_written(model_name: str, model_version: str, id: str, piece: Written) -> pb.PredictResponse:
    written = pb.Written(
        text=piece.text,
        finish_reason=piece.finish_reason,
        num_input_tokens=piece.num_input_tokens,
        num_output_tokens=piece.num_output_tokens,
    )
    return pb.PredictResponse(
        model_name=model_name, model_version=model_version, id=id, predictions=[pb.Prediction(written=written)]
    )


def _prediction(answer: Prediction) -> pb.Prediction:
    match answer:
        case Classification():
            classification = pb.Classification(label=answer.label, score=answer.score, top_k=_scores(answer.top_k))
            return pb.Prediction(classification=classification)
        case Regression():
            return pb.Prediction(regression=pb.Regression(value=answer.value, low=answer.low, high=answer.high))
        case Ranking():
            return pb.Prediction(ranking=pb.Ranking(items=_scores(answer.items)))
        case Embedding():
            return pb.Prediction(embedding=pb.Embedding(vector=answer.vector))
        case Entities():
            entities = [pb.Entity(**asdict(one)) for one in answer.entities]
            return pb.Prediction(entities=pb.Entities(entities=entities))
        case Custom():
            return pb.Prediction(custom=ParseDict(answer.value, Value()))


def _scores(scores: Sequence[Score]) -> list[pb.Score]:
    return [pb.Score(label=entry.label, score=entry.score) for entry in scores]


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
