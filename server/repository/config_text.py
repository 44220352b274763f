"""The text of a config.pbtxt, to and from the protobuf message."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor

from server.errors import ModelLoadFailed
from server.proto.triton import model_config_pb2 as pb

CONFIG_FILE = "config.pbtxt"

_UNKNOWN_FIELD = re.compile(r'Message type "inference\.([\w.]+)" has no field named "([^"]+)"')
_UNKNOWN_VALUE = re.compile(r'Enum type "inference\.([\w.]+)" has no value named (\w+)')
_TWICE = re.compile(r'should not have multiple "(\w+)" fields')


def parse_text(text: str, model_name: str) -> pb.ModelConfig:
    """The message of a config's text. Raises ModelLoadFailed that names line and column and gives a hint."""
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        where = CONFIG_FILE if line is None else f"{CONFIG_FILE}, line {line}, column {column}"
        raise ModelLoadFailed(model_name, where, _explain(str(error))) from error
    except ValueError as error:  # text that is not UTF-8 once its escapes are resolved
        raise ModelLoadFailed(model_name, CONFIG_FILE, f"is not valid text format: {error}") from error


def write_model_config(message: pb.ModelConfig, path: Path) -> None:
    """Write `message` as text. max_batch_size is written at 0 too: its absence makes Triton guess one."""
    head = pb.ModelConfig(name=message.name, platform=message.platform, backend=message.backend)
    rest = pb.ModelConfig()
    rest.CopyFrom(message)
    for name in ("name", "platform", "backend", "max_batch_size"):
        rest.ClearField(name)
    text = (
        text_format.MessageToString(head, as_utf8=True)
        + f"max_batch_size: {message.max_batch_size}\n"
        + text_format.MessageToString(rest, as_utf8=True)
    )
    path.write_text(text, encoding="utf-8")


def _explain(problem: str) -> str:
    """A parser's message without its position, with what was probably meant."""
    if match := _UNKNOWN_FIELD.search(problem):
        scope, name = match.groups()
        return f"'{name}' is not a field of {scope}{_nearest(name, _fields_of(scope))}"
    if match := _UNKNOWN_VALUE.search(problem):
        scope, name = match.groups()
        values = [value.name for value in pb.DESCRIPTOR.enum_types_by_name[scope].values] if "." not in scope else []
        return f"'{name}' is not a value of {scope}{_nearest(name, values)}"
    if match := _TWICE.search(problem):
        return f"'{match.group(1)}' is set twice"
    text = re.sub(r"^\d+:\d+ : ", "", problem)
    _, _, tail = text.rpartition("': ")
    return f"{(tail or text).rstrip('.')}; check the quotes, brackets and colons up to here"


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _fields_of(scope: str) -> list[str]:
    top, *nested = scope.split(".")
    descriptor: Descriptor = pb.DESCRIPTOR.message_types_by_name[top]
    for name in nested:
        descriptor = descriptor.nested_types_by_name[name]
    return [field.name for field in descriptor.fields]
