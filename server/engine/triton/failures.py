"""The one place where what gRPC and Triton say of a failed call becomes an error of ours.

A status may be Triton's own or the client library's, which tells only by its words whether the request can have
reached anybody. Where they leave it open, it can have.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from grpc import StatusCode

from server.errors import (
    CallExpired,
    DeadlineExceeded,
    EngineFailure,
    ServingError,
    TritonCannot,
    TritonDeclined,
    TritonExhausted,
    TritonHasNo,
    TritonLost,
    TritonNotServing,
    TritonQueueFull,
    TritonRefused,
    TritonUnreached,
)

_NO_CONNECTION = "failed to connect to all addresses"
"""Nothing was ever sent."""
_STOPPING = "Server is stopping to serve requests"
_DECLINED = re.compile(
    r"Stream removed \(RST_STREAM .*error code 7"  # REFUSED_STREAM: "not processed", RFC 9113, 8.7.
    r"|Stream removed \(GOAWAY received"  # Its number is above the last one that the server took, RFC 9113, 6.8.
    r"|.*(has no available versions|is not ready)"  # Triton's own, of a model that is being unloaded.
)
_QUEUE_FULL = "Exceeds maximum queue size"
_QUEUE_TIMEOUT = "Request timeout expired"
"""Of Triton's scheduler, of a request that it did not execute."""
_FORGOTTEN = re.compile(r".*Unable to find (system )?shared memory region")
"""Of Triton, of a request that refers to memory which it does not know; it is not executed."""
_BROKEN = re.compile(r"Stream removed|Socket closed|Connection reset|Broken pipe|Cancelling all|.*(GOAWAY|keepalive)")
"""Of gRPC: the connection ended under the call."""

_SAID: dict[StatusCode, Callable[[str], ServingError]] = {
    StatusCode.INVALID_ARGUMENT: TritonRefused,
    StatusCode.ALREADY_EXISTS: TritonRefused,
    StatusCode.FAILED_PRECONDITION: TritonRefused,
    StatusCode.OUT_OF_RANGE: TritonRefused,
    StatusCode.NOT_FOUND: TritonHasNo,
    StatusCode.UNAVAILABLE: TritonNotServing,
    StatusCode.UNIMPLEMENTED: TritonCannot,
    StatusCode.RESOURCE_EXHAUSTED: TritonExhausted,
    StatusCode.DEADLINE_EXCEEDED: lambda _: CallExpired(),
}
"""In Triton's words. What is not here is a failure of the model's, whose text stays in the log."""


def control_failure_of(model_name: str, code: StatusCode, details: str) -> ServingError:
    """Why a call about the model was refused. Triton says of most loads that fail that they are INTERNAL; whoever
    loads models is told what is wrong with them."""
    failure = failure_of(model_name, code, details)
    return TritonRefused(details) if isinstance(failure, EngineFailure) else failure


def failure_of(model_name: str, code: StatusCode, details: str, took_us: int = 0) -> ServingError:
    """Why a call for the model was not answered, `took_us` after it was made."""
    if code is StatusCode.UNAVAILABLE:
        if details.startswith(_NO_CONNECTION):
            return TritonUnreached(model_name, "it can't be reached")
        if _STOPPING in details:
            return TritonUnreached(model_name, "it is stopping")
        if _DECLINED.match(details):
            return TritonDeclined(model_name, "it does not serve it now")
        if _QUEUE_FULL in details:
            return TritonQueueFull(model_name)
        if _QUEUE_TIMEOUT in details:
            return DeadlineExceeded(model_name, took_us)
        if _BROKEN.match(details):
            return TritonLost(model_name, details)
    # Cancelled, and not by us: whoever gives a call up does not hear of it here.
    if code is StatusCode.CANCELLED or (code is StatusCode.INTERNAL and _BROKEN.match(details)):
        return TritonLost(model_name, details)
    if code in _SAID:
        return _SAID[code](details)
    return EngineFailure(model_name, f"{code.name}: {details}")


def memory_forgotten(details: str) -> bool:
    """Whether it did not execute the request because it does not know the shared memory with the inputs."""
    return _FORGOTTEN.match(details) is not None


def finished_with(error: BaseException) -> bool:
    """Whether a call that ended so is one that Triton has ended: it reads no input of the request any more."""
    return isinstance(error, ServingError) and not isinstance(error, CallExpired | TritonLost)
