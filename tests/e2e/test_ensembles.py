"""Ensembles of ONNX models in a real process, as clients meet them."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from server.client import Client
from server.proto.triton import model_config_pb2 as pb
from server.repository.config_text import parse_text
from tests.e2e.conftest import REPOSITORY, ServerProcess, StartServer
from tests.support.ensembles import EnsembleText, StepText
from tests.support.onnx_models import WEIGHTS, accumulator_folder, linear, linear_folder

pytestmark = pytest.mark.e2e

X = np.arange(6, dtype=np.float32).reshape(2, 3)
BACK = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
"""`back` gives ``x @ BACK``, three columns of two."""

THERE_AND_BACK = EnsembleText(
    {"raw": (3,)},
    {"middle": (2,), "end": (2,)},
    [
        StepText("there", {"x": "raw"}, {"y": "middle"}),
        StepText("back", {"x": "middle"}, {"y": "again"}),
        StepText("there", {"x": "again"}, {"y": "end"}),
    ],
    max_batch_size=8,
)


def write(root: Path) -> Path:
    """`there`, `back`, and the ensembles `e` of them and `outer` of `e`."""
    linear_folder(root, "there", more="dynamic_batching {}")
    folder = linear_folder(root, "back", more="dynamic_batching {}")
    linear(folder / "1" / "model.onnx", weights=BACK)
    text = (folder / "config.pbtxt").read_text().replace("dims: 3", "dims: 9").replace("dims: 2", "dims: 3")
    (folder / "config.pbtxt").write_text(text.replace("dims: 9", "dims: 2"))
    THERE_AND_BACK.write(root, "e", version="")
    step = StepText("e", {"raw": "raw"}, {"middle": "middle", "end": "end"})
    EnsembleText({"raw": (3,)}, {"middle": (2,), "end": (2,)}, [step], max_batch_size=4).write(root, "outer")
    return root


def clients(server: ServerProcess) -> list[tuple[Any, Any]]:
    grpc, http = triton_grpc, triton_http
    return [
        (grpc, grpc.InferenceServerClient(server.grpc)),
        (http, http.InferenceServerClient(server.http.removeprefix("http://"))),
    ]


def infer(module: Any, client: Any, model: str = "e", x: Any = X, **more: Any) -> Any:
    tensor = module.InferInput("raw", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return client.infer(model, [tensor], **more)


def expected(x: Any = X) -> Any:
    return x @ WEIGHTS @ BACK @ WEIGHTS


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_ensemble_answers_over_both_transports(start_server: StartServer, tmp_path: Path, workers: str) -> None:
    """With its outputs by name, its metadata, and its and its models' counts; also with several processes."""
    server = start_server("--workers", workers, repository=write(tmp_path / "models"))
    for module, client in clients(server):
        assert client.is_model_ready("e")
        result = infer(module, client)
        np.testing.assert_allclose(result.as_numpy("end"), expected(), rtol=1e-5)
        np.testing.assert_allclose(result.as_numpy("middle"), X @ WEIGHTS, rtol=1e-5)
        some = infer(module, client, outputs=[module.InferRequestedOutput("middle")])
        assert some.as_numpy("end") is None
        np.testing.assert_allclose(infer(module, client, "outer").as_numpy("end"), expected(), rtol=1e-5)
    _, http = clients(server)[1]
    assert http.get_model_metadata("e")["platform"] == "ensemble"
    assert len(http.get_model_config("e")["ensemble_scheduling"]["step"]) == 3
    counts = {
        one["name"]: one["inference_stats"]["success"]["count"]
        for one in http.get_inference_statistics()["model_stats"]
    }
    assert counts == {"e": 6, "outer": 2, "there": 10, "back": 4}
    assert 'nv_inference_request_success{model="e",version="1"} 6.0' in httpx.get(server.metrics).text
    assert server.terminate() == 0


def test_a_step_that_fails_tells_the_client_so(start_server: StartServer, tmp_path: Path) -> None:
    """Both transports have the status of the step's error, which names the step."""
    root = write(tmp_path / "models")
    text = EnsembleText(
        {"raw": (-1,)}, {"out": (2,)}, [StepText("there", {"x": "raw"}, {"y": "out"})], max_batch_size=8
    )
    text.write(root, "loose")
    server = start_server(repository=root)
    for module, client in clients(server):
        with pytest.raises(InferenceServerException, match=r"ensemble 'loose', step\[0\], inputs\[0\].shape") as failed:
            infer(module, client, "loose", X[:, :2])
        assert failed.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")


