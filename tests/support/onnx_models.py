"""Small ONNX models and model folders, built where a test needs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from server.tensor import DATATYPES

WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)
"""`linear` gives ``x @ WEIGHTS``."""

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
"""By v2 datatype."""

CONFIG = """
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
input {{ name: "x" data_type: TYPE_FP32 dims: 3 }}
output {{ name: "y" data_type: TYPE_FP32 dims: 2 }}
{more}
"""


def save(
    path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Any = (), opset: int = 17
) -> Path:
    """Write a model of an opset that ONNX Runtime 1.19 reads, which goes to 21."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def tensor(name: str, shape: Sequence[Any] | None, datatype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, datatype, shape)


def linear(path: Path, *, batch: Any = "batch", weights: Any = WEIGHTS) -> Path:
    """``y = x @ weights``; x is [batch, 3], y [batch, 2]."""
    return save(
        path,
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        [tensor("x", [batch, len(weights)])],
        [tensor("y", [batch, weights.shape[1]])],
        [numpy_helper.from_array(weights, "W")],
    )


def linear_folder(
    root: Path, name: str, *, versions: Sequence[int] = (1,), max_batch_size: int = 8, more: str = ""
) -> Path:
    """A plain Triton model folder around `linear`; version v multiplies the weights by v."""
    folder = root / name
    for version in versions:
        linear(folder / str(version) / "model.onnx", weights=WEIGHTS * np.float32(version))
    (folder / "config.pbtxt").write_text(CONFIG.format(name=name, max_batch_size=max_batch_size, more=more))
    return folder


MASKED_CONFIG = """
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
input [
  {{ name: "x" data_type: TYPE_FP32 dims: [-1, 3] }},
  {{ name: "mask" data_type: TYPE_INT64 dims: -1 }}
]
output [
  {{ name: "mean" data_type: TYPE_FP32 dims: 3 }},
  {{ name: "tokens" data_type: TYPE_FP32 dims: [-1, 3] }}
]
dynamic_batching {{}}
parameters {{ key: "length_buckets" value {{ string_value: "{buckets}" }} }}
{more}
"""


def masked_mean(path: Path, *, masked: bool = True) -> Path:
    """``mean``: of the tokens of x that the mask has; ``tokens``: each less that mean. x is [batch, length, 3].

    Not `masked`, the mean is over all tokens, whatever the mask says: a model that must not be padded.
    """
    weight = ["c"] if masked else ["one"]
    nodes = [
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["c"]),
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["one"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        helper.make_node("Mul", ["x", *weight], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "length"], ["sum"], keepdims=1),
        helper.make_node("ReduceSum", [*weight, "length"], ["count"], keepdims=1),
        helper.make_node("Max", ["count", "least"], ["divisor"]),
        helper.make_node("Div", ["sum", "divisor"], ["each"]),
        helper.make_node("Squeeze", ["each", "length"], ["mean"]),
        helper.make_node("Sub", ["x", "each"], ["tokens"]),
    ]
    return save(
        path,
        nodes,
        [tensor("x", ["batch", "length", 3]), tensor("mask", ["batch", "length"], TensorProto.INT64)],
        [tensor("mean", ["batch", 3]), tensor("tokens", ["batch", "length", 3])],
        [
            numpy_helper.from_array(np.array([2], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "length"),
            numpy_helper.from_array(np.array([1e-9], np.float32), "least"),
        ],
    )


def masked_folder(
    root: Path, name: str, *, buckets: str = "4,8", max_batch_size: int = 8, masked: bool = True, more: str = ""
) -> Path:
    """A model folder around `masked_mean`, with length buckets."""
    folder = root / name
    masked_mean(folder / "1" / "model.onnx", masked=masked)
    text = MASKED_CONFIG.format(name=name, max_batch_size=max_batch_size, buckets=buckets, more=more)
    (folder / "config.pbtxt").write_text(text)
    return folder


IDENTITY_CONFIG = """
name: "{name}"
backend: "onnxruntime"
max_batch_size: 8
input [{{ name: "x" data_type: TYPE_FP32 dims: -1 }}, {{ name: "s" data_type: TYPE_STRING dims: -1 }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: -1 }}, {{ name: "t" data_type: TYPE_STRING dims: -1 }}]
dynamic_batching {{ }}
"""


def identity_folder(root: Path, name: str) -> Path:
    """A model folder whose outputs are its inputs: y is x, numbers, and t is s, text."""
    folder = root / name
    save(
        folder / "1" / "model.onnx",
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["s"], ["t"])],
        [tensor("x", ["batch", "n"]), tensor("s", ["batch", "m"], TensorProto.STRING)],
        [tensor("y", ["batch", "n"]), tensor("t", ["batch", "m"], TensorProto.STRING)],
    )
    (folder / "config.pbtxt").write_text(IDENTITY_CONFIG.format(name=name))
    return folder


