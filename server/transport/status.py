"""The one table from an error's `Code` to HTTP and gRPC, and what a client is told of an error.

`failure_of` is also the one place where our own faults are logged: once, where an error becomes a status.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration

from server.errors import Code, ServingError
from server.observability.whose import Asker, about, asker_of

logger = logging.getLogger(__name__)

INTERNAL_MESSAGE = "internal error"
STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that holds a serialised google.rpc.Status. Source: gRPC "Richer error model"."""

_RETRY_INFO_URL = "type.googleapis.com/google.rpc.RetryInfo"


class GrpcStatus(IntEnum):
    """gRPC's own numbers and names, those in use here. Source: gRPC, doc/statuscodes.md."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Status(NamedTuple):
    http: int
    grpc: GrpcStatus


STATUS: Mapping[Code, Status] = {
    Code.INVALID_ARG: Status(400, GrpcStatus.INVALID_ARGUMENT),
    Code.UNAUTHENTICATED: Status(401, GrpcStatus.UNAUTHENTICATED),
    Code.PERMISSION: Status(403, GrpcStatus.PERMISSION_DENIED),
    Code.NOT_FOUND: Status(404, GrpcStatus.NOT_FOUND),
    Code.EXISTS: Status(409, GrpcStatus.ALREADY_EXISTS),
    Code.TOO_LARGE: Status(413, GrpcStatus.RESOURCE_EXHAUSTED),
    Code.EXHAUSTED: Status(429, GrpcStatus.RESOURCE_EXHAUSTED),
    Code.CANCELLED: Status(499, GrpcStatus.CANCELLED),
    Code.INTERNAL: Status(500, GrpcStatus.INTERNAL),
    Code.UNSUPPORTED: Status(501, GrpcStatus.UNIMPLEMENTED),
    Code.UNAVAILABLE: Status(503, GrpcStatus.UNAVAILABLE),
    Code.DEADLINE: Status(504, GrpcStatus.DEADLINE_EXCEEDED),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """All that leaves the server of an error. `retry_after_ms` is 0 where there is nothing to wait for."""

    code: Code
    message: str
    retry_after_ms: int = 0

    @property
    def http(self) -> int:
        return STATUS[self.code].http

    @property
    def grpc(self) -> GrpcStatus:
        return STATUS[self.code].grpc

    @property
    def retry_after_s(self) -> int:
        """Whole seconds for HTTP's Retry-After, rounded up so that nobody comes back too early."""
        return -(-self.retry_after_ms // 1000)


def failure_of(error: BaseException) -> Failure:
    """What the client is told of `error`. An error of ours is logged here; one shared by a batch, once."""
    failure = Failure(Code.INTERNAL, INTERNAL_MESSAGE)
    request = asker_of(error)
    if isinstance(error, ServingError):
        failure = Failure(error.code, error.public_message, error.retry_after_ms)
    if failure.code is Code.INTERNAL:
        _log_once(error, request)
    elif logger.isEnabledFor(logging.DEBUG):
        logger.debug("told a client: %s: %s", failure.code, failure.message, extra=about(request))
    # Its frames hold whoever waited for it, who hold it: such a ring would wait for the garbage collector.
    error.__traceback__ = None
    return failure


def status_details(failure: Failure) -> bytes:
    """A google.rpc.Status with a RetryInfo, for `STATUS_DETAILS_KEY`; empty if there is nothing to wait for.

    Written field by field: the googleapis descriptors are no dependency of the server.
    Source: google/rpc/status.proto, google/rpc/error_details.proto (RetryInfo.retry_delay = 1).
    """
    if failure.retry_after_ms <= 0:
        return b""
    delay = Duration()
    delay.FromMilliseconds(failure.retry_after_ms)
    detail = Any(type_url=_RETRY_INFO_URL, value=_bytes_field(1, delay.SerializeToString()))
    # A gRPC code is below 128, so its varint is the one byte itself.
    return (
        b"\x08"
        + bytes((failure.grpc,))
        + _bytes_field(2, failure.message.encode())
        + _bytes_field(3, detail.SerializeToString())
    )


def _bytes_field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    length, varint = len(payload), bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return bytes((number << 3 | 2,)) + varint + payload


def _log_once(error: BaseException, request: Asker | None) -> None:
    """Log with the traceback. A failed batch settles all of its requests with one and the same error."""
    seen = vars(error)
    if seen.get("logged"):
        return
    seen["logged"] = True
    # %r and not %s: the text of an EngineFailure is the public one, its detail is in its arguments.
    logger.error("%r", error, exc_info=error, extra=about(request))
