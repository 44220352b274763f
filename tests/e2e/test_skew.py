"""1,000 inputs of each kind through the training transform and through a server: the same answers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from exporter.data import fraud, images
from server.client import Client
from server.pipeline.image import ImageSteps
from server.pipeline.image_spec import ImageSpec
from server.pipeline.load import load_pipeline, read_spec
from server.pipeline.tabular import RowEncoder, TabularSpec
from server.tensor import Array
from server.types import Classification
from tests.e2e.conftest import REPOSITORY, ServerProcess

pytestmark = pytest.mark.e2e

COUNT = 1_000
CLOSE = 1e-6


def expected(folder: Path, tensors: dict[str, Array]) -> Sequence[Classification]:
    """What the model answers to the tensors of training, in ONNX Runtime, by the batches that are sent."""
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    pipeline = load_pipeline(folder)
    names = [output.name for output in session.get_outputs()]
    found: list[Any] = []
    for start_row in range(0, COUNT, 25):
        part = {name: array[start_row : start_row + 25] for name, array in tensors.items()}
        found += pipeline.postprocess(dict(zip(names, session.run(names, part), strict=True)))
    return found


def asked(url: str, model: str, inputs: Sequence[Any]) -> Sequence[Any]:
    with Client(url) as client:
        parts = [inputs[start_row : start_row + 25] for start_row in range(0, len(inputs), 25)]
        return [answer for part in parts for answer in client.predict(model, part).predictions]


def assert_the_same(served: Sequence[Any], trained: Sequence[Classification]) -> None:
    assert len(served) == len(trained) == COUNT
    assert [one.label for one in served] == [one.label for one in trained]
    difference = [abs(a.score - b.score) for one, two in zip(served, trained, strict=True)
                  for a, b in zip(one.top_k, two.top_k, strict=True)]  # fmt: skip
    assert max(difference) <= CLOSE


def test_rows_are_answered_as_training_saw_them(server: ServerProcess) -> None:
    """Whole columns of a frame, as training transforms them, and rows by name over REST: missing values among them."""
    frame = fraud.transactions(COUNT).drop(columns=fraud.TARGET)
    spec = read_spec(REPOSITORY / "fraud")
    assert isinstance(spec, TabularSpec)
    columns = {name: frame[name].to_numpy() for name in frame.columns}
    tensors = RowEncoder(spec).transform_columns(columns)
    rows = [
        {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
        for row in frame.to_dict(orient="records")
    ]
    assert sum(None in row.values() for row in rows) > 100
    assert_the_same(asked(server.http, "fraud", rows), expected(REPOSITORY / "fraud", tensors))


def test_pictures_are_answered_as_training_saw_them(server: ServerProcess) -> None:
    """Pictures as training draws them, and the same as PNG files over gRPC. None is so faint that it is blank."""
    spec = read_spec(REPOSITORY / "digits")
    assert isinstance(spec, ImageSpec)
    digits = images.collect_digits().keep(range(200))
    generator = np.random.default_rng(0)
    pictures = [digits.varied(int(generator.integers(200)), generator) for _ in range(COUNT)]
    steps = ImageSteps(spec)
    tensors = {spec.input: np.stack([steps.tensor(picture) for picture in pictures])}
    assert (tensors[spec.input].max(axis=(1, 2, 3)) > 0).all()
    files = [encoded(picture) for picture in pictures]
    assert_the_same(asked(f"grpc://{server.grpc}", "digits", files), expected(REPOSITORY / "digits", tensors))


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
