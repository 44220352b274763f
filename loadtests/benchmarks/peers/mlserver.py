"""MLServer: a custom runtime around ONNX Runtime, with adaptive batching, over v2 gRPC and REST.

Batching: `max_batch_size` and `max_batch_time`, to be found by experiment, says
https://docs.seldon.ai/mlserver/user-guide/adaptive-batching. One worker runs in the server's process
(`parallel_workers` 0), which spares a queue between processes: on one core that is the faster way.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from loadtests.benchmarks.peers.calls import v2_grpc, v2_rest
from loadtests.benchmarks.peers.environments import environment
from loadtests.benchmarks.peers.peer import Command, Line, Peer, Setup, app_env
from loadtests.benchmarks.peers.workloads import MAX_BATCH_SIZE


def command(setup: Setup) -> Command:
    python = environment("mlserver")
    server = {
        "host": "127.0.0.1",
        "debug": False,
        "http_port": setup.http_port,
        "grpc_port": setup.grpc_port,
        "metrics_port": setup.other_port,
        "parallel_workers": 0 if setup.workers == 1 else setup.workers,
    }
    (setup.folder / "settings.json").write_text(json.dumps(server))
    for name, workload in setup.workloads.items():
        model = {
            "name": name,
            "implementation": "mlserver_app." + ("RowModel" if workload.picture is None else "PictureModel"),
            "max_batch_size": MAX_BATCH_SIZE,
            "max_batch_time": setup.window_ms / 1e3,
            "parameters": {"uri": str(workload.onnx)},
        }
        (setup.folder / name).mkdir()
        (setup.folder / name / "model-settings.json").write_text(json.dumps(model))
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    argv = [str(python.parent / "mlserver"), "start", str(setup.folder)]
    return Command(argv, setup.folder, app_env(setup, {"PATH": path}))


PEER = Peer(
    "mlserver",
    "max_batch_size, max_batch_time",
    command,
    [Line("MLServer, gRPC v2", v2_grpc), Line("MLServer, REST v2", v2_rest)],
)
