"""`model_warmup`: what is read, what is refused by its field, and what runs before a version serves."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from server.engine.fake import FakeEngine, Script
from server.errors import ModelLoadFailed
from server.repository.config_text import parse_text
from server.repository.loading import ServedModel
from server.repository.model_config import ModelConfig, from_message
from server.repository.repository import Repository
from server.repository.warmup_samples import read_samples
from server.tensor import DATATYPES, pack_bytes
from server.types import Batch

BASE = """
backend: "onnxruntime" max_batch_size: {size}
input {{ name: "x" data_type: TYPE_FP32 dims: [-1, 2] }}
output {{ name: "y" data_type: TYPE_FP32 dims: 2 }}
"""
X = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: [3, 2] %s } }'
ZERO = X % "zero_data: true"


def sample(inputs: str = ZERO, more: str = "batch_size: 2") -> str:
    return f'model_warmup {{ name: "s" {more} {inputs} }}'


def read(text: str, size: int = 4, base: str = BASE) -> ModelConfig:
    return from_message(parse_text(base.format(size=size) + text, "m"), "m")


def load(root: Path, text: str, *, size: int = 4, engine: FakeEngine | None = None, base: str = BASE) -> ServedModel:
    folder = root / "m"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.onnx").write_bytes(b"not read")
    (folder / "config.pbtxt").write_text(base.format(size=size) + text)

    def nothing(folder: Path) -> object:
        raise AssertionError(folder)

    [model] = Repository(root, engine or FakeEngine(), load_pipeline=nothing, warmup_s=5.0).load("m")  # type: ignore[arg-type]
    return model


def file(root: Path, name: str, data: bytes) -> None:
    path = root / "m" / "warmup" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# --- what is refused ------------------------------------------------------------------------------

WRONG = [
    (sample(more=""), "model_warmup[0].batch_size", "is 0, it must be 1 to 4"),
    (sample(more="batch_size: 5"), "model_warmup[0].batch_size", "is 5, it must be 1 to 4"),
    (sample() + sample(more="batch_size: 9"), "model_warmup[1].batch_size", "is 9"),
    (sample(more="batch_size: 1 count: 10001"), "model_warmup[0].count", "at most 10000"),
    (sample(""), "model_warmup[0].inputs", "has no 'x'"),
    (
        sample(ZERO + ' inputs { key: "z" value { data_type: TYPE_FP32 dims: 1 zero_data: true } }'),
        'model_warmup[0].inputs["z"]',
        "no input of the model, which takes x",
    ),
    (sample(ZERO.replace("FP32", "FP64")), 'model_warmup[0].inputs["x"].data_type', "is TYPE_FP64, the model takes"),
    (sample(ZERO.replace("data_type: TYPE_FP32", "")), 'model_warmup[0].inputs["x"].data_type', "is not set"),
    (sample(ZERO.replace("[3, 2]", "[-1, 2]")), 'model_warmup[0].inputs["x"].dims', "without -1"),
    (sample(ZERO.replace("[3, 2]", "[3, 3]")), 'model_warmup[0].inputs["x"].dims', "must fit the model's dims [-1, 2]"),
    (sample(ZERO.replace("[3, 2]", "[3]")), 'model_warmup[0].inputs["x"].dims', "must fit"),
    (sample(ZERO.replace("[3, 2]", "[0, 2]")), 'model_warmup[0].inputs["x"].dims', "must fit"),
    (sample(X % ""), 'model_warmup[0].inputs["x"]', "needs zero_data, random_data or input_data_file"),
    (
        sample(X % 'input_data_file: "../1/model.onnx"'),
        'model_warmup[0].inputs["x"].input_data_file',
        "must be a file below 'warmup'",
    ),
    (
        sample(X % 'input_data_file: "/etc/passwd"'),
        'model_warmup[0].inputs["x"].input_data_file',
        "must be a file below",
    ),
    (sample(X % 'input_data_file: ""'), 'model_warmup[0].inputs["x"].input_data_file', "must be a file below"),
    (sample(ZERO.replace("[3, 2]", "[200000000, 2]")), "model_warmup[0]", "makes inputs of 3200000000 bytes"),
]


@pytest.mark.parametrize(("text", "field", "said"), WRONG, ids=[f"{field} {said}" for _, field, said in WRONG])
def test_a_mistake_is_named_by_its_field(text: str, field: str, said: str) -> None:
    """With what it must be."""
    with pytest.raises(ModelLoadFailed) as failed:
        read(text)
    assert failed.value.where == f"config.pbtxt: {field}"
    assert said in failed.value.problem


def test_a_model_without_a_batch_dimension_takes_samples_of_one() -> None:
    """Their dims are the whole shape."""
    assert read(sample(more="batch_size: 1"), size=0).model_warmup[0].batch_size == 1
    with pytest.raises(ModelLoadFailed, match="must be 1 to 1, as the model has no batch dimension"):
        read(sample(), size=0)


@pytest.mark.parametrize(
    ("data", "said"),
    [(None, "'warmup/x.bin' is not there"), (bytes(23), "has 23 bytes, one row has 24"), (bytes(25), "has 25 bytes")],
)
def test_a_file_must_be_one_row(tmp_path: Path, data: bytes | None, said: str) -> None:
    """Neither shorter nor longer; the field and the file are named."""
    if data is not None:
        file(tmp_path, "x.bin", data)
    with pytest.raises(ModelLoadFailed) as failed:
        load(tmp_path, sample(X % 'input_data_file: "x.bin"'))
    assert failed.value.where == 'config.pbtxt: model_warmup[0].inputs["x"].input_data_file'
    assert said in failed.value.problem


TEXT = BASE.replace("FP32 dims: [-1, 2]", "STRING dims: 2", 1)
S = 'inputs { key: "x" value { data_type: TYPE_STRING dims: 2 %s } }'


@pytest.mark.parametrize(
    "data", [pack_bytes([b"a"]), pack_bytes([b"a", b"b", b"c"]), b"\1", pack_bytes([b"\xff", b"a"])]
)
def test_a_file_of_strings_must_be_as_many_as_its_dims(tmp_path: Path, data: bytes) -> None:
    """Each behind its length, in UTF-8."""
    file(tmp_path, "x.bin", data)
    with pytest.raises(ModelLoadFailed, match="is not 2 strings, each behind its length in 4 bytes"):
        load(tmp_path, sample(S % 'input_data_file: "x.bin"'), base=TEXT)


# --- what runs -------------------------------------------------------------------------------------


def test_samples_run_before_all_else_as_often_as_they_say_on_every_instance(tmp_path: Path) -> None:
    """In their order, each one row repeated to its batch size; a count of 0 is one pass."""
    engine = FakeEngine()
    row = np.arange(6, dtype=np.float32).reshape(3, 2)
    file(tmp_path, "deep/x.bin", row.tobytes())
    text = (
        sample(X % 'input_data_file: "deep/x.bin"', "batch_size: 3 count: 2")
        + sample(more="batch_size: 4")
        + "instance_group { count: 2 }"
    )
    load(tmp_path, text, engine=engine)

    first, then = engine.batches[:4], engine.batches[4:6]
    assert all(batch.rows == 3 for batch in first)
    for batch in first:
        np.testing.assert_array_equal(batch.inputs["x"], np.stack([row] * 3))
    assert [batch.rows for batch in then] == [4, 4]
    assert not then[0].inputs["x"].any()


def test_the_first_whole_sample_fills_the_batches_of_the_sweep(tmp_path: Path) -> None:
    """Dims of -1 have its sizes, not 1."""
    engine = FakeEngine()
    load(tmp_path, sample(more="batch_size: 1"), engine=engine)
    assert {batch.inputs["x"].shape[1:] for batch in engine.batches} == {(3, 2)}
    assert {batch.rows for batch in engine.batches} == {1, 2, 3, 4}


def test_a_sample_that_fails_fails_the_load(tmp_path: Path) -> None:
    """With the sample, the instance and the reason; what was loaded is closed."""
    engine = FakeEngine(Script(acts=["answer", "fail"]))
    with pytest.raises(ModelLoadFailed) as failed:
        load(tmp_path, sample() + sample(), engine=engine)
    assert failed.value.where == "config.pbtxt: model_warmup[1]"
    assert failed.value.problem.startswith("'s' failed on instance m_0_0_fake: ")
    assert "scripted failure" in failed.value.problem
    assert engine.loaded[0].closed


def test_a_sweep_filled_by_a_sample_says_so_where_it_fails(tmp_path: Path) -> None:
    """And not that it was zeros."""
    with pytest.raises(ModelLoadFailed, match="warm-up with 1 rows of model_warmup failed"):
        load(tmp_path, sample(), engine=FakeEngine(Script(acts=["answer", "fail"])))


def test_without_a_batch_dimension_a_row_is_the_whole_input(tmp_path: Path) -> None:
    """No dimension is put in front."""
    engine = FakeEngine()
    load(tmp_path, sample(more="batch_size: 1"), size=0, engine=engine)
    assert engine.batches[0].inputs["x"].shape == (3, 2)


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@pytest.mark.parametrize("source", ["zero_data: true", "random_data: true"])
def test_data_are_made_for_every_datatype(datatype: str, source: str) -> None:
    """Of the datatype's own elements; random ones are the same at each load, and numbers."""
    kind = DATATYPES[datatype]
    base = BASE.replace("TYPE_FP32 dims: [-1, 2]", f"{kind.config} dims: [-1, 2]", 1)
    text = sample(ZERO.replace("TYPE_FP32", kind.config).replace("zero_data: true", source), "batch_size: 1")
    [rows], [again] = (read_samples(read(text, base=base), Path()) for _ in range(2))
    array = rows["x"]
    assert (array.dtype, array.shape) == (kind.numpy, (1, 3, 2))
    np.testing.assert_array_equal(array, again["x"])
    if datatype == "BYTES":
        assert set(array.ravel()) == {b""}
    elif "zero" in source:
        assert not any(array.tobytes())
    else:
        assert any(array.tobytes())
        if kind.kind == "f" and datatype != "BF16":
            assert ((array >= 0) & (array <= 1)).all()


