"""The certificate: manifest, hashes, golden files, and the replay that holds a model to them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server.errors import InvalidRequest, ModelLoadFailed
from server.repository.certificate import (
    DataRecord,
    ErrorRecord,
    Golden,
    Manifest,
    RowCounts,
    Tolerance,
    VersionRecord,
    compare,
    hash_files,
    read_golden,
    read_manifest,
    read_raw,
    replay,
    replay_preprocessing,
    verify_files,
    write_golden,
    write_manifest,
    write_raw,
)
from server.tensor import Array
from server.types import ImageInput, RawInput, RowInput, TextInput

LOOSE = Tolerance(atol=0.1, rtol=0.0)


def record() -> VersionRecord:
    return VersionRecord(
        created="2026-01-01T00:00:00Z",
        opset=17,
        ir_version=8,
        seed=1,
        data=DataRecord(source="test", sha256="0" * 64, rows=RowCounts(train=3, validation=1, test=1)),
        metrics={"accuracy": 0.9},
        baseline={"name": "majority", "accuracy": 0.5},
        environment={"python": "3.11"},
        tolerances={"y": LOOSE},
        errors={"y": ErrorRecord(max_abs=0.0, mean_abs=0.0)},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A certified model of two versions; the engine is not asked here, so the model files are plain bytes."""
    folder = tmp_path / "m"
    for version in ("1", "2"):
        (folder / version).mkdir(parents=True)
        (folder / version / "model.onnx").write_bytes(b"model" + version.encode())
        write_golden(folder, version, {"x": np.ones((2, 3))}, {"y": np.ones((2, 1))})
    (folder / "config.pbtxt").write_text("config")
    (folder / "processing.yaml").write_text("task: x")
    (folder / "warmup").mkdir()
    (folder / "warmup" / "row.bin").write_bytes(b"row")
    write_manifest(folder, manifest(folder))
    return folder


def manifest(folder: Path) -> Manifest:
    return Manifest(
        model_name="m",
        recipe="r",
        task="t",
        synthetic=False,
        versions={"1": record(), "2": record()},
        files=hash_files(folder),
    )


def test_a_manifest_is_read_back_as_written(folder: Path) -> None:
    """Write then read is the identity, and the hashes cover every file but the manifest."""
    read = read_manifest(folder)

    assert read == manifest(folder)
    assert set(read.files) == {
        "1/model.onnx",
        "2/model.onnx",
        "config.pbtxt",
        "golden/1.npz",
        "golden/2.npz",
        "processing.yaml",
        "warmup/row.bin",
    }
    verify_files(folder, read, "1")
    verify_files(folder, read, "2")


def test_a_model_without_a_manifest_is_none(tmp_path: Path) -> None:
    """A plain Triton model has no certificate, which is no error."""
    assert read_manifest(tmp_path) is None
    assert read_golden(tmp_path, "1") is None
    assert read_raw(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("{}", "model_name: Field required"),
        ('{"format_version": 2}', "format_version"),
        ('{"surprise": 1}', ""),
    ],
)
def test_a_damaged_manifest_keeps_the_model_out(folder: Path, text: str, words: str) -> None:
    """A manifest that can't be understood certifies nothing, and must not pass for none."""
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ModelLoadFailed) as caught:
        read_manifest(folder)

    assert caught.value.where == "manifest.json"
    assert words in caught.value.problem


def test_an_unknown_field_and_another_model_s_manifest_are_refused(folder: Path) -> None:
    """extra=forbid holds at every depth; a copied folder must be published under its own name."""
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"opset": 17', '"opset": 17, "extra": 1', 1))
    with pytest.raises(ModelLoadFailed, match=r"versions\.1\.extra"):
        read_manifest(folder)
    (folder / "manifest.json").write_text(text.replace('"model_name": "m"', '"model_name": "other"'))
    with pytest.raises(ModelLoadFailed, match="is of model 'other'"):
        read_manifest(folder)


def test_nan_is_no_metric_and_a_negative_tolerance_none() -> None:
    """JSON has no NaN: it would be written as null and could not be read back."""
    with pytest.raises(ValidationError):
        record().model_copy().model_validate({**record().model_dump(), "metrics": {"a": float("nan")}})
    with pytest.raises(ValidationError):
        Tolerance(atol=-1, rtol=0)
    with pytest.raises(ValidationError):
        Tolerance(atol=float("inf"), rtol=0)


