"""The head of an HTTP/1 request: from its bytes to what a server needs, once for all heads with the same bytes.

A client repeats its heads, so they are remembered by their bytes, with whatever the application made of them; but for
the lines of fields that nobody asks for and that differ from call to call, such as a trace's.
httptools (llhttp, in its strict mode) reads the fields; what it lets pass and should not is refused here.
Source: RFC 9112, sections 2 to 7; RFC 9110, sections 5, 7.2, 8.6 and 10.1.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

import httptools

from server.errors import PayloadTooLarge
from server.settings import HttpSettings
from server.transport.codec.recent import Recent
from server.transport.http1.reply import Headers, Reply, error_reply

END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
_AUTHORITY = re.compile(rb"[^\s/?#@\\,]*")
_ABSOLUTE = re.compile(rb"https?://[^/?#@\\]+(?=[/?]|$)", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_SLACK_BYTES = 64
"""Of a request line beside its target: the longest method that is known, the version, the spaces."""
_MAX_REMEMBERED_BYTES = 4096
"""Longer heads are read anew each time."""
_MEMORY = 1024 * 1024
"""Bytes of heads that are remembered, twice at most; what was made of them takes a few times as much."""
_HEAD_BYTES = 1024
"""What an entry weighs beside its bytes."""


class Refused(Exception):
    """A message that ends its connection: `reply` is the last answer, `cause` is what is counted."""

    def __init__(self, status: int, cause: str, problem: str) -> None:
        super().__init__(status, cause, problem)
        self.status = status
        self.cause = cause
        self.problem = problem


class Head:
    """One request without its body. Shared by all requests that begin with the same bytes: never changed."""

    __slots__ = (
        "chunked",
        "expects_continue",
        "fields",
        "headers",
        "keep_alive",
        "length",
        "method",
        "once",
        "path",
        "plain",
        "plan",
        "query",
        "refusal",
        "version",
    )

    def __init__(self, method: str, target: bytes, version: tuple[int, int], headers: Headers) -> None:
        """`headers` have lower-case names."""
        self.method = method
        self.path, _, self.query = _origin_form(method, target).partition(b"?")
        self.version = version
        self.headers = headers
        self.fields = dict(reversed(headers))
        """The first value of each."""
        self.keep_alive = _keep_alive(version, tokens(self, b"connection"))
        self.plain = self.keep_alive and version == (1, 1)
        """Its answer needs no `Connection` header."""
        self.chunked = False
        self.length = 0
        self.expects_continue = False
        self.plan: Any = None
        """What the application made of it."""
        self.refusal: Reply | None = None
        """The answer, where the head alone decides it; then the body is not kept."""
        self.once = False
        """What was made of it may be different the next time."""

    def header(self, name: bytes) -> str:
        """The value of the first header of that name (in lower case), empty if it is not there."""
        value = self.fields.get(name)
        return value.decode("latin-1").strip() if value is not None else ""

    def values(self, name: bytes) -> list[bytes]:
        """Of every header of that name."""
        return [value for key, value in self.headers if key == name] if name in self.fields else []


def tokens(head: Head, name: bytes) -> list[bytes]:
    """The elements of a list header, in lower case, over all of its lines."""
    if name not in head.fields:
        return []
    return _elements(head.values(name))


def _elements(values: list[bytes]) -> list[bytes]:
    return [token for item in b",".join(values).lower().split(b",") if (token := item.strip(b" \t"))]


class Heads:
    """Reads heads. `plan` is asked once for each head that is new; what it gives stays with the head."""

    def __init__(self, settings: HttpSettings, plan: Callable[[Head], None], unread: Collection[bytes] = ()) -> None:
        """`unread`: names, in lower case, of fields that nobody asks for. Heads know nothing of them."""
        self._settings = settings
        self._plan = plan
        self._unread = _lines(unread).subn if unread else None
        self._known: Recent[bytes, Head] = Recent(_MEMORY)

    def find(self, data: bytes) -> Head:
        """The head whose bytes, with the empty line, are `data`. Raises Refused."""
        head = self._known.get(data)
        return head if head is not None else self._find(data)

    def _find(self, data: bytes) -> Head:
        """One that is not known by all of its bytes."""
        settings = self._settings
        if len(data) > settings.max_head_bytes:
            raise _head_too_large(f"over the limit of {settings.max_head_bytes} bytes")
        left_out = 0
        if self._unread is not None:
            data, left_out = self._unread(b"", data)
        head = self._known.get(data) if left_out else None
        if head is not None:
            self._check_count(len(head.headers) + left_out)
            return head
        head = self._read(data, left_out)
        if len(data) <= _MAX_REMEMBERED_BYTES and not head.once:
            self._known.put(data, head, len(data) + _HEAD_BYTES)
        return head

    def _check_count(self, count: int) -> None:
        most = self._settings.max_headers
        if count > most:
            raise _head_too_large(f"{count} header fields, over the limit of {most}")

    def check_begin(self, data: bytes) -> None:
        """Refuse early what can't become a head. Raises Refused."""
        if not 0x21 <= data[0] <= 0x7E:
            raise malformed("is no request line")
        line = data.find(b"\n") + 1
        if line:
            _read_request_line(data[:line], self._settings.max_target_bytes)
        elif len(data) > self._settings.max_target_bytes + _SLACK_BYTES:
            raise _target_too_long(self._settings.max_target_bytes)
        if len(data) > self._settings.max_head_bytes:
            raise _head_too_large(f"over the limit of {self._settings.max_head_bytes} bytes")

    def _read(self, data: bytes, left_out: int) -> Head:
        """`left_out`: fields that came with it."""
        settings = self._settings
        method, target, version = _read_request_line(data, settings.max_target_bytes)
        if method == "CONNECT":
            # What follows it are a tunnel's bytes to some, and the next request to others.
            raise Refused(501, "malformed", "method: CONNECT is for proxies")
        fields = _Fields()
        parser = httptools.HttpRequestParser(fields)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # Upgrades may be ignored, and are. Source: RFC 9110, section 7.8.
        except httptools.HttpParserError as error:
            # Of a transfer coding that it does not know it says only that it is wrong.
            codings = [value for name, value in fields.headers if name == b"transfer-encoding"]
            if codings:
                _check_codings(_elements(codings), version)
            raise malformed(str(error)) from error
        if not fields.complete:
            raise malformed("has no end")
        self._check_count(len(fields.headers) + left_out)
        head = Head(method, target, version, fields.headers)
        _read_framing(head)
        _check_host(head)
        _read_expectation(head)
        self._plan(head)
        if head.length > settings.max_body_bytes:
            head.refusal = error_reply(413, too_large(settings.max_body_bytes, head.length))
        return head


