"""Heads of HTTP/1 requests: what is read, and what is refused. Named by the sections of RFC 9112 and RFC 9110."""

from __future__ import annotations

import pytest

from server.settings import HttpSettings
from server.transport.http1.head import Head, Heads, Refused

SETTINGS = HttpSettings(max_head_bytes=1000, max_target_bytes=100, max_headers=5)


class Reader:
    def __init__(self) -> None:
        self.planned: list[Head] = []
        self.heads = Heads(SETTINGS, self.planned.append)

    def __call__(self, line: bytes = b"GET / HTTP/1.1", *fields: bytes, host: bytes | None = b"Host: x") -> Head:
        lines = [line, *([host] if host is not None else []), *fields]
        return self.heads.find(b"\r\n".join([*lines, b"", b""]))


@pytest.fixture
def read() -> Reader:
    return Reader()


def test_a_head_is_read_once(read: Reader) -> None:
    """Equal bytes are the same head, and the application is asked once; other bytes are another."""
    first = read(b"GET /a?b=c HTTP/1.1", b"X-One: 1")
    assert read(b"GET /a?b=c HTTP/1.1", b"X-One: 1") is first
    assert read(b"GET /a?b=c HTTP/1.1", b"X-One: 2") is not first
    assert len(read.planned) == 2
    assert (first.method, first.path, first.query) == ("GET", b"/a", b"b=c")
    assert (first.header(b"x-one"), first.header(b"x-two")) == ("1", "")


def test_what_is_remembered_is_bounded(read: Reader) -> None:
    """Ever new heads leave no more than a bounded number behind."""
    for index in range(5000):
        read(b"GET /%d HTTP/1.1" % index)
    assert len(read.heads._known) < 2200


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/v2", b"/v2", b""),
        (b"/a?x?y", b"/a", b"x?y"),
        (b"http://host:8000/v2/x?y", b"/v2/x", b"y"),
        (b"HTTPS://host", b"/", b""),
        (b"http://host?y", b"/", b"y"),
        (b"//host/x", b"//host/x", b""),
        (b"/x@y:1", b"/x@y:1", b""),
    ],
    ids=["origin form", "a second question mark", "absolute form", "no path", "a query alone", "two slashes", "a path"],
)
def test_rfc_9112_3_2_targets(read: Reader, target: bytes, path: bytes, query: bytes) -> None:
    """The origin form is taken as it is, of the absolute form the authority is left out."""
    head = read(b"GET %s HTTP/1.1" % target)
    assert (head.path, head.query) == (path, query)


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive", "plain"),
    [
        (b"1.1", b"", True, True),
        (b"1.1", b"close", False, False),
        (b"1.1", b"Keep-Alive, CLOSE", False, False),
        (b"1.1", b"upgrade", True, True),
        (b"1.0", b"", False, False),
        (b"1.0", b"keep-alive", True, False),
        (b"1.0", b"keep-alive, close", False, False),
    ],
)
def test_rfc_9112_9_3_persistence(
    read: Reader, version: bytes, connection: bytes, keep_alive: bool, plain: bool
) -> None:
    """HTTP/1.1 persists unless it says close, HTTP/1.0 only if it says keep-alive."""
    fields = [b"Connection: " + connection, b"Upgrade: h2c"] if connection else []
    head = read(b"GET / HTTP/" + version, *fields)
    assert (head.keep_alive, head.plain) == (keep_alive, plain)


def test_rfc_9112_3_2_4_the_asterisk_form(read: Reader) -> None:
    """It asks of the server as a whole, and only OPTIONS may."""
    assert read(b"OPTIONS * HTTP/1.1").path == b"*"


def test_rfc_9112_6_framing(read: Reader) -> None:
    """A body has a length, or chunks, or is not there."""
    assert (read().length, read().chunked) == (0, False)
    assert read(b"POST / HTTP/1.1", b"Content-Length: 012").length == 12
    assert read(b"POST / HTTP/1.1", b"Transfer-Encoding: Chunked").chunked


def test_rfc_9110_10_1_1_expect(read: Reader) -> None:
    """Only a request with a body waits to be told to go on; HTTP/1.0 does not know of it."""
    expect, length = b"Expect: 100-Continue", b"Content-Length: 1"
    assert read(b"POST / HTTP/1.1", expect, length).expects_continue
    assert not read(b"POST / HTTP/1.1", expect).expects_continue
    assert not read(b"POST / HTTP/1.0", expect, length).expects_continue


def test_a_length_over_the_limit_decides(read: Reader) -> None:
    """Content-Length alone is enough for 413."""
    head = read(b"POST / HTTP/1.1", b"Content-Length: 999999999999")
    assert head.refusal is not None
    assert head.refusal.status == 413


