"""What stands in front of each message of gRPC: a flag, whether it is compressed, and its length.

Source: gRPC "gRPC over HTTP2", Length-Prefixed-Message.
"""

from __future__ import annotations

from struct import Struct

_PREFIX = Struct(">BI")
PREFIX_BYTES = _PREFIX.size

read_prefix = _PREFIX.unpack_from
write_prefix = _PREFIX.pack


def is_plain(data: bytes) -> bool:
    """`data` is one message with its prefix, and not compressed."""
    return len(data) >= PREFIX_BYTES and read_prefix(data) == (0, len(data) - PREFIX_BYTES)
