"""What every server is asked: the same ONNX models, the same input, and the answer that ONNX Runtime gives alone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from loadtests.benchmarks.peers.apps.onnx_model import LABELS, SIDE, label, picture_row, session
from loadtests.fitting import LAYERS, Fitted
from loadtests.models import Network, cnn, photo_classifier, tiny_mlp

NAMES = ("tiny_mlp", "cnn", "picture")
DRAFT = "picture_draft"
"""Our model of pictures once more, whose spec says that JPEGs are reduced while they are decoded."""
DRAFT_DECODER = "pillow-draft"
"""By the name that `processing.yaml` has for it."""
MAX_BATCH_SIZE = 32
PICTURE_SIZE = (640, 480)
TOLERANCE = 1e-4
"""Largest difference to ONNX Runtime's own answer, relative and absolute: a batch is summed in another order."""

Answer = np.ndarray[Any, np.dtype[np.float32]] | str
"""Of tensors: the output row. Of a picture: its label."""


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    network: Network
    row: np.ndarray[Any, np.dtype[np.float32]]
    """One row of the model's input, [1, ...]."""
    picture: bytes | None
    """The encoded picture that is sent in its place, or None."""
    onnx: Path
    answer: Answer

    def right(self, answer: Answer) -> bool:
        return agree(answer, self.answer)


def agree(answer: Answer, wanted: Answer) -> bool:
    """The two are the same label, or the same row within `TOLERANCE`."""
    if isinstance(answer, str) or isinstance(wanted, str):
        return isinstance(answer, str) and isinstance(wanted, str) and answer == wanted
    return answer.size == wanted.size and bool(
        np.allclose(answer.reshape(-1), wanted.reshape(-1), rtol=TOLERANCE, atol=TOLERANCE)
    )


def photograph() -> bytes:
    """A JPEG of 640 by 480 pixels: one of the photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_image

    picture = Image.fromarray(load_sample_image("flower.jpg")).resize(PICTURE_SIZE, Image.Resampling.BICUBIC)
    file = BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def write(folder: Path, instances: int = 1, fitted: Fitted | None = None) -> dict[str, Workload]:
    """Write ``models/``, a repository for our server with `instances` of each model, and the picture's also as `DRAFT`;
    the workloads by name. `fitted`: the CNN; None: one of some milliseconds, whose time nobody asks for."""
    fitted = fitted or Fitted(cnn(LAYERS), LAYERS)
    photo = photograph()
    networks = {
        "tiny_mlp": ("tiny MLP, 30 -> 64 -> 2", tiny_mlp(), None),
        "cnn": (fitted.title, fitted.network, None),
        "picture": ("JPEG 640x480 -> label (decode, resize, CNN)", photo_classifier(SIDE), photo),
    }
    workloads = {}
    for name, (title, network, picture) in networks.items():
        group = f"instance_group {{ kind: KIND_CPU count: {instances} }}\n"
        network.save(folder / "models", name, MAX_BATCH_SIZE, group)
        model = folder / "models" / name
        if picture is None:
            row = np.random.default_rng(0).normal(size=(1, *network.dims)).astype(np.float32)
        else:
            row = picture_row(picture)[np.newaxis]
            _describe_picture(model, network, picture)
            _write_draft(model, model.with_name(DRAFT))
        onnx = model / "1" / "model.onnx"
        output = session(onnx).run(None, {"x": row})[0]
        answer = output[0] if picture is None else label(output[0])
        workloads[name] = Workload(name, title, network, row, picture, onnx, answer)
    return workloads


def _describe_picture(model: Path, network: Network, picture: bytes) -> None:
    """What makes a model of ours take pictures; the same steps as `picture_row`."""
    channels, height, width = network.dims
    processing = {
        "task": "image-classification",
        "input": "x",
        "layout": "NCHW",
        "mode": "RGB",
        "resize": {"height": height, "width": width, "filter": "bilinear", "fit": "stretch"},
        "normalize": {"scale": 1 / 255, "mean": [0.5] * channels, "std": [0.25] * channels},
        "classification": {"output": "y", "activation": "softmax", "labels": "labels.txt", "top_k": 1},
        "example": "example.jpg",
    }
    (model / "processing.yaml").write_text(yaml.safe_dump(processing, sort_keys=False))
    (model / "labels.txt").write_text("".join(f"{name}\n" for name in LABELS))
    (model / "example.jpg").write_bytes(picture)


def _write_draft(model: Path, folder: Path) -> None:
    shutil.copytree(model, folder)
    config, processing = folder / "config.pbtxt", folder / "processing.yaml"
    config.write_text(config.read_text().replace(f'"{model.name}"', f'"{folder.name}"'))
    processing.write_text(f"decode:\n  decoder: {DRAFT_DECODER}\n{processing.read_text()}")
