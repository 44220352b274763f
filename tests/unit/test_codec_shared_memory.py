"""What a tensor's parameters say of shared memory, and what an answer says of it."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import InvalidRequest
from server.shared_memory.references import Reference
from server.tensor import DATATYPES
from server.transport.codec.shared_memory import (
    BYTE_SIZE,
    OFFSET,
    REGION,
    SharedParts,
    parameters_of,
    reference_of,
    special_of,
)

FIELD = "inputs[0]"
LARGEST = 2**63 - 1


def reference(**parameters: Any) -> Reference | None:
    return reference_of(FIELD, "x", parameters)


def test_a_tensor_without_a_region_is_in_the_request() -> None:
    """Whatever else its parameters say."""
    assert reference() is None
    assert reference(classification=3) is None


@pytest.mark.parametrize("offset", [0, 1, LARGEST])
def test_where_a_tensor_is_stands_in_three_parameters(offset: int) -> None:
    """An offset of 0 may be left out."""
    assert reference(**{REGION: "r", OFFSET: offset, BYTE_SIZE: 8}) == Reference("r", offset, 8)
    assert reference(**{REGION: "r", BYTE_SIZE: 1}) == Reference("r", 0, 1)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({OFFSET: 1}, OFFSET),
        ({BYTE_SIZE: 8}, BYTE_SIZE),
        ({REGION: "", BYTE_SIZE: 8}, REGION),
        ({REGION: 1, BYTE_SIZE: 8}, REGION),
        ({REGION: "r"}, BYTE_SIZE),
        ({REGION: "r", BYTE_SIZE: 0}, BYTE_SIZE),
        ({REGION: "r", BYTE_SIZE: True}, BYTE_SIZE),
        ({REGION: "r", BYTE_SIZE: LARGEST + 1}, BYTE_SIZE),
        ({REGION: "r", BYTE_SIZE: 8, OFFSET: -1}, OFFSET),
        ({REGION: "r", BYTE_SIZE: 8, OFFSET: "0"}, OFFSET),
    ],
)
def test_what_can_not_be_meant_is_refused_by_its_parameter(parameters: dict[str, Any], field: str) -> None:
    """One without the others, another type, out of range."""
    with pytest.raises(InvalidRequest) as told:
        reference(**parameters)
    assert f"{FIELD}.parameters.{field}" in told.value.public_message


def test_classes_are_not_written_into_a_region() -> None:
    """They are texts, of which nobody knows the length."""
    with pytest.raises(InvalidRequest, match="classification"):
        reference(**{REGION: "r", BYTE_SIZE: 8, "classification": 3})


def test_an_input_has_as_many_bytes_as_its_shape_says() -> None:
    """Where its datatype has a size."""
    parts = SharedParts()
    parts.input(0, FIELD, DATATYPES["FP32"], 3, Reference("r", 4, 12))
    for wrong in (11, 13, 3):
        with pytest.raises(InvalidRequest, match=f"Expected 12, got {wrong}"):
            parts.input(1, FIELD, DATATYPES["FP32"], 3, Reference("r", 4, wrong))
    parts.input(2, FIELD, DATATYPES["BYTES"], 3, Reference("r", 0, 99))
    gathered = parts.gathered()
    assert gathered is not None
    assert [(one.position, one.reference.byte_size) for one in gathered.inputs] == [(0, 12), (2, 99)]


def test_a_request_is_special_for_one_input_one_output_or_classes() -> None:
    """And is not where all its tensors are in it, and in its answer."""
    assert SharedParts().gathered() is None
    assert special_of(SharedParts(), {}) is None
    classes = special_of(SharedParts(), {"y": 2})
    assert classes is not None
    assert (classes.shared, classes.classes) == (None, {"y": 2})
    parts = SharedParts()
    parts.output("y", Reference("r", 0, 8))
    gathered = parts.gathered()
    assert gathered is not None
    assert (gathered.inputs, dict(gathered.outputs)) == ((), {"y": Reference("r", 0, 8)})
    assert special_of(parts, {}) is not None


def test_an_answer_says_where_its_output_is() -> None:
    """With an offset only where there is one, as Triton's do."""
    assert parameters_of(Reference("r", 0, 8)) == {REGION: "r", BYTE_SIZE: 8}
    assert parameters_of(Reference("r", 16, 8)) == {REGION: "r", OFFSET: 16, BYTE_SIZE: 8}
