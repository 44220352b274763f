"""gRPC messages that no client should send: every method's good message, changed field by field or byte by byte.

Whatever comes, the server answers: not with a fault of its own (INTERNAL, UNKNOWN), not never, and it is as large
afterwards as it was before.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from server.transport.methods import METHODS, Method

Code = grpc.StatusCode

FAULTS = {Code.INTERNAL, Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE}
_TIMEOUT_S = 20.0
_DEEPEST = 6
_AT_ONCE = 16
_MODELS = ("breast_cancer", "digits", "fraud")
_TEXTS = (
    *("", "x", *_MODELS, "1", "99", "abc", "\0", "é" * 100, "A" * 5000, "features", "FP32", "INT64", "BYTES", "BOOL"),
    *("BF16", "/x", "../x", "OFF", "TIMESTAMPS", "100000000000000000000", "-1", "ISO8601", "logits", "probabilities"),
)
_KEYS = (
    *("timeout", "priority", "sequence_id", "sequence_start", "explain", "shared_memory_region", "classification"),
    *(
        "shared_memory_byte_size",
        "shared_memory_offset",
        "binary_data_size",
        "trace_level",
        "trace_rate",
        "log_frequency",
    ),
    *("log_frequency", "log_info", "log_verbose_level", "log_format", "config", "unload_dependents", ""),
)
_NUMBERS = (0, 1, 2, 3, 7, 8, 30, 64, 127, 128, 255, 1000, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1)
_FLOATS = (0.0, -0.0, 1.5, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324)


def good(method: Method) -> Message:
    """A message of the method that is answered with OK."""
    name = method.name.rpartition("/")[2]
    message = method.request()
    if name in ("ModelInfer", "ModelStreamInfer"):
        message.model_name = _MODELS[0]
        message.inputs.add(name="features", datatype="FP32", shape=[1, 30])
        message.raw_input_contents.append(np.zeros(30, "<f4").tobytes())
    elif name in ("Predict", "PredictStream"):
        message.model_name = _MODELS[0]
        message.inputs.add().values.extend([0.0] * 30)
    elif name == "ServerReflectionInfo":
        message.file_containing_symbol = "inference.GRPCInferenceService"
    elif name in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        message.name = _MODELS[0]
    return message


class Mutator:
    """Messages of one method, changed at random."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def message(self, method: Method) -> bytes:
        message = good(method)
        if self._rng.random() < 0.75:
            for _ in range(self._rng.randint(1, 4)):
                self._change(message)
        data = message.SerializeToString()
        return self._bytes(data) if self._rng.random() < 0.4 else data

    def _change(self, message: Message, depth: int = 0) -> None:
        if depth > _DEEPEST:
            return
        inner = [value for field, value in message.ListFields() if field.message_type is not None]
        if inner and self._rng.random() < 0.6:
            chosen = self._rng.choice(inner)
            held = chosen if isinstance(chosen, Message) else _values(chosen)
            if isinstance(held, Message):
                self._change(held, depth + 1)
                return
            if held:
                self._change(self._rng.choice(held), depth + 1)
                return
        fields = message.DESCRIPTOR.fields
        if fields:
            self._set(message, self._rng.choice(fields), depth)

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        value = getattr(message, field.name)
        if self._rng.random() < 0.2:
            message.ClearField(field.name)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._set_entry(value, field.message_type.fields_by_name["value"], depth)
        elif isinstance(value, Message):
            value.SetInParent()
            self._change(value, depth + 1)
        elif isinstance(field.default_value, list):
            for _ in range(self._rng.choice((1, 1, 2, 1 if depth else 50))):
                if field.message_type is not None:
                    self._change(value.add(), depth + 1)
                else:
                    self._try(lambda: value.append(self._value(field)))
        else:
            self._try(lambda: setattr(message, field.name, self._value(field)))

    def _set_entry(self, entries: Any, value: FieldDescriptor, depth: int) -> None:
        key = self._rng.choice(_KEYS)
        if value.message_type is not None:
            self._change(entries[key], depth + 1)
        else:
            self._try(lambda: entries.__setitem__(key, self._value(value)))

    def _value(self, field: FieldDescriptor) -> Any:
        rng = self._rng
        if field.enum_type is not None:
            return rng.choice([value.number for value in field.enum_type.values] + [99])
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return rng.random() < 0.5
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return rng.choice(_FLOATS)
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return rng.choice((b"", b"\0", rng.randbytes(rng.randint(1, 200)), bytes(120), b"\xff" * 120))
            case FieldDescriptor.CPPTYPE_STRING:
                return rng.choice(_TEXTS)
        return rng.choice(_NUMBERS) * rng.choice((1, 1, 1, -1))

    def _try(self, change: Callable[[], object]) -> None:
        with suppress(ValueError, TypeError, OverflowError):  # Out of the field's range: then it stays as it is.
            change()

    def _bytes(self, data: bytes) -> bytes:
        rng, changed = self._rng, bytearray(data or b"\x0a\x01x")
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(changed)) if changed else 0
            match rng.randrange(5):
                case 0 if changed:
                    changed[at] = rng.randrange(256)
                case 1 if changed:
                    changed[at] ^= 1 << rng.randrange(8)
                case 2:
                    del changed[at : at + rng.randint(1, 20)]
                case 3:
                    changed[at:at] = rng.randbytes(rng.randint(1, 20))
                case _:
                    changed += changed[at : at + rng.randint(1, 100)]
        return bytes(changed)


def _values(container: Any) -> list[Message]:
    """The messages of a repeated field or of a map."""
    values = list(container.values()) if hasattr(container, "values") else list(container)
    return [value for value in values if isinstance(value, Message)]


CONTROL_IS_OFF = "explicit model load / unload is not allowed"
"""What a server is right to say, as UNAVAILABLE or 503, where it was started without control of its models."""


@dataclass
class Tally:
    codes: Counter[Code] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """Method, code, text and message of each answer that is a fault of the server."""


def attack(address: str, messages: Iterator[tuple[Method, list[bytes]]], tally: Tally) -> None:
    """Send the messages, some at a time; each call ends within its time."""
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(_AT_ONCE) as threads:
        for method, parts, code, text in threads.map(lambda one: (*one, *_call(channel, *one)), messages):
            tally.codes[code] += 1
            if code in FAULTS and CONTROL_IS_OFF not in text:
                tally.faults.append(f"{method.name} {code.name} {text!r} {[part.hex() for part in parts]}")


def _call(channel: grpc.Channel, method: Method, parts: list[bytes]) -> tuple[Code, str]:
    # Not by grpc.aio: of a call that is ended while it is written to, it tells an error of its own.
    try:
        if not method.streams:
            channel.unary_unary(method.name)(parts[0], timeout=_TIMEOUT_S)
            return Code.OK, ""
        call = channel.stream_stream(method.name)(iter(parts), timeout=_TIMEOUT_S)
        for _ in call:
            if method.name.endswith("Watch"):  # It goes on for ever.
                call.cancel()
                break
    except grpc.RpcError as error:
        return error.code(), str(error.details())
    return Code.OK, ""


def made_up(seed: int, count: int) -> Iterator[tuple[Method, list[bytes]]]:
    """So many calls, the methods in turn; a call with streams has some messages."""
    mutator, rng = Mutator(seed), random.Random(seed)
    for index in range(count):
        method = METHODS[index % len(METHODS)]
        yield method, [mutator.message(method) for _ in range(rng.randint(1, 4) if method.streams else 1)]


def resident_bytes(pid: int) -> int:
    """Source: proc(5), statm."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
