"""infer over REST for callers that repeat themselves: remembered or not, the same requests and the same bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ServingError
from server.tensor import DATATYPES, Tensor, pack_bytes
from server.transport.codec import v2_rest
from server.transport.codec.repeated_infer import InferCodec, Layout, Target, fields
from server.types import InferRequest, InferResponse, Outcome, Special


def _ignore(_request: InferRequest, _outcome: Outcome) -> None:
    """Nobody waits in these tests."""


def mostly(good: Any, *others: Any) -> st.SearchStrategy[Any]:
    """`good` nine times of ten."""
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from(others) if others and n == 0 else st.just(good))


@st.composite
def entries(draw: st.DrawFn, name: str) -> tuple[dict[str, Any], bytes]:
    """An input, and its data where it is binary."""
    datatype = draw(st.sampled_from(["FP32", "FP32", "INT64", "UINT8", "BOOL", "BYTES", "FP16"]))
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=2))
    count = int(np.prod(shape))
    size = DATATYPES[datatype].size
    data = pack_bytes([b"ab"] * count) if not size else b"\x01" * (count * size)
    entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    if draw(mostly(True, False)):
        return {**entry, "parameters": {"binary_data_size": draw(mostly(len(data), len(data) + 1, 0))}}, data
    return {**entry, "data": ["a"] * count if not size else [datatype != "FP32"] * count}, b""


@st.composite
def texts(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """JSON and the binary tensors behind it."""
    pairs = [draw(entries(f"i{index}")) for index in range(draw(st.integers(1, 2)))]
    members = [("inputs", [entry for entry, _ in pairs])]
    if draw(st.booleans()):
        binary = draw(mostly({"binary_data": True}, {"binary_data": False}, {"binary_data": 1}, {}))
        members.append(("outputs", [{"name": "o", "parameters": binary}]))
    if draw(st.booleans()):
        members.append(
            ("parameters", draw(mostly({"binary_data_output": True}, {"priority": 2}, {"explain": True}, {"p": []})))
        )
    for _ in range(draw(st.integers(0, 2))):
        at = draw(mostly(0, 1))
        members.insert(at, ("id", draw(st.sampled_from(["", "a", "é", 'q"', "x\\y", "7" * 50, "\n", 5, None]))))
    ascii_only = draw(st.booleans())
    # Written member by member, for a key may be there twice.
    body = ",".join(f"{json.dumps(key)}:{json.dumps(value, ensure_ascii=ascii_only)}" for key, value in members)
    text = "{" + body + draw(mostly("}", "", ",}")) if draw(st.booleans()) else "{" + body + "}"
    return text.encode(), b"".join(data for _, data in pairs)


def outcome(codec: InferCodec | None, body: bytes, header_length: int | None) -> tuple[Any, Any]:
    """What came of decoding, as something to compare, and what encoding needs."""
    try:
        if codec is None:
            call = v2_rest.Call("m", "1", _ignore, 5, 7, "t", "who")
            request, formats = v2_rest.decode_infer(call, body, header_length)
        else:
            request, formats = codec.decode(Target("m", "1", header_length, "t"), body, _ignore, 5, "who", 7)
    except ServingError as error:
        return (type(error), error.public_message), None
    tensors = [(t.name, t.datatype, t.shape, bytes(t.data)) for t in request.inputs]
    told = (request.model_name, request.model_version, request.id, list(request.outputs), dict(request.parameters))
    return (tensors, told, request.received_ns, request.deadline_ns, request.tenant, request.caller), formats


@given(st.lists(texts(), min_size=1, max_size=3), st.data())
def test_requests_that_repeat_are_those_of_the_plain_way(calls: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    """Each several times, in any order, with other data and other ids, whole or spoilt."""
    codec = InferCodec()
    for _ in range(8):
        text, raw = data.draw(st.sampled_from(calls))
        raw = data.draw(mostly(raw, raw[:-1], raw + b"x", bytes(len(raw)), b"\xff" * len(raw)))
        if data.draw(st.booleans()) and text.startswith(b'{"i'):
            text = b'{"id":"%s",' % data.draw(st.sampled_from([b"one", b"two", b"", b"\\u0041", b"\xff"])) + text[1:]
        length: int | None = data.draw(mostly(len(text), len(text) - 1, len(text) + 1, len(text) + 999, None))
        plain, formats = outcome(None, text + raw, length)
        repeated, remembered = outcome(codec, text + raw, length)
        assert repeated == plain
        if formats is not None:
            _check_answers(codec, formats, remembered, data)


def _check_answers(codec: InferCodec, formats: v2_rest.OutputFormat, remembered: Any, data: st.DataObject) -> None:
    for _ in range(2):
        shape = data.draw(mostly((1, 2), (2, 2), (0, 2)))
        outputs = [Tensor.from_numpy(data.draw(mostly("o", "other")), np.full(shape, np.pi, "<f4"))]
        if data.draw(mostly(False, True)):
            outputs.append(Tensor.from_numpy("b", np.array([b"x", b"yz"], object)[: shape[0]]))
        response = InferResponse(
            data.draw(mostly("m", "n")), data.draw(mostly("1", "2")), outputs, data.draw(mostly("", "i", 'é"'))
        )
        if data.draw(mostly(False, True)):
            response.parameters = {"p": 1}
        parts, length = v2_rest.encode_infer(response, formats)
        body = b"".join(parts)
        assert b"".join(codec.encode(response, remembered)) == fields(length, len(body)) + body


JSON = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}'


def decode(codec: InferCodec, text: bytes, model: str = "m") -> tuple[InferRequest, Any]:
    return codec.decode(Target(model, "", len(text), ""), text + b"12345678", _ignore, 0)


def test_requests_with_the_same_json_share_a_form() -> None:
    """Also where their ids differ; not with those of another model, or of other JSON."""
    codec = InferCodec()
    first, second = decode(codec, JSON)[0], decode(codec, JSON)[0]
    assert first.form is second.form is not None
    named = [decode(codec, b'{"id":"%d",' % i + JSON[1:])[0] for i in range(3)]
    assert [request.id for request in named] == ["0", "1", "2"]
    assert {request.form for request in named} == {first.form}
    assert decode(codec, JSON, "n")[0].form is not first.form
    assert decode(codec, JSON + b" ")[0].form is not first.form


@pytest.mark.parametrize(("datatype", "size"), [("BOOL", 2), ("BYTES", 12)])
def test_data_that_must_be_looked_at_is_looked_at(datatype: str, size: int) -> None:
    """A BOOL of 2 and broken BYTES are found behind JSON that was seen before."""
    codec = InferCodec()
    text = JSON.replace(b"FP32", datatype.encode()).replace(b"8}", b"%d}" % size)
    good = b"\1\0" if datatype == "BOOL" else pack_bytes([b"ab", b"cd"])
    target = Target("m", "", len(text), "")
    assert not isinstance(codec.decode(target, text + good, _ignore, 0)[1], Layout)
    with pytest.raises(ServingError):
        codec.decode(target, text + b"\xff" * size, _ignore, 0)


def test_what_is_remembered_is_bounded() -> None:
    """Ever new JSON leaves no more than a bounded number behind."""
    codec = InferCodec()
    for index in range(5000):
        decode(codec, JSON[:-1] + b',"parameters":{"p":%d}}' % index)
    assert len(codec._layouts) < 2200


@pytest.mark.parametrize(("classes", "remembered"), [(0, True), (2, False)])
def test_a_request_of_classes_says_so_each_time(classes: int, remembered: bool) -> None:
    """However often its JSON comes; it is read anew, and has no form that a check might know."""
    tensor = {"name": "i", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    outputs = [{"name": "o", "parameters": {"classification": classes}}]
    text = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    codec = InferCodec()
    for _ in range(3):
        request, formats = codec.decode(Target("m", "1", len(text), ""), text + bytes(4), _ignore, 5)
        assert request.special == (Special(None, {"o": 2}) if classes else None)
        assert isinstance(formats, Layout) is remembered
        assert (request.form is not None) is remembered
