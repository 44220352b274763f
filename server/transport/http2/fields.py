"""What a list of header fields may be in HTTP/2, and what makes a message malformed.

Each field has a kind, which is remembered: the check of a list whose fields were seen before is a look-up for each.

Source: RFC 9113 sections 8.2, 8.3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from server.transport import varying
from server.transport.http2.frames import ErrorCode, StreamFault

Field = tuple[bytes, bytes]

METHOD, SCHEME, PATH, AUTHORITY, CONTENT_LENGTH, ORDINARY = 1, 2, 4, 8, 16, 32
"""Kinds of fields, as bits. The pseudo-header fields come before all others, and none of them comes twice."""

_ONCE = METHOD | SCHEME | PATH | AUTHORITY | CONTENT_LENGTH
_PSEUDO = METHOD | SCHEME | PATH | AUTHORITY
_REQUIRED = METHOD | SCHEME | PATH
_CONNECT = METHOD | SCHEME | PATH
"""CONNECT has neither :scheme nor :path (section 8.5): it is all three at once."""

_PSEUDO_KINDS = {b":method": METHOD, b":scheme": SCHEME, b":path": PATH, b":authority": AUTHORITY}
_CONNECTION_SPECIFIC = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"),
)

_name = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
"""A token without capital letters."""
plain_value = re.compile(rb"[!-~]+").fullmatch
"""No blanks, nothing special: fast to see, and true of what clients mostly send."""
_bad_value = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$").search
_target = re.compile(rb"/[^\x00-\x20\x7f#]*|\*").fullmatch

VARYING = varying.VARYING | {b"grpc-timeout"}
"""Ordinary names whose values hardly come twice: to remember them would push out others."""
_REMEMBERED = 2048
_REMEMBERED_BYTES = 256
_kinds: dict[Field, int] = {}


def check_request(fields: Sequence[Field]) -> None:
    """Raises StreamFault(PROTOCOL_ERROR) if a request with these fields is malformed."""
    seen = 0
    for field in fields:
        kind = _kinds.get(field) or _kind(field)
        if kind == ORDINARY:
            seen |= ORDINARY
            continue
        if kind & _ONCE and (seen & kind or (kind & _PSEUDO and seen >= CONTENT_LENGTH)):
            raise _malformed(field, "comes twice, or behind a regular field")
        seen |= kind
    if seen & _REQUIRED != _REQUIRED:
        raise StreamFault(ErrorCode.PROTOCOL_ERROR, "the request lacks :method, :scheme or :path")


def check_trailers(fields: Sequence[Field]) -> None:
    """Raises StreamFault(PROTOCOL_ERROR): trailers have no pseudo-header fields (section 8.1)."""
    for field in fields:
        if (_kinds.get(field) or _kind(field)) & _PSEUDO:
            raise _malformed(field, "is in the trailers")


def _kind(field: Field) -> int:
    if field[0] in VARYING and (plain_value(field[1]) or not _bad_value(field[1])):
        return ORDINARY
    kind = _classify(*field)
    if len(_kinds) >= _REMEMBERED:
        _kinds.clear()
    if len(field[0]) + len(field[1]) <= _REMEMBERED_BYTES:
        _kinds[field] = kind
    return kind


def _classify(name: bytes, value: bytes) -> int:
    """The kind of a field. Raises StreamFault if it is malformed in itself."""
    if _bad_value(value):
        raise _malformed((name, value), "has a value with NUL, CR, LF or blanks around it")
    if name[:1] == b":":
        return _pseudo_kind(name, value)
    if not _name(name):
        raise _malformed((name, value), "is no field name in lower case")
    if name in _CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
        raise _malformed((name, value), "is of HTTP/1.1 only")
    if name == b"content-length":
        if not value.isdigit() or len(value) > 18:
            raise _malformed((name, value), "is no number")
        return CONTENT_LENGTH
    return ORDINARY


def _pseudo_kind(name: bytes, value: bytes) -> int:
    kind = _PSEUDO_KINDS.get(name)
    if kind is None:
        raise _malformed((name, value), "is no pseudo-header field of a request")
    if kind == METHOD:
        return _CONNECT if value == b"CONNECT" else METHOD
    if kind == PATH and not _target(value):
        raise _malformed((name, value), "is neither a path nor *")
    if kind == AUTHORITY and b"@" in value:
        raise _malformed((name, value), "has user information in it")
    return kind


def _malformed(field: Field, problem: str) -> StreamFault:
    return StreamFault(ErrorCode.PROTOCOL_ERROR, f"{field[0][:64].decode('ascii', 'replace')} {problem}")
