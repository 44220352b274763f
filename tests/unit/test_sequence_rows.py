"""From a request of a sequence to a row of a pass, and from the row's answer to the next state."""

from __future__ import annotations

import pytest

from server.errors import EngineFailure
from server.scheduler.sequence_rows import Rows
from server.scheduler.slots import Chain
from server.sequences import Control, ControlKind, InitialState, SequenceBatching, State
from server.tensor import Tensor, pack_bytes
from server.types import InferRequest, InferResponse, Parameter

START = Control(ControlKind.START, "START", "BOOL", b"\0", b"\1")
READY = Control(ControlKind.READY, "READY", "BOOL", b"\0", b"\1")
TEXT = State("text_in", "text_out", "BYTES", (-1,), InitialState((1,), pack_bytes(["a"])))


def rows(*controls: Control, states: tuple[State, ...] = (), batched: bool = True) -> Rows:
    return Rows(SequenceBatching(controls=controls, states=states), batched=batched, outputs=["y"])


def request(*outputs: str, **parameters: Parameter) -> InferRequest:
    return InferRequest(
        "m",
        [Tensor("x", "FP32", (1, 2), bytes(range(8)))],
        on_settle=lambda *_: None,
        received_ns=0,
        outputs=outputs,
        parameters=parameters,
    )


def by_name(row: InferRequest) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in row.inputs}


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("UINT64", b"\xfb" + b"\xff" * 7),
        ("INT64", b"\xfb" + b"\xff" * 7),
        ("UINT32", b"\xfb\xff\xff\xff"),
        ("INT32", b"\xfb\xff\xff\xff"),
    ],
)
def test_a_number_is_told_by_its_low_bits(datatype: str, data: bytes) -> None:
    """CONTROL_SEQUENCE_CORRID of 32 bits is truncated, as the .proto says."""
    row = rows(Control(ControlKind.CORRID, "c", datatype)).row(Chain((1 << 64) - 5), request())

    assert by_name(row)["c"] == Tensor("c", datatype, (1, 1), data)


def test_text_is_told_as_it_is() -> None:
    """Behind its length, as any BYTES."""
    row = rows(Control(ControlKind.CORRID, "c", "BYTES"), batched=False).row(Chain("ä"), request())

    assert by_name(row)["c"] == Tensor("c", "BYTES", (1,), pack_bytes(["ä"]))


def test_a_start_meets_the_initial_state_and_others_what_was_left() -> None:
    """Also a start in the middle of a sequence."""
    made = rows(START, states=(TEXT,))
    chain = Chain(1)
    chain.states = [Tensor("text_in", "BYTES", (1, 2), pack_bytes(["b", "c"]))]

    first, next_one = made.row(chain, request(sequence_start=True)), made.row(chain, request())

    assert (by_name(first)["START"].data, by_name(first)["text_in"].shape) == (b"\1", (1, 1))
    assert (by_name(next_one)["START"].data, by_name(next_one)["text_in"].shape) == (b"\0", (1, 2))


def test_the_row_of_an_empty_slot_is_zeros_that_are_not_ready() -> None:
    """Of the shapes of the row beside it, so that they can be stacked; text is empty."""
    made = rows(START, READY, Control(ControlKind.CORRID, "c", "INT64"), states=(TEXT,))

    empty = made.empty(made.row(Chain(7), request(sequence_start=True)))

    assert {tensor.name: bytes(tensor.data) for tensor in empty.inputs} == {
        "x": bytes(8),
        "START": b"\0",
        "READY": b"\0",
        "c": bytes(8),
        "text_in": pack_bytes([""]),
    }


def response(*outputs: Tensor) -> InferResponse:
    return InferResponse("m", "1", outputs)


def test_states_are_kept_and_not_shown() -> None:
    """The client gets what it asked for; of a pass with others the state is copied, and holds no more than itself."""
    made = rows(states=(TEXT,))
    y, left = Tensor("y", "FP32", (1, 1), bytes(4)), Tensor("text_out", "BYTES", (1, 1), memoryview(pack_bytes(["z"])))

    (alone,) = made.states(response(y, left), alone=True)
    (copied,) = made.states(response(y, left), alone=False)

    assert alone == Tensor("text_in", "BYTES", (1, 1), left.data)
    assert alone.data is left.data
    assert type(copied.data) is bytes
    assert made.answer(response(y, left), request()).outputs == [y]
    assert made.answer(response(y, left), request("text_out")).outputs == [left]


@pytest.mark.parametrize("outputs", [(), (Tensor("text_out", "BYTES", (1, 1, 1), b""),)], ids=["none", "another shape"])
def test_a_state_that_is_not_as_the_config_says_fails_its_request(outputs: tuple[Tensor, ...]) -> None:
    """Given to the next request, it would break a pass with others in it."""
    with pytest.raises(EngineFailure):
        rows(states=(TEXT,)).states(response(*outputs), alone=True)