TEXT_CONFIG = """
name: "{name}"
backend: "onnxruntime"
max_batch_size: 8
input [
  {{ name: "text_input" data_type: TYPE_STRING dims: 1 }},
  {{ name: "repeat" data_type: TYPE_INT64 dims: 1 }}
]
output [{{ name: "text_output" data_type: TYPE_STRING dims: 1 }}, {{ name: "twice" data_type: TYPE_INT64 dims: 1 }}]
dynamic_batching {{ }}
"""


def text_folder(root: Path, name: str) -> Path:
    """A model folder that takes text and gives text, with "> " before it; and twice a number, for numbers."""
    folder = root / name
    save(
        folder / "1" / "model.onnx",
        [
            helper.make_node("StringConcat", ["prompt", "text_input"], ["text_output"]),
            helper.make_node("Add", ["repeat", "repeat"], ["twice"]),
        ],
        [tensor("text_input", ["batch", 1], TensorProto.STRING), tensor("repeat", ["batch", 1], TensorProto.INT64)],
        [tensor("text_output", ["batch", 1], TensorProto.STRING), tensor("twice", ["batch", 1], TensorProto.INT64)],
        [helper.make_tensor("prompt", TensorProto.STRING, [1], [b"> "])],
        opset=20,
    )
    (folder / "config.pbtxt").write_text(TEXT_CONFIG.format(name=name))
    return folder


ACCUMULATOR_CONFIG = """
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
input {{ name: "x" data_type: TYPE_FP32 dims: 1 }}
output {{ name: "y" data_type: TYPE_FP32 dims: 1 }}
output {{ name: "told" data_type: TYPE_INT64 dims: 4 }}
sequence_batching {{
  {strategy}
  max_sequence_idle_microseconds: {idle_us}
  control_input {{ name: "START" control {{ kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] }} }}
  control_input {{ name: "END" control {{ kind: CONTROL_SEQUENCE_END int32_false_true: [0, 1] }} }}
  control_input {{ name: "READY" control {{ kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] }} }}
  control_input {{ name: "CORRID" control {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 }} }}
  state {{ input_name: "total_in" output_name: "total_out" data_type: TYPE_FP32 dims: 1 {initial} }}
}}
{more}
"""