def _lines(names: Collection[bytes]) -> re.Pattern[bytes]:
    """Whole lines of fields of these names, each with the end of the line before it; plain ones, with which nothing is
    wrong and that do not go on in the next line."""
    first = b"".join(sorted({name[:1] for name in names}))  # Most lines are passed over by their first letter.
    any_name = b"|".join(map(re.escape, sorted(names)))
    return re.compile(rb"\r\n(?=[%s])(?:%s):[ -~]*(?=\r\n[^ \t])" % (first, any_name), re.IGNORECASE)


def too_large(limit: int, size: int | None = None) -> str:
    return PayloadTooLarge("body", limit, size).public_message


class _Fields:
    """What httptools calls while it reads one head."""

    def __init__(self) -> None:
        self.headers: Headers = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


def malformed(problem: str) -> Refused:
    return Refused(400, "malformed", f"request: {problem}")


def _head_too_large(problem: str) -> Refused:
    return Refused(431, "head_too_large", f"request head: {problem}")


def _target_too_long(limit: int) -> Refused:
    return Refused(414, "target_too_long", f"request target: over the limit of {limit} bytes")


def _read_request_line(data: bytes, max_target_bytes: int) -> tuple[str, bytes, tuple[int, int]]:
    match = _REQUEST_LINE.match(data)
    if match is None:
        raise malformed("is no request line of HTTP/1")
    method, target, major, minor = match.groups()
    if len(target) > max_target_bytes:
        raise _target_too_long(max_target_bytes)
    version = (int(major), int(minor))
    if version not in ((1, 0), (1, 1)):
        raise Refused(505, "malformed", "request: must be HTTP/1.1 or HTTP/1.0")
    return method.decode(), target, version


def _origin_form(method: str, target: bytes) -> bytes:
    """Path and query of a target; of the absolute form without the authority. Source: RFC 9112, section 3.2."""
    if b"#" in target:
        raise malformed("has a fragment in its target")
    if target[:1] == b"/" or (target == b"*" and method == "OPTIONS"):
        return target
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        raise malformed("has a target that is neither a path nor a URL of http")
    rest = target[absolute.end() :]
    return rest if rest[:1] == b"/" else b"/" + rest


def _keep_alive(version: tuple[int, int], connection: list[bytes]) -> bool:
    """Source: RFC 9112, section 9.3."""
    if b"close" in connection:
        return False
    return version >= (1, 1) or b"keep-alive" in connection


def _read_framing(head: Head) -> None:
    """How long the body is. Whatever two readers could read in two ways is refused. Source: RFC 9112, section 6."""
    lengths = head.values(b"content-length")
    if b"transfer-encoding" in head.fields:
        if lengths:
            raise malformed("has both Content-Length and Transfer-Encoding")
        _check_codings(tokens(head, b"transfer-encoding"), head.version)
        head.chunked = True
    elif lengths:
        value = lengths[0].strip(b" \t")
        if len(lengths) > 1 or not _LENGTH.fullmatch(value):
            raise malformed("Content-Length must be there once, a number of bytes")
        head.length = int(value)


def _check_codings(codings: list[bytes], version: tuple[int, int]) -> None:
    if version < (1, 1):
        raise malformed("HTTP/1.0 has no Transfer-Encoding")
    if any(coding != b"chunked" for coding in codings):
        raise Refused(501, "malformed", "Transfer-Encoding: only chunked is supported")
    if len(codings) != 1:
        raise malformed("Transfer-Encoding must be chunked, once")


def _check_host(head: Head) -> None:
    """Source: RFC 9112, section 3.2."""
    hosts = head.values(b"host")
    if len(hosts) > 1 or (not hosts and head.version >= (1, 1)):
        raise malformed("Host must be there once")
    if hosts and not _AUTHORITY.fullmatch(hosts[0].strip(b" \t")):
        raise malformed("Host is no host")


def _read_expectation(head: Head) -> None:
    """An expectation of HTTP/1.0 is ignored. Source: RFC 9110, section 10.1.1."""
    expectations = tokens(head, b"expect")
    if not expectations or head.version < (1, 1):
        return
    if expectations != [b"100-continue"]:
        raise Refused(417, "malformed", "Expect: only 100-continue is supported")
    head.expects_continue = head.chunked or head.length > 0
