"""The answers of `predict` as both wires carry them, to types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict

from server.proto.forwardpass.v1 import prediction_pb2 as pb
from server.types import (
    Classification,
    Custom,
    Embedding,
    Entities,
    Entity,
    Prediction,
    Ranking,
    Regression,
    Score,
    Written,
)

_SHOWN = 6
"""Numbers of a vector that people see."""


def of_json(one: Mapping[str, Any]) -> Prediction:
    """An answer out of REST's JSON. Raises KeyError for one of no kind that is known here."""
    if "label" in one:
        return Classification(one["label"], one["score"], _of_objects(one["top_k"]))
    if "value" in one:
        return Regression(one["value"], one["low"], one["high"])
    if "items" in one:
        return Ranking(_of_objects(one["items"]))
    if "vector" in one:
        return Embedding(tuple(one["vector"]))
    if "entities" in one:
        return Entities(tuple(Entity(**entity) for entity in one["entities"]))
    return Custom(one["custom"])


def of_message(message: pb.Prediction) -> Prediction:
    """An answer out of gRPC's message. Raises ValueError for one of no kind that is known here."""
    match message.WhichOneof("result"):
        case "classification":
            one = message.classification
            return Classification(one.label, one.score, _of_messages(one.top_k))
        case "regression":
            return Regression(message.regression.value, message.regression.low, message.regression.high)
        case "ranking":
            return Ranking(_of_messages(message.ranking.items))
        case "embedding":
            return Embedding(tuple(message.embedding.vector))
        case "entities":
            found = message.entities.entities
            return Entities(tuple(Entity(one.label, one.score, one.start, one.end, one.text) for one in found))
        case "custom":
            return Custom(MessageToDict(message.custom))
    raise ValueError("a prediction of a kind that this client does not know")


def written_of_message(message: pb.Prediction) -> Written:
    """A piece of a text out of gRPC's message. Raises ValueError for an answer of another kind."""
    if message.WhichOneof("result") != "written":
        raise ValueError("the model writes no text: use predict")
    one = message.written
    return Written(one.text, one.finish_reason, one.num_input_tokens, one.num_output_tokens)


def readable(answer: Prediction) -> list[str]:
    """An answer for people: its sum in the first line, the rest of a list indented below."""
    match answer:
        case Classification():
            below = _listed(answer.top_k) if len(answer.top_k) > 1 else []
            return [f"{answer.label}  {answer.score:.4f}", *below]
        case Regression():
            return [f"{answer.value:.6g}  from {answer.low:.6g} to {answer.high:.6g}"]
        case Ranking():
            return [f"{len(answer.items)} items", *_listed(answer.items)]
        case Embedding():
            more = " ..." if len(answer.vector) > _SHOWN else ""
            shown = " ".join(f"{value:.4f}" for value in answer.vector[:_SHOWN])
            return [f"{len(answer.vector)} numbers: {shown}{more}"]
        case Entities():
            found = [f"  {one.label}  {one.score:.4f}  {one.text}" for one in answer.entities]
            return [f"{len(found)} entities", *found]
        case Custom():
            return [json.dumps(answer.value, ensure_ascii=False)]


def _listed(scores: Sequence[Score]) -> list[str]:
    width = max((len(one.label) for one in scores), default=0)
    return [f"  {one.label:<{width}}  {one.score:.4f}" for one in scores]


def _of_objects(scores: Iterable[Mapping[str, Any]]) -> tuple[Score, ...]:
    return tuple(Score(one["label"], one["score"]) for one in scores)


def _of_messages(scores: Iterable[pb.Score]) -> tuple[Score, ...]:
    return tuple(Score(one.label, one.score) for one in scores)
