"""ModelInferRequest and ModelInferResponse <-> types."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from server.errors import Code, InvalidRequest, ServingError
from server.tensor import Tensor
from server.transport.codec.v2_grpc import decode_infer, encode_infer
from server.types import InferRequest, InferResponse, Outcome, Special


def _ignore(_request: InferRequest, _outcome: Outcome) -> None:
    """Nobody waits in these tests."""


def decode(message: Any) -> InferRequest:
    return decode_infer(message, on_settle=_ignore, received_ns=7, deadline_ns=9)


def request(**changes: Any) -> Any:
    message = pb.ModelInferRequest(model_name="add", model_version="1", id="x")
    message.inputs.add(name="a", datatype="FP32", shape=[1, 2])
    message.raw_input_contents.append(np.array([1, 2], "<f4").tobytes())
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def typed(datatype: str, field: str, values: list[Any], shape: list[int] | None = None) -> Any:
    message = pb.ModelInferRequest(model_name="add")
    tensor = message.inputs.add(name="a", datatype=datatype, shape=shape or [len(values)])
    getattr(tensor.contents, field).extend(values)
    return message


def test_a_raw_request() -> None:
    """Everything that a client said is in the request, raw contents as they came."""
    message = request()
    message.outputs.add(name="sum").parameters["binary_data"].bool_param = True
    message.outputs.add(name="b")
    for name, field, value in (
        ("bool", "bool_param", True),
        ("int", "int64_param", -3),
        ("uint", "uint64_param", 2**64 - 1),
        ("float", "double_param", 0.5),
        ("text", "string_param", "t"),
    ):
        setattr(message.parameters[name], field, value)
    decoded = decode(message)
    assert (decoded.model_name, decoded.model_version, decoded.id) == ("add", "1", "x")
    assert (decoded.received_ns, decoded.deadline_ns) == (7, 9)
    assert decoded.outputs == ["sum", "b"]
    assert decoded.parameters == {"bool": True, "int": -3, "uint": 2**64 - 1, "float": 0.5, "text": "t"}
    [tensor] = decoded.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("a", "FP32", (1, 2))
    assert tensor.numpy().tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-32768, 32767]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -0.0]),
        ("FP64", "fp64_contents", [1e300, float("inf")]),
        ("BYTES", "bytes_contents", [b"a", b"\xff"]),
    ],
)
def test_typed_contents(datatype: str, field: str, values: list[Any]) -> None:
    """Each datatype's own field of InferTensorContents is read without loss, up to the ends of its range."""
    [tensor] = decode(typed(datatype, field, values)).inputs
    assert tensor.numpy().tolist() == values


def test_an_empty_tensor() -> None:
    """A tensor without elements is whole in both forms; whether the model takes it is not the wire's question."""
    assert decode(typed("FP32", "fp32_contents", [], [0, 4])).inputs[0].numpy().shape == (0, 4)
    message = request()
    message.inputs[0].shape[:] = [0, 2]
    message.raw_input_contents[0] = b""
    assert decode(message).inputs[0].numpy().shape == (0, 2)


def edited(edit: Callable[[Any], object]) -> Any:
    message = request()
    edit(message)
    return message


def shared(message: Any, byte_size: int, offset: int = 0) -> None:
    parameters = message.inputs[0].parameters
    parameters["shared_memory_region"].string_param = "r"
    parameters["shared_memory_byte_size"].int64_param = byte_size
    parameters["shared_memory_offset"].int64_param = offset


def with_shape(*shape: int) -> Any:
    return edited(lambda m: m.inputs[0].shape.__setitem__(slice(None), shape))


def as_bytes(raw: bytes, *shape: int) -> Any:
    message = with_shape(*shape)
    message.inputs[0].datatype = "BYTES"
    message.raw_input_contents[0] = raw
    return message


def as_type(datatype: str, raw: bytes, *shape: int) -> Any:
    message = as_bytes(raw, *shape)
    message.inputs[0].datatype = datatype
    return message


def both_contents() -> Any:
    return edited(lambda m: m.inputs[0].contents.fp32_contents.append(1.0))


def two_fields() -> Any:
    message = typed("FP32", "fp32_contents", [1.0])
    message.inputs[0].contents.int_contents.append(1)
    return message


