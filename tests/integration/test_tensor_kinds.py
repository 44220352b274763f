"""Tensors of every kind through real models: BF16, scalars, nothing at all, inputs that may be left out, reshape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from server.bfloat16 import BF16, narrowed, widened
from server.dataplane import DataPlane
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.errors import InvalidRequest, ModelLoadFailed
from server.lifecycle import Lifecycle, State
from server.model_control import ModelControl
from server.repository.certificate import write_golden
from server.repository.repository import Repository
from server.settings import RepositorySettings
from server.tensor import Array, Tensor
from server.types import InferRequest, InferResponse
from tests.support.onnx_models import folder_of, optional_folder, tensor

Loaded = list[tuple[DataPlane, ModelControl]]


def _no_pipeline(folder: Path) -> Any:
    raise AssertionError(folder)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path, OnnxRuntimeEngine(1), load_pipeline=_no_pipeline, warmup_s=5.0)


def bf16_folder(root: Path) -> Path:
    """``y = 2 x`` in BF16, and ``z``, the same in FP32."""
    return folder_of(
        root,
        "bf16",
        """max_batch_size: 8 dynamic_batching {}
        input { name: "x" data_type: TYPE_BF16 dims: -1 }
        output [ { name: "y" data_type: TYPE_BF16 dims: -1 }, { name: "z" data_type: TYPE_FP32 dims: -1 } ]""",
        [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["f", "f"], ["z"]),
            helper.make_node("Cast", ["z"], ["y"], to=TensorProto.BFLOAT16),
        ],
        [tensor("x", ["n", "k"], TensorProto.BFLOAT16)],
        [tensor("y", ["n", "k"], TensorProto.BFLOAT16), tensor("z", ["n", "k"])],
    )


@pytest.fixture
async def loaded() -> AsyncIterator[list[tuple[DataPlane, ModelControl]]]:
    made: list[tuple[DataPlane, ModelControl]] = []
    yield made
    for dataplane, models in made:
        await models.close()
        dataplane.close()


async def serve(repository: Repository, name: str, loaded: Loaded) -> DataPlane:
    models = ModelControl(repository, default_max_queue_size=100)
    await models.load(name)
    lifecycle = Lifecycle()
    lifecycle.advance(State.READY)
    dataplane = DataPlane(models, lifecycle, RepositorySettings(), 1)
    loaded.append((dataplane, models))
    return dataplane


async def infer(dataplane: DataPlane, model: str, *requests: dict[str, Array]) -> list[InferResponse]:
    """The answers to requests that arrive together; raises the first error."""
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in requests]
    asked = [
        InferRequest(
            model,
            [Tensor.from_numpy(name, array) for name, array in inputs.items()],
            on_settle=lambda _, outcome, future=future: loop.call_soon(future.set_result, outcome),
            received_ns=time.monotonic_ns(),
        )
        for inputs, future in zip(requests, futures, strict=True)
    ]
    dataplane.submit(asked)
    outcomes = await asyncio.gather(*futures)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def outputs(response: InferResponse) -> dict[str, Array]:
    return {one.name: one.numpy() for one in response.outputs}


async def test_bf16_goes_through_a_batch(tmp_path: Path, repository: Repository, loaded: Loaded) -> None:
    """Requests of BF16 share a pass, and each gets its own words back; golden files and empty rows do as well."""
    folder = bf16_folder(tmp_path)
    x = narrowed(np.linspace(-3, 3, 10).reshape(2, 5))
    write_golden(folder, "1", {"x": x}, {"y": narrowed(2 * widened(x)), "z": 2 * widened(x)})
    dataplane = await serve(repository, "bf16", loaded)

    first, second, empty = await infer(dataplane, "bf16", {"x": x[:1]}, {"x": x}, {"x": np.zeros((3, 0), BF16)})

    np.testing.assert_array_equal(widened(outputs(first)["y"]), 2 * widened(x[:1]))
    np.testing.assert_array_equal(outputs(second)["z"], 2 * widened(x))
    assert (empty.outputs[0].datatype, empty.outputs[0].shape) == ("BF16", (3, 0))


def test_golden_files_of_bf16_keep_a_wrong_model_out(tmp_path: Path, repository: Repository) -> None:
    """They are compared as numbers."""
    folder = bf16_folder(tmp_path)
    x = narrowed(np.ones((2, 5)))
    write_golden(folder, "1", {"x": x}, {"y": narrowed(np.full((2, 5), 2.5))})

    with pytest.raises(ModelLoadFailed, match=r"output 'y' is off by 0\.5"):
        repository.load("bf16")


async def test_requests_with_and_without_an_input_do_not_share_a_batch(
    tmp_path: Path, repository: Repository, loaded: Loaded
) -> None:
    """What is left out has the model's default, whoever came beside it."""
    optional_folder(tmp_path)
    dataplane = await serve(repository, "optional", loaded)
    x, bias = np.zeros((1, 2), np.float32), np.full((1, 2), 5, np.float32)

    answers = await infer(dataplane, "optional", {"x": x}, {"x": x, "bias": bias}, {"x": x + 1}, {"bias": bias, "x": x})

    assert [outputs(one)["y"][0, 0] for one in answers] == [1, 5, 2, 5]
    assert dataplane.statistics("optional")[0].execution_count == 2
    with pytest.raises(
        InvalidRequest, match=r"number of inputs between 1 and 2 but got 1 .* missing required input\(s\) \['x'\]"
    ):
        await infer(dataplane, "optional", {"bias": bias})


