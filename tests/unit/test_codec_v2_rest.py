"""v2's JSON and binary inference bodies <-> types."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest

from server.errors import Code, InvalidRequest, ServingError, Unsupported
from server.tensor import DATATYPES, Tensor, TensorSpec
from server.transport.codec.v2_rest import (
    Call,
    OutputFormat,
    decode_infer,
    decode_raw_infer,
    encode_infer,
    parse_header_length,
)
from server.types import InferRequest, InferResponse, Outcome, Special


def _ignore(_request: InferRequest, _outcome: Outcome) -> None:
    """Nobody waits in these tests."""


CALL = Call("add", "3", _ignore, 7, 9)


def tensor(**changes: Any) -> dict[str, Any]:
    entry = {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} | changes
    return {name: value for name, value in entry.items() if value is not ...}


def document(*inputs: Any, **rest: Any) -> bytes:
    return json.dumps({"inputs": list(inputs or [tensor()]), **rest}).encode()


def decode(body: bytes, header_length: int | None = None) -> tuple[InferRequest, OutputFormat]:
    return decode_infer(CALL, body, header_length)


def binary(size: Any, **changes: Any) -> dict[str, Any]:
    return tensor(data=..., parameters={"binary_data_size": size}, **changes)


def with_raw(raw: bytes, *inputs: Any, **rest: Any) -> tuple[bytes, int]:
    header = document(*inputs, **rest)
    return header + raw, len(header)


def test_a_json_request() -> None:
    """Everything that a client said is in the request, and unknown keys do no harm."""
    body = document(
        tensor(extra=1),
        tensor(name="b", data=[[0.5, -1]]),
        id="x",
        parameters={"priority": 2, "note": "n", "binary_data_output": True},
        outputs=[{"name": "sum", "parameters": {"binary_data": False}}, {"name": "c"}],
        unknown={"k": []},
    )
    request, formats = decode(body)
    assert (request.model_name, request.model_version, request.id) == ("add", "3", "x")
    assert (request.received_ns, request.deadline_ns) == (7, 9)
    assert request.parameters == {"priority": 2, "note": "n"}
    assert request.outputs == ["sum", "c"]
    assert (formats.binary("sum"), formats.binary("c")) == (False, True)
    assert [(t.name, t.shape, t.numpy().tolist()) for t in request.inputs] == [
        ("a", (1, 2), [[1.0, 2.0]]),
        ("b", (1, 2), [[0.5, -1.0]]),
    ]


def test_json_and_binary_tensors_mix() -> None:
    """Binary tensors follow the JSON in the order of the inputs that announce them, and are not copied."""
    raw = np.array([1, 2], "<f4").tobytes() + np.array([3], "<i8").tobytes()
    body, header = with_raw(
        raw,
        binary(8),
        tensor(name="j", data=[[5, 6]]),
        binary(8, name="c", datatype="INT64", shape=[1]),
        outputs=[{"name": "sum", "parameters": {"binary_data": True}}],
    )
    request, formats = decode(body, header)
    assert [t.numpy().reshape(-1).tolist() for t in request.inputs] == [[1, 2], [5, 6], [3]]
    assert isinstance(request.inputs[0].data, memoryview)
    assert request.inputs[0].data.obj is body
    assert (formats.binary("sum"), formats.binary("other")) == (True, False)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]),
        ("INT8", [-128, 127]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("UINT8", [0, 255]),
        ("UINT64", [0, 2**64 - 1]),
        ("FP16", [0.5, -65504]),
        ("FP32", [3.4028235e38, 1e-45]),
        ("FP64", [1.7976931348623157e308, 5e-324]),
        ("BYTES", ["", "ünï", "\x00"]),
    ],
)
def test_json_data_to_the_ends_of_its_range(datatype: str, values: list[Any]) -> None:
    """Every datatype takes its own extremes, and gives them back through the answer's JSON unchanged."""
    [read] = decode(document(tensor(datatype=datatype, shape=[len(values)], data=values)))[0].inputs
    parts, header = encode_infer(InferResponse("m", "1", [read]), OutputFormat(False, {}))
    assert header is None
    written = json.loads(b"".join(parts))["outputs"][0]["data"]
    if datatype == "BYTES":
        assert written == values
    else:
        numpy = DATATYPES[datatype].numpy
        assert np.array(written, numpy).tobytes() == np.array(values, numpy).tobytes()


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([0], []),
        ([0, 4], []),
        ([2, 0], [[], []]),
        ([2, 0], []),
        ([], [5]),
        ([1, 1, 2], [[[1, 2]]]),
        ([2, 2], [1, 2, 3, 4]),
    ],
    ids=str,
)
def test_flat_and_nested_data(shape: list[int], data: list[Any]) -> None:
    """Data is flat, or nested as the shape says, down to shapes without elements and without dimensions."""
    read = decode(document(tensor(shape=shape, data=data)))[0].inputs[0].numpy()
    assert read.shape == tuple(shape)
    assert read.reshape(-1).tolist() == np.array(data, "f4").reshape(-1).tolist()


