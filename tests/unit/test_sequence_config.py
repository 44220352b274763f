"""sequence_batching of config.pbtxt: what is read, and what is refused by its field."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from server.errors import ModelLoadFailed
from server.repository.model_config import ModelConfig, read_model_config
from server.sequences import Control, ControlKind, Direct, InitialState, Oldest, SequenceBatching, State
from server.tensor import TensorSpec, pack_bytes

BASE = """
backend: "onnxruntime"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [3] }
output { name: "y" data_type: TYPE_FP32 dims: [2] }
"""


def read(tmp_path: Path, section: str, base: str = BASE, files: dict[str, bytes] | None = None) -> ModelConfig:
    folder = tmp_path / "m"
    (folder / "initial_state").mkdir(parents=True)
    for name, data in (files or {}).items():
        (folder / "initial_state" / name).write_bytes(data)
    (folder / "config.pbtxt").write_text(f"{base}sequence_batching {{ {section} }}")
    return read_model_config(folder)


def sequences(tmp_path: Path, section: str, files: dict[str, bytes] | None = None) -> SequenceBatching:
    batching = read(tmp_path, section, files=files).sequence_batching
    assert batching is not None
    return batching


def test_nothing_said_is_direct_with_a_second_of_idleness(tmp_path: Path) -> None:
    """Triton's defaults; an instance has as many slots as rows."""
    batching = sequences(tmp_path, "")

    assert batching == SequenceBatching(Direct(0, 0.0), 1_000_000)
    assert (batching.slots(4), batching.slots(0)) == (4, 1)


def test_both_strategies_are_read(tmp_path: Path) -> None:
    """direct with its window, oldest with its candidates."""
    direct = (
        "direct { max_queue_delay_microseconds: 7 minimum_slot_utilization: 0.5 } max_sequence_idle_microseconds: 9"
    )
    oldest = (
        "oldest { max_candidate_sequences: 9 preferred_batch_size: [2, 4] max_queue_delay_microseconds: 5 "
        "preserve_ordering: true }"
    )

    assert sequences(tmp_path / "1", direct) == SequenceBatching(Direct(7, 0.5), 9)
    assert sequences(tmp_path / "2", oldest).strategy == Oldest(9, (2, 4), 5, True)
    assert sequences(tmp_path / "3", oldest).slots(4) == 9
    assert sequences(tmp_path / "4", "oldest {}").slots(4) == 4


CONTROLS = """
control_input { name: "s" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] } }
control_input { name: "e" control { kind: CONTROL_SEQUENCE_END int32_false_true: [-1, 5] } }
control_input { name: "r" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] } }
control_input { name: "c" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT32 } }
"""
STATE = 'state { input_name: "i" output_name: "o" data_type: TYPE_INT32 dims: [-1, 2] %s }'


def test_controls_are_inputs_that_clients_do_not_see(tmp_path: Path) -> None:
    """Each has one element a row, of the datatype in which its values are given."""
    config = read(tmp_path, CONTROLS)
    batching = config.sequence_batching
    assert batching is not None

    assert batching.controls == (
        Control(ControlKind.START, "s", "FP32", struct.pack("<f", 0), struct.pack("<f", 1)),
        Control(ControlKind.END, "e", "INT32", struct.pack("<i", -1), struct.pack("<i", 5)),
        Control(ControlKind.READY, "r", "BOOL", b"\0", b"\1"),
        Control(ControlKind.CORRID, "c", "UINT32"),
    )
    assert [spec.name for spec in config.inputs] == ["x"]
    assert config.engine_spec(Path(), "1").inputs[1:] == (
        TensorSpec("s", "FP32", (1,)),
        TensorSpec("e", "INT32", (1,)),
        TensorSpec("r", "BOOL", (1,)),
        TensorSpec("c", "UINT32", (1,)),
    )


def test_a_state_starts_as_zeros_with_1_for_any_size(tmp_path: Path) -> None:
    """Triton's default shape; its memory is what it happens to be there, ours is zero."""
    assert sequences(tmp_path, STATE % "").states == (
        State("i", "o", "INT32", (-1, 2), InitialState((1, 2), bytes(8))),
    )


