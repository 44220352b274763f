"""Models that batch sequences, on a real server: over gRPC, its streams and REST, while versions change."""

from __future__ import annotations

import queue
import re
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.e2e.conftest import ServerProcess, StartServer, end, start
from tests.support.onnx_models import accumulator_folder

pytestmark = pytest.mark.e2e

STRATEGIES = {"direct": "direct {}", "oldest": "oldest { max_candidate_sequences: 16 }"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Accumulators of both strategies, and one whose sequences start at 100."""
    root = tmp_path_factory.mktemp("sequences")
    for name, strategy in STRATEGIES.items():
        accumulator_folder(root, name, strategy=strategy)
    initial = 'initial_state { name: "hundred" data_type: TYPE_FP32 dims: 1 data_file: "hundred" }'
    folder = accumulator_folder(root, "hundred", initial=initial, more="instance_group { count: 2 }")
    (folder / "initial_state").mkdir()
    (folder / "initial_state" / "hundred").write_bytes(struct.pack("<f", 100))
    accumulator_folder(root, "hasty", max_batch_size=1, idle_us=50_000)
    accumulator_folder(root, "narrow", max_batch_size=1)
    running = start(root / "server.log", repository=root)
    yield running
    alive = running.process.poll() is None
    end(running)
    assert alive, running.log.read_text()


def inputs(value: float) -> list[triton.InferInput]:
    tensor = triton.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[value]], np.float32))
    return [tensor]


def gauge(server: ServerProcess, name: str, **labels: str) -> float:
    text = httpx.get(server.metrics).text
    wanted = "".join(rf'(?=[^}}]*{key}="{value}")' for key, value in labels.items())
    match = re.search(rf"^{name}{{{wanted}[^}}]*}} (\S+)$", text, re.MULTILINE)
    assert match, f"{name} {labels} is not in\n{text}"
    return float(match[1])


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


class Stream:
    """tritonclient's stream, and its answers in order."""

    def __init__(self, server: ServerProcess) -> None:
        self.client = triton.InferenceServerClient(server.grpc)
        self.answers: queue.Queue[Any] = queue.Queue()
        self.client.start_stream(lambda result, error: self.answers.put(error if result is None else result))

    def send(self, model: str, value: float, **rest: Any) -> None:
        self.client.async_stream_infer(model, inputs(value), **rest)

    def sum(self) -> float:
        answer = self.answers.get(timeout=20)
        if isinstance(answer, Exception):
            raise answer
        return float(answer.as_numpy("y")[0, 0])

    def close(self) -> None:
        self.client.stop_stream()
        self.client.close()


@pytest.mark.parametrize("model", STRATEGIES)
def test_tritons_client_has_its_sequence_added_up(served: ServerProcess, model: str) -> None:
    """Call by call: the model is told start, end, readiness and the id; the client sees no state."""
    with triton.InferenceServerClient(served.grpc) as client:
        answers = [
            client.infer(model, inputs(value), sequence_id=42, sequence_start=value == 1, sequence_end=value == 3)
            for value in (1, 2, 3)
        ]

        assert [float(answer.as_numpy("y")[0, 0]) for answer in answers] == [1, 3, 6]
        assert [answer.as_numpy("told").tolist() for answer in answers] == [
            [[1, 0, 1, 42]],
            [[0, 0, 1, 42]],
            [[0, 1, 1, 42]],
        ]
        assert {output.name for output in answers[0].get_response().outputs} == {"y", "told"}
        metadata = client.get_model_metadata(model)
        assert [tensor.name for tensor in metadata.inputs] == ["x"]
        assert [tensor.name for tensor in metadata.outputs] == ["y", "told"]
        assert client.get_model_config(model).config.sequence_batching.state[0].input_name == "total_in"
        assert {"sequence", "sequence(string_id)"} <= set(client.get_server_metadata().extensions)


@pytest.mark.parametrize("model", STRATEGIES)
def test_many_streams_are_each_added_up_on_their_own(served: ServerProcess, model: str) -> None:
    """More sequences than slots, of clients that do not wait for their answers, in batches with each other."""
    sequences, length = 24, 30
    sums: dict[int, list[float]] = {}

    def run(number: int) -> None:
        stream = Stream(served)
        for step in range(length):
            stream.send(model, number, sequence_id=number, sequence_start=step == 0, sequence_end=step == length - 1)
        sums[number] = [stream.sum() for _ in range(length)]
        stream.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(101, 101 + sequences)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sums == {n: [n * (step + 1) for step in range(length)] for n in range(101, 101 + sequences)}
    assert gauge(served, "forwardpass_sequences_active", model=model) == 0


def test_rest_and_grpc_share_a_sequence(served: ServerProcess) -> None:
    """The parameters are the protocol's; whichever way a request comes, its sequence is the same."""

    def rest(**parameters: Any) -> httpx.Response:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [5]}
        body = {"inputs": [tensor], "parameters": {"sequence_id": 77, **parameters}}
        return httpx.post(f"{served.http}/v2/models/direct/infer", json=body)

    assert rest(sequence_start=True).json()["outputs"][0]["data"] == [5]
    with triton.InferenceServerClient(served.grpc) as client:
        assert client.infer("direct", inputs(2), sequence_id=77).as_numpy("y").tolist() == [[7]]
    assert rest(sequence_end=True).json()["outputs"][0]["data"] == [12]
    over = rest()
    assert over.status_code == 400
    assert over.json()["error"] == (
        "inference request for sequence 77 to model 'direct' must specify the START flag on the first request of the "
        "sequence"
    )


