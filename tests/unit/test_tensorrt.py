"""TensorRT plans: the shapes that are built for, and what is said where none can be built."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from exporter import tensorrt
from exporter.cli import commands
from exporter.errors import ExportError, UsageError
from exporter.tensorrt import Shape
from server.repository.model_config import ModelConfig, read_model_config

PICTURES = """
input { name: "image" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] } output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }
"""
TEXTS = """
input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] } input { name: "mask" data_type: TYPE_INT64 dims: [ -1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }
dynamic_batching { } parameters { key: "length_buckets" value { string_value: "16,40" } }
"""


def config(folder: Path, text: str, head: str = "max_batch_size: 32") -> ModelConfig:
    (folder / "m").mkdir(exist_ok=True)
    (folder / "m" / "config.pbtxt").write_text(f'name: "m" platform: "onnxruntime_onnx" {head} {text}')
    return read_model_config(folder / "m")


def test_a_profile_has_the_batches_that_the_config_lets_come(tmp_path: Path) -> None:
    """One row, the largest preferred size or else the most, and the most."""
    [alone] = tensorrt.profiles(config(tmp_path, PICTURES))
    assert alone.shapes == {"image": ((1, 3, 8, 8), (32, 3, 8, 8), (32, 3, 8, 8))}
    preferred = "dynamic_batching { preferred_batch_size: [ 4, 8 ] }"
    [usual] = tensorrt.profiles(config(tmp_path, PICTURES + preferred))
    assert usual.shapes["image"][1] == (8, 3, 8, 8)
    [single] = tensorrt.profiles(config(tmp_path, PICTURES, "max_batch_size: 0"))
    assert single.shapes == {"image": ((3, 8, 8),) * 3}


def test_each_length_bucket_has_a_profile(tmp_path: Path) -> None:
    """From just above the bucket before it up to its own length, for all inputs alike."""
    short, long = tensorrt.profiles(config(tmp_path, TEXTS))
    assert short.shapes["ids"] == short.shapes["mask"] == ((1, 1), (32, 16), (32, 16))
    assert long.shapes["ids"] == ((1, 17), (32, 40), (32, 40))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """The package, the GPU, or both; nothing is written."""
    found = config(tmp_path, PICTURES)
    with pytest.raises(UsageError, match="an NVIDIA GPU that PyTorch sees, which this machine does not have"):
        tensorrt.build(tmp_path / "model.onnx", found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_which_file_it_lacks(tmp_path: Path) -> None:
    """A run without an exported model, and a model that is not published."""
    with pytest.raises(UsageError, match=r"model\.onnx is not there; write it with: export"):
        tensorrt.build_for(tmp_path, tmp_path / "m")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match="has no config that can be read"):
        tensorrt.build_for(tmp_path, tmp_path / "m")
    assert CliRunner().invoke(commands, ["tensorrt", str(tmp_path)]).exit_code == 4


Shapes = dict[str, tuple[tuple[int, ...], ...]]


class Scripted(ModuleType):
    """TensorRT's module as its bindings declare it, without an engine, that refuses one thing in the way it would."""

    def __init__(self, refuses: str) -> None:
        super().__init__("tensorrt")
        self.__spec__ = ModuleSpec("tensorrt", None)
        self.refuses = refuses
        self.parsed = onnx.ModelProto()
        self.typed = 0
        self.profiles: list[Shapes] = []
        self.caches: list[bytes] = []
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, min_severity: None})
        self.Builder = lambda logger: Builder(self)
        self.OnnxParser = lambda network, logger: Parser(self)

    def answer(self, call: str, good: object, refusal: object) -> object:
        """Raises a refusal that is an exception."""
        if call != self.refuses:
            return good
        if isinstance(refusal, Exception):
            raise refusal
        return refusal


class Builder:
    def __init__(self, script: Scripted) -> None:
        self.script = script
        script.answer("Builder", None, TypeError("pybind11::init(): factory function returned nullptr"))

    def create_network(self, flags: int = 0) -> object:
        self.script.typed = flags
        return self.script.answer("create_network", object(), None)

    def create_builder_config(self) -> object:
        return self.script.answer("create_builder_config", Settings(self.script), None)

    def create_optimization_profile(self) -> object:
        return self.script.answer("create_optimization_profile", ShapesOf(self.script), None)

    def build_serialized_network(self, network: object, config: object) -> object:
        return self.script.answer("build_serialized_network", bytearray(b"plan"), None)


class Parser:
    def __init__(self, script: Scripted) -> None:
        self.script = script
        self.num_errors = 2 if script.refuses == "parse" else 0

    def parse(self, model: bytes, path: str | None = None) -> object:
        self.script.parsed = onnx.load_from_string(model)
        return self.script.answer("parse", True, False)

    def get_error(self, index: int) -> str:
        return f"node {index} [Sink]: unsupported"