@pytest.mark.parametrize("path", ["1/model.onnx", "config.pbtxt", "processing.yaml", "golden/1.npz", "warmup/row.bin"])
def test_a_flipped_bit_is_found_and_its_file_named(folder: Path, path: str) -> None:
    """One bit in any file that serving reads is enough."""
    data = bytearray((folder / path).read_bytes())
    data[-1] ^= 1
    (folder / path).write_bytes(data)
    with pytest.raises(ModelLoadFailed, match="differs from manifest") as caught:
        verify_files(folder, manifest_of(folder), "1")

    assert caught.value.where == path


def manifest_of(folder: Path) -> Manifest:
    found = read_manifest(folder)
    assert found is not None
    return found


def test_a_missing_and_an_unlisted_file_are_found(folder: Path) -> None:
    """Both ways of differing from the list are refused by the file's name."""
    (folder / "labels.txt").write_text("a")
    with pytest.raises(ModelLoadFailed, match=r"labels\.txt: is not listed"):
        verify_files(folder, manifest_of(folder), "1")
    (folder / "labels.txt").unlink()
    (folder / "1" / "model.onnx").unlink()
    with pytest.raises(ModelLoadFailed, match=r"1/model\.onnx: is missing"):
        verify_files(folder, manifest_of(folder), "1")


def test_another_version_s_damage_is_its_own_affair(folder: Path) -> None:
    """Version 2's broken files, and a version that nobody certified, leave version 1 alone."""
    (folder / "2" / "model.onnx").write_bytes(b"broken")
    (folder / "golden" / "2.npz").unlink()
    (folder / "3").mkdir()
    (folder / "3" / "model.onnx").write_bytes(b"new")

    verify_files(folder, manifest_of(folder), "1")
    with pytest.raises(ModelLoadFailed, match=r"2/model\.onnx"):
        verify_files(folder, manifest_of(folder), "2")
    with pytest.raises(ModelLoadFailed, match="does not list version 3"):
        verify_files(folder, manifest_of(folder), "3")


def test_documents_and_hidden_files_are_not_part_of_the_model(folder: Path) -> None:
    """A README, an editor's or a volume's hidden files and TensorRT's caches may come and go."""
    (folder / "README.md").write_text("text")
    (folder / ".DS_Store").write_text("x")
    (folder / "..data").mkdir()
    (folder / "..data" / "x").write_text("x")
    (folder / "1" / "trt.engine").write_text("x")

    verify_files(folder, manifest_of(folder), "1")


def test_a_certificate_without_golden_files_is_refused(folder: Path) -> None:
    """Taking golden/1.npz and its line away must not switch the replay off."""
    (folder / "golden" / "1.npz").unlink()
    write_manifest(folder, manifest(folder))
    with pytest.raises(ModelLoadFailed, match=r"does not list golden/1\.npz"):
        verify_files(folder, manifest_of(folder), "1")


def test_links_are_followed_once_and_pipes_are_refused(folder: Path) -> None:
    """A repository may be made of links; a link to its own parent must end, and a pipe must not be read."""
    target = folder.parent / "store.onnx"
    (folder / "1" / "model.onnx").rename(target)
    (folder / "1" / "model.onnx").symlink_to(target)
    (folder / "1" / "loop").symlink_to(folder)
    verify_files(folder, manifest_of(folder), "1")

    os.mkfifo(folder / "pipe")
    with pytest.raises(ModelLoadFailed, match="can't be read"):
        verify_files(folder, manifest_of(folder), "1")


arrays = st.one_of(
    st.integers(1, 4).map(lambda n: np.arange(n * 2, dtype=np.float32).reshape(n, 2)),
    st.lists(st.binary(max_size=5), min_size=1, max_size=4).map(lambda items: np.array([*items, None], object)[:-1]),
    st.lists(st.booleans(), min_size=1, max_size=4).map(lambda items: np.array(items)),
)