def test_a_state_starts_as_the_config_says(tmp_path: Path) -> None:
    """Zeros of a shape, or the bytes of a file below initial_state."""
    head = 'initial_state { name: "n" data_type: TYPE_INT32 dims: [2, 2]'
    data = struct.pack("<4i", 1, 2, 3, 4)

    (zeros,) = sequences(tmp_path / "1", STATE % f"{head} zero_data: true }}").states
    (filed,) = sequences(tmp_path / "2", STATE % f'{head} data_file: "f" }}', {"f": data}).states

    assert zeros.initial == InitialState((2, 2), bytes(16))
    assert filed.initial == InitialState((2, 2), data, "f")


def test_a_state_that_is_also_an_output_is_shown_and_is_one_output_of_the_file(tmp_path: Path) -> None:
    """Triton's way to look at states: list it among the outputs."""
    config = read(tmp_path, 'state { input_name: "i" output_name: "y" data_type: TYPE_FP32 dims: 2 }')

    assert config.engine_outputs == config.outputs == (TensorSpec("y", "FP32", (2,)),)


def test_text_states_start_as_empty_strings_or_those_of_a_file(tmp_path: Path) -> None:
    """Each string stands behind its length in 4 bytes, as everywhere in v2."""
    text = 'state { input_name: "i" output_name: "o" data_type: TYPE_STRING dims: 2 %s }'
    file = 'initial_state { name: "n" data_type: TYPE_STRING dims: 2 data_file: "f" }'

    (empty,) = sequences(tmp_path / "1", text % "").states
    (filed,) = sequences(tmp_path / "2", text % file, {"f": pack_bytes(["a", "bc"])}).states

    assert empty.initial.data == pack_bytes(["", ""])
    assert filed.initial.data == pack_bytes(["a", "bc"])


def control(text: str) -> str:
    return f'control_input {{ name: "s" control {{ {text} }} }}'


def initial(text: str) -> str:
    return STATE % f"initial_state {{ {text} }}"


