"""ONNX models of a chosen kind, written as model folders with nothing tuned: an empty ``dynamic_batching {}``.

Weights are random and seeded: what a pass costs depends on the shapes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_CONFIG = """name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
input {{ name: "x" data_type: TYPE_FP32 dims: [{dims}] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [{classes}] }}
dynamic_batching {{ }}
"""


@dataclass(frozen=True)
class Network:
    """A graph of some nodes and weights; `dims` and `classes` are of one row."""

    dims: tuple[int, ...]
    classes: int
    nodes: list[Any]
    weights: list[Any]

    def save(self, repository: Path, name: str, max_batch_size: int = 32, more: str = "") -> None:
        """Write the folder of a model with one version; `more` is added to its config.pbtxt."""
        folder = repository / name
        (folder / "1").mkdir(parents=True, exist_ok=True)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *self.dims])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", self.classes])
        graph = helper.make_graph(self.nodes, name, [x], [y], self.weights)
        opset = helper.make_opsetid("", 17)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "1" / "model.onnx")
        dims = ", ".join(str(size) for size in self.dims)
        config = _CONFIG.format(name=name, max_batch_size=max_batch_size, dims=dims, classes=self.classes)
        (folder / "config.pbtxt").write_text(config + more)


class _Builder:
    """A chain of layers, each on the output of the one before."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._rng = np.random.default_rng(0)
        self._last = "x"

    def _weight(self, *shape: int, gain: float = 1.0) -> str:
        name = f"w{len(self.weights)}"
        scale = np.sqrt(gain / np.prod(shape[1:]))
        self.weights.append(numpy_helper.from_array((self._rng.normal(size=shape) * scale).astype(np.float32), name))
        return name

    def _add(self, kind: str, weights: list[str], **attributes: Any) -> None:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self._last, *weights], [output], **attributes))
        self._last = output

    def conv(self, channels: int, to: int, stride: int = 1) -> None:
        # A Relu takes half of what comes: so given, fifty of these in a row still say something of their input.
        self._add("Conv", [self._weight(to, channels, 3, 3, gain=2)], pads=[1, 1, 1, 1], strides=[stride, stride])
        self._add("Relu", [])

    def dense(self, inputs: int, outputs: int, *, relu: bool = True) -> None:
        self._add("MatMul", [self._weight(inputs, outputs)])
        if relu:
            self._add("Relu", [])

    def pool(self) -> None:
        self._add("GlobalAveragePool", [])
        self._add("Flatten", [])

    def network(self, dims: tuple[int, ...], classes: int) -> Network:
        self._add("Identity", [])
        self.nodes[-1].output[0] = "y"
        return Network(dims, classes, self.nodes, self.weights)


def cnn(layers: int, channels: int = 32, size: int = 32) -> Network:
    """`layers` convolutions at full resolution: each row is work enough to fill a core, batching saves nothing."""
    builder = _Builder()
    builder.conv(1, channels)
    for _ in range(layers):
        builder.conv(channels, channels)
    builder.pool()
    builder.dense(channels, 10)
    return builder.network((1, size, size), 10)


def mlp(layers: int = 4, width: int = 1024) -> Network:
    """Dense layers: one row reads all weights from memory, and so does a batch."""
    builder = _Builder()
    for _ in range(layers):
        builder.dense(width, width)
    builder.dense(width, 10)
    return builder.network((width,), 10)


def between(layers: int = 4, channels: int = 32, width: int = 1024) -> Network:
    """Convolutions, then wide dense layers: a part of each row's cost is shared by its batch."""
    builder = _Builder()
    builder.conv(1, channels)
    for _ in range(layers):
        builder.conv(channels, channels)
    builder.pool()
    builder.dense(channels, width)
    for _ in range(2):
        builder.dense(width, width)
    builder.dense(width, 10)
    return builder.network((1, 16, 16), 10)


def tiny_mlp() -> Network:
    """30 -> 64 -> 2: a pass takes microseconds, so that the server around it is the whole cost."""
    builder = _Builder()
    builder.dense(30, 64)
    builder.dense(64, 2, relu=False)
    return builder.network((30,), 2)


def photo_classifier(size: int, classes: int = 10) -> Network:
    """Coloured pictures of `size` x `size`, halved three times: a small classifier of photos."""
    builder = _Builder()
    for channels, to in ((3, 16), (16, 24), (24, 32)):
        builder.conv(channels, to, stride=2)
    builder.pool()
    builder.dense(32, classes)
    return builder.network((3, size, size), classes)


_ENCODER_CONFIG = """name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
input {{ name: "ids" data_type: TYPE_INT64 dims: [-1] }}
input {{ name: "mask" data_type: TYPE_INT64 dims: [-1] }}
output {{ name: "tokens" data_type: TYPE_FP32 dims: [-1, {width}] }}
dynamic_batching {{ }}
"""


def save_encoder(
    repository: Path, name: str, *, buckets: str = "", layers: int = 2, width: int = 128, max_batch_size: int = 8
) -> None:
    """Write the folder of a small transformer over tokens of any length: attention that masks, and dense layers."""
    folder = repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(1000, width)).astype(np.float32), "embedding"),
        numpy_helper.from_array(np.array([1], np.int64), "row"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
        numpy_helper.from_array(np.array(1e9, np.float32), "far"),
    ]
    nodes: list[Any] = []

    def add(kind: str, output: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def dense(output: str, source: str, inputs: int, outputs: int) -> str:
        weight = (rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w_{output}"))
        return add("MatMul", output, source, f"w_{output}")

    add("Cast", "kept", "mask", to=TensorProto.FLOAT)
    add("Sub", "less_one", "kept", "one")
    add("Mul", "far_off", "less_one", "far")
    add("Unsqueeze", "hide", "far_off", "row")
    state = add("Gather", "state", "embedding", "ids")
    for layer in range(layers):
        query, key, value = (dense(f"{part}{layer}", state, width, width) for part in ("query", "key", "value"))
        turned = add("Transpose", f"turned{layer}", key, perm=[0, 2, 1])
        scores = add("MatMul", f"scores{layer}", query, turned)
        shares = add("Softmax", f"shares{layer}", add("Add", f"masked{layer}", scores, "hide"), axis=-1)
        context = add("MatMul", f"context{layer}", shares, value)
        wide = add("Relu", f"wide{layer}", dense(f"up{layer}", context, width, 4 * width))
        state = add("Add", f"state{layer}", state, dense(f"down{layer}", wide, 4 * width, width))
    add("Identity", "tokens", state)
    dims = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(each, TensorProto.INT64, dims) for each in ("ids", "mask")],
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, [*dims, width])],
        weights,
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "1" / "model.onnx")
    config = _ENCODER_CONFIG.format(name=name, max_batch_size=max_batch_size, width=width)
    if buckets:
        config += f'parameters {{ key: "length_buckets" value {{ string_value: "{buckets}" }} }}\n'
    (folder / "config.pbtxt").write_text(config)
