"""`serve --workers 2` with models that remember, models that change, and TLS: two clients, each at another front."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from server.proto.triton import service_pb2 as pb
from tests.e2e.conftest import ServerProcess, StartServer, end, start
from tests.support.onnx_models import WEIGHTS, accumulator_folder, linear, linear_folder
from tests.support.parts import self_signed

pytestmark = pytest.mark.e2e

X = np.arange(6, dtype=np.float32).reshape(2, 3)
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
"""Channels of one process share a connection otherwise."""

CANARY = """
dynamic_batching {}
version_policy { all {} }
parameters { key: "canary_version" value { string_value: "2" } }
parameters { key: "canary_weight" value { string_value: "0.25" } }
"""

Pair = tuple[triton.InferenceServerClient, triton.InferenceServerClient]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("workers")
    models = root / "models"
    linear_folder(models, "linear", more="dynamic_batching {}")
    linear_folder(models, "canary", versions=(1, 2), more=CANARY)
    for name, strategy in (("direct", "direct {}"), ("oldest", "oldest { max_candidate_sequences: 16 }")):
        accumulator_folder(models, name, strategy=strategy)
    flags = ("--workers", "2", "--model-control-mode", "explicit", "--load-model", "*")
    running = start(root / "server.log", *flags, repository=models)
    yield running
    assert running.terminate() == 0, running.log.read_text()
    end(running)


@pytest.fixture
def pair(server: ServerProcess) -> Iterator[Pair]:
    """Two connections, which are spread evenly: one to each front."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(triton.InferenceServerClient(server.grpc, channel_args=OWN_CONNECTION)) for _ in "ab"
        ]
        assert all(client.is_server_ready() for client in clients)
        yield clients[0], clients[1]


def add(client: triton.InferenceServerClient, model: str, value: float, **more: object) -> float:
    tensor = triton.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[value]], np.float32))
    return float(client.infer(model, [tensor], **more).as_numpy("y")[0, 0])


def rows(client: triton.InferenceServerClient, array: np.ndarray) -> list[list[float]]:
    tensor = triton.InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    found: list[list[float]] = client.infer("linear", [tensor]).as_numpy("y").tolist()
    return found


@pytest.mark.parametrize("model", ["direct", "oldest"])
def test_a_sequence_goes_on_over_another_front(pair: Pair, model: str) -> None:
    """Its state is the engine process's: it is the same one whoever hands its requests on."""
    first, second = pair
    assert add(first, model, 1, sequence_id=7, sequence_start=True) == 1
    assert add(second, model, 10, sequence_id=8, sequence_start=True) == 10
    for client, value, expected in ((second, 2, 3), (first, 3, 6), (second, 4, 10)):
        assert add(client, model, value, sequence_id=7) == expected
    assert add(first, model, 5, sequence_id=8, sequence_end=True) == 15
    assert add(second, model, 5, sequence_id=7, sequence_end=True) == 15
    for client in pair:
        with pytest.raises(InferenceServerException) as caught:
            add(client, model, 1, sequence_id=7)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_config_given_with_a_load_holds_at_every_front(pair: Pair) -> None:
    """Also for the checks that a front makes by itself; a load without it puts the repository's back."""
    first, second = pair
    config = first.get_model_config("linear", as_json=True)["config"]
    assert len(rows(second, np.zeros((3, 3), np.float32))) == 3
    first.load_model("linear", config=json.dumps({**config, "max_batch_size": 2}))
    for client in pair:
        assert rows(client, X) == (X @ WEIGHTS).tolist()
        with pytest.raises(InferenceServerException, match="2"):
            rows(client, np.zeros((3, 3), np.float32))
    second.load_model("linear")
    assert [len(rows(client, np.zeros((3, 3), np.float32))) for client in pair] == [3, 3]


