"""LitServe with an API for each model; rows as lists, pictures as base64, as its documentation has it."""

import base64

import litserve
import numpy as np
from onnx_model import Model, spec


class RowAPI(litserve.LitAPI):
    path = ""

    def setup(self, device):
        self._model = Model(self.path)

    def decode_request(self, request):
        return np.array(request["x"], dtype=np.float32)

    def predict(self, batch):
        return self._model.rows(np.stack(batch) if isinstance(batch, list) else batch)

    def encode_response(self, output):
        return {"y": output.tolist()}


class PictureAPI(RowAPI):
    def decode_request(self, request):
        return base64.b64decode(request["picture"])

    def batch(self, inputs):
        return inputs

    def predict(self, batch):
        return self._model.labels(batch)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"label": output}


if __name__ == "__main__":
    given = spec()
    apis = []
    for name, path in given["models"].items():
        api = (PictureAPI if name == "picture" else RowAPI)(
            max_batch_size=given["max_batch_size"], batch_timeout=given["window_ms"] / 1e3, api_path=f"/{name}"
        )
        api.path = path
        apis.append(api)
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=given["workers"], timeout=60)
    server.run(
        host="127.0.0.1",
        port=given["http_port"],
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
