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
        specs[message.name] = TensorSpec(message.name, _datatype(path, message, refuse), _dims(path, message, refuse))
    if not specs:
        refuse(kind, f"a model needs at least one {kind}; write its name, data_type and dims")
    return tuple(specs.values())


def _datatype(path: str, message: Any, refuse: Refuse) -> str:
    name = pb.DataType.Name(message.data_type) if message.data_type in pb.DataType.values() else str(message.data_type)
    if name == "TYPE_BF16":
        refuse(f"{path}.data_type", "TYPE_BF16 has no numpy type; export the model with FP32 inputs and outputs")
    if name not in _DATATYPE_OF:
        problem = "is not set" if message.data_type == pb.TYPE_INVALID else f"{name} is not a datatype"
        refuse(f"{path}.data_type", f"{problem}; write one of {', '.join(_DATATYPE_OF)}")
    return _DATATYPE_OF[name]


def _dims(path: str, message: Any, refuse: Refuse) -> tuple[int, ...]:
    dims = tuple(message.dims)
    if not dims:
        refuse(f"{path}.dims", "is not set; write the shape without the batch dimension, -1 for any size")
    wrong = [size for size in dims if size < 1 and size != -1]
    if wrong:
        refuse(f"{path}.dims", f"has {wrong[0]}; a dimension is 1 or more, or -1 for any size")
    if getattr(message, "format", pb.ModelInput.FORMAT_NONE) != pb.ModelInput.FORMAT_NONE and len(dims) != 3:
        refuse(f"{path}.format", f"needs 3 dims (a picture without the batch dimension), there are {len(dims)}")
    return dims
