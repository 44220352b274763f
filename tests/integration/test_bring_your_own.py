"""Modules of one's own and ready ONNX files, into a repository that loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from exporter.brought import Processing
from exporter.callables import export_callable
from exporter.card import card
from exporter.errors import ExportError, UsageError
from exporter.ready import import_onnx
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.pipeline.load import load_pipeline
from server.repository.certificate import read_manifest
from server.repository.golden import read_golden
from server.repository.model_config import read_model_config
from server.repository.repository import Repository


class Mixer(nn.Module):
    """Two inputs of different types, two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(6, 4)
        self.table = nn.Embedding(10, 4)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        mixed = torch.relu(self.dense(x)) + self.table(ids).mean(1)
        return {"scores": mixed, "total": mixed.sum(1, keepdim=True)}


def build_mixer() -> nn.Module:
    return Mixer()


def build_program() -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(nn.Linear(3, 2).eval(), (torch.ones(2, 3),), dynamic_shapes=({0: batch},))


def build_fixed() -> torch.export.ExportedProgram:
    return torch.export.export(nn.Linear(3, 2).eval(), (torch.ones(2, 3),))


def example() -> dict[str, torch.Tensor]:
    """In another order than `forward` has them: names tell which is which."""
    return {"ids": torch.ones(2, 5, dtype=torch.int64), "x": torch.arange(12.0).reshape(2, 6)}


HERE = __name__
told: list[tuple[str, Sequence[str]]] = []


def report(step: str, lines: Sequence[str]) -> None:
    told.append((step, lines))


def loads(repository: Path, name: str, custom_code: tuple[str, ...] = ()) -> None:
    """As the server would: hashes, golden inputs, warm-up, the pipeline's example."""
    opened = Repository(
        repository,
        OnnxRuntimeEngine(1),
        load_pipeline=lambda folder: load_pipeline(folder, custom_code=custom_code),
        warmup_s=1.0,
    )
    for model in opened.load(name):
        model.engine_model.close()


@pytest.fixture(scope="module")
def mixer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("repository")
    export_callable(f"{HERE}:build_mixer", f"{HERE}:example", "mixer", repository, report)
    return repository


def test_a_module_is_published_with_a_free_batch(mixer: Path) -> None:
    """Names of its arguments and outputs, dims without the batch, PyTorch's own outputs as golden ones; it loads."""
    config, golden = read_model_config(mixer / "mixer"), read_golden(mixer / "mixer", "1")
    assert [(s.name, s.datatype, tuple(s.dims)) for s in config.inputs] == [("x", "FP32", (6,)), ("ids", "INT64", (5,))]
    assert [(s.name, tuple(s.dims)) for s in config.outputs] == [("scores", (4,)), ("total", (1,))]
    assert config.max_batch_size == 64
    assert golden is not None
    expected = Mixer().eval()(**example())["scores"].detach().numpy()
    np.testing.assert_array_equal(golden.outputs["scores"], expected)
    loads(mixer, "mixer")


def test_its_certificate_says_where_it_came_from(mixer: Path) -> None:
    """No training data, no metrics; the errors against PyTorch, and a card that tells it."""
    manifest = read_manifest(mixer / "mixer")
    assert manifest is not None
    record = manifest.versions["1"]
    assert (manifest.recipe, manifest.task) == ("export", "infer")
    assert record.data.source.startswith(f"{HERE}:build_mixer")
    assert record.errors["scores"].max_abs < 1e-5
    assert "Brought as it is" in (mixer / "mixer" / "README.md").read_text()
    assert (mixer / "mixer" / "README.md").read_text() == card(mixer / "mixer")


def test_a_program_of_torch_export_keeps_its_dimensions(tmp_path: Path) -> None:
    """With a dynamic batch it is batched; with a fixed one it takes one request of that shape at a time."""
    export_callable(f"{HERE}:build_program", "FP32[4,3]", "free", tmp_path, report)
    assert read_model_config(tmp_path / "free").max_batch_size == 64
    export_callable(f"{HERE}:build_fixed", "FP32[2,3]", "fixed", tmp_path, report)
    fixed = read_model_config(tmp_path / "fixed")
    assert (fixed.max_batch_size, tuple(fixed.inputs[0].dims)) == (0, (2, 3))
    loads(tmp_path, "fixed")


