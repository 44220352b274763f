"""One REST call: what its headers, query and body say, and the reply to one that failed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from server.errors import Code, InvalidRequest, Unsupported
from server.explain import ANSWER_KEY, REQUEST_KEY, Explanation, asked_by
from server.transport.codec.tensors import quoted
from server.transport.compress import PLAIN, Accepted, accepted
from server.transport.forwarding import forwarded
from server.transport.http1.head import tokens
from server.transport.http1.reply import Reply, json_reply, with_headers
from server.transport.inflate import WINDOW_BITS, inflated
from server.transport.status import failure_of
from server.types import NO_DEADLINE, Metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.dataplane import DataPlane
    from server.transport.http1.head import Head
    from server.transport.http1.protocol import Turn


_REQUEST_HEADER = REQUEST_KEY.encode()
_ANSWER_HEADER = ANSWER_KEY.encode()


class Exchange:
    """`names` are the values of the route's placeholders, percent-decoded."""

    __slots__ = ("_head", "_max_body_bytes", "_turn", "dataplane", "names", "received_ns")

    def __init__(self, dataplane: DataPlane, turn: Turn, names: Mapping[str, str], max_body_bytes: int) -> None:
        assert turn.head is not None
        self.dataplane = dataplane
        self.names = names
        self.received_ns = turn.received_ns
        self._turn = turn
        self._head = turn.head
        self._max_body_bytes = max_body_bytes

    @property
    def model(self) -> tuple[str, str]:
        """The model's name and version, which is empty where the path has none."""
        return self.names["model"], self.names.get("version", "")

    @property
    def tenant(self) -> str:
        return tenant(self._head)

    @property
    def metadata(self) -> Metadata:
        """What goes along to where the models run."""
        return forwarded(self.dataplane.forwards, lambda name: self._head.header(name.encode()))

    def header(self, name: bytes) -> str:
        """The value of a header (`name` in lower case), empty if it is not there."""
        return self._head.header(name)

    def query(self) -> dict[str, str]:
        """Raises InvalidRequest for a parameter that is there twice."""
        pairs = parse_qsl(self._head.query.decode("latin-1"), keep_blank_values=True)
        values = dict(pairs)
        if len(values) != len(pairs):
            raise InvalidRequest("query", "has a parameter twice")
        return values

    def deadline_ns(self) -> int:
        """When the caller gives up. Raises InvalidRequest as `timeout_ns`."""
        return min(self.received_ns + timeout_ns(self._head), NO_DEADLINE)

    def explanation(self) -> Explanation | None:
        """One if the header asks; whether the parameters do is not known before the body. Raises InvalidRequest."""
        return Explanation(self.received_ns) if asked_by(self.header(_REQUEST_HEADER)) else None

    async def body(self) -> bytes:
        """The whole body, decompressed.

        Raises:
            PayloadTooLarge: it is over the limit; no more than the limit was ever made of it.
            InvalidRequest: it does not decompress.
            Unsupported: an encoding other than gzip and deflate.
        """
        encoding, data = content_encoding(self._head), self._turn.body
        if not encoding:
            return data
        return await inflated("body", data, encoding, self._max_body_bytes)


def timeout_ns(head: Head) -> int:
    """How long the caller waits, by its X-Request-Timeout in milliseconds; without one, for ever.

    Raises:
        InvalidRequest: it is no positive number.
    """
    text = head.header(b"x-request-timeout")
    if not text:
        return NO_DEADLINE
    try:
        timeout_ms = float(text)
    except ValueError:
        timeout_ms = math.nan
    if not 0 < timeout_ms < math.inf:
        raise InvalidRequest("X-Request-Timeout", f"must be a number of milliseconds above 0, got {quoted(text)}")
    # Before it becomes a whole number: the largest are infinite in nanoseconds.
    return int(min(timeout_ms * 1e6, NO_DEADLINE))


def tenant(head: Head) -> str:
    """On whose behalf it is asked, by its X-Tenant; empty if it does not say."""
    return head.header(b"x-tenant")


def content_encoding(head: Head) -> str:
    """How the body is compressed, empty if it is not. Raises Unsupported for all but gzip and deflate."""
    encoding = head.header(b"content-encoding").lower()
    if encoding in ("", "identity"):
        return ""
    if encoding not in WINDOW_BITS:
        raise Unsupported("Content-Encoding", f"{quoted(encoding)} is not supported, use gzip or deflate")
    return encoding


def accepted_encoding(head: Head) -> Accepted:
    """Which coding answers may have, by its Accept-Encoding; without one, none. Raises NotAcceptable."""
    elements = tokens(head, b"accept-encoding")
    return accepted(elements) if elements else PLAIN


def failure_reply(error: BaseException) -> Reply:
    """What a caller is told of `error`."""
    failure = failure_of(error)
    reply = json_reply({"error": failure.message}, failure.http)
    if failure.code is Code.UNAUTHENTICATED:
        return with_headers(reply, (b"www-authenticate", b"Bearer"))
    if failure.retry_after_ms > 0:
        return with_headers(reply, (b"retry-after", str(failure.retry_after_s).encode()))
    return reply


def explained(reply: Reply, explanation: Explanation | None) -> Reply:
    """The reply, with where its time went if somebody asked."""
    timing = explanation.finish() if explanation is not None else ""
    return with_headers(reply, (_ANSWER_HEADER, timing.encode())) if timing else reply
