"""A generator for unary gRPC calls whose headers or messages differ from call to call, which h2load can't send.

    python -m loadtests.h2_replay 127.0.0.1:8001 --variant literals --message request.bin --answer tensor.bin

All frames are prepared before the first is sent (`h2_calls.py`), so that what is left to do while the clock runs is
little: keep so many calls in flight on one connection, walk over the frames that come back, look at each status and
compare each answer. Header blocks are decoded once and then known by their bytes, for as long as no block changes
the dynamic table. One run of a few hundred thousand calls fits into memory: some 300 bytes a call.
"""

from __future__ import annotations

import argparse
import gc
import json
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hpack import Decoder

from loadtests.client import quantile
from loadtests.h2_calls import (
    ACK,
    BLOCKS,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    TABLE_BYTES,
    WINDOW_UPDATE,
    Calls,
    frame,
    prepare,
)

PATH = "/inference.GRPCInferenceService/ModelInfer"
MOST_CALLS = 1_000_000
TOLERANCE = 1e-4
"""Relative and absolute."""
_MOST_ANSWERS = 256
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 1, 2, 3, 4
_DEFAULT_WINDOW, _LARGEST_WINDOW = 65_535, 2**31 - 1
_HEAD = struct.Struct(">IBI")
_RECEIVE_BYTES = 1 << 18
_SILENCE_S = 20.0


class ReplayFailed(Exception):
    """The connection ended, or the server asked for something that this generator can't do."""


@dataclass
class Replayed:
    """What came of one run."""

    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    """grpc-status of each call; RST_STREAM where the stream was reset."""
    right: int = 0
    """Answers that ended with the wanted tensor."""
    latencies_ns: list[int] = field(default_factory=list)

    @property
    def ended(self) -> int:
        return len(self.latencies_ns)