def test_a_request_without_a_sequence_is_refused_as_by_triton(served: ServerProcess) -> None:
    """Nothing, 0 and the empty string are no sequence; a string is none for a model that is told a number."""
    with triton.InferenceServerClient(served.grpc) as client:
        for wrong in ({}, {"sequence_id": 0}, {"sequence_id": ""}):
            with pytest.raises(InferenceServerException) as refused:
                client.infer("direct", inputs(1), **wrong)
            assert refused.value.message() == (
                "inference request to model 'direct' must specify a non-zero or non-empty correlation ID"
            )
        with pytest.raises(InferenceServerException, match="must be a whole number, got 'a': model 'direct' is told"):
            client.infer("direct", inputs(1), sequence_id="a", sequence_start=True)


def test_a_sequence_starts_on_the_state_of_its_file(served: ServerProcess) -> None:
    """initial_state { data_file }, anew at each start, on any instance."""
    with triton.InferenceServerClient(served.grpc) as client:
        for name in (1, 2, 3, 1):
            assert client.infer("hundred", inputs(1), sequence_id=name, sequence_start=True).as_numpy("y") == 101
            assert client.infer("hundred", inputs(1), sequence_id=name, sequence_end=True).as_numpy("y") == 102


def test_a_failed_pass_leaves_the_state_and_the_neighbours_alone(served: ServerProcess) -> None:
    """13 breaks the pass that it is in: only its own request fails, and may be followed by another try."""
    good, bad = Stream(served), Stream(served)
    good.send("oldest", 1, sequence_id=201, sequence_start=True)
    bad.send("oldest", 1, sequence_id=202, sequence_start=True)
    assert (good.sum(), bad.sum()) == (1, 1)
    for _ in range(20):
        good.send("oldest", 1, sequence_id=201)
        bad.send("oldest", 13, sequence_id=202)
        with pytest.raises(InferenceServerException, match="failed to execute"):
            bad.sum()
    bad.send("oldest", 2, sequence_id=202, sequence_end=True)
    good.send("oldest", 1, sequence_id=201, sequence_end=True)

    assert [good.sum() for _ in range(21)] == [float(n) for n in range(2, 23)]
    assert bad.sum() == 3
    good.close()
    bad.close()


def test_an_idle_sequence_gives_its_slot_to_the_next(served: ServerProcess) -> None:
    """One slot, 50 ms: who went silent is over, and who waited is served."""
    with triton.InferenceServerClient(served.grpc) as client:
        client.infer("hasty", inputs(1), sequence_id=1, sequence_start=True)

        answer = client.infer("hasty", inputs(5), sequence_id=2, sequence_start=True, sequence_end=True)

        assert answer.as_numpy("y") == 5
        with pytest.raises(InferenceServerException, match="must specify the START flag"):
            client.infer("hasty", inputs(1), sequence_id=1)
        assert gauge(served, "forwardpass_sequences_aborted_total", model="hasty", cause="idle") == 1


def test_a_client_that_goes_away_gives_up_its_sequences(served: ServerProcess) -> None:
    """What it still waited for is cancelled, which ends the sequence; nobody waits for a slot any more."""
    with triton.InferenceServerClient(served.grpc) as client:
        client.infer("narrow", inputs(1), sequence_id=50, sequence_start=True)
        stream = Stream(served)
        stream.send("narrow", 1, sequence_id=51, sequence_start=True)
        assert eventually(lambda: gauge(served, "forwardpass_sequences_backlog", model="narrow") == 1)

        stream.client.stop_stream(cancel_requests=True)
        stream.client.close()

        assert eventually(lambda: gauge(served, "forwardpass_sequences_backlog", model="narrow") == 0)
        assert gauge(served, "forwardpass_sequences_aborted_total", model="narrow", cause="cancelled") == 1
        assert client.infer("narrow", inputs(1), sequence_id=50, sequence_end=True).as_numpy("y") == 2


