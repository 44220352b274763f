"""The one place where what gRPC and Triton say of a failed call becomes an error of ours.

A status may be Triton's own or the client library's, which tells only by its words whether the request can have
reached anybody. Where they leave it open, it can have.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from grpc import StatusCode
from grpc.aio import AioRpcError

from server.engine.triton.wire import Failed, Fate, Result
from server.errors import (
    CallExpired,
    Cancelled,
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
    # Triton's own, of a model that is being unloaded; where it is a step's, those before it may have been executed.
    r"|(?!.*in ensemble ).*(Request for unknown model: |is not ready)"
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
_FATES: dict[Fate, Callable[[str, str], ServingError]] = {
    Fate.UNSENT: lambda name, _: TritonUnreached(name, "it can't be reached"),
    Fate.DECLINED: lambda name, _: TritonDeclined(name, "it does not serve it now"),
    Fate.LOST: TritonLost,
    Fate.GIVEN_UP: lambda _name, _details: Cancelled(),
}
"""Of calls that the server did not end."""


_CODES = {code.value[0]: code for code in StatusCode}


class NotAnsweredError(Exception):
    """A call that has no answer. `fate` is known where the connection is ours, and the server did not end the call."""

    def __init__(self, code: StatusCode, details: str, fate: Fate | None = None) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details
        self.fate = fate


def checked(result: Result) -> bytes:
    """The message of a call by our own connection. Raises NotAnsweredError."""
    if isinstance(result, Failed):
        raise NotAnsweredError(StatusCode.UNAVAILABLE, result.why, result.fate)
    if result.status:
        raise NotAnsweredError(_CODES.get(result.status, StatusCode.UNKNOWN), result.details)
    return result.message


def of_grpcio(error: AioRpcError) -> NotAnsweredError:
    """The same of a call by grpcio, whose words alone tell what became of it."""
    return NotAnsweredError(error.code(), error.details() or "")


def control_failure_of(model_name: str, error: NotAnsweredError) -> ServingError:
    """Why a call about the model was refused. Triton says of most loads that fail that they are INTERNAL; whoever
    loads models is told what is wrong with them."""
    failure = failure_of(model_name, error)
    return TritonRefused(error.details) if isinstance(failure, EngineFailure) else failure


def failure_of(model_name: str, error: NotAnsweredError, took_us: int = 0) -> ServingError:
    """Why a call for the model was not answered, `took_us` after it was made."""
    code, details = error.code, error.details
    if error.fate is not None:
        return _FATES[error.fate](model_name, details)
    if code is StatusCode.UNAVAILABLE:
        return _unavailable(model_name, details, took_us)
    # Cancelled, and not by us: whoever gives a call up does not hear of it here.
    if code is StatusCode.CANCELLED or (code is StatusCode.INTERNAL and _BROKEN.match(details)):
        return TritonLost(model_name, details)
    if code in _SAID:
        return _SAID[code](details)
    return EngineFailure(model_name, f"{code.name}: {details}")


def _unavailable(model_name: str, details: str, took_us: int) -> ServingError:
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
    return TritonLost(model_name, details) if _BROKEN.match(details) else TritonNotServing(details)


def memory_forgotten(details: str) -> bool:
    """Whether it did not execute the request because it does not know the shared memory with the inputs."""
    return _FORGOTTEN.match(details) is not None


def finished_with(error: BaseException) -> bool:
    """Whether a call that ended so is one that Triton has ended: it reads no input of the request any more."""
    return isinstance(error, ServingError) and not isinstance(error, CallExpired | TritonLost)


def probe_problem(error: TimeoutError | ServingError) -> str:
    """Why a probe failed, for the log: in the words of whoever noticed, which name no model."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    cause = error.__cause__
    return cause.details if isinstance(cause, NotAnsweredError) and cause.details else str(error)
