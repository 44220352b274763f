"""predict over REST and gRPC <-> types."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from google.protobuf import struct_pb2

from server.client import answers
from server.errors import Code, InvalidRequest, ServingError
from server.proto.forwardpass.v1 import prediction_pb2 as pb
from server.transport.codec import predict_grpc, predict_rest
from server.types import (
    Classification,
    Custom,
    ImageInput,
    Prediction,
    PredictRequest,
    PredictResponse,
    Ranking,
    Regression,
    RowInput,
    Score,
    TextInput,
)

PICTURE = b"\x89PNG\r\n"
B64 = base64.b64encode(PICTURE).decode()


def decode(body: bytes, content_type: str = "application/json", query: dict[str, str] | None = None) -> PredictRequest:
    return predict_rest.decode_predict("m", "2", body, content_type, query, deadline_ns=9)


def document(*inputs: Any, **rest: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **rest}).encode()


def test_rows_texts_and_images_in_json() -> None:
    """Each JSON type means one kind of input, in the order given."""
    request = decode(
        document(
            {"x": 1, "y": None}, [1, "a", True], "hello", {"b64": B64, "content_type": "image/png"}, id="i", top_k=3
        )
    )
    assert (request.model_name, request.model_version, request.id) == ("m", "2", "i")
    assert (request.top_k, request.deadline_ns, request.parameters) == (3, 9, None)
    assert request.inputs == [
        RowInput({"x": 1, "y": None}),
        RowInput([1, "a", True]),
        TextInput("hello"),
        ImageInput(PICTURE, "image/png"),
    ]


def test_parameters_pass_and_may_hold_top_k() -> None:
    """`top_k` may stand among the parameters; the others reach the model's queue as they are."""
    request = decode(document("t", parameters={"top_k": 2, "priority": 1}))
    assert (request.top_k, request.parameters) == (2, {"priority": 1})


@pytest.mark.parametrize(
    ("content_type", "kept"),
    [("image/png", "image/png"), ("Image/JPEG; q=1", "image/jpeg"), ("application/octet-stream", "")],
)
def test_a_picture_as_the_body(content_type: str, kept: str) -> None:
    """A body that says it is an image is one input, with its options in the query."""
    request = decode(PICTURE, content_type, {"top_k": "3", "id": "i"})
    assert request.inputs == [ImageInput(PICTURE, kept)]
    assert (request.top_k, request.id) == (3, "i")


@pytest.mark.parametrize("content_type", ["", "application/x-www-form-urlencoded", "text/plain", "application/json"])
def test_anything_else_is_json(content_type: str) -> None:
    """A plain `curl -d` says x-www-form-urlencoded; it is read as JSON all the same."""
    assert decode(document("t"), content_type).inputs == [TextInput("t")]


