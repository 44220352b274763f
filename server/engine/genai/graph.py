"""A decoder's graph, changed so that its head gives logits for one token of each row alone.

The builder's graph gives them for every token of a prompt, where the last one's are wanted: of a small model that is
most of a prompt's pass, and of a large vocabulary much memory. Between the last layer and the head the wanted tokens
are gathered; numbers stay the same. A file is read by a part of ONNX's schema, without the package: all that it does
not name is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

LOGITS_AT = "forwardpass_logits_at"
"""The input that the graph comes to have: INT64, [rows, 1]; of each row the token behind which logits are wanted,
counted through all rows. The logits are [rows, 1, vocabulary]."""
_HIDDEN, _WANTED = "forwardpass_hidden", "forwardpass_wanted"

_PARTS: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "Model": {"graph": (7, "Graph")},
    "Graph": {"node": (1, "Node*"), "input": (11, "Value*"), "output": (12, "Value*")},
    "Node": {
        "input": (1, "string*"),
        "output": (2, "string*"),
        "name": (3, "string"),
        "op_type": (4, "string"),
        "attribute": (5, "Attribute*"),
    },
    "Attribute": {"name": (1, "string"), "i": (3, "int64"), "type": (20, "int32")},
    "Value": {"name": (1, "string"), "type": (2, "Type")},
    "Type": {"tensor_type": (1, "TensorType")},
    "TensorType": {"elem_type": (1, "int32"), "shape": (2, "Shape")},
    "Shape": {"dim": (1, "Dim*")},
    "Dim": {"dim_value": (1, "int64"), "dim_param": (2, "string")},
}
"""Messages, and their fields by number and type; `*`: repeated. Source: onnx/onnx.proto."""
_FIELD = descriptor_pb2.FieldDescriptorProto
_OPTIONAL, _REPEATED, _MESSAGE = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED, _FIELD.TYPE_MESSAGE
_SCALARS = {"string": _FIELD.TYPE_STRING, "int64": _FIELD.TYPE_INT64, "int32": _FIELD.TYPE_INT32}
_INT, _INT64 = 2, 7
"""AttributeProto.INT, TensorProto.INT64."""
_HEADS = ("MatMul", "MatMulNBits")
_BEHIND = ("Add", "Cast", "Div", "Mul", "Tanh", "Where")
"""What may stand between the head and the logits: a bias, a scale, a mask, a soft cap, a cast."""


def _model_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="onnx_part.proto", package="forwardpass.onnx", syntax="proto2")
    for name, fields in _PARTS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            repeated, plain = kind.endswith("*"), kind.removesuffix("*")
            made: Any = message.field.add(name=field, number=number, label=_REPEATED if repeated else _OPTIONAL)
            made.type = _SCALARS.get(plain, _MESSAGE)
            if plain not in _SCALARS:
                made.type_name = f".forwardpass.onnx.{plain}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("forwardpass.onnx.Model"))


_Model = _model_class()


def with_chosen_logits(file: bytes, logits: str) -> bytes:
    """The model with `LOGITS_AT`; `logits` is its output.

    Raises ValueError: it is no model, or not one whose logits come from a head that is known.
    """
    model = _Model()
    try:
        model.ParseFromString(file)
    except DecodeError as error:
        raise ValueError("it is no ONNX") from error
    graph = model.graph
    hidden = _before_head(graph, logits)
    first = next(index for index, node in enumerate(graph.node) if hidden in node.input)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == hidden:
                node.input[index] = _WANTED
    nodes = [*graph.node]
    flatten = type(nodes[0])(op_type="Flatten", name=_HIDDEN, input=[hidden], output=[_HIDDEN])
    flatten.attribute.add(name="axis", i=2, type=_INT)
    gather = type(nodes[0])(op_type="Gather", name=_WANTED, input=[_HIDDEN, LOGITS_AT], output=[_WANTED])
    del graph.node[:]
    graph.node.extend([*nodes[:first], flatten, gather, *nodes[first:]])
    at = graph.input.add(name=LOGITS_AT).type.tensor_type
    at.elem_type = _INT64
    at.shape.dim.add(dim_param="batch_size")
    at.shape.dim.add(dim_value=1)
    for output in graph.output:
        if output.name == logits:
            output.type.tensor_type.ClearField("shape")
    return bytes(model.SerializeToString())


def _before_head(graph: Any, logits: str) -> str:
    """What the head of the logits is fed with: the last layer's output, of all tokens."""
    made_by = {name: node for node in graph.node for name in node.output}
    node = made_by.get(logits)
    while node is not None and node.op_type in _BEHIND:
        node = next((made_by[name] for name in node.input if name in made_by), None)
    if node is None or node.op_type not in _HEADS:
        raise ValueError(f"'{logits}' does not come from a head of {' or '.join(_HEADS)}")
    hidden = str(node.input[0])
    if hidden in made_by and made_by[hidden].op_type in ("Gather", "Unsqueeze"):
        raise ValueError(f"'{logits}' are of the last token alone; build it without prune_lm_head")
    return hidden
