"""What a load request may say instead of the repository, and what becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.engine.fake import FakeEngine, Script
from server.errors import InvalidRequest, ModelLoadFailed, PayloadTooLarge, ServingError, UnknownModel
from server.repository.override import read_override
from server.repository.repository import Repository
from server.repository.scratch import Scratch

CONFIG = {
    "backend": "onnxruntime",
    "max_batch_size": 4,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
}


def no_pipeline(_: Path) -> None:
    return None


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def models(tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Model m, version 1, on the scripted engine; temporary folders are below `scratch`."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    folder = tmp_path / "models" / "m"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_text("of the repository")
    (folder / "config.pbtxt").write_text(
        'backend: "onnxruntime" max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: 2 }'
        'output { name: "y" data_type: TYPE_FP32 dims: 1 }'
    )
    return Repository(tmp_path / "models", FakeEngine(script), load_pipeline=no_pipeline, warmup_s=1.0)  # type: ignore[arg-type]


def override(config: object = CONFIG, **files: bytes) -> dict[str, object]:
    return {"config": json.dumps(config), **{f"file:{path}": content for path, content in files.items()}}


LABELLED = {**CONFIG, "output": [{**CONFIG["output"][0], "label_filename": "labels.txt"}]}  # type: ignore[dict-item]


def test_labels_that_are_not_among_the_files_are_those_of_the_repository(models: Repository, tmp_path: Path) -> None:
    """As with Triton, whose clients load a model anew from its config and its file alone."""
    labels = tmp_path / "models" / "m" / "labels.txt"
    labels.write_text("good\nbad\n")
    files = {"1/model.onnx": b"given"}

    (lent,) = models.load("m", read_override(override(LABELLED, **files), 100))
    (given,) = models.load("m", read_override(override(LABELLED, **files, **{"labels.txt": b"own"}), 100))

    assert lent.config.labels == {"y": ["good", "bad"]}
    assert given.config.labels == {"y": ["own"]}


def test_labels_that_nobody_has_are_missed(models: Repository) -> None:
    """In the repository, or of a model that is in none; nothing outside of the folder is looked at."""
    files = {"1/model.onnx": b"given"}
    outside = {**CONFIG, "output": [{**CONFIG["output"][0], "label_filename": "../m/config.pbtxt"}]}  # type: ignore[dict-item]
    for name, config in (("m", LABELLED), ("new", LABELLED), ("m", outside)):
        with pytest.raises(ModelLoadFailed, match="label_filename"):
            models.load(name, read_override(override(config, **files), 100))


def test_a_config_stands_for_that_of_the_folder_until_the_next_load(models: Repository) -> None:
    """The files are the folder's; a plain load goes back to the folder's config."""
    changed = models.load("m", read_override(override(), 100))
    plain = models.load("m")

    assert [model.config.max_batch_size for model in (*changed, *plain)] == [4, 8]
    assert changed[0].config.message.max_batch_size == 4


def test_files_make_a_model_of_any_name_and_leave_nothing_behind(models: Repository, tmp_path: Path) -> None:
    """Nothing of a folder of that name is used; the temporary one is gone once the model is loaded."""
    loaded = models.load("new", read_override(override(**{"3/model.onnx": b"x"}), 100))

    assert [(model.name, model.version) for model in loaded] == [("new", "3")]
    assert [(entry.name, entry.version) for entry in models.index()] == [("m", ""), ("new", "3")]
    assert list(tmp_path.glob("scratch/*/*/*")) == []
    models.close()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_load_that_fails_leaves_no_folder_and_what_serves(models: Repository, script: Script, tmp_path: Path) -> None:
    """The old version stays READY with the reason beside it."""
    models.load("m")
    script.load_problem = "the file is corrupt"

    with pytest.raises(ModelLoadFailed):
        models.load("m", read_override(override(**{"1/model.onnx": b"x"}), 100))

    (entry,) = models.index()
    assert (entry.state, "corrupt" in entry.reason) == ("READY", True)
    assert list(tmp_path.glob("scratch/*/*/*")) == []


def test_a_bad_config_is_named_by_its_parameter(models: Repository) -> None:
    """The field at fault is called by the request's words, not by those of a file that nobody wrote."""
    with pytest.raises(ModelLoadFailed, match=r"parameters\.config: max_batch_size: is -1"):
        models.load("m", read_override(override({**CONFIG, "max_batch_size": -1}), 100))