MALFORMED = {
    "raw contents without inputs": (
        pb.ModelInferRequest(model_name="add", raw_input_contents=[b""]),
        "raw_input_contents:",
    ),
    "fewer raw contents than inputs": (
        edited(lambda m: m.inputs.add(name="b", datatype="FP32")),
        "raw_input_contents:",
    ),
    "more raw contents than inputs": (edited(lambda m: m.raw_input_contents.append(b"")), "raw_input_contents:"),
    "raw and typed contents": (both_contents(), "inputs[0].contents:"),
    "an input without name": (edited(lambda m: m.inputs[0].ClearField("name")), "inputs[0].name:"),
    "an input without datatype": (edited(lambda m: m.inputs[0].ClearField("datatype")), "inputs[0].datatype:"),
    "an unknown datatype": (as_type("FLOAT", b"", 0), "inputs[0].datatype:"),
    "a datatype in lower case": (as_type("fp32", b"", 0), "inputs[0].datatype:"),
    "a datatype of a megabyte": (as_type("F" * 2**20, b"", 0), "inputs[0].datatype:"),
    "a config's name for a datatype": (as_type("TYPE_FP32", b"", 0), "inputs[0].datatype:"),
    "a negative dimension": (with_shape(1, -1), "inputs[0].shape:"),
    "two negative dimensions": (with_shape(-1, -2), "inputs[0].shape:"),
    "a shape beyond 64 bits": (with_shape(2**62, 4), "inputs[0].shape:"),
    "a shape beyond 64 bits by many dimensions": (with_shape(*[2] * 200), "inputs[0].shape:"),
    "a shape beyond 64 bits with a zero": (with_shape(0, 2**62, 4), "inputs[0].shape:"),
    "bytes too few": (with_shape(1, 3), "raw_input_contents[0]:"),
    "bytes too many": (with_shape(1, 1), "raw_input_contents[0]:"),
    "bytes for no elements": (with_shape(0), "raw_input_contents[0]:"),
    "no bytes for a scalar": (as_type("FP32", b"", *()), "raw_input_contents[0]:"),
    "bytes that are no multiple of the element": (as_type("FP64", b"1234567", 1), "raw_input_contents[0]:"),
    "a huge shape with few bytes": (with_shape(2**40), "raw_input_contents[0]:"),
    "a BOOL of 2": (as_type("BOOL", b"\x00\x02", 2), "raw_input_contents[0]:"),
    "BYTES without a length": (as_bytes(b"\x01\x00", 1), "raw_input_contents[0]:"),
    "BYTES cut short": (as_bytes(struct.pack("<I", 5) + b"abc", 1), "raw_input_contents[0]:"),
    "BYTES with a length of 4 GiB": (as_bytes(b"\xff\xff\xff\xff", 1), "raw_input_contents[0]:"),
    "BYTES with one element too many": (as_bytes(struct.pack("<I", 0) * 2, 1), "raw_input_contents[0]:"),
    "BYTES with one element too few": (as_bytes(struct.pack("<I", 0), 2), "raw_input_contents[0]:"),
    "BYTES with a huge count": (as_bytes(b"", 2**62), "raw_input_contents[0]:"),
    "BYTES for no elements": (as_bytes(b"\x00", 0), "raw_input_contents[0]:"),
    "typed contents of another type": (typed("FP32", "int_contents", [1]), "inputs[0].contents.int_contents:"),
    "typed contents of FP64 for FP32": (typed("FP32", "fp64_contents", [1.0]), "inputs[0].contents.fp64_contents:"),
    "typed contents of INT64 for INT32": (typed("INT32", "int64_contents", [1]), "inputs[0].contents.int64_contents:"),
    "typed contents of BYTES for FP32": (typed("FP32", "bytes_contents", [b"1"]), "inputs[0].contents.bytes_contents:"),
    "typed contents in two fields": (two_fields(), "inputs[0].contents.int_contents:"),
    "typed contents of FP16": (typed("FP16", "fp32_contents", [1.0]), "inputs[0].contents:"),
    "too few typed contents": (typed("FP32", "fp32_contents", [1.0], [2]), "inputs[0].contents.fp32_contents:"),
    "too many typed contents": (typed("FP32", "fp32_contents", [1.0], [0]), "inputs[0].contents.fp32_contents:"),
    "typed contents that are missing": (
        typed("INT64", "int64_contents", [], [1]),
        "inputs[0].contents.int64_contents:",
    ),
    "typed BYTES that are missing": (typed("BYTES", "bytes_contents", [], [1]), "inputs[0].contents.bytes_contents:"),
    "an INT8 above its range": (typed("INT8", "int_contents", [1, 128]), "inputs[0].contents.int_contents:"),
    "an INT8 below its range": (typed("INT8", "int_contents", [-129, 1]), "inputs[0].contents.int_contents:"),
    "an INT16 above its range": (typed("INT16", "int_contents", [32768]), "inputs[0].contents.int_contents:"),
    "a UINT8 above its range": (typed("UINT8", "uint_contents", [256]), "inputs[0].contents.uint_contents:"),
    "a UINT16 above its range": (typed("UINT16", "uint_contents", [65536]), "inputs[0].contents.uint_contents:"),
    "an output without name": (edited(lambda m: m.outputs.add()), "outputs[0].name:"),
    "a second output without name": (
        edited(lambda m: (m.outputs.add(name="sum"), m.outputs.add())),
        "outputs[1].name:",
    ),
    "no classes": (
        edited(lambda m: setattr(m.outputs.add(name="sum").parameters["classification"], "int64_param", 0)),
        "outputs[0].parameters.classification: invalid value for 'classification' parameter",
    ),
    "classes that are text": (
        edited(lambda m: setattr(m.outputs.add(name="sum").parameters["classification"], "string_param", "3")),
        "outputs[0].parameters.classification: invalid value type for 'classification' parameter",
    ),
    "an output in shared memory without its size": (
        edited(lambda m: setattr(m.outputs.add(name="sum").parameters["shared_memory_region"], "string_param", "r")),
        "outputs[0].parameters.shared_memory_byte_size:",
    ),
    "an input in shared memory without its size": (
        edited(lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "string_param", "r")),
        "inputs[0].parameters.shared_memory_byte_size:",
    ),
    "a region that is a number": (
        edited(lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "int64_param", 1)),
        "inputs[0].parameters.shared_memory_region:",
    ),
    "an input in shared memory and raw": (edited(lambda m: shared(m, 8)), "raw_input_contents:"),
    "an input in shared memory and typed": (
        edited(
            lambda m: (shared(m, 8), m.ClearField("raw_input_contents"), m.inputs[0].contents.fp32_contents.append(1))
        ),
        "inputs[0].contents:",
    ),
    "a size that is not the shape's": (
        edited(lambda m: (shared(m, 9), m.ClearField("raw_input_contents"))),
        "inputs[0].parameters.shared_memory_byte_size:",
    ),
    "an offset below zero": (
        edited(lambda m: (shared(m, 8, -1), m.ClearField("raw_input_contents"))),
        "inputs[0].parameters.shared_memory_offset:",
    ),
    "a size in shared memory": (
        edited(lambda m: setattr(m.inputs[0].parameters["shared_memory_byte_size"], "int64_param", 8)),
        "inputs[0].parameters.shared_memory_byte_size:",
    ),
    "a parameter without value": (edited(lambda m: m.parameters["p"].SetInParent()), "parameters['p']:"),
}