MALFORMED: dict[str, tuple[tuple[Any, ...], str]] = {
    "an empty body": ((b"",), "body:"),
    "no JSON": ((b"hello",), "body:"),
    "a picture called JSON": ((PICTURE,), "body:"),
    "no picture": ((b"", "image/png"), "body:"),
    "a list": ((b"[1]",), "body:"),
    "null": ((b"null",), "body:"),
    "JSON cut short": ((b'{"inputs": ["a"',), "body:"),
    "NaN in a row": ((b'{"inputs": [[NaN]]}',), "body:"),
    "a form": ((b"--x", "multipart/form-data; boundary=x"), "Content-Type:"),
    "no inputs": ((b"{}",), "inputs:"),
    "inputs are null": ((b'{"inputs": null}',), "inputs:"),
    "inputs are an object": ((b'{"inputs": {"x": 1}}',), "inputs:"),
    "inputs are text": ((b'{"inputs": "a"}',), "inputs:"),
    "inputs are empty": ((document(),), "inputs:"),
    "an input is a number": ((document(1),), "inputs[0]:"),
    "an input is true": ((document("a", True),), "inputs[1]:"),
    "an input is null": ((document("a", "b", None),), "inputs[2]:"),
    "base64 that is none": ((document({"b64": "a"}),), "inputs[0].b64:"),
    "base64 with blanks": ((document({"b64": f"{B64[:4]} {B64[4:]}"}),), "inputs[0].b64:"),
    "base64 in another alphabet": ((document({"b64": "-_-_"}),), "inputs[0].b64:"),
    "base64 with umlauts": ((document({"b64": "ääää"}),), "inputs[0].b64:"),
    "a data URL": ((document({"b64": f"data:image/png;base64,{B64}"}),), "inputs[0].b64:"),
    "base64 that is empty": ((document({"b64": ""}),), "inputs[0].b64:"),
    "base64 that is a list": ((document("a", {"b64": [1]}),), "inputs[1].b64:"),
    "base64 that is null": ((document({"b64": None}),), "inputs[0].b64:"),
    "an image with another key": ((document({"b64": B64, "type": "png"}),), "inputs[0].type:"),
    "a content type that is a number": ((document({"b64": B64, "content_type": 1}),), "inputs[0].content_type:"),
    "an unknown key": ((document("a", input="b"),), "'input':"),
    "a key in another case": ((document("a", Inputs=["b"]),), "'Inputs':"),
    "top_k that is text": ((document("a", top_k="3"),), "top_k:"),
    "top_k that is a float": ((document("a", top_k=3.0),), "top_k:"),
    "top_k that is true": ((document("a", top_k=True),), "top_k:"),
    "top_k that is null": ((document("a", top_k=None),), "top_k:"),
    "top_k below zero": ((document("a", top_k=-1),), "top_k:"),
    "top_k beyond 31 bits": ((document("a", top_k=2**31),), "top_k:"),
    "top_k twice": ((document("a", top_k=1, parameters={"top_k": 1}),), "top_k:"),
    "top_k in the query, no number": ((PICTURE, "image/png", {"top_k": "many"}), "top_k:"),
    "top_k in the query, empty": ((PICTURE, "image/png", {"top_k": ""}), "top_k:"),
    "top_k in the query, negative": ((PICTURE, "image/png", {"top_k": "-1"}), "top_k:"),
    "top_k in the query, of 10,000 digits": ((PICTURE, "image/png", {"top_k": "9" * 10_000}), "top_k:"),
    "top_k in the query and in the body": ((document("a", top_k=1), "", {"top_k": "1"}), "top_k:"),
    "an unknown query parameter": ((PICTURE, "image/png", {"topk": "1"}), "topk:"),
    "parameters that are a list": ((document("a", parameters=[]),), "parameters:"),
    "parameters that are null": ((document("a", parameters=None),), "parameters:"),
    "a parameter that is a list": ((document("a", parameters={"p": []}),), "parameters.p:"),
    "a parameter that is null": ((document("a", parameters={"p": None}),), "parameters.p:"),
    "an id that is a number": ((document("a", id=1),), "id:"),
    "an id that is null": ((document("a", id=None),), "id:"),
    "an id twice": ((document("a", id="x"), "", {"id": "y"}), "id:"),
    "a model as a key of the body": ((document("a", model_name="m"),), "'model_name':"),
}


