"""Ray on this machine alone, with a Serve application for each model."""

import signal
import threading

import numpy as np
import ray
from onnx_model import Model, spec
from ray import serve
from starlette.requests import Request

_SPEC = spec()
_BATCH = {"max_batch_size": _SPEC["max_batch_size"], "batch_wait_timeout_s": _SPEC["window_ms"] / 1e3}
_DEPLOYMENT = {
    "num_replicas": _SPEC["workers"],
    "max_ongoing_requests": 256,
    "ray_actor_options": {"num_cpus": 0},
    # It may be held still for minutes while another server is measured.
    "health_check_period_s": 3600,
    "health_check_timeout_s": 3600,
}


@serve.deployment(**_DEPLOYMENT)
class Rows:
    def __init__(self, path):
        self._model = Model(path)

    @serve.batch(**_BATCH)
    async def run(self, rows):
        return [{"y": row.tolist()} for row in self._model.rows(np.array(rows, dtype=np.float32))]

    async def __call__(self, request: Request):
        return await self.run((await request.json())["x"])


@serve.deployment(**_DEPLOYMENT)
class Pictures:
    def __init__(self, path):
        self._model = Model(path)

    @serve.batch(**_BATCH)
    async def run(self, pictures):
        return [{"label": label} for label in self._model.labels(pictures)]

    async def __call__(self, request: Request):
        return await self.run(await request.body())


def main():
    ended = threading.Event()
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
        _node_ip_address="127.0.0.1",
        _temp_dir=_SPEC["folder"],
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    serve.start(
        http_options={"host": "127.0.0.1", "port": _SPEC["http_port"]}, logging_config={"enable_access_log": False}
    )
    for name, path in _SPEC["models"].items():
        deployment = Pictures if name == "picture" else Rows
        serve.run(deployment.bind(path), name=name, route_prefix=f"/{name}")
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
