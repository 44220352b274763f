"""The repository's index, version policies and failures, over the scripted engine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.engine.base import EngineSpec
from server.engine.fake import FakeEngine, FakeModel, Script
from server.errors import EngineFailure, InvalidRequest, ModelLoadFailed, UnknownModel
from server.repository.certificate import write_golden, write_raw
from server.repository.model_config import DynamicBatching, ModelConfig, from_message, parse_text
from server.repository.repository import Repository
from server.repository.warmup import WarmUp, batch_sizes, warm_up
from server.tensor import Array
from server.types import Batch, IndexEntry, RawInput, RowInput
from tests.support.onnx_models import CONFIG


def add_model(root: Path, name: str, versions: Sequence[int] = (1,), more: str = "", max_batch_size: int = 4) -> Path:
    """A model folder for the scripted engine, which reads no file."""
    folder = root / name
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
        (folder / str(version) / "model.onnx").write_bytes(b"not read")
    (folder / "config.pbtxt").write_text(CONFIG.format(name=name, max_batch_size=max_batch_size, more=more))
    return folder


def no_pipeline(folder: Path) -> RowPipeline:
    raise AssertionError(f"{folder.name} has no processing.yaml")


def repository(root: Path, engine: FakeEngine | None = None, load_pipeline: object = no_pipeline) -> Repository:
    return Repository(root, engine or FakeEngine(), load_pipeline=load_pipeline, warmup_s=5.0)  # type: ignore[arg-type]


class RowPipeline:
    """Fits the folders of `add_model`; each argument breaks one part."""

    task = "test"

    def __init__(self, tensor: str = "x", width: int = 3, labels: int = 2, refuse: bool = False) -> None:
        self.tensor, self.width, self.labels, self.refuse = tensor, width, labels, refuse

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        if self.refuse:
            raise InvalidRequest("inputs[0]", "must be something else")
        return {self.tensor: np.zeros((len(inputs), self.width), np.float32)}

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[object]:
        if outputs["y"].shape[1] != self.labels:
            raise ValueError(f"{outputs['y'].shape[1]} scores for {self.labels} labels")
        return [object()]

    def describe(self) -> Mapping[str, object]:
        return {}

    def example(self) -> RawInput:
        return RowInput([0.0])


def test_names_are_the_folders(tmp_path: Path) -> None:
    """Files and hidden folders (a mounted volume has ..data) are no models."""
    add_model(tmp_path, "b")
    add_model(tmp_path, "a")
    (tmp_path / "..data").mkdir()
    (tmp_path / "README.md").write_text("")

    assert repository(tmp_path).names() == ["a", "b"]


@pytest.mark.parametrize(
    ("more", "served"),
    [
        ("", ["10"]),
        ("version_policy { latest { num_versions: 2 } }", ["9", "10"]),
        ("version_policy { all {} }", ["2", "9", "10"]),
        ("version_policy { specific { versions: [9, 2] } }", ["2", "9"]),
    ],
)
def test_the_version_policy_picks_by_number(tmp_path: Path, more: str, served: list[str]) -> None:
    """10 is later than 9; other folders are no versions."""
    folder = add_model(tmp_path, "m", versions=(2, 9, 10), more=more)
    for name in ("010", "0", "x1", "-3", "1.5", "golden"):
        (folder / name).mkdir()
    (folder / "11").write_text("a file")

    models = repository(tmp_path).load("m")

    assert [model.version for model in models] == served
    assert all(not model.certified and model.pipeline is None for model in models)


def test_one_version_that_fails_leaves_the_others(tmp_path: Path) -> None:
    """A version asked for and not there has its reason in the index; the rest serve."""
    add_model(tmp_path, "m", versions=(1, 2), more="version_policy { specific { versions: [1, 2, 7] } }")
    models = repository(tmp_path)

    assert [model.version for model in models.load("m")] == ["1", "2"]
    assert models.index() == [
        IndexEntry("m", "1", "READY", ""),
        IndexEntry("m", "2", "READY", ""),
        IndexEntry("m", "7", "UNAVAILABLE", "7: version_policy asks for it and there is no such folder"),
    ]


def test_a_broken_model_raises_and_stays_in_the_index_with_its_reason(tmp_path: Path) -> None:
    """The reason names the file and the field."""
    (add_model(tmp_path, "m") / "config.pbtxt").write_text("nonsense: 1")
    models = repository(tmp_path)
    with pytest.raises(ModelLoadFailed, match="nonsense"):
        models.load("m")

    assert [(e.name, e.version, e.state) for e in models.index()] == [("m", "", "UNAVAILABLE")]
    assert "line 1, column 1" in models.index()[0].reason


@pytest.mark.parametrize("prepare", ["empty", "no version", "link to nowhere"])
def test_folders_that_hold_no_model(tmp_path: Path, prepare: str) -> None:
    """An empty folder and one without versions fail with a sentence; a dead link is not there at all."""
    if prepare == "link to nowhere":
        (tmp_path / "m").symlink_to(tmp_path / "gone")
        with pytest.raises(UnknownModel):
            repository(tmp_path).load("m")
        return
    if prepare == "empty":
        (tmp_path / "m").mkdir()
    else:
        shutil.rmtree(add_model(tmp_path, "m") / "1")
    with pytest.raises(ModelLoadFailed, match=r"no such file|1/model\.onnx"):
        repository(tmp_path).load("m")


@pytest.mark.parametrize("name", ["", ".", "..", "/", "../m", "m/", "m/1", "/etc", "m\x00", "M", "~", "..data"])
def test_a_name_can_not_lead_out_of_the_repository(tmp_path: Path, name: str) -> None:
    """Names are looked up, never joined: whatever is not the name of a folder is unknown."""
    root = tmp_path / "root"
    add_model(root, "m")
    add_model(tmp_path, "outside")
    (root / "..data").mkdir()
    models = repository(root)
    with pytest.raises(UnknownModel):
        models.load(name)
    with pytest.raises(UnknownModel):
        models.fingerprint(name)
    models.unloaded(name)

    assert models.index() == [IndexEntry("m", "", "UNAVAILABLE", "not loaded")]


def test_a_reload_that_fails_leaves_what_serves_ready(tmp_path: Path) -> None:
    """The caller keeps the old versions when load raises, and the index says both."""
    folder = add_model(tmp_path, "m")
    models = repository(tmp_path)
    models.load("m")
    (folder / "config.pbtxt").write_text("nonsense: 1")
    with pytest.raises(ModelLoadFailed):
        models.load("m")
    (entry,) = models.index()

    assert (entry.version, entry.state) == ("1", "READY")
    assert entry.reason.startswith("the last load failed: config.pbtxt, line 1")


def test_unload_and_a_folder_that_is_gone(tmp_path: Path) -> None:
    """Unloaded versions stay in the index as such; a model whose folder is gone leaves it."""
    folder = add_model(tmp_path, "m")
    models = repository(tmp_path)
    models.load("m")
    models.unloaded("m")
    assert models.index() == [IndexEntry("m", "1", "UNAVAILABLE", "unloaded")]
    shutil.rmtree(folder)
    models.unloaded("m")
    assert models.index() == []


def test_while_a_model_loads_the_index_says_so(tmp_path: Path) -> None:
    """LOADING the first time; on a reload what serves stays READY."""
    seen: list[list[str]] = []

    class Watching(FakeEngine):
        def load(self, spec: EngineSpec) -> FakeModel:
            seen.append([entry.state for entry in models.index()])
            return super().load(spec)

    add_model(tmp_path, "m")
    models = repository(tmp_path, Watching())
    models.load("m")
    models.load("m")

    assert seen == [["LOADING"], ["READY"]]


class Bug(FakeEngine):
    """An engine that breaks its contract on version 2."""

    def load(self, spec: EngineSpec) -> FakeModel:
        if spec.model_version == "2":
            raise ZeroDivisionError("a bug")
        return super().load(spec)


def test_an_exception_that_nobody_foresaw_is_a_reason_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One broken version never keeps another from serving; the traceback is in the log."""
    add_model(tmp_path, "m", versions=(1, 2), more="version_policy { all {} }")
    models = repository(tmp_path, Bug())

    assert [model.version for model in models.load("m")] == ["1"]
    assert models.index()[1].reason.startswith("load: failed unexpectedly with ZeroDivisionError;")
    assert "Traceback" in caplog.text