START = "kind: CONTROL_SEQUENCE_START"
REFUSED = [
    ("direct { minimum_slot_utilization: 1.5 }", "direct.minimum_slot_utilization", "0 to 1"),
    ("oldest { max_candidate_sequences: -1 }", "oldest.max_candidate_sequences", "0 to"),
    ("oldest { preferred_batch_size: [2, 5] }", "oldest.preferred_batch_size[1]", "max_batch_size, which is 4"),
    ("control_input { }", "control_input[0].name", "empty"),
    ('control_input { name: "s" }', "control_input[0].control", "0 controls"),
    (
        'control_input { name: "s" control [{ bool_false_true: [false, true] }, { kind: CONTROL_SEQUENCE_END }] }',
        "control_input[0].control",
        "2 controls",
    ),
    (control(START), "control_input[0].control[0]", "none of them is set"),
    (control(f"{START} int32_false_true: [0, 1] fp32_false_true: [0, 1]"), "control_input[0].control[0]", "and"),
    (control(f"{START} int32_false_true: [0]"), "control_input[0].control[0].int32_false_true", "has 1 values"),
    (
        control(f"{START} int32_false_true: [0, 1] data_type: TYPE_FP32"),
        "control_input[0].control[0].data_type",
        "TYPE_INT32",
    ),
    (control("kind: CONTROL_SEQUENCE_CORRID"), "control_input[0].control[0].data_type", "not set"),
    (
        control("kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32"),
        "control_input[0].control[0].data_type",
        "TYPE_UINT64",
    ),
    (
        control("kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT32 int32_false_true: [0, 1]"),
        "control_input[0].control[0].int32_false_true",
        "says nothing",
    ),
    (CONTROLS + CONTROLS.replace('"s"', '"t"'), "control_input[4].control[0].kind", "twice"),
    (CONTROLS.replace('"s"', '"x"'), "control_input[0].name", "an input of the clients"),
    (CONTROLS.replace('"s"', '"i"') + STATE % "", "state[0].input_name", "control_input[0]"),
    (STATE % "" + STATE % "", "state[1].input_name", "state[0]"),
    (STATE % "" + (STATE % "").replace('"i"', '"j"'), "state[1].output_name", "state[0]"),
    ((STATE % "").replace('"o"', '""'), "state[0].output_name", "empty"),
    ((STATE % "").replace('"o"', '"y"'), "state[0]", "must be the same"),
    ((STATE % "").replace("TYPE_INT32", "TYPE_BF16"), "state[0].data_type", "TYPE_BF16"),
    ((STATE % "").replace("[-1, 2]", "[0]"), "state[0].dims", "[0]"),
    (
        initial('name: "n" data_type: TYPE_INT64 dims: [1, 2] zero_data: true'),
        "state[0].initial_state[0].data_type",
        "32",
    ),
    (initial("data_type: TYPE_INT32 dims: [1, 2] zero_data: true"), "state[0].initial_state[0].name", "empty"),
    (initial('name: "n" data_type: TYPE_INT32 dims: [1] zero_data: true'), "state[0].initial_state[0].dims", "[1]"),
    (initial('name: "n" data_type: TYPE_INT32 dims: [-1, 2] zero_data: true'), "state[0].initial_state[0].dims", "-1"),
    (initial('name: "n" data_type: TYPE_INT32 dims: [1, 3] zero_data: true'), "state[0].initial_state[0].dims", "3"),
    (initial('name: "n" data_type: TYPE_INT32 dims: [1, 2]'), "state[0].initial_state[0]", "zero_data or data_file"),
    (
        initial('name: "n" data_type: TYPE_INT32 dims: [1, 2] data_file: "../f"'),
        "state[0].initial_state[0].data_file",
        "below",
    ),
    (
        initial('name: "n" data_type: TYPE_INT32 dims: [1, 2] data_file: "absent"'),
        "state[0].initial_state[0].data_file",
        "not there",
    ),
    (
        initial('name: "n" data_type: TYPE_INT32 dims: [1, 2] data_file: "short"'),
        "state[0].initial_state[0].data_file",
        "3 bytes, the state has 8",
    ),
    (
        initial('name: "n" data_type: TYPE_INT32 dims: [100000, 100000] zero_data: true').replace(
            "[-1, 2]", "[-1, -1]"
        ),
        "state[0].initial_state[0].dims",
        "the most are",
    ),
]


@pytest.mark.parametrize(
    ("section", "field", "problem"), REFUSED, ids=[f"{field}: {text}" for _, field, text in REFUSED]
)
def test_what_can_not_be_is_refused_by_its_field(tmp_path: Path, section: str, field: str, problem: str) -> None:
    """A config that would fail at its first request does not load."""
    with pytest.raises(ModelLoadFailed) as caught:
        read(tmp_path, section, files={"short": b"123"})

    assert caught.value.where == f"config.pbtxt: sequence_batching.{field}"
    assert problem in caught.value.problem


def test_tenants_do_not_share_slots(tmp_path: Path) -> None:
    """fair_by is refused beside sequences, instead of doing nothing."""
    fair = BASE + 'parameters { key: "fair_by" value { string_value: "tenant" } }'
    with pytest.raises(ModelLoadFailed, match="sequence_batching"):
        read(tmp_path, "", base=fair)


def test_a_lone_row_is_a_whole_sequence(tmp_path: Path) -> None:
    """Models are warmed up and golden rows replayed with rows that start and end, on states as they begin."""
    batching = sequences(tmp_path, CONTROLS + STATE % "")

    rows = batching.lone_inputs(3, batched=True)

    assert {name: array.shape for name, array in rows.items()} == {
        "s": (3, 1),
        "e": (3, 1),
        "r": (3, 1),
        "c": (3, 1),
        "i": (3, 1, 2),
    }
    assert (rows["s"][0, 0], rows["e"][0, 0], rows["r"][0, 0], rows["c"][0, 0]) == (1, 5, True, 1)
    assert batching.lone_inputs(1, batched=False)["i"].shape == (1, 2)
