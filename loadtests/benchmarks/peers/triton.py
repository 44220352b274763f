"""The real Triton Inference Server, with models of its Python backend that run ONNX Runtime.

The build that PyPI has (inside nvidia-pytriton) has no ONNX Runtime backend, so a request goes from its C++ front
through shared memory to a Python process and back. How fast the front and that way alone are is a line of its own:
"identity" gives its input back and runs no model.

Batching: `dynamic_batching {}`, the default that its documentation says to begin with
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/optimization.html).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import httpx

from loadtests.benchmarks.peers.calls import Call, v2_grpc, v2_rest, v2_rest_binary
from loadtests.benchmarks.peers.environments import Unavailable, environment, unpacked
from loadtests.benchmarks.peers.peer import APPS, Command, Line, Peer, Setup
from loadtests.benchmarks.peers.workloads import MAX_BATCH_SIZE, Workload
from server.local_triton.program import REQUIREMENTS, TritonMissing, complete

_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {max_batch_size}
input {{ name: "{input}" data_type: {input_type} dims: [{input_dims}] }}
output {{ name: "{output}" data_type: {output_type} dims: [{output_dims}] }}
instance_group {{ kind: KIND_CPU count: {workers} }}
dynamic_batching {{ }}
parameters {{ key: "onnx" value {{ string_value: "{onnx}" }} }}
"""


def command(setup: Setup) -> Command:
    server, backends = _server()
    packages = next(environment("triton").parent.parent.glob("lib/python*/site-packages"))
    for name, workload in setup.workloads.items():
        _write(setup, name, workload, packages, str(workload.onnx))
    if "tiny_mlp" in setup.workloads:
        _write(setup, "identity", setup.workloads["tiny_mlp"], packages, "")
    argv = [str(server), "--backend-directory", str(backends), "--model-repository", str(setup.folder / "models")]
    argv += ["--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1", "--metrics-address", "127.0.0.1"]
    argv += ["--http-port", str(setup.http_port), "--grpc-port", str(setup.grpc_port)]
    argv += ["--metrics-port", str(setup.other_port), "--allow-gpu-metrics", "false", "--disable-auto-complete-config"]
    return Command(argv, setup.folder)


def _server() -> tuple[Path, Path]:
    """The program and its backends, ready to run."""
    root = unpacked("tritonserver", REQUIREMENTS) / "pytriton" / "tritonserver"
    program = root / "bin" / "tritonserver"
    try:
        complete(program)
    except TritonMissing as error:
        raise Unavailable(str(error)) from error
    return program, root / "backends"


def _write(setup: Setup, name: str, workload: Workload, packages: Path, onnx: str) -> None:
    folder = setup.folder / "models" / name
    (folder / "1").mkdir(parents=True)
    row = ", ".join(str(size) for size in workload.network.dims)
    picture = workload.picture is not None
    config = _CONFIG.format(
        name=name,
        max_batch_size=MAX_BATCH_SIZE,
        input="picture" if picture else "x",
        input_type="TYPE_STRING" if picture else "TYPE_FP32",
        input_dims="1" if picture else row,
        output="label" if picture else "y",
        output_type="TYPE_STRING" if picture else "TYPE_FP32",
        output_dims="1" if picture else (workload.network.classes if onnx else row),
        workers=setup.workers,
        onnx=onnx,
    )
    (folder / "config.pbtxt").write_text(config)
    source = "triton_identity.py" if not onnx else "triton_pictures.py" if picture else "triton_rows.py"
    # The backend ignores PYTHONPATH, and imports nothing before the model's own file.
    path = f"import sys\n\nsys.path[:0] = [{str(packages)!r}, {str(APPS)!r}]\n\n"
    (folder / "1" / "model.py").write_text(path + (APPS / source).read_text())


def identity(workload: Workload) -> Call | None:
    """The input is the answer; asked where a pass costs least, so that it stands beside that."""
    if workload.name != "tiny_mlp":
        return None
    return replace(v2_grpc(workload, "identity"), answer=workload.row[0], model="identity")


def succeeded(setup: Setup, model: str) -> float:
    text = httpx.get(f"http://127.0.0.1:{setup.other_port}/metrics").raise_for_status().text
    counts = re.findall(rf'^nv_inference_request_success{{model="{model}",[^}}]*}} (\S+)$', text, re.MULTILINE)
    return sum(float(count) for count in counts)


PEER = Peer(
    "triton",
    "dynamic_batching {}",
    command,
    [
        Line("Triton, Python backend, gRPC v2", v2_grpc),
        Line("Triton, Python backend, REST v2", v2_rest),
        Line("Triton, Python backend, REST v2, binary", v2_rest_binary),
        Line("Triton, identity: no model, gRPC v2", identity),
    ],
    succeeded,
)