def accumulator(path: Path, *, step: float = 1.0) -> Path:
    """``y``: the sum of ``step * x`` since the start of the sequence, kept in the state ``total``; ``told``: the values
    of START, END, READY and CORRID. The start does not reset the sum: that is the state's own beginning. Where x is 13
    it gathers outside of a table, which fails the pass."""
    nodes = [
        helper.make_node("Mul", ["x", "step"], ["scaled"]),
        helper.make_node("Cast", ["READY"], ["valid"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scaled", "valid"], ["counted"]),
        helper.make_node("Equal", ["x", "poison"], ["bad"]),
        helper.make_node("Cast", ["bad"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["nothing"]),
        helper.make_node("Add", ["counted", "nothing"], ["added"]),
        helper.make_node("Add", ["total_in", "added"], ["total_out"]),
        helper.make_node("Identity", ["total_out"], ["y"]),
        *(
            helper.make_node("Cast", [name], [f"{name}_told"], to=TensorProto.INT64)
            for name in ("START", "END", "READY")
        ),
        helper.make_node("Concat", ["START_told", "END_told", "READY_told", "CORRID"], ["told"], axis=-1),
    ]
    return save(
        path,
        nodes,
        [
            tensor("x", ["batch", 1]),
            tensor("START", ["batch", 1]),
            tensor("END", ["batch", 1], TensorProto.INT32),
            tensor("READY", ["batch", 1], TensorProto.BOOL),
            tensor("CORRID", ["batch", 1], TensorProto.INT64),
            tensor("total_in", ["batch", 1]),
        ],
        [tensor("y", ["batch", 1]), tensor("told", ["batch", 4], TensorProto.INT64), tensor("total_out", ["batch", 1])],
        [
            numpy_helper.from_array(np.array([step], np.float32), "step"),
            numpy_helper.from_array(np.array([13], np.float32), "poison"),
            numpy_helper.from_array(np.zeros(1, np.float32), "table"),
        ],
    )


def accumulator_folder(
    root: Path,
    name: str,
    *,
    versions: Sequence[int] = (1,),
    max_batch_size: int = 4,
    strategy: str = "direct {}",
    initial: str = "",
    idle_us: int = 60_000_000,
    more: str = "",
) -> Path:
    """A model folder around `accumulator`; version v adds v times what it is given. Triton's own idle time, a second,
    may be over before a busy machine goes on with a sequence."""
    folder = root / name
    for version in versions:
        accumulator(folder / str(version) / "model.onnx", step=float(version))
    text = ACCUMULATOR_CONFIG.format(
        name=name, max_batch_size=max_batch_size, strategy=strategy, initial=initial, idle_us=idle_us, more=more
    )
    (folder / "config.pbtxt").write_text(text)
    return folder


ECHO_CONFIG = """
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
input {{ name: "x" data_type: {datatype} dims: {dims} }}
output {{ name: "y" data_type: {datatype} dims: {dims} {labels} }}
{more}
"""


def echo_folder(
    root: Path,
    name: str,
    *,
    datatype: str = "FP32",
    dims: Sequence[int] = (-1,),
    max_batch_size: int = 8,
    labels: Sequence[str] = (),
    more: str = "dynamic_batching { }",
) -> Path:
    """A model folder whose output y is its input x, of one v2 datatype; `labels` are those of y's classes."""
    folder = root / name
    sizes = [None if size == -1 else size for size in dims]
    shape = ["batch", *sizes] if max_batch_size else sizes
    kind = ONNX_TYPES[datatype]
    save(
        folder / "1" / "model.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor("x", shape, kind)],
        [tensor("y", shape, kind)],
    )
    named = 'label_filename: "labels.txt"' if labels else ""
    text = ECHO_CONFIG.format(
        name=name,
        max_batch_size=max_batch_size,
        datatype=DATATYPES[datatype].config,
        dims=list(dims),
        labels=named,
        more=more if max_batch_size else "",
    )
    (folder / "config.pbtxt").write_text(text)
    if labels:
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    return folder


def folder_of(root: Path, name: str, config: str, nodes: Any, inputs: Any, outputs: Any, weights: Any = ()) -> Path:
    """A model folder of these nodes; `config` is what config.pbtxt says beside the name and the backend."""
    save(root / name / "1" / "model.onnx", nodes, inputs, outputs, weights)
    (root / name / "config.pbtxt").write_text(f'name: "{name}" backend: "onnxruntime" {config}')
    return root / name


def optional_folder(root: Path, *, default: bool = True, more: str = "") -> Path:
    """``y = x + bias``, where the bias is 1 if the model has a default for it."""
    return folder_of(
        root,
        "optional",
        f"""max_batch_size: 8 dynamic_batching {{ max_queue_delay_microseconds: 20000 }}
        input [ {{ name: "bias" data_type: TYPE_FP32 dims: 2 optional: true }},
                {{ name: "x" data_type: TYPE_FP32 dims: 2 }} ]
        output {{ name: "y" data_type: TYPE_FP32 dims: 2 }} {more}""",
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        [tensor("x", ["n", 2]), tensor("bias", ["m", 2])],
        [tensor("y", ["n", 2])],
        [numpy_helper.from_array(np.ones((1, 2), np.float32), "bias")] if default else (),
    )
