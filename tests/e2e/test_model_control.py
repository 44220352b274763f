"""Broken, new, changed and vanished models; the control modes; what `check` and `models` say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.e2e.conftest import REPOSITORY, ROOT, StartServer

pytestmark = pytest.mark.e2e

PICTURE = (REPOSITORY / "digits" / "example.png").read_bytes()


def forwardpass(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def index(client: httpx.Client) -> dict[str, dict[str, str]]:
    entries = client.post("/v2/repository/index").json()
    return {entry["name"]: entry for entry in entries}


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def digits_answers(client: httpx.Client) -> int:
    return client.post("/v2/models/digits/predict", content=PICTURE, headers={"Content-Type": "image/png"}).status_code


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def test_a_broken_model_never_keeps_the_others_from_serving(start_server: StartServer, repository: Path) -> None:
    """One flipped bit: that model is out and the index names its file; the others serve, the server is ready."""
    flip_a_bit(repository / "fraud" / "1" / "model.onnx")
    server = start_server(repository=repository)
    with httpx.Client(base_url=server.http) as client:
        entries = index(client)

        assert client.get("/v2/health/ready").status_code == 200
        assert digits_answers(client) == 200
        assert entries["fraud"]["state"] == "UNAVAILABLE"
        assert "1/model.onnx" in entries["fraud"]["reason"]
        answer = client.post("/v2/models/fraud/predict", json={"inputs": [[1]]})
        assert answer.status_code == 503
        assert "1/model.onnx" in answer.json()["error"]
    assert "1/model.onnx" in server.log.read_text()
    assert "1/model.onnx" in forwardpass("models", "--url", server.http).stdout


def test_strict_readiness_waits_for_every_model(start_server: StartServer, repository: Path) -> None:
    """With --strict-readiness one broken model keeps the server from being ready; it is live all the same."""
    flip_a_bit(repository / "fraud" / "1" / "model.onnx")
    server = start_server("--strict-readiness", repository=repository)
    with httpx.Client(base_url=server.http) as client:
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200


def test_check_says_what_is_wrong_and_where(repository: Path) -> None:
    """`check` exits 0 on a sound repository, and else 1, with the file and the field."""
    assert forwardpass("check", "--model-repository", str(repository)).returncode == 0
    config = repository / "digits" / "config.pbtxt"
    config.write_text(config.read_text() + '\nmodel_repository_agents { agents { name: "checksum" } }\n')

    result = forwardpass("check", "--model-repository", str(repository))

    assert result.returncode == 1
    assert "model_repository_agents" in result.stdout + result.stderr


def test_poll_mode_follows_the_folder(start_server: StartServer, repository: Path, tmp_path: Path) -> None:
    """A model that appears is served, one that vanishes is not, one that breaks goes on serving as it was."""
    shutil.move(repository / "digits", tmp_path / "digits")
    server = start_server("--model-control-mode", "poll", "--repository-poll-secs", "0.1", repository=repository)
    with httpx.Client(base_url=server.http) as client:
        assert digits_answers(client) == 404
        shutil.copytree(tmp_path / "digits", repository / "incoming")
        (repository / "incoming").rename(repository / "digits")
        assert eventually(lambda: digits_answers(client) == 200)

        flip_a_bit(repository / "digits" / "1" / "model.onnx")
        assert eventually(
            lambda: "digits" in server.log.read_text().lower() and "1/model.onnx" in server.log.read_text()
        )
        assert digits_answers(client) == 200

        shutil.rmtree(repository / "digits")
        assert eventually(lambda: digits_answers(client) == 404)


def test_explicit_mode_loads_what_is_asked_for(start_server: StartServer) -> None:
    """Only --load-model's models serve; the control API loads and unloads, and an unknown name is 404."""
    server = start_server("--model-control-mode", "explicit", "--load-model", "fraud")
    with httpx.Client(base_url=server.http) as client:
        assert digits_answers(client) == 503
        assert client.get("/v2/models/fraud/ready").status_code == 200

        assert client.post("/v2/repository/models/digits/load").status_code == 200
        assert digits_answers(client) == 200
        assert client.post("/v2/repository/models/digits/unload").status_code == 200
        assert digits_answers(client) == 503
        assert client.post("/v2/repository/models/nope/load").status_code == 404


