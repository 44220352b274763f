"""A model of Triton's Python backend that decodes pictures, and asks another model of the same Triton (business logic
scripting): BYTES in, BYTES out. All that wait together are one request to it."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils
from onnx_model import image_row, label
from triton_images import draft_of, images_of, parted


class TritonPythonModel:
    def initialize(self, args):
        self._next = json.loads(args["model_config"])["parameters"]["next"]["string_value"]
        self._draft = draft_of(args)

    def execute(self, requests):
        images, counts = images_of(requests, self._draft)
        rows = pb_utils.Tensor("x", np.stack([image_row(image) for image in images]))
        asked = pb_utils.InferenceRequest(model_name=self._next, requested_output_names=["y"], inputs=[rows])
        answer = asked.exec()
        if answer.has_error():
            raise pb_utils.TritonModelException(answer.error().message())
        scores = pb_utils.get_output_tensor_by_name(answer, "y").as_numpy()
        labels = [label(row).encode() for row in scores]
        return parted("label", np.array(labels, dtype=object).reshape(-1, 1), counts)
