"""mosec: a Rust front, and worker processes that get batches, over HTTP.

Batching: `max_batch_size` and `max_wait_time` (https://mosecorg.github.io/mosec/reference/interface.html).
"""

from __future__ import annotations

from loadtests.benchmarks.peers.calls import Call, plain_json, read_plain_json
from loadtests.benchmarks.peers.peer import Command, Line, Peer, Setup, app
from loadtests.benchmarks.peers.workloads import Workload


def command(setup: Setup) -> Command:
    built = app("mosec", "mosec_app", setup)
    flags = ["--address", "127.0.0.1", "--port", str(setup.http_port), "--timeout", "60000", "--log-level", "warning"]
    return Command([*built.argv, *flags, "--path", str(setup.folder / "sockets")], built.cwd, built.env)


def call(workload: Workload) -> Call:
    if workload.picture is None:
        return plain_json(workload, f"/{workload.name}")
    return Call(False, f"/{workload.name}", workload.picture, read_plain_json, {"Content-Type": "image/jpeg"})


PEER = Peer("mosec", "max_batch_size, max_wait_time", command, [Line("mosec, HTTP", call)])
