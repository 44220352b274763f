"""A server whose model takes its time and none of the machine's: replicas that do not compete for the cores.

    python -m loadtests.replica REPOSITORY PASS_MS

All of it is the server's own but for the engine, which sleeps, as one that waits for a device of its own does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from server import app
from server.engine.fake import FakeEngine, FakeInstance, Script
from server.environment import load_settings
from server.pipeline.load import load_pipeline
from server.repository.opening import open_sources
from server.repository.repository import Repository
from server.settings import Settings

_WARMUP_S, _LEAVING_S = 1.0, 1.0
MODEL = "sleeper"
DIMS = (4,)
_CONFIG = """name: "{name}"
backend: "onnxruntime"
max_batch_size: 1
input {{ name: "x" data_type: TYPE_FP32 dims: [4] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [1] }}
instance_group {{ kind: KIND_CPU count: {instances} }}
dynamic_batching {{ }}
parameters {{ key: "slo_ms" value {{ string_value: "{slo_ms:g}" }} }}
"""


def write_model(repository: Path, instances: int, slo_ms: float) -> None:
    folder = repository / MODEL
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(b"")
    (folder / "config.pbtxt").write_text(_CONFIG.format(name=MODEL, instances=instances, slo_ms=slo_ms))


def main() -> int:
    repository, pass_ms = sys.argv[1:]
    script = Script(latency_s=lambda _rows: float(pass_ms) / 1e3)

    def open_repository(settings: Settings) -> Repository:
        sources = open_sources(settings.repository.path, settings.remote)
        return Repository(
            sources, FakeEngine(script), load_pipeline=load_pipeline, warmup_s=settings.repository.warmup_s
        )

    FakeInstance.threads = 0  # Of this machine's cores.
    app.open_repository = open_repository
    ports = {listener: {"port": 0} for listener in ("http", "grpc", "metrics")}
    models = {"path": (repository,), "warmup_s": _WARMUP_S}
    shutdown = {"delay_s": _LEAVING_S, "grace_s": 10}
    return app.run(load_settings({"repository": models, "shutdown": shutdown, **ports}))


if __name__ == "__main__":
    sys.exit(main())
