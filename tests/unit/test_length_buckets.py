"""Length buckets: what a config may ask for, and which bucket a request has."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from server.buckets import Buckets
from server.errors import InvalidRequest, ModelLoadFailed
from server.repository.model_config import ModelConfig, from_message, parse_text
from server.request_check import RequestCheck
from server.tensor import Tensor
from server.types import InferRequest

INPUTS = """
input { name: "ids" data_type: TYPE_INT64 dims: -1 }
input { name: "mask" data_type: TYPE_UINT8 dims: [2, -1, 3] }
input { name: "k" data_type: TYPE_FP32 dims: 1 }
"""
TEXT = """
backend: "onnxruntime" {batching} {inputs}
output {{ name: "tokens" data_type: TYPE_FP32 dims: [4, -1, -1] }}
output {{ name: "pooled" data_type: TYPE_FP32 dims: 4 }}
"""
BATCHING = "max_batch_size: 8 dynamic_batching {}"


def read(parameters: Mapping[str, str], inputs: str = INPUTS, batching: str = BATCHING) -> ModelConfig:
    text = TEXT.format(batching=batching, inputs=inputs) + "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()
    )
    return from_message(parse_text(text, "m"), "m")


def test_buckets_are_read_and_do_not_reach_the_engine() -> None:
    """Where the length is, in inputs and outputs, follows from the sizes of -1."""
    config = read({"length_buckets": "16, 32,64", "pad_value": "ids=1, mask=255"})
    assert config.buckets == Buckets((16, 32, 64), {"ids": 0, "mask": 1}, {"tokens": (1, 2)}, {"ids": 1, "mask": 255})
    assert not config.parameters
    assert read({}).buckets is None


WRONG: list[tuple[dict[str, str], str, str]] = [
    ({"length_buckets": "32,16"}, 'parameters["length_buckets"]', "larger than the one before"),
    ({"length_buckets": "16,16"}, 'parameters["length_buckets"]', "larger than the one before"),
    ({"length_buckets": "0,16"}, 'parameters["length_buckets"]', "1 to"),
    ({"length_buckets": "-1"}, 'parameters["length_buckets"]', "whole numbers"),
    ({"length_buckets": "16,"}, 'parameters["length_buckets"]', "whole numbers"),
    ({"length_buckets": ""}, 'parameters["length_buckets"]', "whole numbers"),
    ({"length_buckets": "16;32"}, 'parameters["length_buckets"]', "whole numbers"),
    ({"length_buckets": "²"}, 'parameters["length_buckets"]', "whole numbers"),
    ({"length_buckets": "9" * 10}, 'parameters["length_buckets"]', "1 to 2147483647"),
    ({"length_buckets": "9" * 9999}, 'parameters["length_buckets"]', "whole numbers"),
    ({"length_buckets": ",".join(map(str, range(1, 67)))}, 'parameters["length_buckets"]', "the most are 64"),
    ({"pad_value": "ids=1"}, 'parameters["pad_value"]', "length_buckets is not set"),
    ({"length_buckets": "4", "pad_value": "ids"}, 'parameters["pad_value"]', "input=value"),
    ({"length_buckets": "4", "pad_value": "=1"}, 'parameters["pad_value"]', "input=value"),
    ({"length_buckets": "4", "pad_value": "idz=1"}, 'parameters["pad_value"]', "no input"),
    ({"length_buckets": "4", "pad_value": "k=1"}, 'parameters["pad_value"]', "no size of -1"),
    ({"length_buckets": "4", "pad_value": "ids=1,ids=2"}, 'parameters["pad_value"]', "twice"),
    ({"length_buckets": "4", "pad_value": "mask=256"}, 'parameters["pad_value"]', "UINT8 does not have"),
    ({"length_buckets": "4", "pad_value": "mask=-1"}, 'parameters["pad_value"]', "UINT8 does not have"),
    ({"length_buckets": "4", "pad_value": "ids=0.5"}, 'parameters["pad_value"]', "INT64 does not have"),
]


@pytest.mark.parametrize(("parameters", "field", "words"), WRONG, ids=[str(p)[:60] for p, _, _ in WRONG])
def test_what_can_not_be_is_refused_with_its_field(parameters: dict[str, str], field: str, words: str) -> None:
    """A refusal at load names the parameter and what would be right."""
    with pytest.raises(ModelLoadFailed) as caught:
        read(parameters)
    assert caught.value.where == f"config.pbtxt: {field}"
    assert words in caught.value.problem


@pytest.mark.parametrize(
    ("inputs", "field", "words"),
    [
        ('input { name: "a" data_type: TYPE_FP32 dims: [-1, -1] }', "input[0].dims", "2 sizes of -1"),
        ('input { name: "a" data_type: TYPE_STRING dims: -1 }', "input[0].data_type", "TYPE_STRING"),
        ('input { name: "a" data_type: TYPE_FP32 dims: 3 }', 'parameters["length_buckets"]', "no input"),
    ],
    ids=["two sizes in one input", "strings of any number", "no size varies"],
)
def test_inputs_that_have_no_one_length_are_refused(inputs: str, field: str, words: str) -> None:
    """Each input has one length or none, of numbers, and one input has one."""
    with pytest.raises(ModelLoadFailed) as caught:
        read({"length_buckets": "16"}, inputs)
    assert caught.value.where == f"config.pbtxt: {field}"
    assert words in caught.value.problem


@pytest.mark.parametrize("batching", ["max_batch_size: 0 dynamic_batching {}", "max_batch_size: 8"])
def test_buckets_where_nothing_is_merged_are_refused(batching: str) -> None:
    """Padding costs time and gains nothing for a request that always goes alone."""
    with pytest.raises(ModelLoadFailed, match="dynamic_batching"):
        read({"length_buckets": "16"}, batching=batching)


@pytest.mark.parametrize(
    ("datatype", "value", "fits"),
    [
        ("TYPE_FP16", "70000", False),
        ("TYPE_FP16", "-65504", True),
        ("TYPE_FP32", "nan", False),
        ("TYPE_FP32", "-inf", True),
        ("TYPE_FP32", "1e39", False),
        ("TYPE_BOOL", "1", True),
        ("TYPE_BOOL", "2", False),
        ("TYPE_UINT64", str(2**64 - 1), True),
        ("TYPE_UINT64", str(2**64), False),
    ],
)
def test_a_pad_value_is_one_of_its_datatype(datatype: str, value: str, fits: bool) -> None:
    """What the datatype does not have can't be what is padded with; infinity may be."""
    inputs = f'input {{ name: "a" data_type: {datatype} dims: -1 }}'
    parameters = {"length_buckets": "16", "pad_value": f"a={value}"}
    if fits:
        assert read(parameters, inputs).buckets is not None
    else:
        with pytest.raises(ModelLoadFailed, match="does not have"):
            read(parameters, inputs)


