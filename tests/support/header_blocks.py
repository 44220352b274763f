"""What header blocks say to somebody who has seen no other: what any memory of them is held against."""

from __future__ import annotations

from typing import Any

from server.transport.http2.fields import check_request
from server.transport.http2.head import Head, Opening, read_head, within
from server.transport.http2.hpack import Decoder, Field, HeaderListTooLarge, HpackError
from server.transport.methods import METHODS

KNOWN_METHODS = {method.name.encode(): method for method in METHODS}
_DYNAMIC_FROM = 62
_FEWEST_OF_TWO_OCTETS = 0x7F


def read_anew(decoder: Decoder, block: bytes, max_list_bytes: int) -> Opening | None:
    """With no memory of others. None for a list over the limit, which has a refusal of its own.

    Raises:
        HpackError, StreamFault
    """
    try:
        fields = decoder.decode(block, max_list_bytes)
    except HeaderListTooLarge:
        return None
    check_request(fields)
    values = dict(fields)
    head = read_head(values, KNOWN_METHODS)
    timeout = values.get(b"grpc-timeout")
    return (head, 0) if timeout is None or head.refusal is not None else within(head, timeout)


def said(opening: Opening) -> list[Any]:
    """What an opening says, to be compared."""
    return [opening[1], *(getattr(opening[0], name) for name in Head.__slots__)]


def table(decoder: Decoder) -> list[Field]:
    """The dynamic table, latest first: what its indices mean."""
    entries: list[Field] = []
    while True:
        try:
            entries += decoder.decode(_indexed(_DYNAMIC_FROM + len(entries)), 1 << 20)
        except HpackError:
            return entries


def _indexed(index: int) -> bytes:
    """RFC 7541 section 6.1, for indices that two octets hold."""
    if index < _FEWEST_OF_TWO_OCTETS:
        return bytes([0x80 | index])
    return bytes([0xFF, index - _FEWEST_OF_TWO_OCTETS])
