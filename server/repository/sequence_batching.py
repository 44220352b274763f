"""``sequence_batching`` of config.pbtxt, read into `server.sequences`.

What is refused here Triton refuses too, or would fail at the first request; but for a `data_file`, which must be just
as long as the state, and for two controls in one `control_input`, which would overwrite each other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from server.proto.triton import model_config_pb2 as pb
from server.repository.refuse import Refuse
from server.sequences import Control, ControlKind, Direct, InitialState, Oldest, SequenceBatching, State
from server.tensor import DATATYPES, TensorSpec, unpack_bytes

INITIAL_STATE_FOLDER = "initial_state"
"""Below the model's folder. Source: ModelSequenceBatching.InitialState.data_file."""
DEFAULT_IDLE_US = 1_000_000
_FIELD = "sequence_batching"
_DATATYPE_OF = {d.config: d.name for d in DATATYPES.values()}
_CORRELATION = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")
_STATES = tuple(name for name in DATATYPES if name != "BF16")
"""A state of BF16 was never run, so it is refused."""
_FLAGS = {"int32_false_true": ("INT32", "<i"), "fp32_false_true": ("FP32", "<f"), "bool_false_true": ("BOOL", "<?")}
_MOST_CANDIDATES = 1_000_000
_LARGEST_STATE_BYTES = 1 << 30


def read_sequence_batching(
    message: pb.ModelConfig, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], refuse: Refuse
) -> SequenceBatching | None:
    """How the model batches sequences; None if it does not. Data of files is read by `with_initial_data`."""
    if not message.HasField(_FIELD):
        return None
    batching = message.sequence_batching
    controls = read_controls(batching, refuse)
    states = _states(batching, refuse)
    _check_names(controls, states, inputs, outputs, refuse)
    return SequenceBatching(
        strategy=_strategy(batching, message.max_batch_size, refuse),
        max_sequence_idle_microseconds=batching.max_sequence_idle_microseconds or DEFAULT_IDLE_US,
        controls=controls,
        states=states,
    )


def with_initial_data(batching: SequenceBatching, folder: Path, refuse: Refuse) -> SequenceBatching:
    """The same with the initial states that stand in files of the model in `folder`."""
    states = tuple(
        replace(state, initial=_from_file(state, f"{_FIELD}.state[{index}].initial_state[0].data_file", folder, refuse))
        if state.initial.data_file
        else state
        for index, state in enumerate(batching.states)
    )
    return replace(batching, states=states)


# --- the strategy -------------------------------------------------------------------------------------


def _strategy(batching: Any, max_batch_size: int, refuse: Refuse) -> Direct | Oldest:
    if batching.WhichOneof("strategy_choice") != "oldest":
        share = batching.direct.minimum_slot_utilization
        if not 0 <= share <= 1:
            refuse(f"{_FIELD}.direct.minimum_slot_utilization", f"is {share:g}, it must be 0 to 1")
        return Direct(batching.direct.max_queue_delay_microseconds, share)
    oldest = batching.oldest
    most = oldest.max_candidate_sequences
    if not 0 <= most <= _MOST_CANDIDATES:
        refuse(f"{_FIELD}.oldest.max_candidate_sequences", f"is {most}, it must be 0 to {_MOST_CANDIDATES}")
    for index, size in enumerate(oldest.preferred_batch_size):
        if not 1 <= size <= max_batch_size:
            problem = f"is {size}, it must be 1 to max_batch_size, which is {max_batch_size}"
            refuse(f"{_FIELD}.oldest.preferred_batch_size[{index}]", problem)
    return Oldest(
        most, tuple(oldest.preferred_batch_size), oldest.max_queue_delay_microseconds, oldest.preserve_ordering
    )


# --- controls -----------------------------------------------------------------------------------------


def read_controls(batching: Any, refuse: Refuse) -> tuple[Control, ...]:
    """What the model is told of its sequences, by `ModelSequenceBatching.control_input`."""
    controls: dict[ControlKind, Control] = {}
    for index, message in enumerate(batching.control_input):
        path = f"{_FIELD}.control_input[{index}]"
        if not message.name:
            refuse(f"{path}.name", "is empty")
        if len(message.control) != 1:
            refuse(f"{path}.control", f"has {len(message.control)} controls, an input tells one thing")
        control = _control(f"{path}.control[0]", message.name, message.control[0], refuse)
        if control.kind in controls:
            refuse(f"{path}.control[0].kind", f"{control.kind} is there twice")
        controls[control.kind] = control
    return tuple(controls.values())


def _control(path: str, name: str, message: Any, refuse: Refuse) -> Control:
    kinds = pb.ModelSequenceBatching.Control.Kind
    if message.kind not in kinds.values():
        refuse(f"{path}.kind", f"{message.kind} is no kind of control")
    kind = ControlKind(kinds.Name(message.kind))
    given = [field for field in _FLAGS if getattr(message, field)]
    if kind is ControlKind.CORRID:
        if given:
            refuse(f"{path}.{given[0]}", f"says nothing for {kind}; write data_type")
        return Control(kind, name, _datatype(f"{path}.data_type", message.data_type, _CORRELATION, refuse))
    if len(given) != 1:
        there = f"{' and '.join(given)} are" if given else "none of them is"
        refuse(path, f"{kind} needs one of {', '.join(_FLAGS)}, and {there} set")
    values = getattr(message, given[0])
    if len(values) != 2:
        refuse(f"{path}.{given[0]}", f"has {len(values)} values, it must be two: for false and for true")
    datatype, form = _FLAGS[given[0]]
    if message.data_type != pb.TYPE_INVALID:
        _datatype(f"{path}.data_type", message.data_type, (datatype,), refuse)
    return Control(kind, name, datatype, struct.pack(form, values[0]), struct.pack(form, values[1]))


