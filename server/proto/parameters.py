"""A value as v2's InferParameter. Source: grpc_service.proto."""

from __future__ import annotations

from typing import Any

_INT64_MAX = 2**63 - 1


def set_parameter(parameter: Any, value: bool | int | float | str) -> None:
    """Choose the member of the message that fits the value."""
    match value:
        case bool():
            parameter.bool_param = value
        case int() if value > _INT64_MAX:
            parameter.uint64_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case _:
            parameter.string_param = value