@given(st.dictionaries(st.sampled_from(["x", "a/b:0", "input:x", "shape:input:x"]), arrays, min_size=1))
def test_golden_arrays_are_read_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Array]
) -> None:
    """Bytes with trailing zeros and awkward names included."""
    folder = tmp_path_factory.mktemp("golden")
    write_golden(folder, "1", tensors, tensors)
    golden = read_golden(folder, "1")

    assert golden is not None
    for side in (golden.inputs, golden.outputs):
        assert set(side) == set(tensors)
        for name, array in tensors.items():
            assert side[name].dtype == array.dtype
            assert side[name].tolist() == array.tolist()


def test_the_same_golden_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    """Publishing twice must give equal hashes."""
    first = write_golden(tmp_path / "a", "1", {"x": np.ones(3)}, {"y": np.ones(3)}).read_bytes()
    second = write_golden(tmp_path / "b", "1", {"x": np.ones(3)}, {"y": np.ones(3)}).read_bytes()
    assert first == second


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", b"\x93NUMPY", "half", "pickle"], ids=str)
def test_a_damaged_golden_file_is_one_clean_sentence(tmp_path: Path, data: bytes | str) -> None:
    """Empty, no zip, cut in half, or pickled (which is code): refused without a traceback's words."""
    path = write_golden(tmp_path, "1", {"x": np.ones((64, 64))}, {"y": np.ones(3)})
    if data == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif data == "pickle":
        np.savez(path, **{"input:x": np.array([{}], object)})
    else:
        assert isinstance(data, bytes)
        path.write_bytes(data)
    with pytest.raises(ModelLoadFailed, match=r"golden/1\.npz: is damaged"):
        read_golden(tmp_path, "1")


def test_golden_files_without_outputs_are_refused(tmp_path: Path) -> None:
    """A replay that compares nothing would say that all is well."""
    write_golden(tmp_path, "1", {"x": np.ones(3)}, {})
    with pytest.raises(ModelLoadFailed, match="no output"):
        read_golden(tmp_path, "1")


def test_raw_inputs_are_read_back_as_written(tmp_path: Path) -> None:
    """Pictures, texts, rows by name and by order; numpy numbers become plain ones, a missing value None."""
    raw: list[RawInput] = [
        ImageInput(b"\x00\xff", "image/png"),
        TextInput("naïve"),
        RowInput({"a": np.float32(1.5), "image": None}),
        RowInput([1, "b", None]),
    ]
    write_raw(tmp_path, raw)

    assert read_raw(tmp_path) == [raw[0], raw[1], RowInput({"a": 1.5, "image": None}), raw[3]]
    with pytest.raises(ValueError, match="JSON"):
        write_raw(tmp_path, [RowInput([float("nan")])])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"inputs": [3]}', '{"inputs": [{}]}', '{"inputs": [{"image": {"b64": "*"}}]}']
)
def test_damaged_raw_inputs_are_refused(tmp_path: Path, text: str) -> None:
    """raw.json of the wrong form keeps the model out."""
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "raw.json").write_text(text)
    with pytest.raises(ModelLoadFailed, match=r"golden/raw\.json"):
        read_raw(tmp_path)


GOLDEN = Golden("1", {"x": np.zeros((3, 1), np.float32)}, {"y": np.array([[1.0], [2.0], [3.0]], np.float32)})


def test_a_replay_within_tolerance_passes() -> None:
    """The limit is atol + rtol * |golden|, inclusive of small drift."""
    drift = GOLDEN.outputs["y"] + np.float32(0.09)
    replay("m", GOLDEN, lambda inputs: {"y": drift}, {"y": LOOSE})
    replay("m", GOLDEN, lambda inputs: dict(GOLDEN.outputs))


def test_a_replay_that_is_off_names_output_row_error_and_limit() -> None:
    """One row of three is off by 0.5."""
    wrong = GOLDEN.outputs["y"].copy()
    wrong[1] += 0.5
    with pytest.raises(ModelLoadFailed) as caught:
        replay("m", GOLDEN, lambda inputs: {"y": wrong}, {"y": LOOSE})

    assert caught.value.where == "golden/1.npz"
    assert caught.value.problem == (
        "output 'y' is off by 0.5 in row 1 (got 2.5, golden 2, limit 0.1), 1 of 3 values are over their limit"
    )


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, "output 'y' is not among"),
        ({"y": np.zeros((2, 1), np.float32)}, "has shape [2, 1], golden is [3, 1]"),
        ({"y": np.zeros((3, 1), np.int64)}, "is int64, golden is float32"),
        ({"y": np.full((3, 1), np.nan, np.float32)}, "off by inf"),
        ({"y": np.full((3, 1), np.inf, np.float32)}, "off by inf"),
    ],
)
def test_a_replay_with_another_kind_of_answer_fails(outputs: Mapping[str, Array], words: str) -> None:
    """Missing, misshapen, mistyped and not-a-number answers are mismatches, whatever the tolerance."""
    with pytest.raises(ModelLoadFailed) as caught:
        replay("m", GOLDEN, lambda inputs: outputs, {"y": Tolerance(atol=1e9, rtol=0)})
    assert words in caught.value.problem


