"""A model of Triton's Python backend for the first step of an ensemble: pictures in, rows of the next model out."""

import numpy as np
from onnx_model import image_row
from triton_images import draft_of, images_of, parted


class TritonPythonModel:
    def initialize(self, args):
        self._draft = draft_of(args)

    def execute(self, requests):
        images, counts = images_of(requests, self._draft)
        return parted("x", np.stack([image_row(image) for image in images]), counts)