@pytest.mark.parametrize(
    ("what", "examples", "problem"),
    [
        ("nothing_there:build", "FP32[2,3]", "can't be imported"),
        (f"{HERE}:missing", "FP32[2,3]", "can't be imported"),
        (f"{HERE}:example", "FP32[2,3]", "not an nn.Module"),
        ("no reference", "FP32[2,3]", "module:callable is wanted"),
        (f"{HERE}:build_mixer", "FP32", "is no .npz"),
        (f"{HERE}:build_mixer", "FP99[2,3]", "FP99"),
        (f"{HERE}:build_mixer", "missing.npz", "can't be read"),
        (f"{HERE}:build_mixer", "FP32[2,6],INT64[3,5]", "same batch in front"),
        (f"{HERE}:build_mixer", "FP32[2,7],INT64[2,5]", "can't be run on the examples"),
        (f"{HERE}:build_mixer", "ids=INT64[2,5]", "there are ids; the module takes x, ids, from the first on"),
        (f"{HERE}:build_mixer", "x=FP32[2,6],id=INT64[2,5]", "there are x, id; the module takes x, ids"),
    ],
)
def test_what_can_not_be_exported_is_told(what: str, examples: str, problem: str, tmp_path: Path) -> None:
    """A usage error that names the reference or the option; nothing is published."""
    with pytest.raises(UsageError, match=problem):
        export_callable(what, examples, "m", tmp_path, report)
    assert not list(tmp_path.iterdir())


def test_a_ready_file_is_published_as_it_is(mixer: Path, tmp_path: Path) -> None:
    """Tensors by the file, made-up golden inputs, ONNX Runtime's own answers; it loads."""
    import_onnx(mixer / "mixer" / "1" / "model.onnx", "again", tmp_path, report)
    config, golden = read_model_config(tmp_path / "again"), read_golden(tmp_path / "again", "1")
    assert config.max_batch_size == 64
    assert golden is not None
    assert golden.inputs["x"].shape == (4, 6)
    assert "rows alone are answered as in a batch: batches up to 64" in told[-2][1]
    loads(tmp_path, "again")


def graph(folder: Path, nodes: list[onnx.NodeProto], shape: list[str | int], out: list[str | int]) -> Path:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_rows_that_depend_on_each_other_are_no_batch(tmp_path: Path) -> None:
    """A free first dimension over which the model adds up: one request at a time, and it is told why."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], keepdims=1, noop_with_empty_axes=0),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    import_onnx(graph(tmp_path, nodes, ["n", 3], ["n", 3]), "centred", tmp_path / "repository", report)
    config = read_model_config(tmp_path / "repository" / "centred")
    assert (config.max_batch_size, tuple(config.inputs[0].dims)) == (0, (-1, 3))
    assert any("one request at a time: output 'y'" in line for line in told[-2][1])
    loads(tmp_path / "repository", "centred")


def test_fixed_shapes_are_served_one_at_a_time(tmp_path: Path) -> None:
    """Without a free dimension in front there is no batch; given golden inputs are used."""
    path = graph(tmp_path, [helper.make_node("Neg", ["x"], ["y"])], [1, 4], [1, 4])
    np.savez(tmp_path / "golden.npz", x=np.array([[1, 2, 3, 4]], dtype=np.float32))
    import_onnx(path, "neg", tmp_path / "repository", report, examples=tmp_path / "golden.npz")
    golden = read_golden(tmp_path / "repository" / "neg", "1")
    assert golden is not None
    assert golden.outputs["y"].tolist() == [[-1, -2, -3, -4]]
    loads(tmp_path / "repository", "neg")
    np.savez(tmp_path / "golden.npz", z=np.zeros((1, 4), dtype=np.float32))
    with pytest.raises(UsageError, match="wanted are x"):
        import_onnx(path, "neg", tmp_path / "repository", report, examples=tmp_path / "golden.npz")


def test_what_is_no_onnx_is_refused(tmp_path: Path) -> None:
    """A file of something else, and none."""
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="can't be read as ONNX"):
        import_onnx(tmp_path / "model.onnx", "m", tmp_path / "repository", report)
    with pytest.raises(UsageError, match="no such file"):
        import_onnx(tmp_path / "other.onnx", "m", tmp_path / "repository", report)


def test_processing_comes_with_it(tmp_path: Path) -> None:
    """A spec of the user's and the code that it names: certified with the rest, and run where that is allowed."""
    path = graph(tmp_path, [helper.make_node("Neg", ["x"], ["y"])], ["n", 2], ["n", 2])
    (tmp_path / "spec.yaml").write_text("task: custom\nfile: own.py\n")
    (tmp_path / "own.py").write_text(
        "import numpy as np\n\n\nclass Pipeline:\n    def __init__(self, folder, options): pass\n"
        "    def preprocess(self, inputs): return {'x': np.array([i.values for i in inputs], np.float32)}\n"
        "    def postprocess(self, outputs, top_k): return [row.tolist() for row in outputs['y']]\n"
        "    def example(self): return [1, 2]\n"
    )
    given = Processing(tmp_path / "spec.yaml", (tmp_path / "own.py",))
    import_onnx(path, "own", tmp_path / "repository", report, processing=given)
    manifest = read_manifest(tmp_path / "repository" / "own")
    assert manifest is not None
    assert (manifest.task, "own.py" in manifest.files) == ("custom", True)
    loads(tmp_path / "repository", "own", custom_code=("own",))
    with pytest.raises(Exception, match="does not allow it"):
        loads(tmp_path / "repository", "own")
    with pytest.raises(UsageError, match="no such file"):
        import_onnx(path, "own", tmp_path / "r", report, processing=Processing(tmp_path / "none.yaml"))
