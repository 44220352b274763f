"""LitServe: one `LitAPI` for each model, over HTTP.

Batching: `max_batch_size` and `batch_timeout` (https://lightning.ai/docs/litserve/features/batching).
"""

from __future__ import annotations

import base64
import json
from functools import partial

from loadtests.benchmarks.peers.calls import JSON, Call, plain_json, read_plain_json
from loadtests.benchmarks.peers.peer import Line, Peer, app
from loadtests.benchmarks.peers.workloads import Workload


def call(workload: Workload) -> Call:
    if workload.picture is None:
        return plain_json(workload, f"/{workload.name}")
    body = json.dumps({"picture": base64.b64encode(workload.picture).decode()}).encode()
    return Call(False, f"/{workload.name}", body, read_plain_json, JSON)


PEER = Peer(
    "litserve",
    "max_batch_size, batch_timeout",
    partial(app, "litserve", "litserve_app"),
    [Line("LitServe, HTTP", call)],
)
