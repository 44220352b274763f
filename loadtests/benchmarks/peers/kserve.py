"""KServe's Python server, which custom predictors are written with, over v2 gRPC and REST.

It has no batching of its own: KServe batches in the agent, a sidecar that speaks V1 over HTTP only
(https://kserve.github.io/website/docs/model-serving/predictive-inference/batcher), so here each request is a pass.
"""

from __future__ import annotations

from loadtests.benchmarks.peers.calls import v2_grpc, v2_rest
from loadtests.benchmarks.peers.peer import Command, Line, Peer, Setup, app


def command(setup: Setup) -> Command:
    built = app("kserve", "kserve_app", setup)
    ports = ["--http_port", str(setup.http_port), "--grpc_port", str(setup.grpc_port)]
    argv = [*built.argv, *ports, "--workers", str(setup.workers), "--configure_logging", "False"]
    return Command(argv, built.cwd, built.env)


PEER = Peer(
    "kserve",
    "none in its Python server",
    command,
    [Line("KServe Python server, gRPC v2", v2_grpc), Line("KServe Python server, REST v2", v2_rest)],
)
