"""The one error that a client raises for a call, and how a status of either wire becomes its code."""

from __future__ import annotations

from collections.abc import Mapping

from server.errors import Code

HTTP_CODES: Mapping[int, Code] = {
    400: Code.INVALID_ARG,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION,
    404: Code.NOT_FOUND,
    409: Code.EXISTS,
    408: Code.DEADLINE,
    413: Code.TOO_LARGE,
    429: Code.EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNSUPPORTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE,
}
"""Statuses of the server, and those that a proxy before it answers in its place."""

GRPC_CODES: Mapping[str, Code] = {
    "INVALID_ARGUMENT": Code.INVALID_ARG,
    "UNAUTHENTICATED": Code.UNAUTHENTICATED,
    "PERMISSION_DENIED": Code.PERMISSION,
    "NOT_FOUND": Code.NOT_FOUND,
    "ALREADY_EXISTS": Code.EXISTS,
    "RESOURCE_EXHAUSTED": Code.EXHAUSTED,
    "CANCELLED": Code.CANCELLED,
    "UNIMPLEMENTED": Code.UNSUPPORTED,
    "UNAVAILABLE": Code.UNAVAILABLE,
    "DEADLINE_EXCEEDED": Code.DEADLINE,
}
"""Any other status, UNKNOWN among them, is INTERNAL. RESOURCE_EXHAUSTED also stands for TOO_LARGE; the wire does
not tell them apart."""


class ClientError(Exception):
    """A call that got no answer. `retry_after_s` is the server's hint, None where it gave none.

    `code` is the server's own, UNAVAILABLE if it could not be reached, DEADLINE if the time ran out on
    either side, INVALID_ARG if the arguments can't be sent at all, INTERNAL if the answer can't be read.
    """

    def __init__(self, code: Code, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(code, message, retry_after_s)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        hint = "" if self.retry_after_s is None else f" (retry after {self.retry_after_s:g} s)"
        return f"{self.code}: {self.message}{hint}"


def code_of_http(status: int) -> Code:
    """The code of a status that is not a success; an unlisted 4xx is the caller's fault, the rest is not."""
    return HTTP_CODES.get(status, Code.INVALID_ARG if 400 <= status < 500 else Code.INTERNAL)


def code_of_grpc(status: str) -> Code:
    """The code of a gRPC status, by its name."""
    return GRPC_CODES.get(status, Code.INTERNAL)


def seconds_of(hint: str | None) -> float | None:
    """A retry hint in seconds; None if there is none or it is a date, which no caller here waits for."""
    try:
        return None if hint is None else max(0.0, float(hint))
    except ValueError:
        return None
