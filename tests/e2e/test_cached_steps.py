"""Steps of an ensemble whose models keep answers."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import StartServer
from tests.support.ensembles import EnsembleText, StepText
from tests.support.onnx_models import linear_folder

pytestmark = pytest.mark.e2e

CACHED = "response_cache { enable: true }\ndynamic_batching {}"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_step_is_answered_from_the_cache_of_its_model(
    start_server: StartServer, tmp_path: Path, workers: str
) -> None:
    """The ensemble's own requests are not kept; those of its steps are, each by its model, in one request too."""
    models = tmp_path / "models"
    linear_folder(models, "cached", more=CACHED)
    steps = [StepText("cached", {"x": "X"}, {"y": "Y"}), StepText("cached", {"x": "X"}, {"y": "Z"})]
    EnsembleText({"X": (3,)}, {"Y": (2,), "Z": (2,)}, steps).write(models, "twice")
    server = start_server("--cache-size-bytes", "1000000", "--workers", workers, repository=models)
    body = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
    answers = [httpx.post(f"{server.http}/v2/models/twice/infer", json=body).json()["outputs"] for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]

    def counts(model: str) -> dict[str, int]:
        [told] = httpx.get(f"{server.http}/v2/models/{model}/stats").json()["model_stats"]
        return {name: one["count"] for name, one in told["inference_stats"].items()}

    own, step = counts("twice"), counts("cached")
    assert (own["success"], own["cache_hit"], own["cache_miss"], own["fail"]) == (3, 0, 0, 0)
    # Both steps of the first request are under way at the same time, and are executed.
    assert (step["success"], step["cache_hit"], step["cache_miss"]) == (6, 4, 2)
