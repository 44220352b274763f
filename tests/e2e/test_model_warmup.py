"""Samples of `model_warmup` on ONNX Runtime: run before the model is ready, counted nowhere, a reason if they fail."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from loadtests.process import samples
from tests.e2e.conftest import StartServer
from tests.support.onnx_models import accumulator_folder, linear_folder

pytestmark = pytest.mark.e2e

SAMPLE = """
model_warmup {{
  name: "s" batch_size: 2 count: 3
  inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: {dims} {data} }} }}
}}
"""
FILE = SAMPLE.format(dims=3, data='input_data_file: "row.bin"')


def test_samples_run_before_ready_and_are_counted_nowhere(start_server: StartServer, tmp_path: Path) -> None:
    """From a file, at random, and for sequences, whose controls and states need not be given; a file that is not what
    its dims say keeps its model, and no other, from serving."""
    models = tmp_path / "models"
    for name, size in (("good", 12), ("cut", 11)):
        folder = linear_folder(models, name, more=FILE)
        (folder / "warmup").mkdir()
        (folder / "warmup" / "row.bin").write_bytes(np.ones(3, "<f4").tobytes()[:size])
    linear_folder(models, "random", more=SAMPLE.format(dims=3, data="random_data: true"))
    accumulator_folder(models, "sequences", more=SAMPLE.format(dims=1, data="zero_data: true"))
    # 13 makes the accumulator fail: the same sample, with other values.
    poisoned = accumulator_folder(models, "poisoned", more=SAMPLE.format(dims=1, data='input_data_file: "13"'))
    (poisoned / "warmup").mkdir()
    (poisoned / "warmup" / "13").write_bytes(np.array([13], "<f4").tobytes())
    server = start_server(repository=models)

    index = {entry["name"]: entry for entry in httpx.post(f"{server.http}/v2/repository/index").json()}
    assert {name for name, entry in index.items() if entry["state"] == "READY"} == {"good", "random", "sequences"}
    field = 'config.pbtxt: model_warmup[0].inputs["x"].input_data_file'
    assert index["cut"]["reason"] == f"{field}: 'warmup/row.bin' has 11 bytes, one row has 12"
    assert index["poisoned"]["reason"].startswith("config.pbtxt: model_warmup[0]: 's' failed on instance poisoned_0")
    metrics = httpx.get(server.metrics).text
    for name in ("good", "random", "sequences"):
        [told] = httpx.get(f"{server.http}/v2/models/{name}/stats").json()["model_stats"]
        counts = [told["inference_count"], told["execution_count"], told["last_inference"]]
        counts += [one["count"] for one in told["inference_stats"].values()]
        assert set(counts) == {0}
        assert samples(metrics, name)["forwardpass_batch_rows_count"] == 0
