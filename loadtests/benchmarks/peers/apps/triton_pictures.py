"""A model of Triton's Python backend that takes pictures: BYTES in, BYTES out."""

import base64
import json
from io import BytesIO

import numpy as np
import triton_python_backend_utils as pb_utils
from onnx_model import SIDE, Model
from PIL import Image


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self._model = Model(config["parameters"]["onnx"]["string_value"])
        # A JPEG is reduced while it is decoded, as far as the model's size allows.
        self._draft = "draft" in config["parameters"]

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "picture").as_numpy() for request in requests]
        given = [picture for x in inputs for picture in x.reshape(-1)]
        # JSON has no bytes, so REST clients send base64; a JPEG begins with FF D8.
        pictures = [picture if picture.startswith(b"\xff\xd8") else base64.b64decode(picture) for picture in given]
        images = [Image.open(BytesIO(picture)) for picture in pictures]
        if self._draft:
            for image in images:
                image.draft(None, (SIDE, SIDE))
        labels = self._model.labels_of_images(images)
        responses, at = [], 0
        for x in inputs:
            own = np.array([name.encode() for name in labels[at : at + len(x)]], dtype=object).reshape(-1, 1)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("label", own)]))
            at += len(x)
        return responses
