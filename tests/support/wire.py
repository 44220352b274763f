"""ModelInfer messages as our own reader reads them, and as protobuf does: both as plain values, to be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.errors import ServingError
from server.transport.codec import v2_grpc
from server.transport.codec.wire_request import Forms
from server.transport.methods import METHODS
from server.types import InferRequest, Outcome

[INFER] = [method for method in METHODS if method.name.endswith("/ModelInfer")]

Read = tuple[Any, ...]


def _ignore(_request: InferRequest, _outcome: Outcome) -> None:
    """Nobody waits in these tests."""


def fields(request: InferRequest) -> Read:
    inputs = [(t.name, t.datatype, t.shape, bytes(t.data)) for t in request.inputs]
    said = request.model_name, request.model_version, request.id, inputs, list(request.outputs)
    return *said, dict(request.parameters), request.received_ns, request.deadline_ns


def outcome(read: Callable[[], InferRequest]) -> Read:
    """Whatever the one who sent the message hears of it."""
    try:
        return fields(read())
    except ServingError as error:
        return type(error), getattr(error, "field", None), error.public_message


def by_protobuf(data: bytes) -> Read:
    return outcome(lambda: v2_grpc.decode_infer(INFER.parse(data), on_settle=_ignore, received_ns=7, deadline_ns=9))


def by_wire(forms: Forms, data: bytes | memoryview) -> Read:
    return outcome(lambda: forms.decode(data, on_settle=_ignore, received_ns=7, deadline_ns=9))


def by_frame(forms: Forms, data: bytes) -> Read:
    """The same of the message behind gRPC's prefix."""

    def read() -> InferRequest:
        request = forms.decode_framed(b"\0" + len(data).to_bytes(4) + data, _ignore, 7, 9, None)
        assert request is not None
        return request

    return outcome(read)
