"""A model of Triton's Python backend: all requests that it is given are one batch."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils
from onnx_model import Model


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self._model = Model(config["parameters"]["onnx"]["string_value"])

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        y = self._model.rows(np.concatenate(inputs))
        responses, at = [], 0
        for x in inputs:
            tensor = pb_utils.Tensor("y", y[at : at + len(x)])
            responses.append(pb_utils.InferenceResponse([tensor]))
            at += len(x)
        return responses
