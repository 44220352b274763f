"""What a request says of its sequence is held against the model before it joins one."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from server.errors import InvalidRequest, SequenceIdMissing, Unsupported
from server.repository.model_config import from_message
from server.request_check import RequestCheck
from server.sequence_check import LONGEST_ID
from server.sequences import sequence_id
from server.tensor import Tensor
from server.types import InferRequest

CONFIG = """
name: "m" backend: "onnxruntime" max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""
PLAIN = "sequence_batching {}"
TOLD = 'sequence_batching { control_input { name: "c" control { kind: CONTROL_SEQUENCE_CORRID data_type: %s } } }'


def check(section: str, rows: int = 1, **parameters: object) -> InferRequest:
    config = from_message(text_format.Parse(CONFIG + section, model_config_pb2.ModelConfig()), "m")
    request = InferRequest(
        "m",
        [Tensor("x", "FP32", (rows, 1), bytes(4 * rows))],
        on_settle=lambda *_: None,
        received_ns=0,
        parameters=parameters,  # type: ignore[arg-type]
    )
    RequestCheck(config)(request)
    return request


@pytest.mark.parametrize("name", [1, -1, (1 << 64) - 1, -(1 << 63), "a", "ä" * LONGEST_ID], ids=repr)
def test_names_of_sequences(name: int | str) -> None:
    """Numbers of 64 bits, signed or not, and text."""
    check(PLAIN, sequence_id=name, sequence_start=True, sequence_end=False)


def test_a_negative_number_is_what_its_bits_say() -> None:
    """As Triton reads the signed parameter of gRPC; whatever else is no name is that of no sequence."""
    assert sequence_id(-1) == (1 << 64) - 1
    assert [sequence_id(value) for value in (None, True, 1.5)] == [0, 0, 0]


@pytest.mark.parametrize("parameters", [{}, {"sequence_id": 0}, {"sequence_id": ""}], ids=repr)
def test_none_is_refused_with_tritons_words(parameters: dict[str, object]) -> None:
    """Every request of such a model is of a sequence."""
    with pytest.raises(SequenceIdMissing) as refused:
        check(PLAIN, **parameters)
    assert refused.value.public_message == (
        "inference request to model 'm' must specify a non-zero or non-empty correlation ID"
    )


WRONG = [
    ({"sequence_id": 1.5}, "sequence_id", "whole number or a string"),
    ({"sequence_id": True}, "sequence_id", "whole number or a string"),
    ({"sequence_id": 1 << 64}, "sequence_id", "64 bits"),
    ({"sequence_id": "a" * (LONGEST_ID + 1)}, "sequence_id", "at most 128"),
    ({"sequence_id": "\ud800"}, "sequence_id", "Unicode"),
    ({"sequence_id": 1, "sequence_start": 1}, "sequence_start", "true or false"),
    ({"sequence_id": 1, "sequence_end": "true"}, "sequence_end", "true or false"),
]


@pytest.mark.parametrize(("parameters", "field", "problem"), WRONG, ids=[repr(given) for given, _, _ in WRONG])
def test_what_is_no_name_or_no_flag_is_refused_by_its_field(
    parameters: dict[str, object], field: str, problem: str
) -> None:
    """The message says what it must be."""
    with pytest.raises(InvalidRequest, match=problem) as refused:
        check(PLAIN, **parameters)
    assert refused.value.field == f"parameters.{field}"


@pytest.mark.parametrize(
    ("told", "good", "bad"), [("TYPE_STRING", "a", 1), ("TYPE_INT32", 1, "a"), ("TYPE_UINT64", 1, "a")]
)
def test_a_model_is_told_names_of_its_type(told: str, good: int | str, bad: int | str) -> None:
    """Triton would give it some bytes of the other."""
    check(TOLD % told, sequence_id=good)
    with pytest.raises(InvalidRequest, match="model 'm' is told it as"):
        check(TOLD % told, sequence_id=bad)


def test_several_rows_are_refused_with_tritons_words() -> None:
    """A request is one step of one sequence."""
    with pytest.raises(
        InvalidRequest, match="must specify batch-size 1 due to requirements of sequence batcher, got 2"
    ):
        check(PLAIN, rows=2, sequence_id=1)


@pytest.mark.parametrize("parameters", [{"sequence_id": 3}, {"sequence_id": "a"}, {"sequence_start": True}], ids=repr)
def test_a_model_that_keeps_no_sequences_says_so(parameters: dict[str, object]) -> None:
    """It must not pretend to."""
    with pytest.raises(Unsupported, match="does not batch sequences"):
        check("", **parameters)
