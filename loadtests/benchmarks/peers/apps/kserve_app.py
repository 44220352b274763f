"""Custom predictors for KServe's Python server."""

import base64
import logging

import kserve
import numpy as np
from kserve import InferOutput, InferResponse
from kserve.utils.utils import generate_uuid
from onnx_model import Model, spec


class RowModel(kserve.Model):
    def __init__(self, name, path):
        super().__init__(name)
        self._model = Model(path)
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        y = self._model.rows(payload.inputs[0].as_numpy())
        output = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=payload.from_grpc)
        return InferResponse(payload.id or generate_uuid(), self.name, [output], from_grpc=payload.from_grpc)


class PictureModel(RowModel):
    async def predict(self, payload, headers=None, response_headers=None):
        given = payload.inputs[0].as_numpy().reshape(-1)
        pictures = [bytes(item) if payload.from_grpc else base64.b64decode(item) for item in given]
        labels = self._model.labels(pictures)
        output = InferOutput("label", [len(labels), 1], "BYTES")
        output.set_data_from_numpy(np.array(labels, dtype=object).reshape(-1, 1), binary_data=payload.from_grpc)
        return InferResponse(payload.id or generate_uuid(), self.name, [output], from_grpc=payload.from_grpc)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    models = [(PictureModel if name == "picture" else RowModel)(name, path) for name, path in spec()["models"].items()]
    kserve.ModelServer(enable_latency_logging=False, access_log_format=None).start(models)