@pytest.mark.parametrize(("message", "field"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_refused_by_name(message: Any, field: str) -> None:
    """Whatever is wrong on the wire is the client's error, short, and begins with the field at fault."""
    with pytest.raises(ServingError) as caught:
        decode(message)
    assert caught.value.code in (Code.INVALID_ARG, Code.UNSUPPORTED)
    assert caught.value.public_message.startswith(field)
    assert len(caught.value.public_message) < 300


def test_the_second_input_is_named() -> None:
    """The index in the message is that of the tensor at fault, not always 0."""
    message = request()
    message.inputs.add(name="b", datatype="FP32", shape=[2])
    message.raw_input_contents.append(b"123")
    with pytest.raises(
        InvalidRequest, match=r"^raw_input_contents\[1\]: input byte size mismatch, .* Expected 8, got 3$"
    ):
        decode(message)


def test_the_response_is_always_raw() -> None:
    """An answer carries raw contents in the order of its outputs, also from a view, and its parameters by type."""
    response = InferResponse(
        "add",
        "2",
        [Tensor.from_numpy("sum", np.array([[1.5]], "<f4")), Tensor.from_numpy("label", np.array([b"yes"], object))],
        id="x",
        parameters={"b": True, "i": -1, "u": 2**63, "d": 0.5, "s": "t"},
    )
    message = encode_infer(response)
    assert (message.model_name, message.model_version, message.id) == ("add", "2", "x")
    assert [(o.name, o.datatype, list(o.shape)) for o in message.outputs] == [
        ("sum", "FP32", [1, 1]),
        ("label", "BYTES", [1]),
    ]
    assert list(message.raw_output_contents) == [struct.pack("<f", 1.5), b"\x03\x00\x00\x00yes"]
    assert not any(output.HasField("contents") for output in message.outputs)
    assert {name: p.WhichOneof("parameter_choice") for name, p in message.parameters.items()} == {
        "b": "bool_param",
        "i": "int64_param",
        "u": "uint64_param",
        "d": "double_param",
        "s": "string_param",
    }
    assert message.parameters["u"].uint64_param == 2**63


def test_what_only_the_model_can_tell_is_left_to_its_check() -> None:
    """No model's name, and no input at all: unknown, and missing, in the words of everybody's check."""
    decoded = decode(pb.ModelInferRequest())
    assert (decoded.model_name, list(decoded.inputs)) == ("", [])


def test_outputs_as_classes_are_told_apart() -> None:
    """How many of which, beside an output in shared memory; a request that asks for neither is not special."""
    message = request()
    message.outputs.add(name="sum").parameters["classification"].int64_param = 2
    decoded = decode(message)
    assert (decoded.outputs, decoded.special) == (["sum"], Special(None, {"sum": 2}))

    other = message.outputs.add(name="z")
    other.parameters["shared_memory_region"].string_param = "r"
    other.parameters["shared_memory_byte_size"].int64_param = 8
    both = decode(message).special
    assert both is not None
    assert both.shared is not None
    assert (list(both.shared.outputs), both.classes) == (["z"], {"sum": 2})
    assert decode(request()).special is None