class Settings:
    def __init__(self, script: Scripted) -> None:
        self.script = script

    def set_memory_pool_limit(self, pool: object, pool_size: int) -> None:
        assert pool_size == 64 << 20

    def add_optimization_profile(self, profile: ShapesOf) -> object:
        self.script.profiles.append(profile.shapes)
        return self.script.answer("add_optimization_profile", len(self.script.profiles) - 1, -1)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> object:
        self.script.caches.append(serialized_timing_cache)
        return self.script.answer("create_timing_cache", Cache(self.script), None)

    def set_timing_cache(self, cache: object, ignore_mismatch: bool) -> object:
        assert not ignore_mismatch
        return self.script.answer("set_timing_cache", True, False)


class ShapesOf:
    def __init__(self, script: Scripted) -> None:
        self.script = script
        self.shapes: Shapes = {}

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> object:
        self.shapes[input] = (min, opt, max)
        self.script.answer("set_shape", None, ValueError("min exceeds max"))
        return self.script.answer("set_shape, as it once was", None, False)


class Cache:
    def __init__(self, script: Scripted) -> None:
        self.script = script

    def serialize(self) -> object:
        return self.script.answer("serialize", bytearray(b"timings"), None)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scripted]:
    """Builds the plan of a small model with a scripted TensorRT."""
    node = onnx.helper.make_node("MatMul", ["image", "weight"], ["y"])
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in ("image", "y")]
    weight = onnx.numpy_helper.from_array(np.eye(2, dtype=np.float32), "weight")
    graph = onnx.helper.make_graph([node], "g", tensors[:1], tensors[1:], [weight])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "model.onnx")

    def build(refuses: str = "", *, text: str = TEXTS, half: bool = False) -> Scripted:
        script = Scripted(refuses)
        monkeypatch.setitem(sys.modules, "tensorrt", script)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        found = config(tmp_path, text)
        tensorrt.build(tmp_path / "model.onnx", found, tmp_path / "out", half=half, workspace_mib=64)
        return script

    return build


def test_a_plan_and_its_timing_cache_are_written(built: Callable[..., Scripted], tmp_path: Path) -> None:
    """With each profile added; the next build begins with what was measured."""
    script = built()
    assert [shapes["ids"] for shapes in script.profiles] == [
        ((1, 1), (32, 16), (32, 16)),
        ((1, 17), (32, 40), (32, 40)),
    ]
    assert (tmp_path / "out" / "model.plan").read_bytes() == b"plan"
    assert script.caches == [b""]
    assert built().caches == [b"timings"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.plan", "timing.cache"}


def test_types_are_those_of_the_file(built: Callable[..., Scripted]) -> None:
    """TensorRT 11 chooses none: FP16 is the model's FP16 copy, which takes and gives what the model does."""
    whole, half = built(), built(half=True)
    assert whole.typed == half.typed == 1 << 1
    assert [tensor.data_type for tensor in whole.parsed.graph.initializer] == [onnx.TensorProto.FLOAT]
    assert [tensor.data_type for tensor in half.parsed.graph.initializer] == [onnx.TensorProto.FLOAT16]
    assert half.parsed.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


REFUSALS = {
    "Builder": "to start: driver and GPU must be known to it: pybind11",
    "create_network": "a network; its log",
    "parse": r"can't read model.onnx: node 0 \[Sink\]: unsupported; node 1",
    "create_builder_config": "a configuration; its log",
    "create_optimization_profile": "a profile; its log",
    "set_shape": r"for input 'ids' the shapes \(1, 1\) to \(32, 16\), usually \(32, 16\): min exceeds max",
    "set_shape, as it once was": r"for input 'ids' the shapes \(1, 1\) to .*; its log",
    "add_optimization_profile": r"the profile of ids \(1, 1\) to \(32, 16\), mask \(1, 1\) to \(32, 16\); its log",
    "create_timing_cache": "timing.cache: it is damaged, or of another GPU or version; remove it; its log",
    "set_timing_cache": "timing.cache: it is damaged, or of another GPU or version; remove it; its log",
    "build_serialized_network": "to build model.onnx; its log above says why",
    "serialize": "to give its timing cache; its log",
}


@pytest.mark.parametrize("call", REFUSALS)
def test_what_tensorrt_refuses_is_named(built: Callable[..., Scripted], tmp_path: Path, call: str) -> None:
    """Whatever way its refusal has: None, False, -1, an exception. The plan of before stays, and its cache."""
    built()
    (tmp_path / "out" / "model.plan").write_bytes(b"before")
    with pytest.raises(ExportError, match=f"^TensorRT (refuses )?.*{REFUSALS[call]}"):
        built(call)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        "model.plan": b"before",
        "timing.cache": b"timings",
    }


def test_triton_is_told_of_all_profiles(tmp_path: Path) -> None:
    """It would use the first alone."""
    told = tensorrt.served_by(config(tmp_path, TEXTS))
    assert told == 'platform: "tensorrt_plan" instance_group { kind: KIND_GPU profile: [ "0", "1" ] }'
    text_format.Parse(told, model_config_pb2.ModelConfig())