def doc(text: str) -> tuple[bytes, None]:
    return text.encode(), None


def one(**changes: Any) -> tuple[bytes, None]:
    return document(tensor(**changes)), None


def rest(**changes: Any) -> tuple[bytes, None]:
    return document(**changes), None


SHARED = {"shared_memory_region": "r", "shared_memory_byte_size": 8}

MALFORMED: dict[str, tuple[tuple[bytes, int | None], str]] = {
    "an empty body": (doc(""), "body:"),
    "no JSON": (doc("inputs=1"), "body:"),
    "JSON cut short": (doc('{"inputs": ['), "body:"),
    "two documents": (doc("{}{}"), "body:"),
    "no UTF-8": ((b'{"id": "\xff"}', None), "body:"),
    "a list": (doc("[]"), "body:"),
    "null": (doc("null"), "body:"),
    "nested a hundred thousand deep": (doc("[" * 100_000), "body:"),
    "NaN, which JSON has not": (doc('{"inputs": [NaN]}'), "body:"),
    "no inputs": (doc("{}"), "inputs:"),
    "inputs are null": (doc('{"inputs": null}'), "inputs:"),
    "inputs are an object": (doc('{"inputs": {}}'), "inputs:"),
    "an input is a number": (doc('{"inputs": [1]}'), "inputs[0]:"),
    "the second input is null": ((document(tensor(), None), None), "inputs[1]:"),
    "no name": (one(name=...), "inputs[0].name:"),
    "a name that is empty": (one(name=""), "inputs[0].name:"),
    "a name that is a number": (one(name=1), "inputs[0].name:"),
    "no datatype": (one(datatype=...), "inputs[0].datatype:"),
    "an unknown datatype": (one(datatype="FLOAT32"), "inputs[0].datatype:"),
    "a datatype that is a list": (one(datatype=["FP32"]), "inputs[0].datatype:"),
    "no shape": (one(shape=...), "inputs[0].shape:"),
    "a shape that is a number": (one(shape=2), "inputs[0].shape:"),
    "a dimension that is a float": (one(shape=[1.0, 2]), "inputs[0].shape:"),
    "a dimension that is true": (one(shape=[True, 2]), "inputs[0].shape:"),
    "a dimension that is text": (one(shape=["1", 2]), "inputs[0].shape:"),
    "a negative dimension": (one(shape=[-1, 2]), "inputs[0].shape:"),
    "a shape beyond 64 bits": (one(shape=[2**62, 4]), "inputs[0].shape:"),
    "no data": (one(data=...), "inputs[0].data:"),
    "data is null": (one(data=None), "inputs[0].data:"),
    "data is a number": (one(data=1), "inputs[0].data:"),
    "data is an object": (one(data={"0": 1}), "inputs[0].data:"),
    "too few elements": (one(data=[1]), "inputs[0].data:"),
    "too many elements": (one(data=[1, 2, 3]), "inputs[0].data:"),
    "no elements": (one(data=[]), "inputs[0].data:"),
    "ragged data": (one(shape=[2, 2], data=[[1, 2], [3]]), "inputs[0].data:"),
    "data nested in the wrong order": (one(shape=[2, 3], data=[[1, 2], [3, 4], [5, 6]]), "inputs[0].data:"),
    "data nested too deep": (one(data=[[[1, 2]]]), "inputs[0].data:"),
    "data nested not deep enough": (one(shape=[1, 1, 2], data=[[1, 2]]), "inputs[0].data:"),
    "lists and numbers mixed": (one(shape=[2, 1], data=[[1], 2]), "inputs[0].data:"),
    "numbers and lists mixed": (one(shape=[2], data=[1, [2]]), "inputs[0].data:"),
    "a null element": (one(data=[1, None]), "inputs[0].data:"),
    "a text for a number": (one(data=[1, "2"]), "inputs[0].data:"),
    "a boolean for FP32": (one(data=[1, True]), "inputs[0].data:"),
    "a boolean for INT32": (one(datatype="INT32", data=[1, True]), "inputs[0].data:"),
    "a float for INT32": (one(datatype="INT32", data=[1, 2.0]), "inputs[0].data:"),
    "a number for BOOL": (one(datatype="BOOL", data=[0, 1]), "inputs[0].data:"),
    "a number for BYTES": (one(datatype="BYTES", data=["a", 1]), "inputs[0].data:"),
    "INT8 above its range": (one(datatype="INT8", data=[1, 128]), "inputs[0].data:"),
    "UINT8 below zero": (one(datatype="UINT8", data=[-1, 1]), "inputs[0].data:"),
    "INT64 above its range": (one(datatype="INT64", data=[2**63, 1]), "inputs[0].data:"),
    "UINT64 above its range": (one(datatype="UINT64", data=[2**64, 1]), "inputs[0].data:"),
    "FP16 above its range": (one(datatype="FP16", data=[65520, 1]), "inputs[0].data:"),
    "FP32 above its range": (one(data=[1, 1e39]), "inputs[0].data:"),
    "FP32 below its range": (one(data=[-1e39, 1]), "inputs[0].data:"),
    "FP64 above its range": (
        doc(document(tensor(datatype="FP64", shape=[1], data=[7])).decode().replace("7", "1e999")),
        "body:",
    ),
    "parameters that are a list": (rest(parameters=[]), "parameters:"),
    "a parameter that is null": (rest(parameters={"p": None}), "parameters.p:"),
    "a parameter that is a list": (rest(parameters={"p": [1]}), "parameters.p:"),
    "binary_data_output that is a number": (
        rest(parameters={"binary_data_output": 1}),
        "parameters.binary_data_output:",
    ),
    "an id that is a number": (rest(id=5), "id:"),
    "an id that is null": (rest(id=None), "id:"),
    "outputs that are an object": (rest(outputs={}), "outputs:"),
    "an output that is text": (rest(outputs=["sum"]), "outputs[0]:"),
    "an output without name": (rest(outputs=[{"name": "sum"}, {}]), "outputs[1].name:"),
    "binary_data that is text": (
        rest(outputs=[{"name": "s", "parameters": {"binary_data": "yes"}}]),
        "outputs[0].parameters.binary_data:",
    ),
    "classes below zero": (
        rest(outputs=[{"name": "s", "parameters": {"classification": -1}}]),
        "outputs[0].parameters.classification: invalid value for 'classification' parameter",
    ),
    "classes that are text": (
        rest(outputs=[{"name": "s"}, {"name": "t", "parameters": {"classification": "3"}}]),
        "outputs[1].parameters.classification: invalid value type for 'classification' parameter",
    ),
    "classes that are true": (
        rest(outputs=[{"name": "s", "parameters": {"classification": True}}]),
        "outputs[0].parameters.classification:",
    ),
    "an output in shared memory without its size": (
        rest(outputs=[{"name": "s", "parameters": {"shared_memory_region": "r"}}]),
        "outputs[0].parameters.shared_memory_byte_size:",
    ),
    "an input in shared memory with data": (
        one(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8}),
        "inputs[0].data:",
    ),
    "an input in shared memory and binary": (
        with_raw(b"12345678", tensor(data=..., parameters={**SHARED, "binary_data_size": 8})),
        "inputs[0].parameters.binary_data_size:",
    ),
    "a size in shared memory alone": (
        one(parameters={"shared_memory_byte_size": 8}),
        "inputs[0].parameters.shared_memory_byte_size:",
    ),
    "a size in shared memory that is text": (
        one(data=..., parameters={**SHARED, "shared_memory_byte_size": "8"}),
        "inputs[0].parameters.shared_memory_byte_size:",
    ),
    "a size in shared memory that is true": (
        one(data=..., shape=[1], datatype="BOOL", parameters={**SHARED, "shared_memory_byte_size": True}),
        "inputs[0].parameters.shared_memory_byte_size:",
    ),
    "a size in shared memory that is not the shape's": (
        one(data=..., parameters={**SHARED, "shared_memory_byte_size": 12}),
        "inputs[0].parameters.shared_memory_byte_size:",
    ),
    "an offset in shared memory beyond 64 bits": (
        one(data=..., parameters={**SHARED, "shared_memory_offset": 2**63}),
        "inputs[0].parameters.shared_memory_offset:",
    ),
    "a region with an empty name": (
        one(data=..., parameters={**SHARED, "shared_memory_region": ""}),
        "inputs[0].parameters.shared_memory_region:",
    ),
    "an output in shared memory and classified": (
        rest(outputs=[{"name": "s", "parameters": {**SHARED, "classification": 2}}]),
        "outputs[0].parameters:",
    ),
    "input parameters that are text": (one(parameters="p"), "inputs[0].parameters:"),
    "a binary size without bytes": ((document(binary(8)), None), "inputs[0].parameters.binary_data_size:"),
    "a binary size past the end": (with_raw(b"1234567", binary(8)), "inputs[0].parameters.binary_data_size:"),
    "a second binary size past the end": (
        with_raw(b"12345678", binary(8), binary(8, name="b")),
        "inputs[1].parameters.binary_data_size:",
    ),
    "a binary size below zero": (with_raw(b"", binary(-8)), "inputs[0].parameters.binary_data_size:"),
    "a binary size that is text": (with_raw(b"12345678", binary("8")), "inputs[0].parameters.binary_data_size:"),
    "a binary size that is true": (with_raw(b"1", binary(True)), "inputs[0].parameters.binary_data_size:"),
    "a binary size that is not the shape's": (with_raw(b"1234", binary(4)), "inputs[0]:"),
    "binary and JSON for one tensor": (
        with_raw(b"12345678", tensor(parameters={"binary_data_size": 8})),
        "inputs[0].data:",
    ),
    "bytes after the last tensor": (with_raw(b"123456789", binary(8)), "body:"),
    "bytes after a JSON request": (with_raw(b"1", tensor()), "body:"),
    "a header longer than the body": ((document(), 10_000), "Inference-Header-Content-Length:"),
    "a header that cuts the JSON": ((document(), 10), "body:"),
    "a binary BOOL of 2": (with_raw(b"\x01\x02", binary(2, datatype="BOOL")), "inputs[0]:"),
    "binary BYTES cut short": (with_raw(b"\x09\0\0\0abcd", binary(8, datatype="BYTES", shape=[1])), "inputs[0]:"),
}


