"""The embedded engine on real ONNX Runtime: what it loads, what it refuses, and what a pass gives."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from server.engine.base import Accelerator, EngineSpec, InstanceGroup
from server.engine.cores import available_cores, visible_gpus
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.engine.session import CPU, CUDA, TENSORRT, parse_parameters, place
from server.errors import EngineFailure, ModelLoadFailed
from server.tensor import Array, TensorSpec
from server.types import Batch
from tests.support.onnx_models import WEIGHTS, linear, save, tensor


@pytest.fixture(scope="module")
def engine() -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine()


def spec(path: Path, **changes: Any) -> EngineSpec:
    """The config that fits `linear`, but for `changes`."""
    base = EngineSpec("m", "1", path, 8, (TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (2,)),))
    return dataclasses.replace(base, **changes)


def batch(**inputs: Array) -> Batch:
    return Batch("m", "1", len(next(iter(inputs.values()))), inputs)


def refusal(engine: OnnxRuntimeEngine, spec: EngineSpec) -> ModelLoadFailed:
    with pytest.raises(ModelLoadFailed) as caught:
        engine.load(spec)
    assert "\n" not in caught.value.problem
    assert str(spec.path.parent) not in caught.value.public_message
    return caught.value


def test_a_pass_gives_the_outputs_of_its_rows(engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    """Any number of rows, by output name."""
    (instance,) = engine.load(spec(linear(tmp_path / "model.onnx"))).instances
    for rows in (1, 5, 8):
        x = np.random.default_rng(rows).random((rows, 3), np.float32)
        np.testing.assert_allclose(instance.run(batch(x=x))["y"], x @ WEIGHTS, rtol=1e-6)


def test_instances_are_counted_named_and_independent(engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    """One for each count of each group, with unique names; they run side by side."""
    groups = (InstanceGroup("KIND_CPU", 2), InstanceGroup("KIND_AUTO", 1, name="other"))
    model = engine.load(spec(linear(tmp_path / "model.onnx"), instance_groups=groups))

    assert [instance.name for instance in model.instances] == ["m_0_0_cpu", "m_0_1_cpu", "other_0_cpu"]
    results: list[Array] = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(i.run(batch(x=np.ones((2, 3), np.float32)))["y"]))
        for i in model.instances
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    model.close()
    assert model.instances == []


def test_instances_may_share_one_session(engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    """share_session_between_instances: one copy of the weights for a group; never across groups."""
    model = engine.load(
        spec(
            linear(tmp_path / "model.onnx"),
            instance_groups=(InstanceGroup("KIND_CPU", 3), InstanceGroup("KIND_CPU", 1)),
            parameters={"share_session_between_instances": "true"},
        )
    )
    sessions = [id(instance._session) for instance in model.instances]
    assert len(set(sessions[:3])) == 1
    assert sessions[3] != sessions[0]


def test_kind_auto_without_a_gpu_runs_on_the_cpu_and_says_so(
    engine: OnnxRuntimeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fall-back is never silent."""
    if CUDA in engine._ort.get_available_providers():
        pytest.skip("this build has CUDA")
    with caplog.at_level(logging.INFO):
        (instance,) = engine.load(spec(linear(tmp_path / "model.onnx"))).instances
    assert instance.name.endswith("_cpu")
    assert "KIND_AUTO runs on the CPU" in caplog.text


