"""`input` and `output` of config.pbtxt: names, datatypes and shapes of a model's tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from server.proto.triton import model_config_pb2 as pb
from server.repository.refuse import Refuse
from server.tensor import DATATYPES, TensorSpec

_DATATYPE_OF = {d.config: d.name for d in DATATYPES.values()}


def read_tensors(kind: str, messages: Iterable[Any], refuse: Refuse) -> tuple[TensorSpec, ...]:
    specs: dict[str, TensorSpec] = {}
    for index, message in enumerate(messages):
        path = f"{kind}[{index}]"
        if not message.name:
            refuse(f"{path}.name", "is empty")
        if message.name in specs:
            refuse(f"{path}.name", f"'{message.name}' is there twice")
        dims = _dims(path, message, refuse)
        specs[message.name] = TensorSpec(
            message.name,
            _datatype(path, message, refuse),
            dims,
            optional=kind == "input" and message.optional,
            reshape=_reshape(path, message, dims, refuse),
        )
    if not specs:
        refuse(kind, f"a model needs at least one {kind}; write its name, data_type and dims")
    if all(spec.optional for spec in specs.values()):
        refuse("input", "all are optional; a request needs one that is always there")
    return tuple(specs.values())


def _datatype(path: str, message: Any, refuse: Refuse) -> str:
    name = pb.DataType.Name(message.data_type) if message.data_type in pb.DataType.values() else str(message.data_type)
    if name not in _DATATYPE_OF:
        problem = "is not set" if message.data_type == pb.TYPE_INVALID else f"{name} is not a datatype"
        refuse(f"{path}.data_type", f"{problem}; write one of {', '.join(_DATATYPE_OF)}")
    return _DATATYPE_OF[name]


def _dims(path: str, message: Any, refuse: Refuse) -> tuple[int, ...]:
    dims = tuple(message.dims)
    wrong = [size for size in dims if size < 1 and size != -1]
    if wrong:
        refuse(f"{path}.dims", f"has {wrong[0]}; a dimension is 1 or more, or -1 for any size")
    if getattr(message, "format", pb.ModelInput.FORMAT_NONE) != pb.ModelInput.FORMAT_NONE and len(dims) != 3:
        refuse(f"{path}.format", f"needs 3 dims (a picture without the batch dimension), there are {len(dims)}")
    return dims


def _reshape(path: str, message: Any, dims: tuple[int, ...], refuse: Refuse) -> tuple[int, ...] | None:
    """The model's own dims, None where they are `dims`. An empty shape is one: that of a scalar for each row."""
    if not message.HasField("reshape"):
        return None
    shape = tuple(message.reshape.shape)
    wrong = [size for size in shape if size < 1 and size != -1]
    if wrong:
        refuse(f"{path}.reshape.shape", f"has {wrong[0]}; a dimension is 1 or more, or -1 for any size")
    if _elements_between(shape) != _elements_between(dims):
        problem = f"is {list(shape)} and dims are {list(dims)}: before, between and behind each -1 both must have"
        refuse(f"{path}.reshape.shape", f"{problem} the same number of elements")
    return shape


def _elements_between(dims: tuple[int, ...]) -> list[int]:
    """Elements of the pieces into which the sizes of -1 divide `dims`."""
    pieces = [1]
    for size in dims:
        if size == -1:
            pieces.append(1)
        else:
            pieces[-1] *= size
    return pieces