def test_what_was_half_opened_is_closed(tmp_path: Path) -> None:
    """A version that fails after the engine loaded it gives its memory back; what serves is not touched."""
    add_model(tmp_path, "m")
    engine = FakeEngine(Script(acts=["fail"]))
    with pytest.raises(ModelLoadFailed, match=r"1/model\.onnx: warm-up with 1 rows of zeros .* scripted failure"):
        repository(tmp_path, engine).load("m")
    assert [model.closed for model in engine.loaded] == [True]

    (model,) = repository(tmp_path, engine).load("m")
    assert not engine.loaded[-1].closed
    assert model.engine_model is engine.loaded[-1]


def test_a_reason_holds_no_path_of_the_machine(tmp_path: Path) -> None:
    """The index is read by clients: files are named relative to the model's folder."""
    add_model(tmp_path, "m")

    class Denied(FakeEngine):
        def load(self, spec: EngineSpec) -> FakeModel:
            raise PermissionError(13, "Permission denied", str(spec.path))

    models = repository(tmp_path, Denied())
    with pytest.raises(ModelLoadFailed):
        models.load("m")
    assert models.index()[0].reason == "1/model.onnx: can't be read: Permission denied"


class Interrupted(FakeEngine):
    def load(self, spec: EngineSpec) -> FakeModel:
        if spec.model_version == "2":
            raise KeyboardInterrupt
        return super().load(spec)


