"""What the header fields of a gRPC call say.

Source: gRPC "gRPC over HTTP2", Requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from server.errors import Code, InvalidRequest
from server.transport.http2 import answers
from server.transport.http2.messages import ENCODINGS, IDENTITY
from server.transport.methods import Method
from server.transport.status import Failure, failure_of
from server.types import Metadata

if TYPE_CHECKING:
    from server.security.gate import Entry, Gate

_TIMEOUT_UNITS_NS = {
    ord("H"): 3_600_000_000_000,
    ord("M"): 60_000_000_000,
    ord("S"): 1_000_000_000,
    ord("m"): 1_000_000,
    ord("u"): 1_000,
    ord("n"): 1,
}
_TIMEOUT_DIGITS = 8
_NO_METHOD = Failure(Code.UNSUPPORTED, "Method not found!")


class Head:
    """One per distinct set of fields, shared by its calls, so nothing here may change."""

    __slots__ = (
        "accepts",
        "asks",
        "content_length",
        "encoding",
        "entry",
        "explain",
        "hot",
        "metadata",
        "method",
        "over_limit",
        "refusal",
        "tenant",
        "text",
    )

    def __init__(self) -> None:
        self.method: Method | None = None
        self.content_length = -1
        """-1: not told."""
        self.encoding = IDENTITY
        self.accepts = b""
        self.explain = ""
        self.tenant = ""
        self.entry: Entry | None = None
        """Of a caller who is asked who it is."""
        self.asks = False
        """There is a tenant, an entry, or metadata: its requests are to be told."""
        self.metadata: Metadata = ()
        """What goes along to where the models run, and to those who follow requests."""
        self.hot = False
        """A plain ModelInfer: it goes to the data plane without a task of its own."""
        self.refusal: bytes | None = None
        """The header block that answers the call, whatever is in its body."""
        self.text = b""
        """What the answer has as DATA behind it."""
        self.over_limit = False
        """That is so because there were too many fields."""


Opening = tuple[Head, int]
"""What a header block opens a stream with: its head, and grpc-timeout in ns, 0 where there is none."""


def read_head(values: Mapping[bytes, bytes], methods: Mapping[bytes, Method], gate: Gate | None = None) -> Head:
    """The head that the fields of a well-formed request make, without a time-out; of several alike the last counts."""
    head = Head()
    length = values.get(b"content-length")
    if length is not None:
        head.content_length = int(length)
    if values[b":method"] != b"POST":
        head.refusal = answers.http_error(405, (b"allow", b"POST"))
        head.text = b"" if values[b":method"] == b"HEAD" else answers.NOT_GRPC
    elif not _is_grpc(values.get(b"content-type", b"")):
        head.refusal, head.text = answers.http_error(415), answers.NOT_GRPC
    else:
        _read_call(head, values, methods)
        if gate is not None and head.method is not None:
            head.entry = gate.entry(values, head.tenant, head.method.needs)
        head.asks = bool(head.tenant) or head.entry is not None
    return head


def within(head: Head, timeout: bytes) -> Opening:
    """`head` with a grpc-timeout of the client."""
    try:
        return head, parse_timeout(timeout)
    except InvalidRequest as error:
        return refused(failure_of(error)), 0


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
    timeout_ns = timeout_ns_of(value)
    if not timeout_ns:
        raise InvalidRequest("grpc-timeout", "must be 1 to 8 digits and one of H, M, S, m, u, n")
    return timeout_ns


def timeout_ns_of(value: bytes) -> int:
    """0 for what is no grpc-timeout."""
    digits = value[:-1]
    if len(digits) > _TIMEOUT_DIGITS or not digits.isdigit() or value[-1] not in _TIMEOUT_UNITS_NS:
        return 0
    return int(digits) * _TIMEOUT_UNITS_NS[value[-1]] or 1


def refused(failure: Failure) -> Head:
    """The head of a call that is answered by its failure."""
    head = Head()
    head.refusal = answers.trailers_only(failure)
    head.over_limit = failure.code is Code.TOO_LARGE
    return head