@pytest.mark.parametrize(("length", "padded"), [(0, 16), (1, 16), (16, 16), (17, 32), (32, 32), (33, 33), (999, 999)])
def test_the_bucket_of_a_length(length: int, padded: int) -> None:
    """The smallest that is as long; beyond the largest a request keeps its length, and is served all the same."""
    assert Buckets((16, 32), {"ids": 0}).padded(length) == padded


def request(ids: int, mask: int) -> InferRequest:
    tensors = [
        Tensor("mask", "UINT8", (1, 2, mask, 3), b""),
        Tensor("ids", "INT64", (1, ids), b""),
        Tensor("k", "FP32", (1, 1), b""),
    ]
    return InferRequest("m", tensors, on_settle=lambda *_: None, received_ns=0)


def test_requests_of_one_bucket_share_a_signature() -> None:
    """The bucket is the signature."""
    check = RequestCheck(read({"length_buckets": "16,32"}))
    made = [request(length, length) for length in (0, 16, 17, 40)]
    for each in made:
        check(each)
    assert [each.signature for each in made] == [16, 16, 32, 40]


def test_inputs_of_two_lengths_are_refused() -> None:
    """Padding can't tell which of two lengths is meant."""
    with pytest.raises(InvalidRequest) as caught:
        RequestCheck(read({"length_buckets": "16"}))(request(5, 6))
    assert "'mask' has length 6, 'ids' has 5" in caught.value.public_message
