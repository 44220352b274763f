"""A model of Triton's Python backend that takes pictures and runs the model itself: BYTES in, BYTES out."""

import json

import numpy as np
from onnx_model import Model
from triton_images import draft_of, images_of, parted


class TritonPythonModel:
    def initialize(self, args):
        self._model = Model(json.loads(args["model_config"])["parameters"]["onnx"]["string_value"])
        self._draft = draft_of(args)

    def execute(self, requests):
        images, counts = images_of(requests, self._draft)
        labels = [name.encode() for name in self._model.labels_of_images(images)]
        return parted("label", np.array(labels, dtype=object).reshape(-1, 1), counts)
