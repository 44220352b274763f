"""A server that keeps answers: what its clients get, and what it tells of them, in numbers."""

from __future__ import annotations

import queue
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm

from tests.e2e.conftest import REPOSITORY, ServerProcess, StartServer, end, start
from tests.support.onnx_models import WEIGHTS, linear, linear_folder

pytestmark = pytest.mark.e2e

CACHED = "response_cache { enable: true }\ndynamic_batching {}"
SIZE = ("--cache-size-bytes", "1000000")


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "workers"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("cached")
    models = folder / "models"
    for name in ("counted", "mixed", "versions", "streamed", "reloaded", "explained", "classified"):
        linear_folder(models, name, versions=(1, 2), more=CACHED + "\nversion_policy { all {} }")
    linear_folder(models, "plain", more="dynamic_batching {}")
    flags = ("--workers", request.param, "--model-control-mode", "explicit", "--load-model", "*", *SIZE)
    running = start(folder / "server.log", *flags, repository=models)
    yield running
    alive = running.process.poll() is None
    end(running)
    assert alive, running.log.read_text()


class Asking:
    """Triton's own clients."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.grpc = triton_grpc.InferenceServerClient(server.grpc)
        self.http = triton_http.InferenceServerClient(server.http.removeprefix("http://"))

    def infer(self, model: str, x: np.ndarray[Any, Any], *, rest: bool = False, **more: Any) -> Any:
        api, client = (triton_http, self.http) if rest else (triton_grpc, self.grpc)
        tensor = api.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        result = client.infer(model, [tensor], **{"model_version": "1", **more})
        response = result.get_response() if rest else result.get_response(as_json=True)
        return result.as_numpy("y"), response.get("id", "")

    def counts(self, model: str, version: str = "1") -> dict[str, int]:
        """Of the statistics over gRPC, which must be those over REST and of the metrics."""
        [own] = self.grpc.get_inference_statistics(model, version, as_json=True)["model_stats"]
        [rest] = self.http.get_inference_statistics(model, version)["model_stats"]
        found = {name: int(own.get(name, 0)) for name in ("inference_count", "execution_count")}
        found |= {name: int(one.get("count", 0)) for name, one in own["inference_stats"].items()}
        for name, one in rest["inference_stats"].items():
            assert one["count"] == found[name], name
        text = httpx.get(self.server.metrics).text
        for metric, name in (("hits", "cache_hit"), ("misses", "cache_miss")):
            assert f'nv_cache_num_{metric}_per_model{{model="{model}",version="{version}"}} {found[name]}.0' in text
        return found

    def gauge(self, name: str) -> float:
        text = httpx.get(self.server.metrics).text
        return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


@pytest.fixture
def asking(server: ServerProcess) -> Asking:
    return Asking(server)


def told(rows: int, passes: int, success: int, hits: int, misses: int) -> dict[str, int]:
    executed = dict.fromkeys(("compute_input", "compute_infer", "compute_output"), misses)
    return {
        "inference_count": rows,
        "execution_count": passes,
        "success": success,
        "fail": 0,
        "queue": success,
        **executed,
        "cache_hit": hits,
        "cache_miss": misses,
    }


def x(value: float, rows: int = 1) -> np.ndarray[Any, Any]:
    return np.full((rows, 3), value, np.float32)


def test_every_place_tells_hits_and_misses(asking: Asking) -> None:
    """A hit is a success that was not executed, whichever way it came; its id is its own; parameters, priority and
    timeout make no other request of it."""
    first, _ = asking.infer("counted", x(1), request_id="a")
    assert asking.counts("counted") == told(1, 1, 1, 0, 1)
    assert asking.infer("counted", x(1), request_id="b")[1] == "b"
    for more in ({"rest": True}, {"priority": 1}, {"timeout": 10_000_000}, {"parameters": {"mine": "x"}}):
        again, _ = asking.infer("counted", x(1), **more)
        assert again.tobytes() == first.tobytes()
    assert asking.counts("counted") == told(1, 1, 6, 5, 1)
    other, _ = asking.infer("counted", x(2))
    np.testing.assert_allclose(other, x(2) @ WEIGHTS)
    asking.infer("counted", x(0))
    zeros, _ = asking.infer("counted", x(0, rows=2))
    assert zeros.shape == (2, 2)
    assert asking.counts("counted") == told(5, 4, 9, 5, 4)


def test_a_model_that_does_not_ask_for_it_has_none(asking: Asking) -> None:
    """Every request is executed."""
    for _ in range(3):
        asking.infer("plain", x(1))
    assert asking.counts("plain") == told(3, 3, 3, 0, 0) | dict.fromkeys(
        ("compute_input", "compute_infer", "compute_output"), 3
    )


def test_versions_have_their_own_answers(asking: Asking) -> None:
    """The same request to another version is another one."""
    one, _ = asking.infer("versions", x(1))
    two, _ = asking.infer("versions", x(1), model_version="2")
    np.testing.assert_allclose(two, 2 * one)
    assert asking.counts("versions") == asking.counts("versions", "2") == told(1, 1, 1, 0, 1)


def test_a_reload_begins_anew(asking: Asking) -> None:
    """What was loaded again may answer otherwise, and does here; what was kept for the load before it is freed."""
    for _ in range(2):
        old, _ = asking.infer("reloaded", x(1))
    before = asking.gauge("nv_cache_num_entries")
    linear(asking.server.log.parent / "models" / "reloaded" / "1" / "model.onnx", weights=-WEIGHTS)
    asking.grpc.load_model("reloaded")
    new, _ = asking.infer("reloaded", x(1))
    np.testing.assert_allclose(old, x(1) @ WEIGHTS)
    np.testing.assert_allclose(new, -old)
    assert asking.counts("reloaded") == told(2, 2, 3, 1, 2)
    assert asking.gauge("nv_cache_num_entries") <= before


def test_the_cache_tells_of_itself(asking: Asking) -> None:
    """Triton's gauges; a new answer is a new entry, and takes some of the bytes."""
    names = ("nv_cache_num_lookups", "nv_cache_num_hits", "nv_cache_num_misses", "nv_cache_num_entries")
    before = [asking.gauge(name) for name in names]
    util = asking.gauge("nv_cache_util")
    asking.infer("mixed", x(7))
    asking.infer("mixed", x(7))
    after = [asking.gauge(name) for name in names]
    assert [one - other for one, other in zip(after, before, strict=True)] == [2, 1, 1, 1]
    assert util < asking.gauge("nv_cache_util") < 0.1
    assert asking.gauge("nv_cache_num_evictions") == 0


