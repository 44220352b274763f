"""A model file's own tensors, held against what its config says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from server.engine.base import EngineSpec
from server.errors import ModelLoadFailed
from server.tensor import TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


_OPTIONAL = "optional("
"""How the type of an input begins that may be left out: ``optional(tensor(float))``."""


class NodeArg(Protocol):
    """What ONNX Runtime says of a tensor: `shape` has an int, or a name or None for any size."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> Sequence[int | str | None]: ...


def check_tensors(
    spec: EngineSpec, inputs: Sequence[NodeArg], outputs: Sequence[NodeArg], defaults: Sequence[NodeArg] = ()
) -> None:
    """Names, datatypes and shapes must agree; outputs that the config leaves out are not computed.

    `defaults` are inputs for which the model has a value of its own; the config may leave them out.

    Raises:
        ModelLoadFailed: names the tensor, what the config says and what the model has.
    """
    _check_side(spec, "input", spec.inputs, [*inputs, *defaults])
    _check_side(spec, "output", spec.outputs, outputs)
    configured = {tensor.name: (index, tensor) for index, tensor in enumerate(spec.inputs)}
    for node in inputs:
        if node.type.startswith(_OPTIONAL):
            continue
        index, tensor = configured.get(node.name, (0, None))
        if tensor is not None and tensor.optional:
            problem = f"'{node.name}' must be given to the model: it has no default for it, and no optional type"
            _refuse(spec, f"input[{index}].optional", problem)
        if tensor is None:
            shape = [size if isinstance(size, int) else -1 for size in node.shape]
            _refuse(spec, "input", f"the model's input '{node.name}' ({node.type}, {shape}) is not in the config")


def _check_side(spec: EngineSpec, kind: str, tensors: Sequence[TensorSpec], nodes: Sequence[NodeArg]) -> None:
    by_name = {node.name: node for node in nodes}
    for index, tensor in enumerate(tensors):
        field = spec.fields.get((kind, tensor.name))
        where = field or f"{kind}[{index}]"
        node = by_name.get(tensor.name)
        if node is None:
            names = ", ".join(f"'{name}'" for name in by_name)
            _refuse(spec, field or f"{where}.name", f"the model has no {kind} '{tensor.name}'; it has {names}")
            continue
        datatype = _DATATYPES.get(node.type.removeprefix(_OPTIONAL).replace("))", ")"))
        if datatype is None:
            hint = "; export with zipmap off" if node.type.startswith(("seq", "map")) else ""
            _refuse(spec, where, f"'{tensor.name}' is {node.type} in the model, which can't be served{hint}")
            continue
        # An output of [] is a scalar or of unknown shape; which one, the first forward pass shows.
        unknown = kind == "output" and not node.shape
        problem = "" if unknown else _shape_problem(spec, tensor, node)
        says = f"config.pbtxt says {kind} '{tensor.name}' is {tensor.datatype} {list(tensor.dims)}"
        if datatype != tensor.datatype or problem == "dims":
            _refuse(spec, where, f"{says}, the model has {datatype} {_dims(spec, node)}")
        elif problem:
            _refuse(spec, where, f"{says} with max_batch_size {spec.max_batch_size}, {problem}")


def _shape_problem(spec: EngineSpec, tensor: TensorSpec, node: NodeArg) -> str:
    """``dims`` if the sizes differ, else what is wrong with the batch dimension, else nothing."""
    shape = list(node.shape)
    if spec.max_batch_size:
        if len(shape) != len(tensor.dims) + 1:
            return (
                f"the model has {len(shape)} dimensions {_whole(node)} and must have {len(tensor.dims) + 1}: "
                f"the batch dimension comes first and is not part of dims"
            )
        if isinstance(shape[0], int):
            return (
                f"the model's batch dimension is fixed to {shape[0]}; export it with a dynamic one, or set "
                f"max_batch_size: 0 and write the whole shape as dims"
            )
        shape = shape[1:]
    if len(shape) != len(tensor.dims):
        return "dims"
    # A size that the model leaves open may be narrowed by the config; the reverse would promise too much.
    differs = any(isinstance(has, int) and has != says for has, says in zip(shape, tensor.dims, strict=True))
    return "dims" if differs else ""


def _whole(node: NodeArg) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in node.shape]


def _dims(spec: EngineSpec, node: NodeArg) -> list[int]:
    return _whole(node)[1:] if spec.max_batch_size else _whole(node)


def _refuse(spec: EngineSpec, where: str, problem: str) -> None:
    raise ModelLoadFailed(spec.model_name, f"config.pbtxt: {where}", problem)