# --- states -------------------------------------------------------------------------------------------


def _states(batching: Any, refuse: Refuse) -> tuple[State, ...]:
    states = []
    for index, message in enumerate(batching.state):
        path = f"{_FIELD}.state[{index}]"
        for field in ("input_name", "output_name"):
            if not getattr(message, field):
                refuse(f"{path}.{field}", "is empty")
        datatype = _datatype(f"{path}.data_type", message.data_type, _STATES, refuse)
        dims = tuple(message.dims)
        if not dims or any(size < 1 and size != -1 for size in dims):
            refuse(f"{path}.dims", f"is {list(dims)}; write the shape without the batch dimension, -1 for any size")
        initial = _initial(path, message, datatype, dims, refuse)
        states.append(State(message.input_name, message.output_name, datatype, dims, initial))
    return tuple(states)


def _initial(path: str, message: Any, datatype: str, dims: tuple[int, ...], refuse: Refuse) -> InitialState:
    """Triton's start without `initial_state` is memory as it is, with 1 for each -1; here it is zeros of that shape."""
    if len(message.initial_state) > 1:
        refuse(f"{path}.initial_state", f"has {len(message.initial_state)} elements, it must be one at most")
    file = ""
    if message.initial_state:
        initial = message.initial_state[0]
        path = f"{path}.initial_state[0]"
        _datatype(f"{path}.data_type", initial.data_type, (datatype,), refuse)
        if not initial.name:
            refuse(f"{path}.name", "is empty")
        own = tuple(initial.dims)
        if len(own) != len(dims) or any(
            size < 1 or want not in (-1, size) for size, want in zip(own, dims, strict=True)
        ):
            refuse(f"{path}.dims", f"is {list(own)}, it must fit the state's dims {list(dims)}, without -1")
        dims = own
        choice = initial.WhichOneof("state_data")
        if choice is None:
            refuse(path, "needs zero_data or data_file")
        if choice == "data_file":
            file = _inside(f"{path}.data_file", initial.data_file, refuse)
    else:
        dims = tuple(1 if size == -1 else size for size in dims)
    size = prod(dims) * (DATATYPES[datatype].size or 4)  # an empty string is its length, 0, in 4 bytes
    if size > _LARGEST_STATE_BYTES:
        refuse(f"{path}.dims", f"make a state of {size} bytes, the most are {_LARGEST_STATE_BYTES}")
    return InitialState(dims, b"" if file else bytes(size), file)


def _from_file(state: State, path: str, folder: Path, refuse: Refuse) -> InitialState:
    file = folder / INITIAL_STATE_FOLDER / state.initial.data_file
    shown = f"{INITIAL_STATE_FOLDER}/{state.initial.data_file}"
    if not file.is_file():
        refuse(path, f"'{shown}' is not there")
    data = file.read_bytes()
    count, size = prod(state.initial.dims), DATATYPES[state.datatype].size
    if size and len(data) != count * size:
        refuse(path, f"'{shown}' has {len(data)} bytes, the state has {count * size}")
    if not size:
        try:
            for element in unpack_bytes(data, count):
                element.decode()
        except ValueError as error:
            refuse(path, f"'{shown}' is not {count} strings, each behind its length in 4 bytes: {error}")
    return replace(state.initial, data=data)


# --- both ---------------------------------------------------------------------------------------------


def _check_names(
    controls: tuple[Control, ...],
    states: tuple[State, ...],
    inputs: Iterable[TensorSpec],
    outputs: Iterable[TensorSpec],
    refuse: Refuse,
) -> None:
    taken = {spec.name: "an input of the clients" for spec in inputs}
    for index, control in enumerate(controls):
        path = f"{_FIELD}.control_input[{index}]"
        _take(taken, control.name, f"{path}.name", path, refuse)
    for index, state in enumerate(states):
        path = f"{_FIELD}.state[{index}]"
        _take(taken, state.input_name, f"{path}.input_name", path, refuse)
    listed = {spec.name: spec for spec in outputs}
    made: dict[str, str] = {}
    for index, state in enumerate(states):
        path = f"{_FIELD}.state[{index}]"
        _take(made, state.output_name, f"{path}.output_name", path, refuse)
        spec = listed.get(state.output_name)
        if spec is not None and (spec.datatype, spec.dims) != (state.datatype, state.dims):
            problem = f"'{spec.name}' is also an output, {spec.datatype} {list(spec.dims)}: they must be the same"
            refuse(path, problem)


def _take(taken: dict[str, str], name: str, field: str, owner: str, refuse: Refuse) -> None:
    if name in taken:
        refuse(field, f"'{name}' is also {taken[name]}")
    taken[name] = owner


def _datatype(path: str, value: int, allowed: tuple[str, ...], refuse: Refuse) -> str:
    name = pb.DataType.Name(value) if value in pb.DataType.values() else str(value)
    if _DATATYPE_OF.get(name) not in allowed:
        known = ", ".join(DATATYPES[datatype].config for datatype in allowed)
        refuse(path, f"is {name}, it must be {known}" if value else f"is not set; write {known}")
    return _DATATYPE_OF[name]


def _inside(path: str, filename: str, refuse: Refuse) -> str:
    parts = PurePosixPath(filename)
    if parts.is_absolute() or ".." in parts.parts or parts.name in ("", ".") or "\x00" in filename:
        refuse(path, f"'{filename}' must be a file below '{INITIAL_STATE_FOLDER}'")
    return filename
