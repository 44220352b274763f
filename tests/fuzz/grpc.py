"""Mutated gRPC messages against a real server, for as long as one likes: ``make fuzz-grpc``.

    python -m tests.fuzz.grpc --seconds 3600

Prints what was answered and how the server's memory grew. The suite sends some, seeded (e2e/test_grpc_fuzz.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e.conftest import end, start
from tests.support.grpc_fuzz import Tally, attack, made_up, resident_bytes

_ROUND = 5000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long (300)")
    parser.add_argument("--seed", type=int, help="of the first round; left out, by the clock")
    parser.add_argument("--grpc-transport", default="http2", help="http2 or grpcio")
    options = parser.parse_args()
    seed = int(time.time()) if options.seed is None else options.seed
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        traces = ("--trace-file", str(Path(folder) / "trace.json"))
        server = start(Path(folder) / "server.log", "--grpc-transport", options.grpc_transport, *traces)
        try:
            until = time.monotonic() + options.seconds
            while time.monotonic() < until and not tally.faults:
                attack(server.grpc, made_up(seed, _ROUND), tally)
                sys.stdout.write(f"seed {seed}: {resident_bytes(server.process.pid) / 2**20:.0f} MiB\n")
                sys.stdout.flush()
                seed += 1
            alive = server.process.poll() is None
            log = server.log.read_text()
        finally:
            end(server)
    sys.stdout.write("".join(f"{code.name}: {count}\n" for code, count in tally.codes.most_common()))
    sys.stdout.write("".join(f"{fault}\n" for fault in tally.faults[:20]))
    if tally.faults or not alive:
        sys.stdout.write(log[-5000:])
    return int(bool(tally.faults) or not alive)


if __name__ == "__main__":
    sys.exit(main())
