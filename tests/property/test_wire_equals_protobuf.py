"""What is read and written without protobuf equals what protobuf reads and writes, whatever was seen before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from server.tensor import DATATYPES, Tensor, pack_bytes
from server.transport.codec import v2_grpc
from server.transport.codec.varint import varint
from server.transport.codec.wire_request import Forms
from server.transport.codec.wire_response import Templates
from server.types import InferResponse, Parameter
from tests.support.wire import by_frame, by_protobuf, by_wire

more = settings(max_examples=150)
"""A busy machine is no failure of a codec."""

RAW = 7
GROUP = b"\x7b\x08\x05\x7c"
UNKNOWN = [b"\x78\x05", b"\x7d\x01\x02\x03\x04", b"\x79\x01\x02\x03\x04\x05\x06\x07\x08", b"\x7a\x02hi", GROUP]
"""Field 15 as a varint, fixed32, fixed64, with a length, and a group."""
ODD = [b"\x18\x05", b"\x1a", b"\x3a\x80\x00", b"\xba\x00\x01x", b"\x1a\x02\xff\xfe", b"\x1a\x00", b"\x22\x00", b"\x00"]
"""An id that is a varint, one cut off, long-winded length and tag, no UTF-8, empty fields, no tag at all."""

TEXT = st.text(max_size=6) | st.just("n" * 130)
NAMES = st.sampled_from(["x", "y", "input_ids", "n" * 130, ""])
SHAPES = st.lists(st.sampled_from([0, 1, 1, 2, 3, -1]), max_size=3) | st.just([3000])


@st.composite
def parameters(draw: st.DrawFn) -> pb.InferParameter:
    kind, values = draw(
        st.sampled_from(
            [
                ("bool_param", st.booleans()),
                ("int64_param", st.integers(-(2**63), 2**63 - 1)),
                ("uint64_param", st.integers(0, 2**64 - 1)),
                ("double_param", st.floats(allow_nan=False)),
                ("string_param", TEXT),
                ("", st.none()),
            ]
        )
    )
    return pb.InferParameter(**({kind: draw(values)} if kind else {}))


@st.composite
def raw_contents(draw: st.DrawFn, datatype: str, shape: Sequence[int]) -> bytes:
    """Data as the shape wants it, mostly."""
    count = max(0, int(np.prod(shape)))
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=12))
    if datatype == "BYTES":
        return pack_bytes(draw(st.lists(st.binary(max_size=3), min_size=min(count, 9), max_size=min(count, 9))))
    if datatype == "BOOL":
        return bytes(draw(st.lists(st.sampled_from([0, 1, 1, 0, 2]), min_size=count, max_size=count)))
    size = count * (DATATYPES[datatype].size if datatype in DATATYPES else 1)
    start = draw(st.binary(min_size=min(size, 8), max_size=min(size, 8)))
    return (start * (size // max(1, len(start)) + 1))[:size]


@st.composite
def shapes_of_message(draw: st.DrawFn) -> pb.ModelInferRequest:
    """A message without its data and its id."""
    message = pb.ModelInferRequest(model_name=draw(NAMES), model_version=draw(st.sampled_from(["", "1", "v" * 130])))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 0]))):
        datatype = draw(st.sampled_from([*sorted(DATATYPES), "FP32", "FP32", "INT64", "nothing"]))
        tensor = message.inputs.add(name=draw(NAMES), datatype=datatype, shape=draw(SHAPES))
        if draw(st.integers(0, 9)) == 0:
            tensor.parameters[draw(st.sampled_from(["a", "shared_memory_region"]))].CopyFrom(draw(parameters()))
        if draw(st.integers(0, 9)) == 0:
            tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32, allow_nan=False), max_size=3)))
        if draw(st.integers(0, 19)) == 0:
            tensor.contents.SetInParent()
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        message.outputs.add(name=draw(NAMES))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        message.parameters[draw(st.sampled_from(["timeout", "p", ""]))].CopyFrom(draw(parameters()))
    return message


@st.composite
def filled(draw: st.DrawFn, shape: pb.ModelInferRequest) -> list[bytes]:
    """The fields of one message of that shape, with its own id and data, in the order of their numbers."""
    pieces = pieces_of(shape)
    request_id = draw(st.just("") | TEXT)
    if request_id:
        encoded = request_id.encode()
        place = sum(piece[0] >> 3 < 3 for piece in pieces)
        pieces.insert(place, b"\x1a" + varint(len(encoded)) + encoded)
    if draw(st.integers(0, 19)):
        for tensor in shape.inputs:
            data = draw(raw_contents(tensor.datatype, tensor.shape))
            pieces.append(b"\x3a" + varint(len(data)) + data)
    return pieces


def pieces_of(message: pb.ModelInferRequest) -> list[bytes]:
    """The fields of a message, each as its bytes."""
    pieces: list[bytes] = []
    for descriptor, value in message.ListFields():
        if descriptor.name == "parameters":
            alone = [pb.ModelInferRequest(parameters={name: entry}) for name, entry in value.items()]
        elif descriptor.name in ("inputs", "outputs"):
            alone = [pb.ModelInferRequest(**{descriptor.name: [entry]}) for entry in value]
        else:
            alone = [pb.ModelInferRequest(**{descriptor.name: value})]
        pieces += [one.SerializeToString() for one in alone]
    return pieces


@st.composite
def spoiled(draw: st.DrawFn, pieces: list[bytes]) -> bytes:
    """The message; or one in which something is odd, at every level from the order of its fields to a single bit."""
    match draw(st.integers(0, 14)):
        case 0:
            pieces = draw(st.permutations(pieces))
        case 1:
            pieces.insert(draw(st.integers(0, len(pieces))), draw(st.sampled_from(UNKNOWN)))
        case 2:
            pieces.insert(draw(st.integers(0, len(pieces))), draw(st.sampled_from(ODD)))
        case 3 if pieces:
            pieces.insert(draw(st.integers(0, len(pieces))), draw(st.sampled_from(pieces)))
        case 4 if pieces:
            pieces.remove(draw(st.sampled_from(pieces)))
        case 5 if pieces:
            index = draw(st.integers(0, len(pieces) - 1))
            pieces[index] = long_winded(pieces[index], draw(st.integers(1, 6)))
        case 6:
            data = b"".join(pieces)
            return data[: draw(st.integers(0, len(data)))]
        case 7 if pieces:
            data = b"".join(pieces)
            return changed(data, draw(st.lists(st.integers(0, len(data) * 8 - 1), min_size=1, max_size=3)))
        case 8:
            return b"".join(pieces) + draw(st.binary(max_size=6))
    return b"".join(pieces)


def changed(data: bytes, bits: list[int]) -> bytes:
    """The bytes with some bits the other way round."""
    other = bytearray(data)
    for bit in bits:
        other[bit // 8] ^= 1 << bit % 8
    return bytes(other)


def long_winded(piece: bytes, more: int) -> bytes:
    """The field with so many bytes more in its length than it takes."""
    size = next(index for index in range(1, 9) if piece[index] < 128)
    return piece[:size] + bytes([piece[size] | 128]) + b"\x80" * (more - 1) + b"\0" + piece[size + 1 :]


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """Messages of a few shapes, mixed: the same ones come again with other data and ids, and some are spoiled."""
    shapes = draw(st.lists(shapes_of_message(), min_size=1, max_size=3))
    turns = draw(st.lists(st.sampled_from(shapes), min_size=3, max_size=10))
    return [draw(spoiled(draw(filled(shape)))) for shape in turns]


@more
@given(conversations(), st.booleans())
def test_any_sequence_of_messages_is_read_as_protobuf_reads_it(messages: list[bytes], viewed: bool) -> None:
    """Each is the same request, or the same refusal, also where its like was seen before, and seen again."""
    forms = Forms()
    for data in [*messages, *messages, *messages]:
        assert by_wire(forms, memoryview(bytearray(data)) if viewed else data) == by_protobuf(data)


@more
@given(st.sampled_from(["FP32", "BOOL", "BYTES"]), st.booleans(), TEXT, st.data())
def test_the_next_message_of_a_run_may_be_anything(
    datatype: str, two: bool, request_id: str, data: st.DataObject
) -> None:
    """A message of a known shape is followed by one that is cut, longer, or changed in a bit, and then by itself."""
    forms = Forms()
    message = pb.ModelInferRequest(model_name="m", model_version="1", id=request_id)
    for name in ("x", "y") if two else ("x",):
        message.inputs.add(name=name, datatype=datatype, shape=[1, 2])
        message.raw_input_contents.append({"FP32": bytes(8), "BOOL": b"\1\0", "BYTES": b"\1\0\0\0a\0\0\0\0"}[datatype])
    whole = message.SerializeToString()
    by_wire(forms, whole)
    for _ in range(6):
        assert by_wire(forms, whole) == by_frame(forms, whole) == by_protobuf(whole)
        index = data.draw(st.integers(0, len(whole) - 1))
        other = changed(whole, [8 * index + data.draw(st.integers(0, 7))])
        for one in (other, whole[:index], whole[:index] + whole[index + 1 :], whole + whole[index:]):
            assert by_wire(forms, one) == by_frame(forms, one) == by_protobuf(one)


@more
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_are_read_as_protobuf_reads_them(messages: list[bytes]) -> None:
    """Also those that are no message at all."""
    forms = Forms()
    for data in messages:
        assert by_wire(forms, data) == by_protobuf(data)


@st.composite
def responses(draw: st.DrawFn) -> InferResponse:
    outputs = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2, 3]))):
        datatype = draw(st.sampled_from(sorted(DATATYPES)))
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3))) if draw(st.booleans()) else (1, 2)
        count = int(np.prod(shape))
        size = DATATYPES[datatype].size or draw(st.integers(0, 200))
        body = draw(st.binary(max_size=4)) + bytes(count * size)
        outputs.append(Tensor(draw(NAMES), datatype, shape, draw(buffers(body[: count * size]))))
    said = st.dictionaries(TEXT, st.booleans() | st.integers(-5, 2**64 - 1) | st.floats(allow_nan=False) | TEXT)
    values: dict[str, Parameter] = draw(said) if draw(st.integers(0, 9)) == 0 else {}
    return InferResponse(draw(NAMES), draw(st.sampled_from(["", "1"])), outputs, draw(st.just("") | TEXT), values)


@st.composite
def buffers(draw: st.DrawFn, data: bytes) -> Any:
    """The bytes in any of the forms that a tensor's data has; at times too few of them."""
    if draw(st.integers(0, 9)) == 0:
        data = data[:-1]
    make: Any = draw(st.sampled_from([bytes, bytearray, memoryview, _as_words, _as_column]))
    return make(data)


def _as_words(data: bytes) -> memoryview:
    """A view whose length is not that of its bytes, where they make whole words."""
    return memoryview(data).cast("I") if len(data) % 4 == 0 else memoryview(data)


def _as_column(data: bytes) -> memoryview:
    return memoryview(np.frombuffer(data, np.uint8).reshape(-1, 1))


@more
@given(st.lists(responses(), min_size=1, max_size=6))
def test_any_sequence_of_answers_is_written_as_protobuf_writes_it(answers: list[InferResponse]) -> None:
    """Byte for byte, in one piece and in parts, where its like was written before, and written again.

    Of several parameters protobuf writes any order, so with them the messages are compared.
    """
    templates = Templates()
    for answer in [*answers, *answers]:
        message = v2_grpc.encode_infer(answer)
        parts = templates.encode_parts(answer)
        for written in (templates.encode(answer), b"".join(parts)):
            if not answer.parameters:
                assert written == message.SerializeToString()
            assert pb.ModelInferResponse.FromString(written) == message
        assert sum(map(len, parts)) == message.ByteSize()
