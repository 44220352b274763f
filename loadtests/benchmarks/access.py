"""What it costs a ModelInfer that callers show keys: our gRPC transport with and without, interleaved.

    python -m loadtests.benchmarks.access

32 calls a read, over a data plane that settles each at once: so it is the transport, the codec and the gate alone. The
same bytes, but for the key's header, go to a server that asks for nothing and to one that asks; the key has a tenant,
then also models, a rate and a limit of requests under way. CPU microseconds a call, the best of some rounds.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from loadtests.benchmarks.http2 import IN_FLIGHT, Settled
from loadtests.client import message
from loadtests.flags import counted
from loadtests.h2_replay import PATH
from loadtests.report import publish, table
from server.security.gate import Gate, open_gate
from server.security.keys import KeyFile, new_key, write_file
from server.settings import GrpcSettings, Settings
from server.transport.http2 import frames
from server.transport.http2.calls import Calls, Service
from server.transport.http2.connection import Connection
from server.transport.http2.hpack_encode import encode
from server.transport.methods import METHODS

if TYPE_CHECKING:
    from server.dataplane import DataPlane

HEADER = ("callers show", "asked for it", "a call, us", "to the first")
_GRANTS = {
    "a key": {},
    "a key with models, a rate, a limit under way": {
        "models": ("tiny_mlp", "other"),
        "rate_per_s": 1e9,
        "max_concurrent": 10**6,
    },
}
_WIDE = 2**30


def reads(count: int, data: bytes, key: str) -> list[bytes]:
    """What a client sends that repeats its headers, with a key among them if there is one."""
    path = PATH.encode()
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"127.0.0.1:8001")]
    fields += [(b"te", b"trailers"), (b"content-type", b"application/grpc")]
    block = encode([*fields, (b"x-api-key", key.encode())] if key else fields)
    body = b"\0" + len(data).to_bytes(4, "big") + data
    made = [
        frames.headers(number, block, end_stream=False) + frames.frame(frames.DATA, frames.END_STREAM, number, body)
        for number in range(1, 2 * count * IN_FLIGHT, 2)
    ]
    return [b"".join(made[first : first + IN_FLIGHT]) for first in range(0, len(made), IN_FLIGHT)]


def transport_us(received: Sequence[bytes], gate: Gate | None) -> float:
    """CPU time of one call on a new connection, the first tenth of the reads left out."""
    settings = GrpcSettings()
    connection = Connection(settings, {m.name.encode(): m for m in METHODS}, Counter(), 1, (), gate)
    calls = Calls(Service(cast("DataPlane", Settled()), settings, Counter()), connection, lambda: None)
    start = frames.settings({frames.INITIAL_WINDOW_SIZE: _WIDE}) + frames.SETTINGS_ACK
    connection.receive(frames.PREFACE + start, 1)
    first, began = len(received) // 10, 0.0
    for index, data in enumerate(received):
        if index == first:
            began = time.process_time()
        calls.handle(connection.receive(data, time.monotonic_ns()))
        b"".join(connection.sender.out)
        connection.sender.out.clear()
        connection.sender.window = _WIDE
    return (time.process_time() - began) / ((len(received) - first) * IN_FLIGHT) * 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=counted, default=1500, help="of 32 calls each, a round (default: 1500)")
    parser.add_argument("--rounds", type=counted, default=7, help="the best counts (default: 7)")
    parser.add_argument("--out", type=Path, help="also write access.md into this folder")
    options = parser.parse_args(arguments)
    data = message("tiny_mlp", (30,))
    with tempfile.TemporaryDirectory() as folder:
        sides: list[tuple[str, str, str, Gate | None]] = [("nothing", "no", "", None), ("nothing", "no", "", None)]
        for index, (name, more) in enumerate(_GRANTS.items()):
            key, record = new_key(name=f"k{index}", roles=("predict",), **more)
            file = Path(folder) / f"{index}.yaml"
            write_file(file, KeyFile(keys=(record,)))
            sides.append((name, "no", key, None))
            sides.append((name, "yes", key, open_gate(Settings(auth={"keys": str(file)}))))
        sent = {key: reads(options.reads, data, key) for _, _, key, _ in sides}
        best = [float("inf")] * len(sides)
        gc.disable()
        for _ in range(options.rounds):
            for index, (_, _, key, gate) in enumerate(sides):
                best[index] = min(best[index], transport_us(sent[key], gate))
    lines = [
        (name, asked, f"{us:.2f}", f"{us / best[0]:.3f}") for (name, asked, _, _), us in zip(sides, best, strict=True)
    ]
    publish(table(HEADER, lines), "access.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