def test_control_is_refused_outside_explicit_mode(start_server: StartServer) -> None:
    """In mode none the control API answers as Triton does, and names the flag."""
    server = start_server()
    with httpx.Client(base_url=server.http) as client:
        answer = client.post("/v2/repository/models/digits/load")

    assert answer.status_code == 503
    assert "explicit model load / unload is not allowed if polling is enabled" in answer.json()["error"]
    assert "--model-control-mode" in answer.json()["error"]


def test_reloading_under_load_fails_no_request(start_server: StartServer) -> None:
    """Twenty reloads of a model while predictions run: every prediction is answered."""
    server = start_server("--model-control-mode", "explicit", "--load-model", "*")
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.http, timeout=30) as client:
            while not stop.is_set():
                statuses.append(digits_answers(client))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    with httpx.Client(base_url=server.http, timeout=30) as client:
        reloads = [client.post("/v2/repository/models/digits/load").status_code for _ in range(20)]
    stop.set()
    for asker in askers:
        asker.join()

    assert reloads == [200] * 20
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_twenty_swaps_by_a_tritonclient_under_load(start_server: StartServer) -> None:
    """Loads with a config and with files of their own while requests run: none fails, and each load is what serves."""
    server = start_server("--model-control-mode", "explicit", "--load-model", "breast_cancer")
    folder = REPOSITORY / "breast_cancer"
    content = (folder / "1" / "model.onnx").read_bytes()
    row = np.zeros((1, 30), np.float32)
    failures: list[Exception] = []
    answered = 0
    stop = threading.Event()

    def ask() -> None:
        nonlocal answered
        with grpcclient.InferenceServerClient(server.grpc) as client:
            name = client.get_model_metadata("breast_cancer").inputs[0].name
            given = grpcclient.InferInput(name, [1, 30], "FP32")
            given.set_data_from_numpy(row)
            while not stop.is_set():
                try:
                    client.infer("breast_cancer", [given])
                    answered += 1
                except InferenceServerException as error:
                    failures.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    with grpcclient.InferenceServerClient(server.grpc) as client:
        config = client.get_model_config("breast_cancer", as_json=True)["config"]
        for turn in range(20):
            config["max_batch_size"] = 4 + turn % 2
            files = {f"file:{1 + turn % 3}/model.onnx": content} if turn % 2 else None
            client.load_model("breast_cancer", config=json.dumps(config), files=files)
            assert client.get_model_config("breast_cancer").config.max_batch_size == 4 + turn % 2
        with pytest.raises(InferenceServerException, match=r"parameters\.config: max_batch_size"):
            client.load_model("breast_cancer", config=json.dumps({**config, "max_batch_size": -1}))
        with pytest.raises(InferenceServerException, match="failed to load 'nope', failed to poll"):
            client.load_model("nope")
        ready = client.get_model_repository_index()
    stop.set()
    asker.join()

    assert failures == []
    assert answered > 20
    assert "breast_cancer" in str(ready)


def test_a_taken_port_is_a_clear_error(start_server: StartServer) -> None:
    """A second server on the same port says which port is taken, and exits non-zero."""
    server = start_server()
    flags = ["--http-port", str(server.port("REST")), "--grpc-port", "0", "--metrics-port", "0"]

    result = forwardpass("serve", *flags)

    assert result.returncode == 1
    assert str(server.port("REST")) in result.stderr


def test_a_repository_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    """One line that names the folder, exit status 1, no traceback."""
    flags = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]

    result = forwardpass("serve", "--model-repository", str(tmp_path / "nowhere"), *flags)

    assert result.returncode == 1
    assert "nowhere" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_an_unknown_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt environment variable is an error that names it, not a default in silence."""
    monkeypatch.setenv("FORWARDPASS_HTTP__PROT", "9000")

    result = forwardpass("serve")

    assert result.returncode == 2
    assert "FORWARDPASS_HTTP__PROT" in result.stderr
