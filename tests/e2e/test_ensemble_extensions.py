"""What clients ask of any model, asked of an ensemble: classes, shared memory, streams, generate, `check`, `diff`."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from typer.testing import CliRunner

from server import cli
from server.local_triton.program import TritonMissing, find
from tests.e2e.conftest import ROOT, ServerProcess, StartServer, end, start
from tests.support.ensembles import EnsembleText, StepText
from tests.support.onnx_models import WEIGHTS, echo_folder, linear_folder, text_folder
from tests.support.parts import lacking
from tests.support.shared_memory import shared_file

pytestmark = pytest.mark.e2e

X = np.array([[0.5, 2, 1], [3, 3.5, -1]], np.float32)
OUT = X @ WEIGHTS
BEST_TWO = [["2.000000:1", "1.000000:2:dog"], ["3.500000:1", "3.000000:0:cat"]]


def models(folder: Path) -> Path:
    """`both` of two steps, with labels of its own for the first one's output; `words`, of a model of text."""
    folder.mkdir()
    echo_folder(folder, "echo", dims=(3,), labels=["of", "the", "model"])
    linear_folder(folder, "linear")
    text_folder(folder, "text")
    steps = [StepText("echo", {"x": "raw"}, {"y": "same"}), StepText("linear", {"x": "same"}, {"y": "out"})]
    both = EnsembleText({"raw": (3,)}, {"same": (3,), "out": (2,)}, steps).write(folder, "both")
    config = both / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "same"', 'name: "same" label_filename: "labels.txt"'))
    (both / "labels.txt").write_text("cat\n\ndog\n")
    step = StepText("text", {"text_input": "ask", "repeat": "times"}, {"text_output": "told", "twice": "twice"})
    one = (1,)
    EnsembleText(
        {"ask": ("BYTES", one), "times": ("INT64", one)}, {"told": ("BYTES", one), "twice": ("INT64", one)}, [step]
    ).write(folder, "words")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("ensembles") / "models")


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "several processes"])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[ServerProcess]:
    running = start(folder.parent / f"{request.param}.log", "--workers", request.param, repository=folder)
    yield running
    end(running)


def tensor(module: Any) -> Any:
    made = module.InferInput("raw", list(X.shape), "FP32")
    made.set_data_from_numpy(X)
    return made


def clients(server: ServerProcess) -> list[tuple[Any, Any]]:
    return [
        (triton_grpc, triton_grpc.InferenceServerClient(server.grpc)),
        (triton_http, triton_http.InferenceServerClient(server.http.removeprefix("http://"))),
    ]


def texts(array: Any) -> Any:
    return np.char.decode(array.astype("S")).tolist()


def test_classes_have_the_labels_of_the_ensemble(server: ServerProcess) -> None:
    """Its own config names them, not the step's model; the next step gets the tensor as it is."""
    for module, client in clients(server):
        wanted = [module.InferRequestedOutput("same", class_count=2), module.InferRequestedOutput("out")]
        for _ in range(3):
            result = client.infer("both", [tensor(module)], outputs=wanted)
            assert texts(result.as_numpy("same")) == BEST_TWO
            np.testing.assert_allclose(result.as_numpy("out"), OUT, rtol=1e-5)


def test_tensors_lie_in_shared_memory(start_server: StartServer, folder: Path) -> None:
    """The first step reads what the client wrote; the last one's output lies where it was asked for."""
    server = start_server(repository=folder)
    for module, client in clients(server):
        with shared_file(256) as file:
            file.write(X.tobytes() + bytes(256 - X.nbytes))
            client.register_system_shared_memory("r", f"/{file.name}", 256)
            given, wanted = tensor(module), module.InferRequestedOutput("out")
            given.set_shared_memory("r", X.nbytes)
            wanted.set_shared_memory("r", 64, 128)
            client.infer("both", [given], outputs=[wanted])
            there = np.frombuffer(file.read()[128 : 128 + OUT.nbytes], np.float32).reshape(OUT.shape)
            np.testing.assert_allclose(there, OUT, rtol=1e-5)
            client.unregister_system_shared_memory("r")


def test_a_stream_has_its_answers_in_order(server: ServerProcess) -> None:
    """Of plain tensors and of classes; each is the last one to its request."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for classes in (0, 2, 0):
            wanted = triton_grpc.InferRequestedOutput("same", class_count=classes)
            client.async_stream_infer("both", [tensor(triton_grpc)], outputs=[wanted], request_id=f"n{classes}")
        told = [answers.get(timeout=30) for _ in range(3)]
        client.stop_stream()
    assert [error for _, error in told] == [None] * 3
    assert [result.get_response().id for result, _ in told] == ["n0", "n2", "n0"]
    assert texts(told[1][0].as_numpy("same")) == BEST_TWO
    np.testing.assert_array_equal(told[2][0].as_numpy("same"), X)
    assert all(result.get_response().parameters["triton_final_response"].bool_param for result, _ in told)


def test_generate_and_its_stream(server: ServerProcess) -> None:
    """Inputs and outputs by the names that the ensemble has for them."""
    expected = {"model_name": "words", "model_version": "1", "told": "> Good day", "twice": 8}
    asked = {"ask": "Good day", "times": 4}
    answer = httpx.post(f"{server.http}/v2/models/words/generate", json=asked)
    assert (answer.status_code, answer.json()) == (200, expected)
    events = httpx.post(f"{server.http}/v2/models/words/generate_stream", json=asked)
    assert httpx.Response(200, text=events.text.removeprefix("data: ")).json() == expected
    wrong = httpx.post(f"{server.http}/v2/models/words/generate", json={"ask": "Good day"})
    assert wrong.status_code == 400
    assert "times" in wrong.json()["error"]


def ask(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.create_app(), [*map(str, arguments)])


def test_check_loads_models_before_the_ensembles_of_them(folder: Path, tmp_path: Path) -> None:
    """And tells of one whose model is missing by the step's field."""
    good = ask("check", "--model-repository", folder)
    assert good.exit_code == 0, good.output
    broken = models(tmp_path / "models")
    (broken / "linear" / "config.pbtxt").unlink()
    bad = ask("check", "--model-repository", broken)
    assert bad.exit_code == 1
    assert "ensemble_scheduling.step[1].model_name" in bad.output


def test_diff_compares_an_ensemble_with_a_real_triton(folder: Path) -> None:
    """Triton loads the models of the steps with it, as this server; nothing differs."""
    try:
        program = find(folder=ROOT / "build" / "triton").path
    except TritonMissing as missing:
        lacking(str(missing))
    result = ask("diff", "both", "--model-repository", folder, "--tritonserver", program)
    assert result.exit_code == 0, result.output
    assert "differences: none" in result.stdout
