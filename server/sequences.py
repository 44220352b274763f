"""What a model says of its sequences: how they are batched, what tells it of them, which tensors it carries over.

Source: model_config.proto, ModelSequenceBatching. Control and state tensors are inputs and outputs of the model's
file; clients neither send nor see them, but for a state that the config also lists as an output.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from server.tensor import DATATYPES, Array, Tensor, TensorSpec, pack_bytes

SequenceId = int | str
"""What requests of one sequence have in common; 0 and "" are of none. As in Triton a number is an unsigned one of 64
bits, and 7 and "7" are two sequences."""

_BITS = (1 << 64) - 1


class ControlKind(StrEnum):
    """Source: ModelSequenceBatching.Control.Kind."""

    START = "CONTROL_SEQUENCE_START"
    READY = "CONTROL_SEQUENCE_READY"
    END = "CONTROL_SEQUENCE_END"
    CORRID = "CONTROL_SEQUENCE_CORRID"


@dataclass(frozen=True, slots=True)
class Control:
    """An input by which the model is told one thing of each row: [1] in each, made by the scheduler."""

    kind: ControlKind
    name: str
    datatype: str
    false: bytes = b""
    """The element in v2's raw form; as `true` not for CORRID."""
    true: bytes = b""


@dataclass(frozen=True, slots=True)
class InitialState:
    """What a state is at a sequence's start, without the batch dimension, in v2's raw form."""

    dims: tuple[int, ...]
    data: bytes
    data_file: str = ""
    """Where `data` comes from; else it is zeros (for text: empty strings)."""


@dataclass(frozen=True, slots=True)
class State:
    """An output that is the next request's input. Source: ModelSequenceBatching.State."""

    input_name: str
    output_name: str
    datatype: str
    dims: tuple[int, ...]
    initial: InitialState


@dataclass(frozen=True, slots=True)
class Direct:
    """Each sequence has a row of its own in every batch of one instance. Source: StrategyDirect."""

    max_queue_delay_microseconds: int = 0
    minimum_slot_utilization: float = 0.0


@dataclass(frozen=True, slots=True)
class Oldest:
    """Batches of whoever is ready, one request of a sequence in each. Source: StrategyOldest."""

    max_candidate_sequences: int = 0
    """On each instance; 0: as many as `max_batch_size`."""
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """Source: ModelSequenceBatching."""

    strategy: Direct | Oldest = Direct()
    max_sequence_idle_microseconds: int = 1_000_000
    controls: tuple[Control, ...] = ()
    states: tuple[State, ...] = ()

    def slots(self, max_batch_size: int) -> int:
        """Sequences that one instance holds at a time."""
        chosen = self.strategy.max_candidate_sequences if isinstance(self.strategy, Oldest) else 0
        return chosen or max(1, max_batch_size)

    def control(self, kind: ControlKind) -> Control | None:
        return next((control for control in self.controls if control.kind is kind), None)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Of the model's file, beside those that clients send."""
        controls = [TensorSpec(control.name, control.datatype, (1,)) for control in self.controls]
        states = [TensorSpec(state.input_name, state.datatype, state.dims) for state in self.states]
        return (*controls, *states)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Of the model's file; clients may see those that the config lists too."""
        return tuple(TensorSpec(state.output_name, state.datatype, state.dims) for state in self.states)

    @property
    def fields(self) -> dict[tuple[str, str], str]:
        """The config's field of each of these inputs and outputs, by ``input`` or ``output`` and name."""
        fields = {("input", control.name): f"control_input[{index}]" for index, control in enumerate(self.controls)}
        for index, state in enumerate(self.states):
            fields["input", state.input_name] = f"state[{index}].input_name"
            fields["output", state.output_name] = f"state[{index}].output_name"
        return {tensor: f"sequence_batching.{field}" for tensor, field in fields.items()}

    def lone_inputs(self, rows: int, *, batched: bool) -> dict[str, Array]:
        """The inputs of the model's file that clients do not send, for rows that are each a whole sequence: its start
        and its end. So models are warmed up and golden rows replayed. Not `batched`, there is one row, without a
        dimension for it."""
        arrays: dict[str, Array] = {}
        for control in self.controls:
            element = control.true
            if control.kind is ControlKind.CORRID:
                element = pack_bytes([b"1"]) if control.datatype == "BYTES" else _one(control.datatype)
            arrays[control.name] = _repeated(Tensor(control.name, control.datatype, (1,), element), rows, batched)
        for state in self.states:
            first = Tensor(state.input_name, state.datatype, state.initial.dims, state.initial.data)
            arrays[state.input_name] = _repeated(first, rows, batched)
        return arrays


def _one(datatype: str) -> bytes:
    return (1).to_bytes(DATATYPES[datatype].size, "little")


def _repeated(row: Tensor, rows: int, batched: bool) -> Array:
    array = row.numpy()
    return np.repeat(array[np.newaxis], rows, axis=0) if batched else array


def sequence_id(value: object) -> SequenceId:
    """A request's `sequence_id` as the scheduler compares it: a negative number is what its 64 bits say unsigned."""
    if isinstance(value, str):
        return value
    return value & _BITS if type(value) is int else 0
