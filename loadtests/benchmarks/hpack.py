"""What decoding a gRPC request's field block costs: ours, and the package `hpack`, on the same blocks.

    python -m loadtests.benchmarks.hpack

CPU microseconds a block, the best of some rounds taken in turn, so the ratio holds on a busy machine too.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable, Sequence

import hpack

from loadtests.flags import counted
from loadtests.report import table
from server.transport.http2.hpack import Decoder

HEADER = ("grpc-timeout and traceparent", "octets", "ours, us", "hpack, us", "ratio")

REQUEST = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
    (b":authority", b"127.0.0.1:8001"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"grpc-go/1.76.0"),
)
"""Always the same, so all of it is indexed after the first call."""

MAX_LIST_SIZE = 16_384

Decode = Callable[[bytes], object]


def differing(random_: random.Random) -> list[tuple[bytes, bytes]]:
    trace = f"00-{random_.getrandbits(128):032x}-{random_.getrandbits(64):016x}-01"
    return [(b"grpc-timeout", b"%dm" % random_.randrange(1, 1000)), (b"traceparent", trace.encode())]


def connection(
    count: int, seed: int, *, indexed: bool = False, known: bool = True, huffman: bool = False, same: bool = False
) -> list[bytes]:
    """The blocks of one connection.

    `indexed`: the fields that differ go into the table; `known`: their names are in it. Those that don't go into it are
    sent as never indexed, which a decoder reads just as those without indexing.
    """
    random_ = random.Random(seed)
    encoder = hpack.Encoder()
    first = differing(random_)
    blocks = [encoder.encode([*REQUEST, *(first if known else ())], huffman)]
    for _ in range(count):
        changed = first if same else differing(random_)
        sensitive = not (indexed or same)
        blocks.append(encoder.encode([*REQUEST, *((*field, sensitive) for field in changed)], huffman))
    return blocks


CASES = {
    "the same on each call, indexed": {"same": True},
    "plain literals": {},
    "plain literals, names too": {"known": False},
    "Huffman-coded literals": {"huffman": True},
    "Huffman-coded literals, names too": {"huffman": True, "known": False},
    "plain, inserted": {"indexed": True},
    "Huffman-coded, inserted": {"huffman": True, "indexed": True},
}


def ours() -> Decode:
    decoder = Decoder()
    return lambda block: decoder.decode(block, MAX_LIST_SIZE)


def theirs() -> Decode:
    decoder = hpack.Decoder()
    return lambda block: decoder.decode(block, raw=True)


def cost_us(new: Callable[[], Decode], blocks: Sequence[bytes]) -> float:
    """CPU time of one block, without those that a connection starts with."""
    decode = new()
    warm = blocks[: len(blocks) // 4]
    timed = blocks[len(warm) :]
    for block in warm:
        decode(block)
    start_ns = time.process_time_ns()
    for block in timed:
        decode(block)
    return (time.process_time_ns() - start_ns) / len(timed) / 1000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blocks", type=counted, default=4000, help="a round (default: 4000)")
    parser.add_argument("--rounds", type=counted, default=7, help="of which the best counts (default: 7)")
    options = parser.parse_args(arguments)
    gc.freeze()
    rows: list[tuple[object, ...]] = []
    for name, case in CASES.items():
        blocks = connection(options.blocks, options.seed, **case)
        rounds = [(cost_us(ours, blocks), cost_us(theirs, blocks)) for _ in range(options.rounds)]
        our_us, their_us = (min(costs) for costs in zip(*rounds, strict=True))
        rows.append(
            (
                name,
                f"{sum(map(len, blocks)) / len(blocks):.0f}",
                f"{our_us:.2f}",
                f"{their_us:.2f}",
                f"{their_us / our_us:.1f}",
            )
        )
    sys.stdout.write(table(HEADER, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