@pytest.mark.parametrize(
    ("parameters", "error", "text"),
    [
        ({"frobnicate": "x"}, InvalidRequest, "parameters.frobnicate"),
        ({"config": 7}, InvalidRequest, "parameters.config"),
        ({"config": "{"}, InvalidRequest, "parameters.config"),
        ({"config": '{"max_batch": 3}'}, InvalidRequest, "max_batch"),
        ({"file:1/model.onnx": b"x"}, InvalidRequest, "parameters.config: must be given"),
        (override(**{"../m/1/model.onnx": b"x"}), InvalidRequest, "below the model's folder"),
        (override(**{"/etc/passwd": b"x"}), InvalidRequest, "below the model's folder"),
        (override(**{"1/../../x": b"x"}), InvalidRequest, "below the model's folder"),
        (override(**{"1\\x": b"x"}), InvalidRequest, "below the model's folder"),
        (override(**{"1/a\0b": b"x"}), InvalidRequest, "below the model's folder"),
        (override(**{"": b"x"}), InvalidRequest, "below the model's folder"),
        (override(**{"1": b"x", "1/model.onnx": b"x"}), InvalidRequest, "a folder of another file"),
        ({"config": "{}", "file:1/m": "text"}, InvalidRequest, "parameters.file:1/m"),
        (override(**{"1/model.onnx": b"x" * 101}), PayloadTooLarge, "limit of 100 bytes"),
        ({"config": "{}", **{f"file:1/{n}": b"" for n in range(1001)}}, PayloadTooLarge, "1000 files"),
        ({"config": " " * (1 << 21)}, PayloadTooLarge, "parameters.config"),
        ({"config": '{"input":' * 5000}, InvalidRequest, "parameters.config"),
    ],
)
def test_bad_parameters_are_refused_by_name(
    parameters: dict[str, object], error: type[ServingError], text: str
) -> None:
    """Each limit and each rule, before anything is written."""
    with pytest.raises(error) as caught:
        read_override(parameters, 100)

    assert text in caught.value.public_message


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "x" * 256])
def test_files_for_a_name_that_is_no_folder_are_refused(models: Repository, name: str) -> None:
    """A name becomes a folder's, so it can't lead out of it."""
    with pytest.raises(InvalidRequest, match="model_name"):
        models.load(name, read_override(override(**{"1/model.onnx": b"x"}), 100))


def test_a_config_alone_needs_a_model_that_is_there(models: Repository) -> None:
    """With Triton's words, which clients look for."""
    with pytest.raises(UnknownModel, match="failed to load 'nope', failed to poll from model repository"):
        models.load("nope", read_override(override(), 100))


def test_the_index_tells_how_far_a_load_has_come(models: Repository, script: Script) -> None:
    """LOADING with its stage while nothing serves; of what serves, the stage is a reason beside READY."""
    seen: list[tuple[str, str]] = []
    script.on_load = lambda: seen.extend((e.state, e.reason) for e in models.index())
    models.load("m")
    models.load("m")

    assert seen == [
        ("LOADING", "loading it into the engine"),
        ("READY", "being loaded anew: loading it into the engine"),
    ]
    assert [(e.state, e.reason) for e in models.index()] == [("READY", "")]


def test_unloading_is_a_state_until_the_version_is_closed(models: Repository) -> None:
    """UNLOADING, then UNAVAILABLE as unloaded; a version that others took the place of leaves the index."""
    models.load("m")
    models.retiring("m", ["1"], "answering")
    assert [(e.state, e.reason) for e in models.index()] == [("UNLOADING", "answering")]
    models.retired("m", "1")
    assert [(e.state, e.reason) for e in models.index()] == [("UNAVAILABLE", "unloaded")]

    models.load("m")
    models.retiring("m", ["7"], "answering")
    models.retired("m", "7")
    assert [(e.version, e.state) for e in models.index()] == [("1", "READY")]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    """The next process that needs a folder sweeps those whose owner is no more."""
    code = (
        "import sys, time; from pathlib import Path; from server.repository.scratch import Scratch\n"
        f"with Scratch(Path({str(tmp_path)!r})).folder(): print('made', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"made\n"
        living = Scratch(tmp_path)
        with living.folder():
            assert len(list(tmp_path.iterdir())) == 2
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
            after = Scratch(tmp_path)
            with after.folder():
                assert len(list(tmp_path.iterdir())) == 2
            after.close()
        living.close()
    assert list(tmp_path.iterdir()) == []
