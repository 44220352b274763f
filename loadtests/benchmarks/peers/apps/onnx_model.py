"""The model as every peer runs it: ONNX Runtime with one thread, and Pillow for pictures.

Standard library, numpy, onnxruntime and Pillow only, from the oldest numpy of the peers on.
"""

import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

SPEC_VARIABLE = "PEER_SPEC"
LABELS = tuple(f"class {index}" for index in range(10))
SIDE = 64
"""Pixels of the picture model's input."""


def spec():
    """What the benchmark tells an app: ports, paths of the models, workers, batching."""
    return json.loads(Path(os.environ[SPEC_VARIABLE]).read_text())


def session(path):
    """A session on one thread of one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Model:
    """A batch of rows in, a batch of rows out."""

    def __init__(self, path):
        self._path = path
        self._session = session(path)

    def __reduce__(self):
        """As its path: a server that starts processes of its own may hand it over to them."""
        return Model, (self._path,)

    def rows(self, x):
        """float32 [B, ...] -> float32 [B, C]."""
        return self._session.run(None, {"x": np.ascontiguousarray(x, dtype=np.float32)})[0]

    def labels(self, pictures, draft=False):
        """Encoded pictures -> their labels. `draft`: JPEGs are reduced while they are decoded."""
        return self.labels_of_images([opened(picture, draft) for picture in pictures])

    def labels_of_images(self, images):
        """Pillow's images, which are decoded when they are first used -> their labels."""
        return [label(row) for row in self.rows(np.stack([image_row(image) for image in images]))]


def opened(data, draft=False):
    """An encoded picture -> Pillow's image, decoded when it is first used; `draft`: reduced as far as SIDE allows."""
    image = Image.open(BytesIO(data))
    if draft:
        image.draft(None, (SIDE, SIDE))
    return image


def picture_row(data):
    """An encoded picture -> float32 [3, SIDE, SIDE]."""
    return image_row(Image.open(BytesIO(data)))


def image_row(image):
    """Pillow's image -> float32 [3, SIDE, SIDE]."""
    picture = image.convert("RGB").resize((SIDE, SIDE), Image.BILINEAR)
    x = (np.asarray(picture, dtype=np.float32) * np.float32(1 / 255) - np.float32(0.5)) / np.float32(0.25)
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def label(row):
    return LABELS[int(np.argmax(row))]