def test_kind_gpu_without_a_gpu_is_an_error_that_says_so(engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    """Not a slow answer from the CPU."""
    if CUDA in engine._ort.get_available_providers() and visible_gpus():
        pytest.skip("this machine has a GPU")
    error = refusal(engine, spec(linear(tmp_path / "model.onnx"), instance_groups=(InstanceGroup("KIND_GPU"),)))
    assert error.where == "config.pbtxt: instance_group[0]"
    assert "KIND_GPU" in error.problem


# --- files that are no models -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "there is no such file"),
        ("empty", "is empty"),
        ("folder", "is a folder"),
        ("half", "protobuf parsing failed"),
        ("text", "protobuf parsing failed"),
        ("zeros", "ONNX Runtime can load"),
        ("pipe", "there is no such file"),
        ("dead link", "there is no such file"),
    ],
)
def test_a_file_that_is_no_model_is_refused_in_one_clean_sentence(
    engine: OnnxRuntimeEngine, tmp_path: Path, damage: str, words: str
) -> None:
    """No C++ source positions, no paths of this machine, and no hanging."""
    path = linear(tmp_path / "model.onnx")
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage == "dead link":
        path.symlink_to("nowhere")
    elif damage != "missing":
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello", "zeros": bytes(64)}[damage])
    error = refusal(engine, spec(path))

    assert error.where == "1/model.onnx"
    assert words.lower() in error.problem.lower()
    assert not re.search(r"\.(cc|h):\d|ONNXRuntimeError|/onnxruntime", error.problem)


