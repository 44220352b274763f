"""A mosec worker for each model: rows as JSON, its default, and pictures as the body."""

import numpy as np
from mosec import Server, Worker
from mosec.runtime import Runtime
from onnx_model import Model, spec

_SPEC = spec()


class TinyMlp(Worker):
    model = "tiny_mlp"

    def __init__(self):
        super().__init__()
        self._model = Model(_SPEC["models"][self.model])

    def forward(self, data):
        y = self._model.rows(np.array([item["x"] for item in data], dtype=np.float32))
        return [{"y": row.tolist()} for row in y]


class Cnn(TinyMlp):
    model = "cnn"


class Picture(TinyMlp):
    model = "picture"

    def deserialize(self, data):
        return bytes(data)

    def forward(self, data):
        return [{"label": label} for label in self._model.labels(data)]


if __name__ == "__main__":
    server = Server()
    server.register_runtime(
        {
            f"/{worker.model}": [
                Runtime(
                    worker,
                    num=_SPEC["workers"],
                    max_batch_size=_SPEC["max_batch_size"],
                    max_wait_time=_SPEC["window_ms"],
                    timeout=60,
                )
            ]
            for worker in (TinyMlp, Cnn, Picture)
            if worker.model in _SPEC["models"]
        }
    )
    server.run()