REFUSED = {
    "2.2 a bare LF for each CRLF": (b"GET / HTTP/1.1\nHost: x\n\r\n\r\n", 400),
    "2.2 a bare LF behind a field": (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "2.2 a bare CR in a field": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n", 400),
    "2.2 whitespace before the first field": (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    "3 no request line": (b"\x00garbage\r\n\r\n", 400),
    "3 two spaces": (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "3 a tab for a space": (b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "3 a space at the end": (b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
    "3 HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "2.3 version 0.9": (b"GET / HTTP/0.9\r\nHost: x\r\n\r\n", 505),
    "2.3 version 2.0": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "2.3 the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", 505),
    "2.3 version 1.2": (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505),
    "2.3 another protocol": (b"GET / http/1.1\r\nHost: x\r\n\r\n", 400),
    "3.1 an unknown method": (b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "3.2 a target of other bytes": (b"GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "3.2 a fragment": (b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "3.2.2 user information": (b"GET http://a@x/v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "3.2.2 another scheme": (b"GET ftp://x/v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "3.2.2 no host": (b"GET http:///v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "3.2.3 the authority form": (b"GET x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "3.2.4 * of GET": (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "3.2.4 * and more": (b"OPTIONS *x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "9110 9.3.6 CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 501),
    "9110 9.3.6 CONNECT with a body": (b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\nContent-Length: 9\r\n\r\n", 501),
    "3.2 no Host": (b"GET / HTTP/1.1\r\nA: b\r\n\r\n", 400),
    "3.2 two Hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
    "3.2 a Host that is none": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "5.1 a space before the colon": (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400),
    "5.1 no name": (b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n", 400),
    "5.1 no colon": (b"GET / HTTP/1.1\r\nHost: x\r\nabc\r\n\r\n", 400),
    "5.2 a folded line": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
    "9110 5.5 NUL in a value": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", 400),
    "6.1 Transfer-Encoding in HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "6.1 another coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "6.1 another coding before chunked": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        501,
    ),
    "6.1 chunked before another coding": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        400,
    ),
    "6.1 chunked twice": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", 400),
    "6.1 chunked in two lines": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    "6.1 nearly chunked": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
    "6.1 chunked with a vertical tab": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", 400),
    "6.1 an empty coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n\r\n", 400),
    "6.3 a length, then chunked": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    "6.3 chunked, then a length": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        400,
    ),
    "6.3 two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
    "6.3 the same length twice": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", 400),
    "6.3 a list of lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\n", 400),
    "6.3 a length with a sign": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\n", 400),
    "6.3 a length below zero": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n", 400),
    "6.3 a length in hexadecimal digits": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x3\r\n\r\n", 400),
    "6.3 a length of 20 digits": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
    "6.3 no length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n", 400),
    "9110 10.1.1 another expectation": (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", 417),
    "a head over the limit": (b"GET / HTTP/1.1\r\nHost: x\r\nA: %s\r\n\r\n" % (b"b" * 1000), 431),
    "more fields than the limit": (b"GET / HTTP/1.1\r\nHost: x\r\n%s\r\n" % (b"A: b\r\n" * 5), 431),
    "a target over the limit": (b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"b" * 100), 414),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_what_two_readers_could_read_in_two_ways_is_refused(read: Reader, data: bytes, status: int) -> None:
    """Each with its status; nothing of it is remembered, and no application asked."""
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            read.heads.find(data)
        assert caught.value.status == status
    assert not read.planned


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"\n", 400),
        (b"GET / HTTP/1.1\n", 400),
        (b"hello\r\n", 400),
        (b"GET / HTTP/3.0\r\n", 505),
        (b"GET /" + b"a" * 200, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 1000, 431),
    ],
    ids=["TLS", "a bare LF", "a line that ends so", "no request line", "a version", "a target", "fields"],
)
def test_what_can_not_become_a_head_is_refused_early(read: Reader, data: bytes, status: int) -> None:
    """Nobody waits for the rest of it."""
    with pytest.raises(Refused) as caught:
        read.heads.check_begin(data)
    assert caught.value.status == status


def test_the_begin_of_a_head_is_no_fault(read: Reader) -> None:
    """Every prefix of a good head may still become one."""
    data = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
    for size in range(1, len(data)):
        read.heads.check_begin(data[:size])


def test_heads_that_differ_in_what_nobody_asks_for_are_one() -> None:
    """Neither the number nor the place of such fields matters, nor how they are written; no head knows of them."""
    planned: list[Head] = []
    heads = Heads(SETTINGS, planned.append, {b"traceparent", b"x-request-id"})
    first = heads.find(b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n")
    for fields in (b"traceparent: 1\r\n", b"TraceParent:2 2 \r\n", b"X-Request-ID:\r\ntraceparent: 3\r\n"):
        assert heads.find(b"GET / HTTP/1.1\r\nHost: x\r\n%sA: b\r\n\r\n" % fields) is first
        assert heads.find(b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n%s\r\n" % fields) is first
    assert planned == [first]
    assert (first.header(b"traceparent"), len(first.headers)) == ("", 2)
    assert heads.find(b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\ntraceparents: 1\r\n\r\n") is not first


@pytest.mark.parametrize(
    ("field", "status"),
    [(b"T: 1\r\nT: 2\r\nT: 3\r\nT: 4\r\n", 431), (b"T: %s\r\n" % bytes(1000).replace(b"\0", b"1"), 431)],
    ids=["their number", "their bytes"],
)
@pytest.mark.parametrize("known", [False, True], ids=["a new head", "a known one"])
def test_what_nobody_asks_for_counts(field: bytes, status: int, known: bool) -> None:
    """A client may not send more of it than of anything else."""
    heads = Heads(SETTINGS, lambda _: None, {b"t"})
    if known:
        heads.find(b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n")
    with pytest.raises(Refused) as refused:
        heads.find(b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n%s\r\n" % field)
    assert refused.value.status == status