def test_every_truncation_and_flipped_byte_is_refused_or_loads(
    engine: OnnxRuntimeEngine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Damage may go unnoticed without a manifest, but it never ends in another error than ModelLoadFailed."""
    path = linear(tmp_path / "model.onnx")
    whole = path.read_bytes()
    problems = []
    for position in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        for data in (whole[:position], bytes(flipped)):
            path.write_bytes(data)
            try:
                engine.load(spec(path)).close()
            except ModelLoadFailed as error:
                problems.append(error.problem)
    assert len(problems) > len(whole) // 6
    assert not any("\n" in problem for problem in problems)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fault", ["operator", "opset", "ir", "dangling", "external"])
def test_models_that_onnx_runtime_refuses(engine: OnnxRuntimeEngine, tmp_path: Path, fault: str) -> None:
    """Its reason is kept, its C++ noise is not."""
    path = tmp_path / "model.onnx"
    node = helper.make_node("Nope" if fault == "operator" else "Relu", ["q" if fault == "dangling" else "x"], ["y"])
    weights = []
    if fault == "external":
        weight = numpy_helper.from_array(WEIGHTS, "W")
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "gone.bin"), ("offset", "0"), ("length", "24")):
            weight.external_data.add(key=key, value=value)
        weights, node = [weight], helper.make_node("MatMul", ["x", "W"], ["y"])
    save(path, [node], [tensor("x", ["b", 3])], [tensor("y", ["b", 2])], weights)
    if fault in ("opset", "ir"):
        model = onnx.load(path)
        if fault == "opset":
            model.opset_import[0].version = 99
        else:
            model.ir_version = 99
        onnx.save(model, path)
    error = refusal(engine, spec(path))

    assert not re.search(r"\.(cc|h):\d|ONNXRuntimeError|/onnxruntime|std::", error.problem)
    expected = {
        "operator": "Nope",
        "opset": "Opset 99",
        "ir": "IR version: 99",
        "dangling": "'q'",
        "external": "gone.bin",
    }
    assert expected[fault] in error.problem


# --- tensors that differ from the config ---------------------------------------------------------

X, Y = TensorSpec("x", "FP32", (3,)), TensorSpec("y", "FP32", (2,))

MISMATCHES: Sequence[tuple[dict[str, Any], str, str]] = [
    ({"outputs": (TensorSpec("y", "FP32", (3,)),)}, "output[0]", "says output 'y' is FP32 [3], the model has FP32 [2]"),
    ({"outputs": (TensorSpec("y", "FP64", (2,)),)}, "output[0]", "says output 'y' is FP64 [2], the model has FP32 [2]"),
    ({"outputs": (TensorSpec("z", "FP32", (2,)),)}, "output[0].name", "no output 'z'; it has 'y'"),
    ({"inputs": (TensorSpec("X", "FP32", (3,)),)}, "input[0].name", "no input 'X'; it has 'x'"),
    ({"inputs": (TensorSpec("x", "FP32", (-1,)),)}, "input[0]", "FP32 [-1], the model has FP32 [3]"),
    ({"inputs": (TensorSpec("x", "FP32", (2**62,)),)}, "input[0]", "the model has FP32 [3]"),
    ({"inputs": (TensorSpec("x", "BYTES", (3,)),)}, "input[0]", "BYTES [3], the model has FP32 [3]"),
    ({"inputs": (X, TensorSpec("w", "FP32", (3,)))}, "input[1].name", "no input 'w'"),
    ({"inputs": (TensorSpec("x", "FP32", (1, 3)),)}, "input[0]", "the model has 2 dimensions [-1, 3] and must have 3"),
    ({"max_batch_size": 0}, "input[0]", "FP32 [3], the model has FP32 [-1, 3]"),
]


@pytest.mark.parametrize(("changes", "where", "words"), MISMATCHES, ids=[words for _, _, words in MISMATCHES])
def test_a_config_that_differs_from_the_model_is_refused_with_both_sides(
    engine: OnnxRuntimeEngine, tmp_path: Path, changes: dict[str, Any], where: str, words: str
) -> None:
    """Names the field of the config, what it says and what the model has."""
    error = refusal(engine, spec(linear(tmp_path / "model.onnx"), **changes))

    assert error.where == f"config.pbtxt: {where}"
    assert words in error.problem


def test_a_fixed_batch_dimension_is_explained(engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    """The commonest export mistake gets its two ways out; as max_batch_size 0 the model serves."""
    path = linear(tmp_path / "model.onnx", batch=1)
    assert "batch dimension is fixed to 1; export it with a dynamic one" in refusal(engine, spec(path)).problem

    whole = spec(
        path, max_batch_size=0, inputs=(TensorSpec("x", "FP32", (1, 3)),), outputs=(TensorSpec("y", "FP32", (1, 2)),)
    )
    (instance,) = engine.load(whole).instances
    assert instance.run(Batch("m", "1", 1, {"x": np.ones((1, 3), np.float32)}))["y"].tolist() == [[6, 9]]


def test_an_input_that_the_config_forgets_is_named(engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    """Without it no pass can run."""
    path = save(
        tmp_path / "model.onnx",
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        [tensor("x", ["b", 2]), tensor("bias", ["b", 2])],
        [tensor("y", ["b", 2])],
    )
    error = refusal(engine, spec(path, inputs=(TensorSpec("x", "FP32", (2,)),)))
    assert error.problem == "the model's input 'bias' (tensor(float), [-1, 2]) is not in the config"


def test_an_output_that_is_no_tensor_is_refused(engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    """scikit-learn's converter makes a list of maps unless zipmap is off."""
    path = save(
        tmp_path / "model.onnx",
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [tensor("x", ["b", 3])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )
    assert "can't be served; export with zipmap off" in refusal(engine, spec(path)).problem


def test_outputs_that_the_config_leaves_out_are_not_computed(engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    """As in Triton."""
    path = save(
        tmp_path / "model.onnx",
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        [tensor("x", ["b", 2])],
        [tensor("y", ["b", 2]), tensor("z", ["b", 2])],
    )
    (instance,) = engine.load(spec(path, inputs=(TensorSpec("x", "FP32", (2,)),))).instances
    assert set(instance.run(batch(x=np.ones((1, 2), np.float32)))) == {"y"}


# --- passes that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": np.ones((2, 4), np.float32)},
        {"x": np.ones((2, 3), np.float64)},
        {"z": np.ones((2, 3), np.float32)},
        {"x": np.array([["a"]], object)},
        {"x": np.ones((2, 3), np.complex64)},
    ],
)
def test_whatever_onnx_runtime_raises_is_an_engine_failure(
    engine: OnnxRuntimeEngine, tmp_path: Path, inputs: dict[str, Array], capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own classes, ValueError and RuntimeError alike, with the cause kept, silent, and nothing public."""
    (instance,) = engine.load(spec(linear(tmp_path / "model.onnx"))).instances
    with pytest.raises(EngineFailure) as caught:
        instance.run(batch(**inputs))

    assert caught.value.__cause__ is not None
    assert caught.value.detail.startswith("m_0_0_cpu: ")
    assert caught.value.public_message == "model 'm' failed to execute the request"
    assert capfd.readouterr().err == ""
    assert instance.run(batch(x=np.ones((1, 3), np.float32)))["y"].shape == (1, 2)


def test_an_allocation_that_fails_is_an_engine_failure(engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    """A pass that wants terabytes fails alone."""
    path = save(
        tmp_path / "model.onnx",
        [helper.make_node("Expand", ["x", "s"], ["y"])],
        [tensor("x", [1]), tensor("s", [1], TensorProto.INT64)],
        [tensor("y", ["n"])],
    )
    (instance,) = engine.load(
        spec(
            path,
            max_batch_size=0,
            inputs=(TensorSpec("x", "FP32", (1,)), TensorSpec("s", "INT64", (1,))),
            outputs=(TensorSpec("y", "FP32", (-1,)),),
        )
    ).instances
    with pytest.raises(EngineFailure, match="failed to execute"):
        instance.run(batch(x=np.ones(1, np.float32), s=np.array([1 << 42])))


def test_outputs_with_other_rows_than_the_batch_never_leave_the_engine(
    engine: OnnxRuntimeEngine, tmp_path: Path
) -> None:
    """A model that folds its rows would hand one caller's answer to another."""
    shape = numpy_helper.from_array(np.array([-1, 6], np.int64), "shape")
    path = save(
        tmp_path / "model.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [tensor("x", ["b", 3])],
        [tensor("y", ["c", 6])],
        [shape],
    )
    (instance,) = engine.load(spec(path, outputs=(TensorSpec("y", "FP32", (6,)),))).instances
    with pytest.raises(EngineFailure) as caught:
        instance.run(batch(x=np.ones((2, 3), np.float32)))
    assert "shape [1, 6] for a batch of 2 rows" in caught.value.detail


# --- strings ------------------------------------------------------------------------------------


@pytest.fixture
def echo(engine: OnnxRuntimeEngine, tmp_path: Path) -> Any:
    """A model of one string column that gives it back."""
    path = save(
        tmp_path / "model.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor("x", ["b", 1], TensorProto.STRING)],
        [tensor("y", ["b", 1], TensorProto.STRING)],
    )
    strings = {"inputs": (TensorSpec("x", "BYTES", (1,)),), "outputs": (TensorSpec("y", "BYTES", (1,)),)}
    return engine.load(spec(path, **strings)).instances[0]


def test_bytes_pass_through_unchanged(echo: Any) -> None:
    """UTF-8, empty elements and zero bytes at the end: nothing is lost, nothing becomes a repr."""
    elements = [b"", b"a", "naïve \U0001f600".encode(), b"zero\x00", b"\x00"]
    x = np.array([[element] for element in elements], object)

    assert echo.run(batch(x=x))["y"].tolist() == [[element] for element in elements]
    assert x.tolist() == [[element] for element in elements]


def test_bytes_that_are_no_utf8_fail_the_pass(echo: Any) -> None:
    """ONNX strings are UTF-8; the request check is what names the caller's field."""
    with pytest.raises(EngineFailure) as caught:
        echo.run(batch(x=np.array([[b"\xff"]], object)))
    assert "utf-8" in caught.value.detail


# --- parameters, threads, placement ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"intra_op_threads": "2"}, 'parameters["intra_op_threads"]: is not honoured'),
        ({"intra_op_thread_count": "two"}, "is 'two', it must be a whole number"),
        ({"intra_op_thread_count": "-1"}, "whole number"),
        ({"intra_op_thread_count": "999999999"}, "0 to 1024"),
        ({"intra_op_thread_count": "²"}, "whole number"),
        ({"execution_mode": "2"}, "0 (sequential) or 1 (parallel)"),
        ({"enable_mem_arena": "maybe"}, "0, 1, true or false"),
    ],
)
def test_unknown_parameters_and_values_are_refused_by_name(
    engine: OnnxRuntimeEngine, tmp_path: Path, parameters: dict[str, str], words: str
) -> None:
    """Nothing is dropped in silence."""
    assert words in refusal(engine, spec(linear(tmp_path / "model.onnx"), parameters=parameters)).public_message


