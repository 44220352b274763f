"""What the header fields of a gRPC call say, read once and kept for all calls that say the same.

Source: gRPC "gRPC over HTTP2", Requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.errors import Code, InvalidRequest
from server.transport.http2 import answers
from server.transport.http2.fields import Field, check_request
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
_KEPT = 256
"""Blocks that are remembered; a client repeats a handful."""


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


class Heads:
    """The heads of one connection by the bytes of their blocks.

    What a block means depends on HPACK's dynamic table: the memory holds while the table does.
    """

    __slots__ = ("_decoder", "_max_list_bytes", "_methods", "known")

    def __init__(self, decoder: Decoder, methods: Mapping[bytes, Method], max_list_bytes: int) -> None:
        self._decoder = decoder
        self._methods = methods
        self._max_list_bytes = max_list_bytes
        self.known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """The head in a block that is not `known`, which it may be from then on.

        Raises:
            HpackError: the block can't be decoded, nor can any that follows.
            StreamFault: the request is malformed.
        """
        before = self._decoder.insertions
        try:
            fields = self.fields(block)
        except HeaderListTooLarge as error:
            return _refused(Failure(Code.TOO_LARGE, str(error)))
        check_request(fields)
        head = read_head(fields, self._methods)
        if self._decoder.insertions == before:
            if len(self.known) >= _KEPT:
                self.known.clear()
            self.known[block] = head
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


def read_head(fields: Sequence[Field], methods: Mapping[bytes, Method]) -> Head:
    """The head that well-formed `fields` make; of a field that comes twice the last counts."""
    values = dict(fields)
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
    try:
        timeout = values.get(b"grpc-timeout")
        head.timeout_ns = 0 if timeout is None else parse_timeout(timeout)
    except InvalidRequest as error:
        head.refusal = answers.trailers_only(failure_of(error))
    head.explain = values.get(b"x-explain", b"").decode("latin-1")
    head.tenant = values.get(b"x-tenant", b"").decode("latin-1")
    head.hot = head.method.infers and not head.explain and head.encoding == IDENTITY and head.refusal is None


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