def test_a_manifest_without_a_tolerance_for_an_output_is_refused() -> None:
    """A tolerance is part of the certificate; a default in its place would certify what nobody measured."""
    with pytest.raises(ModelLoadFailed, match="no tolerance for output 'y'"):
        replay("m", GOLDEN, lambda inputs: dict(GOLDEN.outputs), {})


@pytest.mark.parametrize(
    ("actual", "expected", "words"),
    [
        (np.array([1, 2]), np.array([1, 2]), ""),
        (np.array([1, 2]), np.array([1, 3]), "differs in 1 of 2 values, first in row 1"),
        (np.array([b"a", b"b"], object), np.array([b"a", b"c"], object), "differs in 1 of 2"),
        (np.array([True]), np.array([False]), "differs in 1 of 1"),
        (np.array([np.nan, np.inf]), np.array([np.nan, np.inf]), ""),
        (np.array([np.inf]), np.array([-np.inf]), "off by inf"),
        (np.zeros((0, 2)), np.zeros((0, 2)), ""),
        (np.float32(2.0), np.float32(1.0), "off by 1"),
    ],
)
def test_what_is_equal(actual: Array, expected: Array, words: str) -> None:
    """Integers, strings and flags must be equal; NaN and infinities equal themselves."""
    problem = compare(np.asarray(actual), np.asarray(expected), LOOSE)
    assert problem == words if not words else words in problem


class Doubling:
    """A pipeline of one column that doubles it; `drift` is added to one row."""

    task = "tabular"

    def __init__(self, drift: float = 0.0, tensor: str = "x") -> None:
        self.drift, self.tensor = drift, tensor

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        values = [item.values for item in inputs if isinstance(item, RowInput)]
        if len(values) != len(inputs):
            raise InvalidRequest("inputs[0]", "must be a row")
        rows = np.array([[2.0 * row[0]] for row in values], np.float32)
        rows[-1] += self.drift
        return {self.tensor: rows}

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[object]:
        return []

    def describe(self) -> Mapping[str, object]:
        return {}

    def example(self) -> RawInput:
        return RowInput([1.0])


PREPROCESSED = Golden("1", {"x": np.array([[2.0], [4.0], [6.0]], np.float32)}, {"y": np.zeros((3, 1))})
RAW: list[RawInput] = [RowInput([1.0]), RowInput([2.0])]


def test_preprocessing_that_gives_the_golden_rows_passes() -> None:
    """The raw inputs belong to the first golden rows; there may be more of these."""
    replay_preprocessing("m", PREPROCESSED, RAW, Doubling())
    replay_preprocessing("m", PREPROCESSED, [], Doubling(drift=1.0))


@pytest.mark.parametrize(
    ("raw", "pipeline", "words"),
    [
        (RAW, Doubling(drift=0.125), "preprocessing of golden input 1 differs in tensor 'x': it is off by 0.125"),
        (RAW, Doubling(tensor="z"), "makes the tensors z; the golden inputs are x"),
        ([TextInput("a")], Doubling(), "golden input is refused: inputs[0]: must be a row"),
        (RAW * 2, Doubling(), "4 raw inputs give 4 rows of 'x', 3 are golden"),
    ],
)
def test_preprocessing_that_drifted_names_the_input_and_the_tensor(
    raw: list[RawInput], pipeline: Doubling, words: str
) -> None:
    """The transform of training and of serving must be one; where it is not, this says in which input."""
    with pytest.raises(ModelLoadFailed) as caught:
        replay_preprocessing("m", PREPROCESSED, raw, pipeline)  # type: ignore[arg-type]
    assert words in caught.value.problem