async def test_an_input_of_onnxs_optional_type(tmp_path: Path, repository: Repository, loaded: Loaded) -> None:
    """``y`` is the optional o where it is there, else x."""
    folder = folder_of(
        tmp_path,
        "typed",
        """max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: 2 }
        input { name: "o" data_type: TYPE_FP32 dims: 2 optional: true }
        output { name: "y" data_type: TYPE_FP32 dims: 2 }""",
        [],
        [],
        [tensor("y", ["n", 2])],
    )
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 2]))
    branches = {
        "then_branch": helper.make_graph(
            [helper.make_node("OptionalGetElement", ["o"], ["t"])], "then", [], [tensor("t", ["n", 2])]
        ),
        "else_branch": helper.make_graph(
            [helper.make_node("Identity", ["x"], ["e"])], "else", [], [tensor("e", ["n", 2])]
        ),
    }
    nodes = [helper.make_node("OptionalHasElement", ["o"], ["c"]), helper.make_node("If", ["c"], ["y"], **branches)]
    graph = helper.make_graph(
        nodes, "graph", [tensor("x", ["n", 2]), helper.make_value_info("o", optional)], [tensor("y", ["n", 2])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, folder / "1" / "model.onnx")
    dataplane = await serve(repository, "typed", loaded)
    x = np.zeros((1, 2), np.float32)

    without, given = await infer(dataplane, "typed", {"x": x}, {"x": x, "o": x + 7})

    assert (outputs(without)["y"][0, 0], outputs(given)["y"][0, 0]) == (0, 7)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("", r"input\[0\].optional: 'bias' must be given to the model"),
        (
            'parameters { key: "length_buckets" value { string_value: "8" } }',
            r"input\[0\].optional: and length_buckets",
        ),
    ],
    ids=["the model has no default", "with length buckets"],
)
def test_optional_is_refused_where_it_can_not_be(
    tmp_path: Path, repository: Repository, more: str, reason: str
) -> None:
    """At load, by the field, and not when the first request leaves the input out."""
    optional_folder(tmp_path, default=False, more=more)

    with pytest.raises(ModelLoadFailed, match=reason):
        repository.load("optional")


async def test_reshape_serves_scalars_for_each_row(tmp_path: Path, repository: Repository, loaded: Loaded) -> None:
    """A model of one number a row, without a second dimension, as Triton's config has it."""
    folder_of(
        tmp_path,
        "flat",
        """max_batch_size: 4 dynamic_batching {}
        input { name: "x" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }
        output { name: "y" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }""",
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [tensor("x", ["n"])],
        [tensor("y", ["n"])],
    )
    dataplane = await serve(repository, "flat", loaded)

    one, two = await infer(dataplane, "flat", {"x": np.float32([[1]])}, {"x": np.float32([[2], [3]])})

    assert (outputs(one)["y"].tolist(), outputs(two)["y"].tolist()) == ([[2]], [[4], [6]])


@pytest.mark.parametrize("datatype", ["TYPE_FP32", "TYPE_STRING"])
@pytest.mark.parametrize("batched", [False, True], ids=["without a batch dimension", "a number for each row"])
async def test_dims_of_nothing(
    tmp_path: Path, repository: Repository, loaded: Loaded, datatype: str, batched: bool
) -> None:
    """`dims: []` is a scalar, or one element for each row; forgotten dims are found out against the model's file."""
    kind = TensorProto.FLOAT if datatype == "TYPE_FP32" else TensorProto.STRING
    shape = ["n"] if batched else []
    folder_of(
        tmp_path,
        "scalar",
        f"""max_batch_size: {4 * batched} input {{ name: "x" data_type: {datatype} dims: [] }}
        output {{ name: "y" data_type: {datatype} dims: [] }}""",
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor("x", shape, kind)],
        [tensor("y", shape, kind)],
    )
    dataplane = await serve(repository, "scalar", loaded)
    x: Array = np.array(b"v", object) if datatype == "TYPE_STRING" else np.float32(7).reshape(())
    x = x.reshape(1) if batched else x

    [answer] = await infer(dataplane, "scalar", {"x": x})

    assert (answer.outputs[0].shape, outputs(answer)["y"].tolist()) == (x.shape, x.tolist())


def test_forgotten_dims_are_found_out(tmp_path: Path, repository: Repository) -> None:
    """They read as a scalar, which the model is not."""
    folder = optional_folder(tmp_path)
    text = (
        (folder / "config.pbtxt")
        .read_text()
        .replace('name: "x" data_type: TYPE_FP32 dims: 2', 'name: "x" data_type: TYPE_FP32')
    )
    (folder / "config.pbtxt").write_text(text)

    with pytest.raises(ModelLoadFailed, match=r"input\[1\]"):
        repository.load("optional")
