"""What a ModelInfer costs our gRPC transport, from the bytes of a socket read to the bytes of the answers.

    python -m loadtests.benchmarks.http2

32 calls a read, over a data plane that settles each at once: so it is the transport and the message codec alone.
CPU microseconds a call, the best of some rounds; the codec's part is told too, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from loadtests.client import message
from loadtests.flags import counted
from loadtests.h2_calls import prepare
from loadtests.h2_replay import PATH
from loadtests.report import table
from server.settings import GrpcSettings
from server.tensor import Tensor
from server.transport.codec.v2_wire import decode_infer, encode_infer
from server.transport.http2 import frames
from server.transport.http2.calls import Calls, Service
from server.transport.http2.connection import Connection
from server.transport.methods import METHODS
from server.types import InferRequest, InferResponse

if TYPE_CHECKING:
    from server.dataplane import DataPlane

HEADER = ("headers", "a call, us", "of it the codec, us")
CASES = {
    "the same on each call": ("same", True),
    "the same, all HEADERS before all DATA": ("same", False),
    "grpc-timeout and traceparent differ, Huffman-coded literals": ("literals", True),
    "the same two, inserted in the dynamic table": ("inserted", True),
    "the request's id differs": ("ids", True),
}
"""Each with its variant of `loadtests.h2_calls`, and whether HEADERS and DATA come in pairs."""
ANSWER = InferResponse("tiny", "1", [Tensor("y", "FP32", (1, 2), b"12345678")])
IN_FLIGHT = 32
_WIDE = 2**30


class Settled:
    """A data plane that has the answer already."""

    def submit(self, requests: Sequence[InferRequest]) -> None:
        for request in requests:
            request.settle(ANSWER)

    def cancel(self, request: InferRequest) -> None:
        raise AssertionError("nobody cancels here")


def reads(count: int, data: bytes, variant: str, *, pairs: bool = True) -> list[bytes]:
    """What a client sends: HEADERS and DATA of each call in pairs, or all HEADERS of a read first."""
    frames_of_calls = prepare(variant, data, PATH, "127.0.0.1:8001", count * IN_FLIGHT).frames
    calls = [frames_of_calls[first : first + IN_FLIGHT] for first in range(0, len(frames_of_calls), IN_FLIGHT)]
    return [b"".join(read if pairs else _headers_first(read)) for read in calls]


def _headers_first(read: Sequence[bytes]) -> list[bytes]:
    ends = [9 + int.from_bytes(call[:3]) for call in read]
    return [call[:end] for call, end in zip(read, ends, strict=True)] + [
        call[end:] for call, end in zip(read, ends, strict=True)
    ]


def transport_us(received: Sequence[bytes]) -> float:
    """CPU time of one call on a new connection, the first tenth of the reads left out."""
    settings = GrpcSettings()
    connection = Connection(settings, {m.name.encode(): m for m in METHODS}, Counter(), 1)
    calls = Calls(Service(cast("DataPlane", Settled()), settings, Counter()), connection, lambda: None)
    start = frames.settings({frames.INITIAL_WINDOW_SIZE: _WIDE}) + frames.SETTINGS_ACK
    connection.receive(frames.PREFACE + start, 1)
    warm = len(received) // 10
    start_ns = 0
    for index, data in enumerate(received):
        if index == warm:
            start_ns = time.process_time_ns()
        calls.handle(connection.receive(data, 2))
        b"".join(connection.sender.out)
        connection.sender.out.clear()
        connection.sender.window = _WIDE
    return (time.process_time_ns() - start_ns) / (len(received) - warm) / IN_FLIGHT / 1000


def codec_us(data: bytes, count: int) -> float:
    start_ns = time.process_time_ns()
    for _ in range(count):
        decode_infer(data, print, 1, 2, None)
        encode_infer(ANSWER)
    return (time.process_time_ns() - start_ns) / count / 1000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=counted, default=500, help="a round (default: 500)")
    parser.add_argument("--rounds", type=counted, default=5, help="of which the best counts (default: 5)")
    options = parser.parse_args(arguments)
    asked = message("tiny", (30,))
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    rows: list[tuple[object, ...]] = []
    for name, (variant, pairs) in CASES.items():
        received = reads(options.reads, asked, variant, pairs=pairs)
        rounds = [(transport_us(received), codec_us(asked, options.reads * IN_FLIGHT)) for _ in range(options.rounds)]
        call_us, part_us = (min(costs) for costs in zip(*rounds, strict=True))
        rows.append((name, f"{call_us:.2f}", f"{part_us:.2f}"))
    sys.stdout.write(table(HEADER, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
