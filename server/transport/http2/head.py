"""What the header fields of a gRPC call say, read once and kept for all calls that say the same.

Source: gRPC "gRPC over HTTP2", Requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from server.errors import Code, InvalidRequest
from server.transport.http2 import answers
from server.transport.http2.fields import VARYING, Field, bad_value, check_request
from server.transport.http2.hpack import Decoder, HeaderListTooLarge
from server.transport.http2.messages import ENCODINGS, IDENTITY
from server.transport.methods import Method
from server.transport.status import Failure, failure_of

_TIMEOUT_UNITS_NS = {
    b"H": 3_600_000_000_000,
    b"M": 60_000_000_000,
    b"S": 1_000_000_000,
    b"m": 1_000_000,
    b"u": 1_000,
    b"n": 1,
}
_TIMEOUT_DIGITS = 8
_NO_METHOD = Failure(Code.UNSUPPORTED, "Method not found!")
_new = object.__new__
_indexed = re.compile(rb"[\x81-\xfe]*").match
"""Fields that are one octet each: the place of the field in the tables (RFC 7541 section 6.1)."""
_READ = (
    b":method",
    b":path",
    b"content-type",
    b"content-length",
    b"grpc-encoding",
    b"grpc-accept-encoding",
    b"x-explain",
    b"x-tenant",
)
"""The fields that a head depends on, beside grpc-timeout."""
_KEPT = 256
"""Blocks that are remembered; a client repeats a handful."""
_KEPT_BYTES = 1024
"""Of a block, so that a connection can't make much of being remembered."""


class Head:
    """One per distinct header block, shared by its calls, so nothing here may change."""

    __slots__ = (
        "accepts",
        "content_length",
        "encoding",
        "explain",
        "hot",
        "method",
        "refusal",
        "speaks_grpc",
        "tenant",
        "timeout_ns",
    )

    def __init__(self) -> None:
        self.method: Method | None = None
        self.content_length = -1
        """-1: not told."""
        self.timeout_ns = 0
        """0: none."""
        self.encoding = IDENTITY
        self.accepts = b""
        self.explain = ""
        self.tenant = ""
        self.hot = False
        """A plain ModelInfer: it goes to the data plane without a task of its own."""
        self.refusal: bytes | None = None
        """The header block that answers the call, whatever is in its body."""

    def within(self, timeout_ns: int) -> Head:
        """The same with a time-out."""
        head = _new(Head)
        head.method = self.method
        head.content_length = self.content_length
        head.timeout_ns = timeout_ns
        head.encoding = self.encoding
        head.accepts = self.accepts
        head.explain = self.explain
        head.tenant = self.tenant
        head.hot = self.hot
        head.refusal = self.refusal
        return head