def test_requests_of_a_stream_are_hits_too(asking: Asking) -> None:
    """Each is told in its turn, by its own id."""
    tensor = triton_grpc.InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(x(1))
    told_of: queue.Queue[tuple[Any, Any]] = queue.Queue()
    asking.grpc.start_stream(lambda result, error: told_of.put((result, error)))
    for number in range(3):
        asking.grpc.async_stream_infer("streamed", [tensor], request_id=str(number), model_version="1")
        result, error = told_of.get(timeout=30)
        assert error is None
        assert result.get_response().id == str(number)
        np.testing.assert_allclose(result.as_numpy("y"), x(1) @ WEIGHTS)
    asking.grpc.stop_stream()
    assert asking.counts("streamed") == told(1, 1, 3, 2, 1)


def test_a_prediction_is_made_of_what_is_kept(start_server: StartServer, tmp_path: Path) -> None:
    """The picture is decoded each time, and the same tensors are the same question."""
    folder = Path(shutil.copytree(REPOSITORY / "digits", tmp_path / "models" / "digits"))
    (folder / "manifest.json").unlink()  # It does not fit the config any more.
    with (folder / "config.pbtxt").open("a") as config:
        config.write("\nresponse_cache { enable: true }\n")
    asking = Asking(start_server(*SIZE, repository=tmp_path / "models"))
    url, picture = (
        f"{asking.server.http}/v2/models/digits/predict",
        (REPOSITORY / "digits" / "example.png").read_bytes(),
    )
    first, again = (httpx.post(url, content=picture, headers={"Content-Type": "image/png"}) for _ in range(2))
    assert first.status_code == 200
    assert first.content == again.content
    assert asking.counts("digits") == told(1, 1, 2, 1, 1)