@pytest.mark.parametrize(("call", "field"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_refused_by_name(call: tuple[Any, ...], field: str) -> None:
    """Whatever is wrong on the wire is the client's error, short, and begins with the field at fault."""
    with pytest.raises(ServingError) as caught:
        decode(*call)
    assert caught.value.code in (Code.INVALID_ARG, Code.UNSUPPORTED)
    assert caught.value.public_message.startswith(field)
    assert len(caught.value.public_message) < 300


RESPONSE = PredictResponse("m", "1", [Classification("a", 0.75, (Score("a", 0.75), Score("b", 0.25)))], "i")


def test_the_answer_in_json() -> None:
    """Labels, scores and the best k, as documented; no id where the caller gave none."""
    prediction = {
        "label": "a",
        "score": 0.75,
        "top_k": [{"label": "a", "score": 0.75}, {"label": "b", "score": 0.25}],
    }
    expected = {"model_name": "m", "model_version": "1", "id": "i", "predictions": [prediction]}
    assert json.loads(predict_rest.encode_predict(RESPONSE)) == expected
    assert "id" not in json.loads(predict_rest.encode_predict(PredictResponse("m", "1", [])))


def test_the_answer_in_protobuf() -> None:
    """The same answer over gRPC."""
    message = predict_grpc.encode_predict(RESPONSE)
    assert (message.model_name, message.model_version, message.id) == ("m", "1", "i")
    [prediction] = message.predictions
    assert (prediction.classification.label, prediction.classification.score) == ("a", 0.75)
    assert [(s.label, s.score) for s in prediction.classification.top_k] == [("a", 0.75), ("b", 0.25)]


ANSWERS = {
    "classification": Classification("a", 0.75, (Score("a", 0.75), Score("b", 0.25))),
    "regression": Regression(21.5, 19.0, 24.25),
    "ranking": Ranking((Score("item-7", 3.5), Score("item-1", -0.5))),
    "no items": Ranking(()),
    "custom": Custom({"boxes": [[0, 1.5]], "name": None, "ok": True}),
    "custom text": Custom("plain"),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_every_kind_of_answer_comes_back_by_both_wires(answer: Prediction) -> None:
    """What the server encodes, the client reads as the same value, over REST and gRPC; it can be shown to people."""
    response = PredictResponse("m", "1", [answer])
    [by_json] = json.loads(predict_rest.encode_predict(response))["predictions"]
    message = pb.PredictResponse.FromString(predict_grpc.encode_predict(response).SerializeToString())

    assert answers.of_json(by_json) == answer
    assert [answers.of_message(one) for one in message.predictions] == [answer]
    assert answers.readable(answer)[0]


def row(**values: Any) -> pb.Input:
    entry = pb.Input()
    entry.row.update(values)
    return entry


def values(*items: Any) -> pb.Input:
    entry = pb.Input()
    entry.values.extend(items)
    return entry


def test_every_kind_of_input_in_protobuf() -> None:
    """A row by protobuf is the row that JSON would give: whole numbers are ints, null is None."""
    message = pb.PredictRequest(
        model_name="m",
        model_version="2",
        id="i",
        top_k=3,
        inputs=[
            pb.Input(image=pb.Image(data=PICTURE, content_type="image/png")),
            pb.Input(text="hello"),
            row(x=1.0, y=0.5, z=None, s="t", b=True, big=2.0**60),
            values(3, "a", None),
            pb.Input(text=""),
        ],
    )
    request = predict_grpc.decode_predict(message, 9)
    assert (request.model_name, request.model_version, request.id) == ("m", "2", "i")
    assert (request.top_k, request.deadline_ns) == (3, 9)
    assert request.inputs == [
        ImageInput(PICTURE, "image/png"),
        TextInput("hello"),
        RowInput({"x": 1, "y": 0.5, "z": None, "s": "t", "b": True, "big": 2.0**60}),
        RowInput([3, "a", None]),
        TextInput(""),
    ]
    assert isinstance(request.inputs[2].values["x"], int)
    assert isinstance(request.inputs[2].values["big"], float)


def test_infinite_numbers_reach_the_pipeline() -> None:
    """Protobuf can carry what JSON can't; whether a column takes NaN or infinity is for its spec to say."""
    request = predict_grpc.decode_predict(
        pb.PredictRequest(model_name="m", inputs=[values(float("inf"), float("nan"))])
    )
    assert str(request.inputs[0].values) == "[inf, nan]"


def unset_value() -> pb.Input:
    entry = values(1)
    entry.values.values.append(struct_pb2.Value())
    return entry


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.PredictRequest(inputs=[pb.Input(text="a")]), "model_name:"),
        (pb.PredictRequest(model_name="m"), "inputs:"),
        (pb.PredictRequest(model_name="m", inputs=[pb.Input(text="a"), pb.Input()]), "inputs[1]:"),
        (pb.PredictRequest(model_name="m", inputs=[unset_value()]), "inputs[0][1]:"),
        (pb.PredictRequest(model_name="m", inputs=[row(x=[1])]), "inputs[0].x:"),
        (pb.PredictRequest(model_name="m", inputs=[row(x={"y": 1})]), "inputs[0].x:"),
        (pb.PredictRequest(model_name="m", inputs=[values([1])]), "inputs[0][0]:"),
    ],
    ids=[
        "no model name",
        "no inputs",
        "an input of no kind",
        "a value of no kind",
        "a list",
        "an object",
        "a nested list",
    ],
)
def test_a_malformed_message_is_refused_by_name(message: pb.PredictRequest, field: str) -> None:
    """What the schema allows and the protocol does not is refused with the field at fault."""
    with pytest.raises(InvalidRequest) as caught:
        predict_grpc.decode_predict(message)
    assert caught.value.public_message.startswith(field)