def test_strings_come_from_their_file(tmp_path: Path) -> None:
    """As they were written."""
    engine = FakeEngine(Script(answer=lambda spec, batch: {"y": np.zeros((batch.rows, 2), np.float32)}))
    file(tmp_path, "x.bin", pack_bytes(["a", "äb"]))
    load(tmp_path, sample(S % 'input_data_file: "x.bin"'), base=TEXT, engine=engine)
    assert engine.batches[0].inputs["x"].tolist() == [[b"a", "äb".encode()]] * 2


SEQUENCES = """
sequence_batching {
  control_input { name: "start" control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } }
  control_input { name: "ready" control { kind: CONTROL_SEQUENCE_READY int32_false_true: [0, 1] } }
  state { input_name: "i" output_name: "o" data_type: TYPE_FP32 dims: 1 }
}
"""


def answer(spec: object, batch: Batch) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"y": np.zeros((batch.rows, 2), np.float32), "o": np.zeros((batch.rows, 1), np.float32)}


def test_a_sample_of_sequences_may_say_its_controls(tmp_path: Path) -> None:
    """Those that it leaves out, and the states, are those of a sequence of one request."""
    engine = FakeEngine(Script(answer=answer))
    start = ' inputs { key: "start" value { data_type: TYPE_INT32 dims: 1 input_data_file: "no" } }'
    file(tmp_path, "no", struct.pack("<i", 0))
    load(tmp_path, SEQUENCES + sample(ZERO + start) + sample(), engine=engine)

    said, left_out = engine.batches[:2]
    assert said.inputs["start"].tolist() == [[0], [0]]
    assert left_out.inputs["start"].tolist() == [[1], [1]]
    for batch in (said, left_out):
        assert batch.inputs["ready"].tolist() == [[1], [1]]
        assert batch.inputs["i"].tolist() == [[0.0], [0.0]]


def test_a_state_is_no_input_of_a_sample() -> None:
    """It begins as the config of the sequences says."""
    state = ' inputs { key: "i" value { data_type: TYPE_FP32 dims: 1 zero_data: true } }'
    with pytest.raises(ModelLoadFailed) as failed:
        read(SEQUENCES + sample(ZERO + state))
    assert failed.value.where == 'config.pbtxt: model_warmup[0].inputs["i"]'
    assert "takes x, start, ready" in failed.value.problem


def test_an_optional_input_may_be_left_out(tmp_path: Path) -> None:
    """The model has a default for it; then the sweep is not filled by the sample."""
    more = 'input { name: "z" data_type: TYPE_FP32 dims: 2 optional: true }'
    engine = FakeEngine()
    load(tmp_path, more + sample(), engine=engine)
    assert engine.batches[0].inputs.keys() == {"x"}
    assert engine.batches[1].inputs.keys() == {"x", "z"}