def test_a_load_that_is_broken_off_closes_the_versions_before(tmp_path: Path) -> None:
    """Ctrl-C in the second of two versions leaves no session open, and is not swallowed."""
    add_model(tmp_path, "m", versions=(1, 2), more="version_policy { all {} }")
    engine = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        repository(tmp_path, engine).load("m")
    assert [model.closed for model in engine.loaded] == [True]


def test_golden_inputs_are_replayed_on_every_instance_whole_and_alone(tmp_path: Path) -> None:
    """Rows in batches of max_batch_size, then the first row alone, before the warm-up."""
    folder = add_model(tmp_path, "m", more="instance_group { count: 2 }")
    rows = np.arange(18, dtype=np.float32).reshape(6, 3)
    write_golden(folder, "1", {"x": rows}, {"y": np.repeat(rows.sum(1, keepdims=True), 2, axis=1)})
    engine = FakeEngine()
    repository(tmp_path, engine).load("m")

    assert [batch.rows for batch in engine.batches[:6]] == [4, 2, 1, 4, 2, 1]
    assert engine.batches[1].inputs["x"].tolist() == rows[4:].tolist()


def test_a_golden_mismatch_keeps_the_version_out(tmp_path: Path) -> None:
    """The reason names the output and by how much it is off, and nothing stays open."""
    folder = add_model(tmp_path, "m")
    write_golden(folder, "1", {"x": np.ones((2, 3), np.float32)}, {"y": np.full((2, 2), 3.25, np.float32)})
    engine = FakeEngine()
    models = repository(tmp_path, engine)
    with pytest.raises(ModelLoadFailed, match=r"golden/1\.npz: output 'y' is off by 0\.25 in row 0"):
        models.load("m")
    assert engine.loaded[0].closed


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ({"z": np.ones((2, 3), np.float32)}, {"y": np.ones((2, 2))}, "has the inputs z; the model takes x"),
        ({"x": np.ones((2, 4), np.float32)}, {"y": np.ones((2, 2))}, "input 'x' is FP32 of shape [2, 4]"),
        ({"x": np.ones((2, 3))}, {"y": np.ones((2, 2))}, "input 'x' is FP64"),
        ({"x": np.ones((2, 3), np.complex64)}, {"y": np.ones((2, 2))}, "complex64, which v2 does not have"),
        ({"x": np.ones((2, 3), np.float32)}, {"q": np.ones((2, 2))}, "has the output q"),
        ({"x": np.ones((2, 3), np.float32)}, {"y": np.ones((3, 2))}, "same number of rows"),
        ({"x": np.ones((0, 3), np.float32)}, {"y": np.ones((0, 2))}, "1 or more"),
    ],
)
def test_golden_files_of_another_model_are_refused(
    tmp_path: Path, inputs: dict[str, Array], outputs: dict[str, Array], words: str
) -> None:
    """What can't be fed to this model is said as such, before any forward pass."""
    folder = add_model(tmp_path, "m")
    write_golden(folder, "1", inputs, outputs)
    with pytest.raises(ModelLoadFailed) as caught:
        repository(tmp_path).load("m")
    assert caught.value.where == "golden/1.npz"
    assert words in caught.value.problem


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        (RowPipeline(), ""),
        (RowPipeline(tensor="z"), "makes the tensors z; the model takes x"),
        (RowPipeline(width=4), "tensor 'x' is FP32 of shape [1, 4], config.pbtxt says rows of FP32 [3]"),
        (RowPipeline(labels=3), "can't make an answer of the model's outputs: 2 scores for 3 labels"),
        (RowPipeline(refuse=True), "refuses its own example: inputs[0]: must be something else"),
    ],
)
def test_a_pipeline_must_fit_its_model(tmp_path: Path, pipeline: RowPipeline, words: str) -> None:
    """One example goes all the way at load, so that no caller finds out first."""
    (add_model(tmp_path, "m") / "processing.yaml").write_text("task: test")
    engine = FakeEngine()
    models = repository(tmp_path, engine, lambda folder: pipeline)
    if not words:
        assert models.load("m")[0].pipeline is pipeline
        return
    with pytest.raises(ModelLoadFailed) as caught:
        models.load("m")
    assert caught.value.where == "processing.yaml"
    assert words in caught.value.problem
    assert engine.loaded[0].closed


