"""A model that is not what was certified any more: each change is refused at load, by its file and by what it does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from server.engine.onnxruntime import OnnxRuntimeEngine
from server.errors import ModelLoadFailed
from server.pipeline.load import load_pipeline
from server.repository.certificate import hash_files, read_manifest, write_golden, write_manifest
from server.repository.repository import Repository
from tests.support.onnx_models import folder_of, tensor

DIGITS = Path(__file__).parents[2] / "model_repository" / "digits"
SOFTMAX = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 2, 3 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 2, 3 ] }
"""


def reason(root: Path, name: str) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        Repository(root, OnnxRuntimeEngine(1), load_pipeline=load_pipeline, warmup_s=0.1).load(name)
    return f"{caught.value.where}: {caught.value.problem}"


def said(folder: Path, before: str, after: str) -> None:
    path = folder / "processing.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def other_mean(folder: Path) -> None:
    said(folder, "  mean:\n  - 0.25\n", "  mean:\n  - 0.26\n")


def other_filter(folder: Path) -> None:
    said(folder, "filter: bilinear", "filter: bicubic")


def permuted_labels(folder: Path) -> None:
    first, *others = (folder / "labels.txt").read_text().splitlines()
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in (*others, first)))


def flipped_weight(folder: Path) -> None:
    """The sign of the largest weight of the head."""
    path = folder / "1" / "model.onnx"
    model = onnx.load(path)
    head = next(each for each in model.graph.initializer if each.name == "head.weight")
    weights = numpy_helper.to_array(head).copy()
    weights[np.unravel_index(np.abs(weights).argmax(), weights.shape)] *= -1
    head.CopyFrom(numpy_helper.from_array(weights, head.name))
    onnx.save(model, path)


def other_opset(folder: Path) -> None:
    path = folder / "1" / "model.onnx"
    model = onnx.load(path)
    model.opset_import[0].version = 11
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("mutate", "file", "by_itself"),
    [
        (other_mean, "processing.yaml", "processing.yaml: preprocessing of golden input 0 differs in tensor 'image'"),
        (other_filter, "processing.yaml", "processing.yaml: preprocessing of golden input 0 differs in tensor 'image'"),
        (permuted_labels, "labels.txt", "labels.txt: golden input 0 is answered with the label"),
        (flipped_weight, "1/model.onnx", "golden/1.npz: output 'logits' is off by"),
        (other_opset, "1/model.onnx", "1/model.onnx: "),
    ],
)
def test_a_picture_model_that_was_changed_is_refused(
    tmp_path: Path, mutate: Callable[[Path], None], file: str, by_itself: str
) -> None:
    """The hash names the file; with the hashes written anew the golden inputs, or the engine, name the change."""
    folder = tmp_path / "digits"
    shutil.copytree(DIGITS, folder)
    mutate(folder)
    assert reason(tmp_path, "digits").startswith(f"{file}: differs from manifest.json")
    manifest = read_manifest(folder)
    assert manifest is not None
    write_manifest(folder, manifest.model_copy(update={"files": hash_files(folder)}))
    assert reason(tmp_path, "digits").startswith(by_itself)


def test_a_default_that_another_opset_has_is_found_by_the_golden_outputs(tmp_path: Path) -> None:
    """Softmax without an axis is over the last one from opset 13 on, and over all before it: the same file but for one
    number, and it loads."""
    node = helper.make_node("Softmax", ["x"], ["y"])
    shape = ["batch", 2, 3]
    folder = folder_of(tmp_path, "m", SOFTMAX, [node], [tensor("x", shape)], [tensor("y", shape)])
    x = np.random.default_rng(0).random((4, 2, 3), np.float32)
    outputs = ort.InferenceSession(folder / "1" / "model.onnx").run(None, {"x": x})
    write_golden(folder, "1", {"x": x}, {"y": outputs[0]})
    Repository(tmp_path, OnnxRuntimeEngine(1), load_pipeline=load_pipeline, warmup_s=0.1).load("m")[
        0
    ].engine_model.close()

    model = onnx.load(folder / "1" / "model.onnx")
    model.opset_import[0].version = 12
    onnx.save(model, folder / "1" / "model.onnx")

    assert reason(tmp_path, "m").startswith("golden/1.npz: output 'y' is off by")
