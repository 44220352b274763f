"""Which versions are served by passes that make their tensors themselves, and that this changes no answer."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loadtests.models import photo_classifier
from server.dataplane import DataPlane
from server.engine.fake import FakeInstance, Script
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.errors import InvalidRequest
from server.explain import Explanation
from server.lifecycle import Lifecycle, State
from server.model_control import ModelControl
from server.pipeline.classification import LABELS, ClassificationSpec
from server.pipeline.image_spec import Decode, ImageSpec, Normalize, Resize
from server.pipeline.load import load_pipeline, write_spec
from server.repository.repository import Repository
from server.scheduler.share import Share
from server.settings import RepositorySettings
from server.types import ImageInput, PredictRequest, PredictResponse, RowInput
from tests.support.plane import CONFIG, Plane, Rows

PIPELINE = "task: test"
CANARY = """
version_policy { all {} }
parameters { key: "canary_version" value { string_value: "2" } }
parameters { key: "canary_weight" value { string_value: "0.5" } }
"""


@pytest.fixture
async def make_plane(tmp_path: Path) -> AsyncIterator[Callable[..., Plane]]:
    planes: list[Plane] = []
    Rows.gate.set()

    def make(cores: int = 1, config: str = CONFIG, versions: Sequence[str] = ("1",)) -> Plane:
        planes.append(Plane(tmp_path, Script(), cores=cores, pipeline_threads=1))
        planes[-1].write("m", *versions, config=config)
        (tmp_path / "m" / "processing.yaml").write_text(PIPELINE)
        return planes[-1]

    yield make
    for plane in planes:
        plane.script.release.set()
        await plane.models.close()
        plane.dataplane.close()


async def passes_prepare(plane: Plane) -> bool:
    await plane.start()
    return plane.models.resolve("m").passes is not None


@pytest.mark.parametrize(("cores", "they_do"), [(0, False), (1, True), (2, False)])
async def test_they_do_where_there_is_one_core(make_plane: Callable[..., Plane], cores: int, they_do: bool) -> None:
    """Several decode beside one another, and beside the engine."""
    assert await passes_prepare(make_plane(cores)) is they_do


@pytest.mark.parametrize(
    "config",
    [
        CONFIG.replace("dims: [ 2 ]", "dims: [ -1 ]"),
        CONFIG + 'input { name: "z" data_type: TYPE_FP32 dims: [ 2 ] optional: true }',
        CONFIG + "response_cache { enable: true }",
        "sequence_batching { }".join(CONFIG.split("dynamic_batching { default_queue_policy { max_queue_size: 100 } }")),
    ],
    ids=["tensors differ", "tensors are missing", "answers are kept", "sequences"],
)
async def test_they_do_not_where_a_request_is_known_by_its_tensors(
    make_plane: Callable[..., Plane], config: str
) -> None:
    plane = make_plane(config=config)
    if "response_cache" in config:
        plane.models = ModelControl(
            plane.models._repository, default_max_queue_size=9, share=Share(1), cache_size_bytes=10_000
        )
    assert await passes_prepare(plane) is False


async def test_they_do_not_where_a_candidate_is_to_have_its_part(make_plane: Callable[..., Plane]) -> None:
    """Each version by itself would, and whoever names it has it so."""
    plane = make_plane(config=CONFIG + CANARY, versions=("1", "2"))
    assert await passes_prepare(plane) is False
    assert plane.models.resolve("m", "2").passes is not None


async def test_they_do_not_where_another_device_runs_the_engine(
    make_plane: Callable[..., Plane], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for the core."""
    monkeypatch.setattr(FakeInstance, "threads", 0)
    assert await passes_prepare(make_plane()) is False


async def test_a_prediction_that_its_pass_prepared_is_explained_without_a_gap(
    make_plane: Callable[..., Plane],
) -> None:
    """The parts are those of one that a thread prepared, and sum to the total."""
    plane = make_plane()
    await plane.start()
    found = []
    for _ in range(3):
        explanation = Explanation(time.monotonic_ns())
        await plane.dataplane.predict(PredictRequest("m", [RowInput([1, 2])], explanation=explanation))
        found.append(explanation)
    preparing = plane.models.resolve("m").preparing
    assert preparing is not None
    assert preparing._model_statistics.preparing is not None
    assert preparing._model_statistics.preparing.execution_count == 1
    for explanation in found:
        parts = explanation.parts_ns()
        total = parts.pop("total")
        steps = ["preprocess", "queue", "compute_input", "compute", "compute_output", "postprocess", "loop"]
        assert list(parts) == steps
        assert (sum(parts.values()), min(parts.values()) >= 0) == (total, True)


def picture(shade: int) -> ImageInput:
    pixels = np.random.default_rng(shade).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return ImageInput(buffer.getvalue())


async def answers(root: Path, cores: int) -> list[PredictResponse | BaseException]:
    """Of 16 pictures, of which the sixth is none, that come together, for the third time; by a real engine."""
    repository = Repository(root, OnnxRuntimeEngine(1), load_pipeline=load_pipeline, warmup_s=1.0)
    share = Share(cores)
    models, lifecycle = ModelControl(repository, default_max_queue_size=100, share=share), Lifecycle()
    plane = DataPlane(models, lifecycle, RepositorySettings.model_validate({"path": root}), cores, share=share)
    await models.load("photos")
    lifecycle.advance(State.READY)
    pictures = [ImageInput(b"none") if number == 5 else picture(number) for number in range(16)]
    for _ in range(3):
        calls = [plane.predict(PredictRequest("photos", [item])) for item in pictures]
        found = await asyncio.gather(*calls, return_exceptions=True)
    statistics = models.resolve("photos").statistics
    assert (statistics.success.count, statistics.fail.count, statistics.inference_count) == (45, 0, 45)
    assert (models.resolve("photos").passes is not None) is (cores == 1)
    await models.close()
    plane.close()
    return found


async def test_it_changes_no_answer(tmp_path: Path) -> None:
    """To the bit, whoever makes the tensors; who sent no picture is told the same."""
    spec = ImageSpec(
        input="x",
        mode="RGB",
        decode=Decode(decoder="pillow-draft"),
        resize=Resize(height=64, width=64),
        normalize=Normalize(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3)),
        classification=ClassificationSpec(output="y"),
    )
    photo_classifier(64).save(tmp_path, "photos")
    write_spec(spec, tmp_path / "photos")
    LABELS.write(tmp_path / "photos", tuple(f"class {index}" for index in range(10)))
    (tmp_path / "photos" / spec.example).write_bytes(picture(0).data)
    passes, threads = await answers(tmp_path, 1), await answers(tmp_path, 2)
    for one, other in zip(passes, threads, strict=True):
        if isinstance(one, BaseException):
            assert isinstance(one, InvalidRequest)
            assert str(one) == str(other)
        else:
            assert isinstance(other, PredictResponse)
            assert one.predictions == other.predictions
    assert sum(isinstance(one, BaseException) for one in passes) == 1