def test_a_processing_file_that_can_t_be_read_is_a_reason(tmp_path: Path) -> None:
    """The factory's errors become the model's reason, under the file's name."""
    (add_model(tmp_path, "m") / "processing.yaml").write_text("task: test")

    def broken(folder: Path) -> RowPipeline:
        raise ValueError("task: unknown")

    with pytest.raises(ModelLoadFailed, match=r"processing\.yaml: task: unknown"):
        repository(tmp_path, load_pipeline=broken).load("m")


def test_a_pipeline_that_breaks_its_contract_is_a_reason_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that the factory should not raise keeps this model out, and no other."""
    (add_model(tmp_path, "m") / "processing.yaml").write_text("task: test")

    def broken(folder: Path) -> RowPipeline:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ModelLoadFailed, match="ZeroDivisionError"):
        repository(tmp_path, load_pipeline=broken).load("m")
    assert "Traceback" in caplog.text


def test_raw_golden_inputs_are_preprocessed_at_load(tmp_path: Path) -> None:
    """A transform that drifted from the one of training keeps the model out, though its outputs hold."""
    folder = add_model(tmp_path, "m")
    (folder / "processing.yaml").write_text("task: test")
    engine = FakeEngine()
    models = repository(tmp_path, engine, lambda folder: RowPipeline())
    write_raw(folder, [RowInput([0.0])])
    write_golden(folder, "1", {"x": np.zeros((2, 3), np.float32)}, {"y": np.zeros((2, 2), np.float32)})
    models.load("m")

    write_golden(folder, "1", {"x": np.ones((2, 3), np.float32)}, {"y": np.full((2, 2), 3, np.float32)})
    with pytest.raises(ModelLoadFailed, match=r"preprocessing of golden input 0 differs in tensor 'x': it is off by 1"):
        models.load("m")


def test_the_fingerprint_follows_every_file_that_counts(tmp_path: Path) -> None:
    """Equal until a file is changed, added or removed; documents do not count."""
    folder = add_model(tmp_path, "m")
    models = repository(tmp_path)
    before = models.fingerprint("m")
    (folder / "README.md").write_text("x")
    assert models.fingerprint("m") == before

    (folder / "1" / "model.onnx").write_bytes(b"not read!")
    changed = models.fingerprint("m")
    assert changed != before
    (folder / "manifest.json").write_text("{}")
    assert models.fingerprint("m") != changed
    (folder / "manifest.json").unlink()
    assert models.fingerprint("m") == changed
    add_model(folder, "2")
    assert models.fingerprint("m") != changed
    os.utime(folder / "config.pbtxt", ns=(1, 1))
    (folder / "dead").symlink_to("nowhere")
    assert models.fingerprint("m") not in (before, changed)


# --- warm-up -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "preferred", "sizes"),
    [
        (0, (4,), []),
        (1, (4,), [1]),
        (6, (), [1, 6, 2, 4, 3, 5]),
        (8, (6, 4), [1, 8, 2, 4, 6, 3, 5, 7]),
    ],
)
def test_batch_sizes_come_in_the_order_of_need(largest: int, preferred: tuple[int, ...], sizes: list[int]) -> None:
    """1, the largest, powers of two, preferred, the rest; each once."""
    assert list(batch_sizes(largest, preferred)) == sizes


class Clock:
    """Time that passes only in forward passes: `ns` for each row."""

    def __init__(self, ns_by_row: int) -> None:
        self.now = 0
        self.ns_by_row = ns_by_row

    def __call__(self) -> int:
        return self.now

    def script(self) -> Script:
        def pass_time(seconds: float) -> None:
            self.now += round(seconds * 1e9)

        return Script(latency_s=lambda rows: rows * self.ns_by_row / 1e9, sleep=pass_time)


def config(tmp_path: Path, max_batch_size: int, more: str = "") -> ModelConfig:
    return from_message(parse_text(CONFIG.format(name="m", max_batch_size=max_batch_size, more=more), "m"), "m")


def warm(
    tmp_path: Path, clock: Clock, max_batch_size: int, limit_s: float, more: str = "", sample: object = None
) -> tuple[dict[int, int], FakeEngine]:
    engine = FakeEngine(clock.script())
    model_config = config(tmp_path, max_batch_size, more)
    instances = engine.load(model_config.engine_spec(tmp_path, "1")).instances
    costs = warm_up(instances, WarmUp(model_config, "1", sample, limit_s, clock_ns=clock))  # type: ignore[arg-type]
    return costs["cpu"][None], engine


def test_every_size_is_warmed_on_every_instance_and_its_cost_measured(tmp_path: Path) -> None:
    """The cost is what the clock says of one pass, without the first one."""
    costs, engine = warm(tmp_path, Clock(1000), 5, 10.0, "instance_group { count: 3 }")

    assert costs == {rows: rows * 1000 for rows in (1, 2, 3, 4, 5)}
    assert {batch.rows for batch in engine.batches} == {1, 2, 3, 4, 5}
    assert len(engine.batches) == 5 * 3 * 6, "a first pass and five timed ones"


class SlowWhenNew(Clock):
    """A pass of a size that did not run before takes `extra_ns` longer."""

    def __init__(self, ns_by_row: int, extra_ns: int) -> None:
        super().__init__(ns_by_row)
        self.extra_ns = extra_ns
        self.seen: set[int] = set()

    def script(self) -> Script:
        def latency_s(rows: int) -> float:
            extra_ns = 0 if rows in self.seen else self.extra_ns
            self.seen.add(rows)
            return (rows * self.ns_by_row + extra_ns) / 1e9

        return replace(super().script(), latency_s=latency_s)


def test_the_sizes_in_between_end_where_a_new_one_is_not_slow(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As on a CPU: 1, the largest and the powers of two always run, then three more, and none is called cold."""
    costs, _ = warm(tmp_path, SlowWhenNew(1000, 90_000), 64, 10.0)

    assert list(costs) == [1, 64, 2, 4, 8, 16, 32, 3, 5, 6]
    assert caplog.text == ""


