"""Answers: status, headers and body as bytes, with the date."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

import orjson

Headers = list[tuple[bytes, bytes]]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_JSON: Headers = [(b"content-type", b"application/json")]
_REASONS = {499: "Client Closed Request"}
_SECOND_NS = 1_000_000_000


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    headers: Headers = []  # noqa: RUF012 - never changed


class StreamedReply(NamedTuple):
    """An answer whose body comes in pieces, each written as soon as it is there. No headers of framing."""

    status: int
    headers: Headers
    pieces: AsyncGenerator[bytes]
    """Closed when it is over, or when nobody takes more of it."""
    failed: Callable[[BaseException], bytes]
    """The last piece where an error ends it: the status can't tell any more."""


def json_reply(document: object, status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(document), _JSON)


def error_reply(status: int, problem: str) -> Reply:
    return json_reply({"error": problem}, status)


def with_headers(reply: Reply, *headers: tuple[bytes, bytes]) -> Reply:
    return reply._replace(headers=[*reply.headers, *headers])


class Clock:
    """The date of the answers, made once a second."""

    def __init__(self) -> None:
        self.stale_ns = 0
        """When the date has to be made anew, by `time.monotonic_ns`."""
        self.date = b""
        self.ok = b""
        """The status line of 200 and the date."""
        self.tick(time.monotonic_ns())

    def tick(self, now_ns: int) -> None:
        self.stale_ns = now_ns + _SECOND_NS
        self.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
        self.ok = b"HTTP/1.1 200 OK\r\n" + self.date


def render(reply: Reply, date: bytes, connection: bytes, *, head_only: bool) -> bytes:
    """The bytes of an answer. `connection` is a header line or empty; `head_only` leaves the body out (HEAD)."""
    # 304 has the body of the answer that the client kept, and no length may say otherwise.
    framing = b"content-length: %d\r\n" % len(reply.body) if reply.status != 304 else b""
    head = render_head(reply.status, reply.headers, date, connection + framing)
    return head if head_only else head + reply.body


def render_head(status: int, headers: Headers, date: bytes, framing: bytes) -> bytes:
    """What stands before a body. `framing` are header lines: how long it is, and what becomes of the connection."""
    parts = [b"HTTP/1.1 %d %s\r\n" % (status, _reason(status)), date]
    parts += [b"%s: %s\r\n" % header for header in headers]
    return b"".join([*parts, framing, b"\r\n"])


def _reason(status: int) -> bytes:
    return (_REASONS.get(status) or HTTPStatus(status).phrase).encode()
