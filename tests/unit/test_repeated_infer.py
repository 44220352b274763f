"""infer over REST for callers that repeat themselves: what is remembered of a request and of its answer."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import InvalidRequest
from server.tensor import Tensor
from server.transport.codec.repeated_infer import InferCodec, Layout, Target
from server.types import InferRequest, InferResponse, Outcome

JSON = (
    b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}},'
    b'{"name":"y","shape":[1],"datatype":"INT64","parameters":{"binary_data_size":8}}],'
    b'"parameters":{"binary_data_output":true,"p":3}}'
)
DATA = b"12345678abcdefgh"


def _ignore(_request: InferRequest, _outcome: Outcome) -> None:
    """Nobody waits in these tests."""


def decode(codec: InferCodec, text: bytes = JSON, data: bytes = DATA, **target: Any) -> tuple[InferRequest, Any]:
    where = Target(**{"model_name": "m", "model_version": "1", "header_length": len(text), "tenant": "t"} | target)
    return codec.decode(where, text + data, _ignore, 5, "who", 7)


def known(codec: InferCodec, text: bytes = JSON) -> Layout:
    _, layout = decode(codec, text)
    assert isinstance(layout, Layout)
    return layout


def test_what_was_seen_before_is_not_parsed_again() -> None:
    """The layout is the same; data, id and tenant are this request's."""
    codec = InferCodec()
    layout = known(codec)
    request, again = decode(codec, data=b"abcdefgh12345678", tenant="other")
    assert again is layout
    assert [(t.name, t.datatype, t.shape, t.data) for t in request.inputs] == [
        ("x", "FP32", (1, 2), b"abcdefgh"),
        ("y", "INT64", (1,), b"12345678"),
    ]
    assert (request.tenant, request.caller, request.received_ns, request.deadline_ns) == ("other", "who", 5, 7)
    assert request.parameters == {"p": 3}
    named, again = decode(codec, b'{"id":"me",' + JSON[1:])
    assert (named.id, again) == ("me", layout)


@pytest.mark.parametrize("where", [{"model_name": "n"}, {"model_version": "2"}])
def test_another_model_or_version_has_a_layout_of_its_own(where: dict[str, str]) -> None:
    """With the same JSON."""
    codec = InferCodec()
    layout = known(codec)
    assert decode(codec, **where)[1] is not layout
    assert decode(codec, **where)[1] is decode(codec, **where)[1]


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", b""])
def test_data_of_another_length_is_refused_as_ever(data: bytes) -> None:
    """However well its JSON is known."""
    codec = InferCodec()
    known(codec)
    with pytest.raises(InvalidRequest):
        decode(codec, data=data)


def test_json_that_is_long_is_parsed_each_time() -> None:
    """4,096 bytes are remembered, one more is not."""
    for size, remembered in ((4096, True), (4097, False)):
        text = JSON + b" " * (size - len(JSON))
        codec = InferCodec()
        assert isinstance(decode(codec, text)[1], Layout) is remembered
        assert len(codec._layouts) == remembered


def test_json_alone_is_parsed_each_time() -> None:
    """Its data is in it."""
    codec = InferCodec()
    text = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}'
    for length in (None, len(text)):
        assert not isinstance(decode(codec, text, b"", header_length=length)[1], Layout)


@pytest.mark.parametrize(
    "start", [b'{"id":"\\u0041",', b'{"id":"\xc3\xa9",', b'{"id":"\x7f",', b'{"id":"",', b'{ "id":"a",']
)
def test_an_id_that_is_not_plain_is_read_the_plain_way(start: bytes) -> None:
    """Escaped, not ASCII, not printable, empty, or not where it is looked for: nothing is remembered of its request."""
    codec = InferCodec()
    requests = [decode(codec, start + JSON[1:]) for _ in range(2)]
    assert not any(isinstance(formats, Layout) for _, formats in requests)
    assert requests[0][0].id == requests[1][0].id
    assert len(codec._layouts) == 0


def test_a_large_tensor_is_a_view_on_its_body() -> None:
    """A small one is a copy, so that it does not hold the body."""
    for size, kind in ((1024, bytes), (1025, memoryview)):
        text = b'{"inputs":[{"name":"x","shape":[%d],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}'
        text = text % (size, 4 * size)
        codec = InferCodec()
        known_, _ = decode(codec, text, bytes(4 * size))
        request, layout = decode(codec, text, b"\1" * 4 * size)
        assert isinstance(layout, Layout)
        assert type(request.inputs[0].data) is kind
        assert bytes(request.inputs[0].data) == b"\1" * 4 * size
        assert request.form is known_.form


def answer(**other: Any) -> InferResponse:
    said = {"name": "o", "datatype": "FP32", "shape": (1, 2), "data": b"abcdefgh"} | other
    model = {name: said.pop(name) for name in ("model_name", "model_version", "id") if name in said}
    said_of = {"model_name": "m", "model_version": "1", "id": ""} | model
    tensor = Tensor(said["name"], said["datatype"], said["shape"], said["data"])
    return InferResponse(said_of["model_name"], said_of["model_version"], [tensor], said_of["id"])


def test_an_answer_like_the_last_is_laid_out_like_it() -> None:
    """Whatever its data and its id; the data is not copied."""
    codec = InferCodec()
    layout = known(codec)
    codec.encode(answer(), layout)
    laid_out = layout.answer
    assert laid_out is not None
    data = b"ABCDEFGH"
    for name in ("", "me"):
        parts = codec.encode(answer(data=data, id=name), layout)
        assert layout.answer is laid_out
        assert parts[1] is data


@pytest.mark.parametrize(
    "other",
    [
        {"name": "p"},
        {"datatype": "INT32"},
        {"shape": (2, 1)},
        {"shape": (1, 3), "data": bytes(12)},
        {"model_name": "n"},
        {"model_version": "2"},
    ],
)
def test_another_answer_is_laid_out_anew(other: dict[str, Any]) -> None:
    """By its names, datatypes, shapes, or the version that answered; then it is the one to follow."""
    codec = InferCodec()
    layout = known(codec)
    first, second = (b"".join(codec.encode(each, layout)) for each in (answer(), answer(**other)))
    laid_out = layout.answer
    assert second == b"".join(InferCodec().encode(answer(**other), layout.formats))
    assert b"".join(codec.encode(answer(**other), layout)) == second
    assert layout.answer is laid_out
    assert b"".join(codec.encode(answer(), layout)) == first
    assert layout.answer is not laid_out


def test_an_answer_with_more_outputs_or_parameters_is_laid_out_anew() -> None:
    """Parameters of an answer are its own: with them nothing is kept."""
    codec = InferCodec()
    layout = known(codec)
    more = answer()
    more.outputs = [*more.outputs, *answer(name="p").outputs]
    told = answer()
    told.parameters = {"p": 1}
    none = answer()
    none.outputs = []
    for response, kept in ((answer(), True), (more, True), (told, False), (none, False), (answer(), True)):
        parts = codec.encode(response, layout)
        assert b"".join(parts) == b"".join(InferCodec().encode(response, layout.formats))
        assert (layout.answer is not None) is kept


def test_an_answer_in_json_is_written_each_time() -> None:
    """Its data is in it."""
    codec = InferCodec()
    layout = known(codec, JSON.replace(b"true", b"false"))
    for data in (b"abcdefgh", b"ABCDEFGH"):
        codec.encode(answer(data=data), layout)
        assert layout.answer is None