class Heads:
    """The heads of one connection by the bytes of their blocks.

    What a block means depends on HPACK's dynamic table: the memory holds while the table does.
    """

    __slots__ = ("_alike", "_decoder", "_max_list_bytes", "_methods", "_starts", "known")

    def __init__(self, decoder: Decoder, methods: Mapping[bytes, Method], max_list_bytes: int) -> None:
        self._decoder = decoder
        self._methods = methods
        self._max_list_bytes = max_list_bytes
        self._starts: dict[bytes, tuple[Head, Sequence[Field]]] = {}
        """The indexed fields that blocks begin with, where what follows is known to differ: their bytes, what they
        make without the rest, and what they are."""
        self._alike: dict[tuple[bytes | None, ...], Head] = {}
        """Heads by what is read of their fields: new blocks mostly say, but for their time-out, what others said."""
        self.known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """The head in a block that is not `known`, which it may be from then on.

        Raises:
            HpackError: the block can't be decoded, nor can any that follows.
            StreamFault: the request is malformed.
        """
        end = _indexed(block).end()  # type: ignore[union-attr]  # it matches anything, if only nothing
        start = self._starts.get(block[:end])
        if start is not None:
            return self._read_rest(block, end, start)
        before = self._decoder.insertions
        try:
            fields = self.fields(block)
        except HeaderListTooLarge as error:
            return _refused(Failure(Code.TOO_LARGE, str(error)))
        check_request(fields)
        head = self._find(fields)
        if self._decoder.insertions == before and len(block) <= _KEPT_BYTES:
            if len(self.known) >= _KEPT:
                self.known.clear()
                self._starts.clear()
            self.known[block] = head
            if end and all(name in VARYING for name, _ in fields[end:]):
                # Each octet of the start is a field of its own.
                self._starts[block[:end]] = self._find(fields[:end]), fields[:end]
        return head

    def _read_rest(self, block: bytes, end: int, start: tuple[Head, Sequence[Field]]) -> Head:
        """The head in a block of which the first `end` octets are known: mostly only a time-out and a trace follow."""
        head, known = start
        try:
            rest = self.fields(block[end:])
        except HeaderListTooLarge as error:
            return _refused(Failure(Code.TOO_LARGE, str(error)))
        timeout = None
        for name, value in rest:
            if name not in VARYING or bad_value(value):
                fields = [*known, *rest]
                check_request(fields)
                return self._find(fields)
            if name == b"grpc-timeout":
                timeout = value
        return head if timeout is None else _within(head, timeout)

    def _find(self, fields: Sequence[Field]) -> Head:
        values = dict(fields)
        key = tuple(map(values.get, _READ))
        head = self._alike.get(key) or self._make(key, values)
        timeout = values.get(b"grpc-timeout")
        return head if timeout is None else _within(head, timeout)

    def _make(self, key: tuple[bytes | None, ...], values: Mapping[bytes, bytes]) -> Head:
        head = read_head(values, self._methods)
        if len(self._alike) >= _KEPT:
            self._alike.clear()
        if sum(len(value) for value in key if value) <= _KEPT_BYTES:
            self._alike[key] = head
        return head

    def fields(self, block: bytes) -> Sequence[Field]:
        """Decode any block, for the table's sake if for no other.

        Raises:
            HpackError, HeaderListTooLarge
        """
        before = self._decoder.insertions
        try:
            return self._decoder.decode(block, self._max_list_bytes)
        finally:
            if self._decoder.insertions != before:
                self.known.clear()
                self._starts.clear()


def read_head(values: Mapping[bytes, bytes], methods: Mapping[bytes, Method]) -> Head:
    """The head that the fields of a well-formed request make, without a time-out; of several alike the last counts."""
    head = Head()
    length = values.get(b"content-length")
    if length is not None:
        head.content_length = int(length)
    if values[b":method"] != b"POST":
        head.refusal = answers.http_error(405, (b"allow", b"POST"))
    elif not _is_grpc(values.get(b"content-type", b"")):
        head.refusal = answers.http_error(415)
    else:
        _read_call(head, values, methods)
    return head


def _within(head: Head, timeout: bytes) -> Head:
    if head.refusal is not None:
        return head
    try:
        return head.within(parse_timeout(timeout))
    except InvalidRequest as error:
        return _refused(failure_of(error))


def _is_grpc(content_type: bytes) -> bool:
    """application/grpc, with a + or ; and what follows; other content-types are other protocols."""
    media = content_type.lower()
    return media == b"application/grpc" or media.startswith((b"application/grpc+proto", b"application/grpc;"))


def _read_call(head: Head, values: Mapping[bytes, bytes], methods: Mapping[bytes, Method]) -> None:
    head.method = methods.get(values[b":path"])
    if head.method is None:
        head.refusal = answers.trailers_only(_NO_METHOD)
        return
    head.encoding = values.get(b"grpc-encoding", IDENTITY)
    if head.encoding not in ENCODINGS:
        text = f"grpc-encoding: {head.encoding[:64].decode('ascii', 'replace')} is not known here"
        head.refusal = answers.trailers_only(Failure(Code.UNSUPPORTED, text), tell_encodings=True)
        return
    head.accepts = values.get(b"grpc-accept-encoding", b"")
    head.explain = values.get(b"x-explain", b"").decode("latin-1")
    head.tenant = values.get(b"x-tenant", b"").decode("latin-1")
    head.hot = head.method.infers and not head.explain and head.encoding == IDENTITY


def parse_timeout(value: bytes) -> int:
    """grpc-timeout in ns, at least 1. Raises InvalidRequest."""
    digits, unit = value[:-1], _TIMEOUT_UNITS_NS.get(value[-1:])
    if unit is None or not digits.isdigit() or len(digits) > _TIMEOUT_DIGITS:
        raise InvalidRequest("grpc-timeout", "must be 1 to 8 digits and one of H, M, S, m, u, n")
    return int(digits) * unit or 1


def _refused(failure: Failure) -> Head:
    head = Head()
    head.refusal = answers.trailers_only(failure)
    return head