def test_every_size_runs_where_a_new_one_is_slow(tmp_path: Path) -> None:
    """As on a GPU, which picks its kernels by shape: whatever is left out would be slow for a caller."""
    costs, _ = warm(tmp_path, SlowWhenNew(1000, 200_000), 64, 10.0)

    assert sorted(costs) == list(range(1, 65))
    assert costs[37] == 37_000, "what was slow once is not in the cost"


def test_the_warm_up_keeps_its_limit_and_logs_what_stays_cold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A size that would not fit into the time left is skipped, and a smaller one still tried."""
    clock = Clock(100_000_000)
    costs, _ = warm(tmp_path, clock, 64, 3.0)

    assert clock.now <= 3_000_000_000
    assert set(costs) >= {1, 2, 4}
    assert 64 not in costs
    assert "did not reach batches of" in caplog.text
    assert "-64 rows" in caplog.text


def test_a_huge_max_batch_size_neither_hangs_nor_fills_the_memory(tmp_path: Path) -> None:
    """The largest int32 is a legal max_batch_size; a batch of that many rows is not tried."""
    costs, engine = warm(tmp_path, Clock(10_000), 2**31 - 1, 0.2)

    assert 1 in costs
    assert max(batch.rows for batch in engine.batches) < 2**31 - 1


@pytest.mark.parametrize(("max_input_bytes", "sizes"), [(12 * 4, [1, 2, 3, 4]), (12, [1]), (11, [])])
def test_batches_over_the_limit_of_bytes_stay_cold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, max_input_bytes: int, sizes: list[int]
) -> None:
    """A row of the model is 12 bytes; what is not tried is logged."""
    model_config = config(tmp_path, 6)
    instances = FakeEngine().load(model_config.engine_spec(tmp_path, "1")).instances
    costs = warm_up(instances, WarmUp(model_config, "1", None, 5.0, max_input_bytes)).get("cpu", {None: {}})

    assert sorted(costs[None]) == sizes
    assert f"batches of {len(sizes) + 1}-6 rows" in caplog.text


def test_one_pass_that_takes_all_the_time_ends_the_warm_up(tmp_path: Path) -> None:
    """A slow model is served with what is known."""
    costs, engine = warm(tmp_path, Clock(60_000_000_000), 8, 1.0)

    assert costs == {1: 60_000_000_000}
    assert len(engine.batches) == 2


def test_batches_are_filled_with_golden_rows_where_there_are_some(tmp_path: Path) -> None:
    """Real rows cost what real requests cost; they are repeated to fill a batch."""
    sample = {"x": np.array([[1, 2, 3], [4, 5, 6]], np.float32)}
    _, engine = warm(tmp_path, Clock(1), 3, 1.0, sample=sample)
    batch = next(batch for batch in engine.batches if batch.rows == 3)

    assert batch.inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6], [1, 2, 3]]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda spec, batch: {"y": np.zeros((batch.rows, 3), np.float32)}, "config.pbtxt says rows of FP32 [2]"),
        (lambda spec, batch: {"y": np.zeros((batch.rows, 2), np.int64)}, "'y' is INT64"),
        (lambda spec, batch: {"y": np.zeros((1, 2), np.float32)}, "shape [1, 2] for a batch of"),
        (lambda spec, batch: {"y": np.float32(0)}, "shape [] for a batch of 1"),
    ],
)
def test_outputs_that_are_not_those_of_the_config_are_found_in_the_warm_up(
    tmp_path: Path, answer: object, words: str
) -> None:
    """What a model file leaves open shows in its first pass, not in a caller's answer."""
    add_model(tmp_path, "m")
    with pytest.raises(ModelLoadFailed) as caught:
        repository(tmp_path, FakeEngine(Script(answer=answer))).load("m")  # type: ignore[arg-type]
    assert caught.value.where == "config.pbtxt: output[0]"
    assert words in caught.value.problem


