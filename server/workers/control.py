"""What the supervisor and its children say to each other: one byte, more bytes, and file descriptors.

Each child has one socket of whole messages (SOCK_SEQPACKET). Its end is also how either side learns that the other is
gone: nobody else has it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

_LARGEST_BYTES = 4096
_MOST_FILES = 4


class Word(Enum):
    LINK = b"L"
    """To both: a link to the other, its socket and the memory that they share. More: the link's number."""
    CONNECTION = b"C"
    """To a front: an accepted connection. More: the listener's place in `LISTENERS`."""
    BANNER = b"B"
    """To a front: print what people see when the server is ready. More: the ports, as JSON."""
    UNREADY = b"U"
    """To a front: the server is about to stop."""
    FINISH = b"F"
    """To the engine process: begin no sequence any more, and say when those that have begun are over."""
    FINISHED = b"E"
    """Of the engine process: they are."""
    STOP = b"S"
    """To both: answer what is under way and end. What was said before counts."""
    READY = b"R"
    """Of both: it serves."""
    OPEN = b"O"
    """Of a front: the connections that it got and those that are open, of each listener."""
    ALIVE = b"A"
    """Of both, every second: it does not hang."""
    LOST = b"X"
    """Of a front: its link ended. More: the link's number."""


BEAT_S = 1.0
LISTENERS = ("http", "grpc", "metrics")
COUNTS = struct.Struct(f"<{2 * len(LISTENERS)}I")
"""Got and open, listener by listener."""


class Said(NamedTuple):
    word: Word
    more: bytes
    files: list[int]
    """Descriptors, now the receiver's."""


def channel() -> tuple[socket.socket, socket.socket]:
    """Both ends, neither of which makes anybody wait."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def say(end: socket.socket, word: Word, more: bytes = b"", files: Sequence[int] = ()) -> bool:
    """False: the other side is gone, or does not listen; the message is lost."""
    try:
        socket.send_fds(end, [word.value + more], files) if files else end.send(word.value + more)
    except OSError:
        return False
    return True


def hear(end: socket.socket) -> Iterator[Said]:
    """What was said since. Raises EOFError when the other side is gone."""
    while True:
        try:
            data, files, _, _ = socket.recv_fds(end, _LARGEST_BYTES, _MOST_FILES)
        except BlockingIOError:
            return
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        yield Said(Word(data[:1]), data[1:], files)


async def beat(end: socket.socket) -> None:
    """Tell the supervisor again and again that this process does not hang, for ever."""
    while True:
        say(end, Word.ALIVE)
        await asyncio.sleep(BEAT_S)