class Connection:
    """One connection to a server that speaks HTTP/2 without TLS. Not for more than one `run`."""

    def __init__(self, address: str) -> None:
        """Connect and exchange settings.

        Raises:
            OSError: it can't be reached.
            ReplayFailed: it closed, or said nothing for 20 s.
        """
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=_SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.settings: dict[int, int] = {}
        self._decoder = Decoder()
        self._known: dict[bytes, str | None] = {}
        self._block = b""
        self._ends_stream = False
        self._unfinished: dict[int, bytes] = {}
        self._window = _DEFAULT_WINDOW
        self._rest = b""
        self._answer_bytes = 0
        self._right: dict[bytes, None] = {}
        self._sent_ns: list[int] = []
        self.result = Replayed()
        own = struct.pack(">HIHI", _ENABLE_PUSH, 0, _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        more = struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW)
        self._greeted = False
        try:
            self._send(_PREFACE + frame(SETTINGS, 0, 0, own) + frame(WINDOW_UPDATE, 0, 0, more))
            while not self._greeted:
                self._receive()
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def run(self, calls: Calls, in_flight: int, expected: bytes) -> Replayed:
        """Send all calls, always `in_flight` of them under way; an answer is right if it ends with `expected`.

        `expected` is float32, and batches of other sizes may differ in the last digits: see `TOLERANCE`.

        Raises:
            ReplayFailed: the server takes fewer streams or smaller messages than are asked for, or it went away.
        """
        streams = self.settings.get(_MAX_CONCURRENT_STREAMS, in_flight)
        window = self.settings.get(_INITIAL_WINDOW_SIZE, _DEFAULT_WINDOW)
        if streams < in_flight or window < calls.message_bytes:
            raise ReplayFailed(f"the server takes {streams} streams and messages of {window} bytes at once")
        self._answer_bytes = len(expected)
        self._right = {expected: None}
        result, frames, count = self.result, calls.frames, len(calls.frames)
        began_ns = time.perf_counter_ns()
        sent = 0
        while result.ended < count:
            free = min(in_flight - (sent - result.ended), count - sent, self._window // calls.message_bytes)
            if free > 0:
                self._sent_ns += [time.perf_counter_ns()] * free
                self._window -= free * calls.message_bytes
                self._send(b"".join(frames[sent : sent + free]))
                sent += free
            self._receive()
        result.seconds = (time.perf_counter_ns() - began_ns) / 1e9
        return result

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ReplayFailed(f"can't send: {error}") from error

    def _receive(self) -> None:
        """Wait for bytes, and walk over the frames that are whole."""
        try:
            received = self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            raise ReplayFailed(f"no answer: {error}") from error
        if not received:
            raise ReplayFailed("the server closed the connection")
        now_ns = time.perf_counter_ns()
        data = self._rest + received if self._rest else received
        at, end = 0, len(data)
        while end - at >= 9:
            head, flags, stream = _HEAD.unpack_from(data, at)
            stop = at + 9 + (head >> 8)
            if stop > end:
                break
            kind, payload = head & 0xFF, data[at + 9 : stop]
            at = stop
            if kind == DATA:
                self._data(flags, stream, payload, now_ns)
            elif kind in (HEADERS, CONTINUATION):
                self._headers(kind, flags, stream, payload, now_ns)
            else:
                self._other(kind, flags, stream, payload, now_ns)
        self._rest = data[at:]

    def _data(self, flags: int, stream: int, payload: bytes, now_ns: int) -> None:
        if flags & PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if self._unfinished:
            payload = self._unfinished.pop(stream, b"") + payload
        if len(payload) < 5 or len(payload) < 5 + int.from_bytes(payload[1:5], "big"):
            self._unfinished[stream] = payload
        elif payload[-self._answer_bytes :] in self._right or self._close(payload[-self._answer_bytes :]):
            self.result.right += 1
        if flags & END_STREAM:
            self._ended(stream, "no trailers", now_ns)

    def _close(self, answer: bytes) -> bool:
        """An answer not seen before: right if each float32 of it is within `TOLERANCE`; then it is known."""
        wanted = next(iter(self._right))
        if len(answer) != len(wanted) or len(self._right) >= _MOST_ANSWERS:
            return False
        given, reference = np.frombuffer(answer, np.float32), np.frombuffer(wanted, np.float32)
        if not np.allclose(given, reference, rtol=TOLERANCE, atol=TOLERANCE):
            return False
        self._right[answer] = None
        return True

    def _headers(self, kind: int, flags: int, stream: int, payload: bytes, now_ns: int) -> None:
        if kind == HEADERS:
            padding = 0
            if flags & PADDED:
                padding, payload = payload[0], payload[1:]
            if flags & PRIORITY:
                payload = payload[5:]
            self._block = payload[: len(payload) - padding]
            self._ends_stream = bool(flags & END_STREAM)
        else:
            self._block += payload
        if not flags & END_HEADERS:
            return
        try:
            status = self._known[self._block]
        except KeyError:
            status = self._decode(self._block)
        if self._ends_stream:
            self._ended(stream, "none" if status is None else status, now_ns)

    def _decode(self, block: bytes) -> str | None:
        """grpc-status, where there is one. What the block means is kept until a block changes the table."""
        table = self._decoder.header_table.dynamic_entries
        before = (len(table), table[0] if table else None)
        status = dict(self._decoder.decode(block)).get("grpc-status")
        table = self._decoder.header_table.dynamic_entries
        after = (len(table), table[0] if table else None)
        if before[0] == after[0] and before[1] is after[1]:
            self._known[block] = status
        else:
            self._known.clear()
        return status

    def _ended(self, stream: int, status: str, now_ns: int) -> None:
        self.result.statuses[status] += 1
        self.result.latencies_ns.append(now_ns - self._sent_ns[stream >> 1])

    def _other(self, kind: int, flags: int, stream: int, payload: bytes, now_ns: int) -> None:
        if kind == SETTINGS and not flags & ACK:
            self.settings.update(struct.iter_unpack(">HI", payload))
            self._send(frame(SETTINGS, ACK, 0))
            self._greeted = True
        elif kind == PING and not flags & ACK:
            self._send(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == RST_STREAM:
            self._ended(stream, "RST_STREAM", now_ns)
        elif kind == GOAWAY:
            raise ReplayFailed(f"the server sent GOAWAY, error {int.from_bytes(payload[4:8], 'big')}")


def replay(address: str, variant: str, message: bytes, expected: bytes, count: int, in_flight: int) -> Replayed:
    """Prepare and run `count` calls. A first connection asks for the server's limits.

    Raises:
        OSError: the server can't be reached.
        ReplayFailed: see `Connection`.
    """
    probe = Connection(address)
    probe.close()
    table_bytes = probe.settings.get(_HEADER_TABLE_SIZE, TABLE_BYTES)
    calls = prepare(variant, message, PATH, address, count, table_bytes)
    connection = Connection(address)
    gc.collect()
    gc.disable()
    try:
        return connection.run(calls, in_flight, expected)
    finally:
        gc.enable()
        connection.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="host:port")
    parser.add_argument("--variant", choices=BLOCKS, default="same")
    parser.add_argument("--message", type=Path, required=True, help="a file with a ModelInferRequest")
    parser.add_argument("--answer", type=Path, required=True, help="a file with what every answer must end with")
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--in-flight", type=int, default=32)
    options = parser.parse_args(arguments)
    if not 0 < options.calls <= MOST_CALLS:
        parser.error(f"--calls: 1 to {MOST_CALLS}")
    message, expected = options.message.read_bytes(), options.answer.read_bytes()
    try:
        result = replay(options.address, options.variant, message, expected, options.calls, options.in_flight)
    except (OSError, ReplayFailed) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    summary = {
        "requests_per_s": result.ended / result.seconds,
        "p50_ms": quantile(result.latencies_ns, 0.5) / 1e6,
        "p99_ms": quantile(result.latencies_ns, 0.99) / 1e6,
        "answered": result.ended,
        "failed": result.ended - min(result.right, result.statuses["0"]),
        "statuses": dict(result.statuses),
    }
    sys.stdout.write(json.dumps(summary) + "\n")
    return 0 if not summary["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