def test_statistics_count_the_clients_rows(served: ServerProcess) -> None:
    """Empty slots are no rows."""
    with triton.InferenceServerClient(served.grpc) as client:
        before = client.get_inference_statistics("direct").model_stats[0]
        for name in (301, 302, 303):
            client.infer("direct", inputs(1), sequence_id=name, sequence_start=True)
        client.infer("direct", inputs(1), sequence_id=303, sequence_end=True)
        after = client.get_inference_statistics("direct").model_stats[0]

    assert after.inference_count - before.inference_count == 4
    assert after.inference_stats.success.count - before.inference_stats.success.count == 4


def test_sequences_finish_on_the_version_that_they_began_on(start_server: StartServer, tmp_path: Path) -> None:
    """A new version under load: running sequences end on the old one, new ones start on the new one, none fails."""
    root = tmp_path / "models"
    accumulator_folder(root, "model", strategy="oldest { max_candidate_sequences: 32 }")
    server = start_server("--model-control-mode", "explicit", "--load-model", "model", repository=root)
    stop = threading.Event()
    failures: list[object] = []
    finished: dict[float, int] = {1: 0, 2: 0}

    def run(number: int) -> None:
        stream = Stream(server)
        while not stop.is_set():
            sums = []
            for step in range(20):
                stream.send("model", 1, sequence_id=number, sequence_start=step == 0, sequence_end=step == 19)
                try:
                    sums.append(stream.sum())
                except Exception as error:  # noqa: BLE001 - every failure counts
                    failures.append(error)
            # Each step adds the version's number: one version, from the start to the end.
            if sums and sums == [sums[0] * (step + 1) for step in range(20)]:
                finished[sums[0]] += 1
            else:
                failures.append(sums)
        stream.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 9)]
    with triton.InferenceServerClient(server.grpc) as client:
        client.infer("model", inputs(1), sequence_id=100, sequence_start=True)
        for thread in threads:
            thread.start()
        try:
            assert eventually(lambda: finished[1] > 20)
            accumulator_folder(root, "model", versions=(1, 2), strategy="oldest { max_candidate_sequences: 32 }")
            client.load_model("model")
            # It has been quiet since before the change.
            assert client.infer("model", inputs(1), sequence_id=100).as_numpy("y") == 2
            assert client.infer("model", inputs(1), sequence_id=100, sequence_end=True).as_numpy("y") == 3
            assert eventually(lambda: finished[2] > 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    assert failures == []


def test_sigterm_lets_sequences_finish_and_starts_none(start_server: StartServer, tmp_path: Path) -> None:
    """Also call by call, on new connections: the server waits for their ends, at most for the grace."""
    root = tmp_path / "models"
    accumulator_folder(root, "model", strategy="direct {}")
    server = start_server("--drain-delay-secs", "0", "--exit-timeout-secs", "200", repository=root)
    with triton.InferenceServerClient(server.grpc) as client:
        client.infer("model", inputs(1), sequence_id=1, sequence_start=True)
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: not client.is_server_ready())

        def refused() -> bool:
            try:
                client.infer("model", inputs(1), sequence_id=2, sequence_start=True, sequence_end=True)
            except InferenceServerException as error:
                return "shutting down" in error.message()
            return False

        assert eventually(refused)
        with triton.InferenceServerClient(server.grpc) as other:
            assert other.infer("model", inputs(2), sequence_id=1).as_numpy("y") == 3
        assert client.infer("model", inputs(3), sequence_id=1, sequence_end=True).as_numpy("y") == 6

    assert server.process.wait(60) == 0, server.log.read_text()


def test_a_shutdown_waits_for_the_sequences_of_a_version_just_replaced(
    start_server: StartServer, tmp_path: Path
) -> None:
    """They are as far from their ends as those of the new one."""
    root = tmp_path / "models"
    strategy = "direct {}"
    accumulator_folder(root, "model", strategy=strategy)
    flags = ("--model-control-mode", "explicit", "--load-model", "model", "--drain-delay-secs", "0")
    server = start_server(*flags, repository=root)
    with triton.InferenceServerClient(server.grpc) as client:
        client.infer("model", inputs(1), sequence_id=1, sequence_start=True)
        accumulator_folder(root, "model", versions=(1, 2), strategy=strategy)
        client.load_model("model")
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: not client.is_server_ready())
        time.sleep(0.2)  # The listeners would be closed by now.
        with triton.InferenceServerClient(server.grpc) as other:
            assert other.infer("model", inputs(1), sequence_id=1, sequence_end=True).as_numpy("y") == 2

    assert server.process.wait(60) == 0, server.log.read_text()