def test_every_honoured_parameter_serves(engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    """The names of Triton's ONNX Runtime backend, at values other than the defaults."""
    honoured = {
        "intra_op_thread_count": "2",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "false",
        "share_session_between_instances": "1",
        "session.use_device_allocator_for_initializers": "1",
    }
    for level in (0, 1, -1, 2):
        model = engine.load(spec(linear(tmp_path / "model.onnx"), parameters=honoured, graph_level=level))
        assert model.instances[0].run(batch(x=np.ones((1, 3), np.float32)))["y"].tolist() == [[6, 9]]
        assert model.instances[0].threads == 2
    options = engine._options(spec(tmp_path, graph_level=2), parse_parameters(spec(tmp_path, parameters=honoured)), [])
    assert options.intra_op_num_threads == options.inter_op_num_threads == 2
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.execution_mode.name == "ORT_PARALLEL"
    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"


@pytest.mark.parametrize(
    ("threads", "cores", "count", "parameters", "expected", "spinning"),
    [
        (0, 8, 1, {}, 8, "0"),
        (0, 8, 3, {}, 2, "1"),
        (0, 2, 4, {}, 1, "0"),
        (3, 8, 2, {}, 3, "1"),
        (3, 8, 2, {"intra_op_thread_count": "4"}, 4, "0"),
        (0, 8, 4, {"share_session_between_instances": "1"}, 8, "0"),
    ],
)
def test_threads_are_shared_out_and_spin_only_where_a_core_is_left(
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    cores: int,
    count: int,
    parameters: dict[str, str],
    expected: int,
    spinning: str,
) -> None:
    """The config's count, else the setting's, else the cores over the sessions."""
    engine = OnnxRuntimeEngine(threads)
    monkeypatch.setattr(engine, "_cores", cores)
    wanted = spec(Path("model.onnx"), instance_groups=(InstanceGroup("KIND_CPU", count),), parameters=parameters)
    options = engine._options(wanted, parse_parameters(wanted), place(wanted, [CPU], ()))

    assert options.intra_op_num_threads == expected
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == spinning


GPU = [TENSORRT, CUDA, CPU]


def test_instances_go_to_every_gpu_of_their_group() -> None:
    """`count` on each of `gpus`, or on all that are there; CUDA behind TensorRT, the CPU behind both."""
    groups = (InstanceGroup("KIND_GPU", 2, (1,)), InstanceGroup("KIND_AUTO", 1), InstanceGroup("KIND_CPU", 1))
    wanted = spec(
        Path("model.onnx"),
        instance_groups=groups,
        gpu_accelerators=(
            Accelerator("tensorrt", {"precision_mode": "FP16", "max_workspace_size_bytes": "1024"}),
            Accelerator("cuda", {"use_tf32": "0"}),
        ),
    )
    placements = place(wanted, GPU, (0, 1))

    assert [p.name for p in placements] == ["m_0_0_gpu1", "m_0_1_gpu1", "m_1_0_gpu0", "m_1_0_gpu1", "m_2_0_cpu"]
    assert placements[0].providers == (
        (TENSORRT, {"device_id": "1", "trt_fp16_enable": "1", "trt_max_workspace_size": "1024"}),
        (CUDA, {"device_id": "1", "use_tf32": "0"}),
        (CPU, {}),
    )
    assert placements[-1].providers == ((CPU, {}),)


@pytest.mark.parametrize(
    ("changes", "available", "gpus", "words"),
    [
        ({"instance_groups": (InstanceGroup("KIND_GPU"),)}, [CPU], (0,), "install forwardpass[gpu]"),
        ({"instance_groups": (InstanceGroup("KIND_GPU"),)}, GPU, (), "no CUDA device"),
        ({"instance_groups": (InstanceGroup("KIND_GPU", 1, (0, 5)),)}, GPU, (0,), "there is no GPU 5"),
        ({"gpu_accelerators": (Accelerator("openvino"),)}, GPU, (0,), "'openvino' is not served"),
        ({"cpu_accelerators": (Accelerator("openvino"),)}, GPU, (0,), "'openvino' is not served"),
        ({"gpu_accelerators": (Accelerator("tensorrt"),)}, [CUDA, CPU], (0,), f"no {TENSORRT}"),
        ({"gpu_accelerators": (Accelerator("cuda"), Accelerator("cuda"))}, GPU, (0,), "there twice"),
        ({"gpu_accelerators": (Accelerator("cuda", {"device_id": "3"}),)}, GPU, (0,), '"device_id"'),
        ({"gpu_accelerators": (Accelerator("cuda", {"precision_mode": "FP16"}),)}, GPU, (0,), '"precision_mode"'),
        ({"gpu_accelerators": (Accelerator("tensorrt", {"precision_mode": "FP4"}),)}, GPU, (0,), "FP32, FP16"),
        ({"gpu_accelerators": (Accelerator("tensorrt", {"turbo": "1"}),)}, GPU, (0,), '"turbo"'),
        (
            {"gpu_accelerators": (Accelerator("cuda"),), "instance_groups": (InstanceGroup("KIND_CPU"),)},
            GPU,
            (0,),
            "every instance_group is KIND_CPU",
        ),
    ],
)
def test_placements_that_can_not_be(
    changes: dict[str, Any], available: list[str], gpus: tuple[int, ...], words: str
) -> None:
    """A device, a provider or a parameter that is not there is refused by name."""
    with pytest.raises(ModelLoadFailed) as caught:
        place(spec(Path("model.onnx"), **changes), available, gpus)
    assert words in caught.value.public_message


def test_kind_auto_uses_no_gpu_that_is_not_there() -> None:
    """Accelerators for GPUs wait for a machine that has one."""
    wanted = spec(Path("model.onnx"), gpu_accelerators=(Accelerator("tensorrt"),))
    assert [p.device for p in place(wanted, GPU, ())] == ["cpu"]


def test_a_provider_that_does_not_start_is_an_error_for_kind_gpu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime goes on without it in silence (scripted here: the fault needs a broken CUDA); we do not."""
    engine = OnnxRuntimeEngine()
    real = engine._ort

    class Broken:
        """ONNX Runtime with a CUDA provider that is built in and can't start."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def get_available_providers(self) -> list[str]:
            return [CUDA, CPU]

        def InferenceSession(self, path: str, options: Any, providers: list[Any], **more: Any) -> Any:
            return real.InferenceSession(path, options, providers=[p for p in providers if p[0] == CPU], **more)

    monkeypatch.setattr(engine, "_ort", Broken())
    monkeypatch.setattr("server.engine.onnxruntime.visible_gpus", lambda: (0,))
    path = linear(tmp_path / "model.onnx")
    error = refusal(engine, spec(path, instance_groups=(InstanceGroup("KIND_GPU"),)))
    assert "CUDAExecutionProvider could not start on gpu0" in error.problem

    engine.load(spec(path))
    assert "could not start on gpu0" in caplog.text


# --- the machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "cgroup", "expected"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"cpu.max": "50000 100000"}, "0::/", 1),
        ({"pod/cpu.max": "100000 100000", "pod/box/cpu.max": "max 100000"}, "0::/pod/box", 1),
        ({"cpu.max": "100000 100000"}, "0::/not/in/this/namespace", 1),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/", 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/", None),
        ({"cpu.max": "nonsense"}, "0::/", None),
        ({}, "", None),
    ],
)
def test_cores_are_those_of_the_quota_and_the_affinity(
    tmp_path: Path, files: dict[str, str], cgroup: str, expected: int | None
) -> None:
    """The tightest of the cgroups above the process, rounded down, at least 1; else the affinity mask."""
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(cgroup + "\n" if cgroup else "")

    cores = available_cores(tmp_path / "fs", tmp_path / "own")
    assert cores == (expected or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, (0, 1)), ("1", (0,)), ("", ()), ("-1", ()), ("0,-1,1", (0,)), ("GPU-8932f937,1", (0, 1))],
)
def test_gpus_are_counted_as_cuda_counts_them(tmp_path: Path, visible: str | None, expected: tuple[int, ...]) -> None:
    """CUDA_VISIBLE_DEVICES renumbers; control devices are no GPUs."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert visible_gpus(tmp_path, environment) == expected
    assert visible_gpus(tmp_path / "none", environment) == ()
