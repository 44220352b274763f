"""The shipped models, served as a user would: pictures and rows, both protocols, existing clients."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from PIL import Image, ImageDraw
from prometheus_client.parser import text_string_to_metric_families

from server.client import Client
from server.repository.certificate import read_golden
from tests.e2e.conftest import REPOSITORY, ROOT, ServerProcess

pytestmark = pytest.mark.e2e

MODELS = ("breast_cancer", "digits", "fraud")


def urls(server: ServerProcess) -> list[str]:
    return [server.http, f"grpc://{server.grpc}"]


@pytest.mark.parametrize("model", MODELS)
def test_the_printed_command_can_be_pasted(server: ServerProcess, model: str) -> None:
    """For each model `serve` prints a command; a shell runs it and it gives a prediction."""
    match = re.search(rf"^# {model}\n(.+)$", server.banner, re.MULTILINE)
    assert match, server.banner

    answer = subprocess.run(["/bin/sh", "-c", match[1]], cwd=ROOT, capture_output=True, check=True, timeout=30).stdout

    assert json.loads(answer)["predictions"][0]["label"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("model", MODELS)
def test_tritonclient_infers_the_golden_outputs(server: ServerProcess, model: str, protocol: str) -> None:
    """tritonclient, unmodified: alive, ready, and the certified outputs within their tolerances."""
    url = {"grpc": server.grpc, "http": server.http.removeprefix("http://")}[protocol]
    command = [sys.executable, "-m", "tests.support.triton_golden", protocol, url, model]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert result.returncode == 0, result.stderr


async def test_tritonclient_aio_infers(server: ServerProcess) -> None:
    """The asyncio client, 50 calls at once: each gets the row that it asked for."""
    golden = read_golden(REPOSITORY / "digits", "1")
    assert golden
    ((name, array),) = golden.inputs.items()
    ((output, wanted),) = golden.outputs.items()
    async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:

        async def one(row: int) -> np.ndarray:
            tensor = tritonclient.grpc.InferInput(name, [1, *array.shape[1:]], "FP32")
            tensor.set_data_from_numpy(array[row : row + 1])
            result = await client.infer("digits", [tensor], request_id=str(row))
            assert result.get_response().id == str(row)
            return np.asarray(result.as_numpy(output))

        rows = [index % len(array) for index in range(50)]
        answers = await asyncio.gather(*(one(row) for row in rows))

    for row, answer in zip(rows, answers, strict=True):
        np.testing.assert_allclose(answer[0], wanted[row], atol=1e-4)


def drawn_seven(kind: str, dark_on_light: bool) -> bytes:
    """A seven in two strokes, 300 x 420, off-centre, as somebody would draw it."""
    paper, ink = (235, 40) if dark_on_light else (25, 200)
    picture = Image.new("L", (300, 420), paper)
    pen = ImageDraw.Draw(picture)
    pen.line([(70, 90), (220, 95), (140, 350)], fill=ink, width=26, joint="curve")
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("dark_on_light", [True, False], ids=["dark on light", "light on dark"])
def test_a_drawn_digit_is_answered_alike_over_both_protocols(
    server: ServerProcess, kind: str, dark_on_light: bool
) -> None:
    """A large hand-drawn picture, either contrast, PNG and JPEG: a seven, the same over REST and gRPC."""
    picture = drawn_seven(kind, dark_on_light)
    answers = []
    for url in urls(server):
        with Client(url) as client:
            answers.append(client.predict("digits", [picture], top_k=3).predictions[0])

    assert answers[0].label == "7"
    assert answers[0].label == answers[1].label
    assert answers[0].score == pytest.approx(answers[1].score, abs=1e-6)
    assert len(answers[0].top_k) == 3


def test_several_inputs_are_answered_in_order(server: ServerProcess) -> None:
    """Many pictures in one request: one answer each, in the order of the inputs."""
    example = (REPOSITORY / "digits" / "example.png").read_bytes()
    seven = drawn_seven("PNG", True)
    for url in urls(server):
        with Client(url) as client:
            single = client.predict("digits", [example]).predictions[0].label
            many = client.predict("digits", [example, seven, example]).predictions

        assert [p.label for p in many] == [single, "7", single]


def test_metrics_agree_with_what_was_asked(server: ServerProcess) -> None:
    """After N more requests of R rows, Triton's counters and v2's statistics have grown by N and N x R."""

    def counts() -> tuple[float, float, int]:
        text = httpx.get(server.metrics).text
        success = re.search(r'^nv_inference_request_success\{model="fraud",version="1"\} (\S+)', text, re.MULTILINE)
        rows = re.search(r'^nv_inference_count\{model="fraud",version="1"\} (\S+)', text, re.MULTILINE)
        stats = httpx.get(f"{server.http}/v2/models/fraud/stats").json()["model_stats"][0]
        assert success
        assert rows
        return float(success[1]), float(rows[1]), int(stats["inference_stats"]["success"]["count"])

    command = re.search(r"^# fraud\ncurl -s \S+ .* -d '(.+)'$", server.banner, re.MULTILINE)
    assert command
    row = json.loads(command[1])["inputs"][0]
    before = counts()
    with Client(server.http) as client:
        for _ in range(7):
            client.predict("fraud", [row, row, row])
    after = counts()

    assert [b - a for a, b in zip(before, after, strict=True)] == [7, 21, 7]


def test_metrics_are_valid_exposition(server: ServerProcess) -> None:
    """The official parser reads every line, and Triton's counters are typed as counters."""
    text = httpx.get(server.metrics).text
    families = {family.name: family for family in text_string_to_metric_families(text)}

    assert "# TYPE nv_inference_request_success counter" in text
    assert families["forwardpass_request_duration_seconds"].type == "histogram"
    assert families["forwardpass_ready"].samples[0].value == 1
