"""A version with wrong preprocessing as a shadow of the shipped digits model: a real server, pictures, under load."""

from __future__ import annotations

import io
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image
from sklearn.datasets import load_digits

from tests.e2e.conftest import REPOSITORY, StartServer

pytestmark = pytest.mark.e2e

ROLLOUT = {"shadow_version": "2", "rollout_min_requests": "40", "rollout_max_latency_ratio": "1000"}
"""For its disagreement alone: on a busy machine a shadow may well be slow, too."""
PICTURES = 60


def with_a_worse_version(folder: Path) -> Path:
    """The digits model, and beside it a version that sees each picture as its negative. What would keep that one from
    being served at all, the manifest and the golden answers, is left out: it is what was published past them."""
    model = folder / "digits"
    shutil.copytree(REPOSITORY / "digits", model, ignore=shutil.ignore_patterns("manifest.json", "golden"))
    network = onnx.load(model / "1" / "model.onnx")
    graph = network.graph
    for node in graph.node:
        node.input[:] = ["negative" if name == "image" else name for name in node.input]
    graph.node.insert(0, helper.make_node("Neg", ["image"], ["negative"]))
    (model / "2").mkdir()
    onnx.save(network, model / "2" / "model.onnx")
    more = "".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in ROLLOUT.items())
    config = model / "config.pbtxt"
    config.write_text(config.read_text() + "version_policy { all {} }\n" + more)
    return folder


def pictures() -> list[bytes]:
    """Of people's handwriting, as PNG."""
    found = []
    for image in load_digits().images[:PICTURES]:
        out = io.BytesIO()
        Image.fromarray((255 - image * 255 / 16).astype(np.uint8), "L").resize((80, 80)).save(out, "PNG")
        found.append(out.getvalue())
    return found


@pytest.mark.parametrize("workers", ["1", "2"])
def test_wrong_preprocessing_is_caught_under_load_and_nobody_is_told_its_answers(
    start_server: StartServer, tmp_path: Path, workers: str
) -> None:
    """Rolled back within 30 s, for its disagreement; every answer is version 1's, to the last digit. With several
    processes too: the fronts decode the pictures, the verdict is one."""
    server = start_server("--workers", workers, repository=with_a_worse_version(tmp_path / "models"))
    asked = pictures()
    headers = {"content-type": "image/png"}
    with httpx.Client(base_url=server.http, headers=headers) as client, ThreadPoolExecutor(4) as pool:

        def ask(path: str, picture: bytes) -> dict[str, object]:
            answer: dict[str, object] = client.post(f"/v2/models/digits{path}/predict", content=picture).json()
            return answer

        wanted = list(pool.map(lambda picture: ask("/versions/1", picture)["predictions"], asked))
        wrong = list(pool.map(lambda picture: ask("/versions/2", picture)["predictions"], asked))
        assert sum(one != other for one, other in zip(wanted, wrong, strict=True)) > PICTURES / 2

        began = time.monotonic()
        rolled_back = False
        while not rolled_back:
            answers = list(pool.map(lambda picture: ask("", picture), asked))
            assert [answer["predictions"] for answer in answers] == wanted
            assert {answer["model_version"] for answer in answers} == {"1"}
            text = httpx.get(server.metrics).text
            rolled_back = 'forwardpass_rollout_rolled_back{cause="disagreement",kind="shadow"' in text
            assert time.monotonic() - began < 30
    assert "version 2, is rolled back for its disagreement" in server.log.read_text()