# --- the scripted engine -----------------------------------------------------------------------


def test_the_fake_engine_follows_its_script() -> None:
    """Acts are used up in order; answers depend on each row alone; close counts."""
    engine = FakeEngine(Script(acts=["fail", "nan", "answer"]))
    spec = config(Path(), 4).engine_spec(Path(), "1")
    model = engine.load(spec)
    batch = Batch("m", "1", 2, {"x": np.array([[1, 2, 3], [4, 5, 6]], np.float32)})
    (instance,) = model.instances
    with pytest.raises(EngineFailure):
        instance.run(batch)
    assert np.isnan(instance.run(batch)["y"]).all()
    assert instance.run(batch)["y"].tolist() == [[6, 6], [15, 15]]
    assert engine.batches == [batch] * 3
    model.close()
    with pytest.raises(RuntimeError, match="closed twice"):
        model.close()
    with pytest.raises(ModelLoadFailed, match="no way"):
        FakeEngine(Script(load_problem="no way")).load(spec)


def test_a_pass_that_hangs_goes_on_when_released() -> None:
    """Hangs end by the test's own hand, never by time."""
    script = Script(acts=["hang"])
    script.release.set()
    (instance,) = FakeEngine(script).load(config(Path(), 4).engine_spec(Path(), "1")).instances
    assert instance.run(Batch("m", "1", 1, {"x": np.ones((1, 3), np.float32)}))["y"].tolist() == [[3, 3]]


