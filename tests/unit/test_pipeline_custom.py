"""A model's own code: run where the server allows it by name, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.answers import Custom, Regression
from server.errors import EngineFailure, InvalidRequest, ModelLoadFailed
from server.pipeline.custom import CustomPipeline, CustomSpec
from server.pipeline.load import load_pipeline, read_spec, write_spec
from server.repository.certificate import DataRecord, Manifest, RowCounts, VersionRecord, verify_code, write_manifest
from server.repository.override import read_override
from server.tensor import Array
from server.types import RowInput, TextInput

CODE = """
import numpy as np

from server.answers import Regression
from server.errors import InvalidRequest


class Pipeline:
    def __init__(self, folder, options):
        self.folder, self.factor = folder, options.get("factor", 1)

    def preprocess(self, inputs):
        rows = []
        for index, one in enumerate(inputs):
            if not all(isinstance(value, (int, float)) for value in one.values):
                raise InvalidRequest(f"inputs[{index}]", "numbers are wanted")
            rows.append([value * self.factor for value in one.values])
        return {"x": np.array(rows, dtype=np.float32)}

    def postprocess(self, outputs, top_k):
        return [
            Regression(0.0, -1.0, 1.0) if row[0] == 0 else {"sum": float(row.sum()), "top_k": top_k}
            for row in outputs["y"]
        ]

    def describe(self):
        return {"input": {"kind": "row", "columns": []}, "factor": self.factor}

    def example(self):
        return [1, 2]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "own"
    place.mkdir()
    (place / "code.py").write_text(CODE)
    write_spec(CustomSpec(file="code.py", options={"factor": 2}), place)
    return place


def outputs(*rows: list[float]) -> dict[str, Array]:
    return {"y": np.array(rows, dtype=np.float32)}


def loaded(folder: Path) -> CustomPipeline:
    found = load_pipeline(folder, custom_code=("own",))
    assert isinstance(found, CustomPipeline)
    return found


def test_code_runs_only_where_it_is_allowed_by_name(folder: Path) -> None:
    """Without the model's name in the settings its file is not even looked at."""
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelLoadFailed) as caught:
        load_pipeline(folder, custom_code=("another",))
    assert "--custom-code own" in caught.value.public_message
    assert caught.value.where == "processing.yaml: task"


def test_its_answers_are_any_json_or_those_of_other_tasks(folder: Path) -> None:
    """The class gets the spec's options; what it answers is passed on."""
    pipeline = loaded(folder)
    assert read_spec(folder) == CustomSpec(file="code.py", options={"factor": 2})
    np.testing.assert_array_equal(pipeline.preprocess([RowInput([1, 2])])["x"], [[2, 4]])
    assert pipeline.postprocess(outputs([1, 2], [0, 0]), 3) == [
        Custom({"sum": 3.0, "top_k": 3}),
        Regression(0.0, -1.0, 1.0),
    ]
    assert pipeline.example() == RowInput([1, 2])
    told = pipeline.describe()
    assert (told["task"], told["factor"], told["labels"]) == ("custom", 2, [])
    assert not list(folder.glob("__pycache__"))


def test_what_a_caller_got_wrong_is_the_callers(folder: Path) -> None:
    """InvalidRequest passes as it is raised."""
    with pytest.raises(InvalidRequest, match="numbers are wanted"):
        loaded(folder).preprocess([RowInput(["a"])])


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("def preprocess(self, inputs): return 1 / 0", "preprocess: ZeroDivisionError"),
        ("def preprocess(self, inputs): return [1]", "gave no arrays by name"),
        ("def preprocess(self, inputs): return {'x': np.zeros((3, 1))}", "no array with 1 rows"),
    ],
)
def test_what_the_code_gets_wrong_is_our_fault(folder: Path, code: str, problem: str) -> None:
    """An error of the class, or something that is no batch: internal, with the text for the log."""
    (folder / "code.py").write_text(CODE.replace("    def describe", f"    {code}\n\n    def describe"))
    with pytest.raises(EngineFailure) as caught:
        loaded(folder).preprocess([TextInput("a")])
    assert problem in caught.value.detail
    assert problem not in caught.value.public_message


@pytest.mark.parametrize(
    ("answer", "problem"),
    [("[]", "no list of 1 answers"), ("[float('nan')]", "no JSON value"), ("[object()]", "no JSON value")],
)
def test_an_answer_that_json_does_not_have_is_none(folder: Path, answer: str, problem: str) -> None:
    """As many answers as rows, and each can be sent."""
    code = f"    def postprocess(self, outputs, top_k): return {answer}\n\n    def describe"
    (folder / "code.py").write_text(CODE.replace("    def describe", code))
    with pytest.raises(EngineFailure) as caught:
        loaded(folder).postprocess(outputs([1, 2]))
    assert problem in caught.value.detail


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (None, "can't be read"),
        ("def", "can't be run: SyntaxError"),
        ("x = 1", "has no Pipeline"),
        ("class Pipeline: pass", "can't be made: TypeError"),
        ("class Pipeline:\n    def __init__(self, *given): pass", "has no method preprocess"),
    ],
    ids=["missing", "no Python", "no class", "other arguments", "no method"],
)
def test_code_that_can_not_be_used_keeps_the_model_out(folder: Path, code: str | None, problem: str) -> None:
    """The file is named, with what is wrong."""
    (folder / "code.py").unlink()
    if code is not None:
        (folder / "code.py").write_text(code)
    with pytest.raises(ModelLoadFailed) as caught:
        loaded(folder)
    assert caught.value.where == "code.py"
    assert problem in caught.value.problem


@pytest.mark.parametrize("file", ["../code.py", "/tmp/code.py", "code", "a/b.py", ".py"])  # noqa: S108 - refused
def test_code_lies_in_the_models_folder(folder: Path, file: str) -> None:
    """No path leads out of it."""
    (folder / "processing.yaml").write_text(f"task: custom\nfile: {file}\n")
    with pytest.raises(ModelLoadFailed, match="file"):
        read_spec(folder)


def test_code_is_held_against_the_manifest_before_it_runs(folder: Path) -> None:
    """A changed file, and one that is not listed, are refused by name."""
    record = VersionRecord(
        created="2026-01-01", opset=18, ir_version=10, seed=0, metrics={}, baseline={}, environment={}, errors={},
        data=DataRecord(source="", sha256="0" * 64, rows=RowCounts(train=0, validation=0, test=0)), tolerances={},
    )  # fmt: skip
    manifest = Manifest(
        model_name="own", recipe="export", task="custom", synthetic=False, versions={"1": record},
        files={"code.py": "0" * 64, "1/model.onnx": "1" * 64},
    )  # fmt: skip
    write_manifest(folder, manifest)
    with pytest.raises(ModelLoadFailed, match="differs from manifest"):
        verify_code(folder, manifest)
    with pytest.raises(ModelLoadFailed, match="is not listed"):
        verify_code(folder, manifest.model_copy(update={"files": {}}))


def test_code_does_not_come_with_a_load_request() -> None:
    """Who may load models can't thereby run code; a model's own files in its versions pass."""
    given = {"config": "{}", "file:code.py": b"", "file:processing.yaml": b"task: custom"}
    with pytest.raises(InvalidRequest, match=r"file:code\.py"):
        read_override(given, 1000)
    assert read_override({"config": "{}", "file:1/model.py": b""}, 1000) is not None