def test_files_given_with_a_load_are_served_by_every_front(pair: Pair, tmp_path: Path) -> None:
    """A tiny model runs in the fronts themselves: they must not run the one that is in the repository."""
    first, second = pair
    config = json.dumps(first.get_model_config("linear", as_json=True)["config"])
    content = linear(tmp_path / "model.onnx", weights=WEIGHTS * 5).read_bytes()
    second.load_model("linear", config=config, files={"file:1/model.onnx": content})
    for _ in range(20):
        assert [rows(client, X) for client in pair] == [(X @ WEIGHTS * 5).tolist()] * 2
    first.load_model("linear")
    for _ in range(20):
        assert [rows(client, X) for client in pair] == [(X @ WEIGHTS).tolist()] * 2


def versions(clients: Pair, model: str, count: int) -> Counter[str]:
    """Who answered, asked over each client in turn; each answer is that of its version."""
    tensor = triton.InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X)
    found: Counter[str] = Counter()
    for turn in range(count):
        result = clients[turn % 2].infer(model, [tensor])
        version = result.get_response().model_version
        assert result.as_numpy("y").tolist() == (X @ WEIGHTS * int(version)).tolist()
        found[version] += 1
    return found


def test_a_canary_gets_its_part_of_what_all_fronts_bring(pair: Pair, server: ServerProcess) -> None:
    """The engine process chooses, so that every fourth is every fourth of all; an answer says of which version it is. A
    load over one front changes the weight; without the keys the newest version has all, in the fronts themselves."""
    first, second = pair
    assert versions(pair, "canary", 40) == {"1": 30, "2": 10}
    told = httpx.get(server.metrics).text
    labels = 'kind="canary",model="canary"'
    assert f'forwardpass_rollout_requests_total{{{labels},outcome="answered",version="2"}} 10.0' in told
    assert f'forwardpass_rollout_asked{{{labels},version="2"}} 1.0' in told

    config = first.get_model_config("canary", as_json=True)["config"]
    config["parameters"]["canary_weight"]["string_value"] = "0.5"
    first.load_model("canary", config=json.dumps(config))
    assert versions(pair, "canary", 20) == {"1": 10, "2": 10}
    del config["parameters"]
    second.load_model("canary", config=json.dumps(config))
    assert versions(pair, "canary", 20) == {"2": 20}
    assert "forwardpass_rollout_asked{" not in httpx.get(server.metrics).text


def test_a_shadow_of_all_fronts_is_judged_once(pair: Pair, server: ServerProcess) -> None:
    """Its answers are twice as large: it is rolled back, and no front has sent one of them."""
    first, second = pair
    config = first.get_model_config("canary", as_json=True)["config"]
    keys = {"shadow_version": "2", "rollout_compare": "values", "rollout_min_requests": "30"}
    keys["rollout_max_latency_ratio"] = "1000"  # On a busy machine a shadow may well be slow, too.
    config["parameters"] = {key: {"string_value": value} for key, value in keys.items()}
    second.load_model("canary", config=json.dumps(config))
    rolled_back = 'forwardpass_rollout_rolled_back{cause="disagreement",kind="shadow",model="canary",version="2"} 1.0'
    for _ in range(10):
        assert versions(pair, "canary", 20) == {"1": 20}
        if rolled_back in httpx.get(server.metrics).text:
            break
    else:
        pytest.fail("it was not rolled back")
    first.load_model("canary")


def test_grpc_over_tls(start_server: StartServer, tmp_path: Path) -> None:
    """At each front: the handshake is made there. Whoever speaks cleartext is not answered."""
    files = self_signed(tmp_path)
    flags = ["--grpc-tls-certificate", files.certificate, "--grpc-tls-key", files.key, "--workers", "2"]
    server = start_server(*flags)
    address = f"localhost:{server.port('gRPC')}"
    trust = grpc.ssl_channel_credentials(Path(files.certificate).read_bytes())
    path = "/inference.GRPCInferenceService/ModelMetadata"
    asked = pb.ModelMetadataRequest(name="digits").SerializeToString()
    with ExitStack() as stack:
        opened = [stack.enter_context(grpc.secure_channel(address, trust, OWN_CONNECTION)) for _ in range(4)]
        for channel in opened:
            answer = pb.ModelMetadataResponse.FromString(channel.unary_unary(path)(asked, timeout=20))
            assert answer.name == "digits"
    with grpc.insecure_channel(address, OWN_CONNECTION) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(asked, timeout=5)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert server.terminate() == 0