def test_classes_are_made_of_what_is_kept(asking: Asking) -> None:
    """The outputs are kept as the model gave them: whoever wants classes and who does not share an answer."""
    wanted = [[triton_grpc.InferRequestedOutput("y", class_count=count)] for count in (0, 1, 2, 1, 0)]
    answers = [asking.infer("classified", x(1), outputs=outputs)[0] for outputs in wanted]
    plain = x(1) @ WEIGHTS
    for answer in (answers[0], answers[4]):
        np.testing.assert_allclose(answer, plain)
    best, both, again, _ = answers[1:]
    assert best.tolist() == again.tolist() == [[b"%f:1" % plain[0, 1]]]
    assert both.tolist() == [[b"%f:1" % plain[0, 1], b"%f:0" % plain[0, 0]]]
    assert asking.counts("classified") == told(1, 1, 5, 4, 1)


def test_a_hit_explains_itself(asking: Asking) -> None:
    """It had no pass, and its parts sum to its total as ever."""
    url = f"{asking.server.http}/v2/models/explained/infer"
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}]}
    timings = [httpx.post(url, json=body, headers={"X-Explain": "1"}).headers["server-timing"] for _ in range(2)]
    assert "compute;" in timings[0]
    assert "compute;" not in timings[1]
    assert "total;" in timings[1]


def test_tensors_in_shared_memory_are_hits_too(start_server: StartServer, tmp_path: Path) -> None:
    """Read before they are looked up; the answer that was kept is written to the place that each request names."""
    linear_folder(tmp_path / "models", "shared", more=CACHED)
    asking = Asking(start_server(*SIZE, repository=tmp_path / "models"))
    region = shm.create_shared_memory_region("r", f"forwardpass_test_{uuid.uuid4().hex}", 64)
    try:
        shm.set_shared_memory_region(region, [x(1)])
        asking.grpc.register_system_shared_memory("r", region._shm_key, 64)
        tensor = triton_grpc.InferInput("x", [1, 3], "FP32")
        tensor.set_shared_memory("r", 12, 0)
        for offset in (16, 32):
            wanted = triton_grpc.InferRequestedOutput("y")
            wanted.set_shared_memory("r", 8, offset)
            asking.grpc.infer("shared", [tensor], outputs=[wanted])
        one, other = (shm.get_contents_as_numpy(region, np.float32, [1, 2], offset=at) for at in (16, 32))
        np.testing.assert_allclose(one, x(1) @ WEIGHTS)
        assert one.tobytes() == other.tobytes()
        # Sent by the wire it is the same question, but for its outputs, which were named there.
        plain, _ = asking.infer("shared", x(1), outputs=[triton_grpc.InferRequestedOutput("y")])
        assert plain.tobytes() == one.tobytes()
        assert asking.counts("shared") == told(1, 1, 3, 2, 1)
    finally:
        shm.destroy_shared_memory_region(region)


def test_without_its_flag_the_server_keeps_nothing(start_server: StartServer, tmp_path: Path) -> None:
    """A model that asks for a cache is served without, and a warning says what to do."""
    linear_folder(tmp_path / "models", "cached", more=CACHED)
    server = start_server(repository=tmp_path / "models")
    asking = Asking(server)
    for _ in range(2):
        asking.infer("cached", x(1))
    counts = asking.counts("cached")
    assert (counts["execution_count"], counts["cache_hit"], counts["cache_miss"]) == (2, 0, 0)
    assert (
        "'cached' has a response_cache, and the server keeps no answers (--cache-size-bytes)" in server.log.read_text()
    )
    assert "\nnv_cache_util " not in httpx.get(server.metrics).text
