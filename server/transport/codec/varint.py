"""The base-128 numbers of protobuf's encoding, as far as lengths need them."""

from __future__ import annotations

from server.tensor import Buffer

ONE_BYTE = 0x80
"""Lengths below this are one byte, the length itself; in longer ones this bit says that another byte follows."""

_MAX_LENGTH_BYTES = 5


def varint(value: int) -> bytes:
    """`value`, which is not negative, in as few bytes as it needs."""
    encoded = bytearray()
    while value >= ONE_BYTE:
        encoded.append(value & 0x7F | ONE_BYTE)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_length(data: Buffer, at: int) -> tuple[int, int]:
    """The length at `at`, and where what has that length begins.

    Raises:
        ValueError: it has more bytes than it needs, or than any length in a message has.
        IndexError: the data ends before it does.
    """
    value = 0
    for index in range(_MAX_LENGTH_BYTES):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < ONE_BYTE:
            if index and not byte:
                break
            return value, at + index + 1
    raise ValueError("not a plain length")
