"""BentoML: `@bentoml.api(batchable=True)`, over HTTP.

Batching: the window is learned, bounded by `max_latency_ms`, which stays as it is
(https://docs.bentoml.com/en/latest/guides/adaptive-batching.html).
"""

from __future__ import annotations

from loadtests.benchmarks.peers.calls import Call, plain_json, read_plain_json
from loadtests.benchmarks.peers.environments import environment
from loadtests.benchmarks.peers.peer import Command, Line, Peer, Setup, app_env
from loadtests.benchmarks.peers.workloads import Workload

_BOUNDARY = "picture-boundary"


def command(setup: Setup) -> Command:
    program = environment("bentoml").parent / "bentoml"
    env = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(setup.folder)}
    argv = [str(program), "serve", "bentoml_app:Models", "--host", "127.0.0.1", "--port", str(setup.http_port)]
    built = app_env(setup, env)
    return Command([*argv, "--working-dir", built["PYTHONPATH"]], setup.folder, built)


def call(workload: Workload) -> Call:
    """A batch of one row or one picture: what a batchable method takes."""
    if workload.picture is None:
        return plain_json(workload, f"/{workload.name}", wrap=lambda row: {"x": [row]})
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="pictures"; filename="picture.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + workload.picture + f"\r\n--{_BOUNDARY}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    return Call(False, f"/{workload.name}", body, read_plain_json, headers)


PEER = Peer("bentoml", "batchable=True, max_batch_size", command, [Line("BentoML, HTTP", call)])