def test_models_are_loaded_and_swapped_under_load(start_server: StartServer, tmp_path: Path) -> None:
    """Explicit mode: loading the ensemble brings its models; swaps of them fail no request; unloading one makes the
    ensemble unavailable until it is back."""
    root = write(tmp_path / "models")
    server = start_server("--model-control-mode", "explicit", repository=root)
    module, client = clients(server)[0]
    client.load_model("e")
    assert {one["name"] for one in ready(server)} == {"e", "there", "back"}

    stop, failures, answers = threading.Event(), [], []

    def ask() -> None:
        own = triton_grpc.InferenceServerClient(server.grpc)
        while not stop.is_set():
            try:
                answers.append(infer(triton_grpc, own).as_numpy("end"))
            except InferenceServerException as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in (2, 3):
        linear(root / "back" / str(version) / "model.onnx", weights=BACK * version)
        client.load_model("back")
        client.load_model("there")
        client.load_model("e")
        enough, until = len(answers) + 10, time.monotonic() + 30
        while len(answers) < enough and not failures:
            assert time.monotonic() < until
            time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    np.testing.assert_allclose(infer(module, client).as_numpy("end"), 3 * expected(), rtol=1e-5)

    client.unload_model("there")
    assert not client.is_model_ready("e")
    with pytest.raises(InferenceServerException, match=r"step\[0\].model_name: is not in service: model 'there'"):
        infer(module, client)
    client.load_model("there")
    np.testing.assert_allclose(infer(module, client).as_numpy("end"), 3 * expected(), rtol=1e-5)
    client.unload_model("e", unload_dependents=True)
    assert ready(server) == []


def ready(server: ServerProcess) -> list[dict[str, Any]]:
    index: list[dict[str, Any]] = httpx.post(f"{server.http}/v2/repository/index", json={"ready": True}).json()
    return index


def test_a_sequence_goes_on_through_an_ensemble(start_server: StartServer, tmp_path: Path) -> None:
    """Two sequences beside each other, each summed by the step that keeps it; one that is not started is refused."""
    root = tmp_path / "models"
    linear(root / "halve" / "1" / "model.onnx", weights=np.array([[0.5]], np.float32))
    (root / "halve" / "config.pbtxt").write_text(
        'name: "halve" backend: "onnxruntime" max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: 1 } '
        'output { name: "y" data_type: TYPE_FP32 dims: 1 } dynamic_batching {}'
    )
    accumulator_folder(root, "total")
    EnsembleText(
        {"raw": (1,)},
        {"sum": (1,)},
        [StepText("total", {"x": "half"}, {"y": "sum"}), StepText("halve", {"x": "raw"}, {"y": "half"})],
    ).write(root, "e")
    server = start_server(repository=root)
    for module, client in clients(server):
        for turn in range(3):
            for sequence in (7, 8):
                x = np.array([[sequence]], np.float32)
                result = infer(
                    module, client, x=x, sequence_id=sequence, sequence_start=turn == 0, sequence_end=turn == 2
                )
                assert result.as_numpy("sum").tolist() == [[(turn + 1) * sequence / 2]]
        with pytest.raises(InferenceServerException, match="must specify the START flag"):
            infer(module, client, x=x, sequence_id=9)
        with pytest.raises(InferenceServerException, match="must specify a non-zero or non-empty correlation ID"):
            infer(module, client, x=x)


def test_a_row_is_predicted_through_an_ensemble(start_server: StartServer, tmp_path: Path) -> None:
    """Its processing.yaml is that of the model that it stands before."""
    root = tmp_path / "models"
    root.mkdir()
    (root / "breast_cancer").symlink_to(REPOSITORY / "breast_cancer")
    config = parse_text((REPOSITORY / "breast_cancer" / "config.pbtxt").read_text(), "breast_cancer")
    tensors = [
        {tensor.name: (pb.DataType.Name(tensor.data_type).removeprefix("TYPE_"), tuple(tensor.dims)) for tensor in some}
        for some in (config.input, config.output)
    ]
    maps = [{name: name for name in some} for some in tensors]
    folder = EnsembleText(*tensors, [StepText("breast_cancer", *maps)]).write(root, "whole")
    for path in (REPOSITORY / "breast_cancer").iterdir():
        if path.is_file() and path.name not in ("config.pbtxt", "manifest.json"):
            (folder / path.name).symlink_to(path)
    server = start_server(repository=root)
    golden = json.loads((REPOSITORY / "breast_cancer" / "golden" / "raw.json").read_text())
    rows = [one["row"] for one in golden["inputs"]][:3]
    for address in (f"grpc://{server.grpc}", server.http):
        with Client(address) as client:
            whole, alone = (client.predict(model, rows).predictions for model in ("whole", "breast_cancer"))
        assert whole == alone
        assert len(whole) == 3
