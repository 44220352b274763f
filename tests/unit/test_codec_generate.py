"""generate's JSON: which keys are inputs, what shape their values take, what the answer says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from server.errors import InvalidRequest, Unsupported
from server.tensor import Tensor, TensorSpec
from server.transport.codec.generate import decode_generate, encode_generate
from server.transport.codec.v2_rest import Call
from server.types import InferRequest, InferResponse

SPECS = (
    TensorSpec("text_input", "BYTES", (-1, 1)),
    TensorSpec("n", "INT32", (-1, 1), optional=True),
    TensorSpec("grid", "FP32", (-1, -1, 2), optional=True),
)


def decode(document: Any, specs: tuple[TensorSpec, ...] = SPECS) -> InferRequest:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return decode_generate(Call("m", "3", lambda *_: None, 5, 9, tenant="t"), body, specs)


def arrays(request: InferRequest) -> dict[str, Any]:
    return {tensor.name: tensor.numpy().tolist() for tensor in request.inputs}


def test_keys_that_are_inputs_are_tensors_and_others_parameters() -> None:
    """At the top as in `parameters`; `id` at the top is the request's."""
    request = decode(
        {"text_input": "hi", "temperature": 0.5, "id": "7", "parameters": {"n": 3, "stream": False, "id": "x"}}
    )
    assert arrays(request) == {"text_input": [[b"hi"]], "n": [[3]]}
    assert request.parameters == {"temperature": 0.5, "stream": False, "id": "x"}
    assert (request.model_name, request.model_version, request.id) == ("m", "3", "7")
    assert (request.received_ns, request.deadline_ns, request.tenant) == (5, 9, "t")


@pytest.mark.parametrize(
    ("dims", "value", "shape"),
    [
        ((-1, 1), 1, (1, 1)),
        ((-1, 1), [1, 2, 3], (3, 1)),
        ((-1, 3), [1, 2, 3], (1, 3)),
        ((-1, 3), [1, 2, 3, 4, 5, 6], (2, 3)),
        ((-1, -1, 2), [1, 2, 3, 4], (1, 2, 2)),
        ((2, -1), [1, 2, 3, 4], (2, 2)),
        ((-1,), [], (0,)),
        ((1,), 5, (1,)),
        ((), 5, ()),
    ],
    ids=str,
)
def test_a_value_takes_the_shape_of_its_input(dims: tuple[int, ...], value: Any, shape: tuple[int, ...]) -> None:
    """Fixed dimensions divide the elements, the innermost free one takes the rest, other free ones are 1."""
    [tensor] = decode({"x": value}, (TensorSpec("x", "INT32", dims),)).inputs
    assert tensor.shape == shape
    assert tensor.numpy().reshape(-1).tolist() == (value if isinstance(value, list) else [value])


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (b"", "body"),
        (b"[]", "body"),
        ({"text_input": "a", "id": 5}, "id"),
        ({"text_input": "a", "parameters": None}, "parameters"),
        ({"text_input": "a", "parameters": {"text_input": "b"}}, "parameters.text_input"),
        ({"text_input": 5}, "text_input"),
        ({"text_input": None}, "text_input"),
        ({"text_input": {"a": 1}}, "text_input"),
        ({"n": 1.5}, "n"),
        ({"n": 2**31}, "n"),
        ({"parameters": {"n": "1"}}, "parameters.n"),
        ({"grid": [1, 2, 3]}, "grid"),
        ({"z": None}, "z"),
        ({"z": [1]}, "z"),
        ({"parameters": {"z": {}}}, "parameters.z"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(document: Any, field: str) -> None:
    """The field is spelled as the caller spelled it."""
    with pytest.raises(InvalidRequest) as caught:
        decode(document)
    assert caught.value.field == field


def test_elements_that_fit_no_shape_are_told_with_it() -> None:
    """The sentence has the number of elements and the input's shape."""
    with pytest.raises(InvalidRequest, match=r"x: 4 elements make no shape of \[2, 3\]"):
        decode({"x": [1, 2, 3, 4]}, (TensorSpec("x", "FP32", (2, 3)),))


def response(*outputs: Tensor, **rest: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(encode_generate(InferResponse("m", "1", outputs, **rest)))
    return told


ANSWERS = {
    "text": (np.array([b"hi"], object), "hi"),
    "texts": (np.array([[b"a"], [b"b"]], object), ["a", "b"]),
    "a number": (np.array([[1.5]], np.float32), 1.5),
    "a half": (np.array([0.5], np.float16), 0.5),
    "a whole number": (np.array([2**53 + 1], np.int64), 2**53 + 1),
    "a truth": (np.array([True]), True),
    "a grid": (np.array([[1, 2], [3, 4]], np.uint8), [1, 2, 3, 4]),
    "nothing": (np.zeros((0, 2), np.float32), []),
    "a scalar": (np.array(7, np.int32), 7),
}


@pytest.mark.parametrize(("array", "value"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_output_of_one_element_loses_its_list(array: Any, value: Any) -> None:
    """Others are flat lists, whatever their shapes."""
    assert response(Tensor.from_numpy("out", array)) == {"model_name": "m", "model_version": "1", "out": value}


def test_a_bfloat16_is_a_number() -> None:
    """BF16, which numpy has not, is told as the number that it is."""
    assert response(Tensor("out", "BF16", (1,), b"\xc0\x3f"))["out"] == 1.5


def test_the_answer_has_the_id_and_the_parameters() -> None:
    """Each under its own name; an output that has the name of one of ours does not displace it."""
    one = Tensor.from_numpy("model_name", np.array([1], np.int32))
    told = response(one, id="7", parameters={"p": True, "model_version": "9"})
    assert told == {"model_name": "m", "model_version": "1", "id": "7", "p": True}


def test_what_json_has_not_is_refused() -> None:
    """NaN is named with its output."""
    with pytest.raises(Unsupported, match=r"^out: .*NaN"):
        response(Tensor.from_numpy("out", np.array([np.nan], np.float32)))