def test_dynamic_batching_s_preferred_sizes_reach_the_warm_up(tmp_path: Path) -> None:
    """They are warmed before the rest."""
    more = "dynamic_batching { preferred_batch_size: 6 }"
    assert config(tmp_path, 8, more).dynamic_batching == DynamicBatching((6,))
    _, engine = warm(tmp_path, Clock(1), 8, 1.0, more)
    order = list(dict.fromkeys(batch.rows for batch in engine.batches))
    assert order == [1, 8, 2, 4, 6, 3, 5, 7]


# --- length buckets ----------------------------------------------------------------------------


BUCKETS = """
name: "m" backend: "onnxruntime" max_batch_size: 4 dynamic_batching {}
input { name: "ids" data_type: TYPE_INT64 dims: -1 }
input { name: "k" data_type: TYPE_FP32 dims: 1 }
output { name: "tokens" data_type: TYPE_FP32 dims: -1 }
parameters { key: "length_buckets" value { string_value: "8,16,64" } }
"""


def follow(spec: EngineSpec, batch: Batch) -> Mapping[str, Array]:
    return {"tokens": batch.inputs["ids"].astype(np.float32)}


def warm_buckets(script: Script, clock: Clock, limit_s: float, sample: object = None) -> tuple[object, FakeEngine]:
    engine = FakeEngine(script)
    model_config = from_message(parse_text(BUCKETS, "m"), "m")
    instances = engine.load(model_config.engine_spec(Path(), "1")).instances
    plan = WarmUp(model_config, "1", sample, limit_s, clock_ns=clock)  # type: ignore[arg-type]
    return warm_up(instances, plan)["cpu"], engine


def test_each_bucket_is_warmed_in_each_size_and_its_cost_kept_by_itself() -> None:
    """The costs are by the signature that requests of the bucket have."""
    clock = Clock(1000)
    script = clock.script()
    script.answer = follow
    costs, engine = warm_buckets(script, clock, 10.0)
    assert costs == {length: {rows: rows * 1000 for rows in (1, 2, 3, 4)} for length in (8, 16, 64)}
    shapes = {batch.inputs["ids"].shape for batch in engine.batches}
    assert shapes == {(rows, length) for rows in (1, 2, 3, 4) for length in (8, 16, 64)}


def test_golden_rows_are_repeated_to_the_length_of_a_bucket() -> None:
    """Real tokens cost what real ones cost; what has no length is left as it is."""
    clock = Clock(1000)
    script = clock.script()
    script.answer = follow
    sample = {"ids": np.array([[1, 2, 3]], np.int64), "k": np.array([[7]], np.float32)}
    _, engine = warm_buckets(script, clock, 10.0, sample)
    batch = next(batch for batch in engine.batches if batch.rows == 2)
    assert batch.inputs["ids"].tolist() == [[1, 2, 3, 1, 2, 3, 1, 2]] * 2
    assert batch.inputs["k"].tolist() == [[7], [7]]


def test_an_output_that_does_not_follow_the_length_keeps_the_model_out() -> None:
    """Padding could not be cut off it; better no service than answers with padding in them."""
    clock = Clock(1000)
    script = clock.script()
    script.answer = lambda spec, batch: {"tokens": batch.inputs["ids"][:, 1:].astype(np.float32)}
    with pytest.raises(ModelLoadFailed, match="must be the length") as caught:
        warm_buckets(script, clock, 10.0)
    assert caught.value.where == "config.pbtxt: output[0]"


def test_buckets_too_are_warmed_up_within_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    """What stays cold is told by length."""
    clock = Clock(100_000_000)
    script = clock.script()
    script.answer = follow
    costs, _ = warm_buckets(script, clock, 1.5)
    assert clock.now <= 1_500_000_000
    assert set(costs) <= {8, 16, 64}  # type: ignore[call-overload]
    assert "rows of length 64 within" in caplog.text