@pytest.mark.parametrize(("call", "field"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_refused_by_name(call: tuple[bytes, int | None], field: str) -> None:
    """Whatever is wrong on the wire is the client's error, short, and begins with the field at fault."""
    with pytest.raises(ServingError) as caught:
        decode(*call)
    assert caught.value.code in (Code.INVALID_ARG, Code.UNSUPPORTED)
    assert caught.value.public_message.startswith(field)
    assert len(caught.value.public_message) < 300


@pytest.mark.parametrize("value", ["-1", "1.5", "x", "", "\u0661", "9" * 30, "0x10", "+1"])
def test_a_header_length_is_a_plain_number(value: str) -> None:
    """Inference-Header-Content-Length is decimal digits and nothing else."""
    with pytest.raises(InvalidRequest, match=r"^Inference-Header-Content-Length: "):
        parse_header_length(value)
    assert parse_header_length("120") == 120


SPECS = {
    "a batch of rows": (TensorSpec("a", "FP32", (-1, 4)), 32, (2, 4)),
    "one row of variable length": (TensorSpec("a", "UINT8", (-1, -1)), 10, (1, 10)),
    "a fixed shape": (TensorSpec("a", "INT16", (2, 2)), 8, (2, 2)),
}


@pytest.mark.parametrize(("spec", "size", "shape"), SPECS.values(), ids=SPECS.keys())
def test_a_raw_binary_request(spec: TensorSpec, size: int, shape: tuple[int, ...]) -> None:
    """The whole body is the only input's data; the free dimension is deduced, and answers are binary."""
    request, formats = decode_raw_infer(CALL, b"\x01" * size, [spec])
    assert (request.inputs[0].name, request.inputs[0].shape) == ("a", shape)
    assert request.inputs[0].data == b"\x01" * size
    assert formats.binary("anything")


def test_a_raw_binary_request_of_bytes() -> None:
    """A BYTES input takes the whole body as its one element."""
    request, _ = decode_raw_infer(CALL, b"text", [TensorSpec("a", "BYTES", (-1, 1))])
    assert request.inputs[0].numpy().tolist() == [[b"text"]]


@pytest.mark.parametrize(
    ("specs", "size", "field"),
    [
        ([], 4, "Inference-Header-Content-Length:"),
        ([TensorSpec("a", "FP32", (-1,))] * 2, 4, "Inference-Header-Content-Length:"),
        ([TensorSpec("a", "FP32", (-1, 4))], 20, "body:"),
        ([TensorSpec("a", "FP32", (4,))], 12, "body:"),
        ([TensorSpec("a", "BYTES", (-1, 2))], 12, "body:"),
    ],
    ids=["no input", "two inputs", "no whole number of rows", "too short", "two elements of BYTES"],
)
def test_a_raw_binary_request_that_does_not_fit(specs: list[TensorSpec], size: int, field: str) -> None:
    """A body that is no whole tensor of the only input is refused by name."""
    with pytest.raises(InvalidRequest) as caught:
        decode_raw_infer(CALL, b"\x00" * size, specs)
    assert caught.value.public_message.startswith(field)


def answer(*outputs: Tensor) -> InferResponse:
    return InferResponse("m", "1", outputs, "x", {"p": 1})


def test_a_mixed_answer() -> None:
    """JSON and binary outputs in one answer: the header's length is where the binary ones begin, in their order."""
    outputs = [Tensor.from_numpy(name, np.array([[i, 0.1]], "<f4")) for i, name in enumerate("abc")]
    parts, header = encode_infer(answer(*outputs), OutputFormat(True, {"b": False}))
    body = b"".join(parts)
    assert header is not None
    assert json.loads(body[:header]) == {
        "model_name": "m",
        "model_version": "1",
        "id": "x",
        "parameters": {"p": 1},
        "outputs": [
            {"name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
            {"name": "b", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 0.1]},
            {"name": "c", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        ],
    }
    assert np.frombuffer(body[header:], "<f4").tolist() == [0.0, np.float32(0.1), 2.0, np.float32(0.1)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_json_can_not_carry_nan(value: float) -> None:
    """An output that JSON can't carry is an error that names it; it never becomes null. Binary carries it."""
    response = answer(Tensor.from_numpy("a", np.array([1, value], "<f4")))
    with pytest.raises(Unsupported, match=r"^outputs\[0\]: .*binary_data"):
        encode_infer(response, OutputFormat(False, {}))
    parts, _ = encode_infer(response, OutputFormat(True, {}))
    assert np.array_equal(np.frombuffer(parts[1], "<f4"), np.array([1, value], "f4"), equal_nan=True)


def test_json_can_not_carry_bytes_that_are_no_text() -> None:
    """BYTES that are no UTF-8 are an error that names the output; binary carries them."""
    response = answer(Tensor.from_numpy("a", np.array([b"\xff"], object)))
    with pytest.raises(Unsupported, match=r"^outputs\[0\]: .*binary_data"):
        encode_infer(response, OutputFormat(False, {}))
    assert encode_infer(response, OutputFormat(True, {}))[0][1] == b"\x01\x00\x00\x00\xff"


def test_json_is_exact_for_fp32() -> None:
    """FP32 is written with the digits that make the same FP32 again, not with those of its double."""
    parts, _ = encode_infer(answer(Tensor.from_numpy("a", np.array([0.1], "<f4"))), OutputFormat(False, {}))
    assert b"[0.1]" in parts[0]
    assert orjson.loads(parts[0])["outputs"][0]["data"] == [0.1]


def test_outputs_as_classes_are_told_apart() -> None:
    """How many of which; 0 is none, as with Triton. They make no request special that does not ask."""
    outputs = [
        {"name": "s", "parameters": {"classification": 3, "binary_data": True}},
        {"name": "t", "parameters": {"classification": 0}},
        {"name": "u"},
    ]
    request, formats = decode(*rest(outputs=outputs))
    assert (request.outputs, request.special) == (["s", "t", "u"], Special(None, {"s": 3}))
    assert formats.binary("s")

    plain, _ = decode(*rest(outputs=outputs[1:]))
    assert plain.special is None
