"""Ray Serve: a deployment for each model, with `@serve.batch`, over HTTP.

Batching: `max_batch_size` and `batch_wait_timeout_s`; `max_ongoing_requests`, 5 by default, must be larger than a
batch (https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html).
"""

from __future__ import annotations

from functools import partial

from loadtests.benchmarks.peers.mosec import call
from loadtests.benchmarks.peers.peer import Line, Peer, app

PEER = Peer(
    "ray",
    "@serve.batch: max_batch_size, batch_wait_timeout_s",
    partial(
        app,
        "ray",
        "ray_app",
        env={"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_SERVE_LOG_TO_STDERR": "0"},
    ),
    [Line("Ray Serve, HTTP", call)],
)
