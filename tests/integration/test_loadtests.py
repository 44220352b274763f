"""The load tests' own parts against real servers: the replaying generator, echo servers, trees of processes, peers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from loadtests.benchmarks.peers import workloads
from loadtests.benchmarks.peers.apps.onnx_model import Model
from loadtests.benchmarks.peers.calls import Call, plain_json
from loadtests.benchmarks.peers.peer import Command, Line, Peer, Setup
from loadtests.benchmarks.peers.running import end_all, start_all
from loadtests.benchmarks.peers.sampling import cells_of, sample
from loadtests.cores import cores
from loadtests.generators import Load, missing
from loadtests.h2_calls import BLOCKS
from loadtests.h2_replay import PATH, ReplayFailed, replay
from loadtests.process_tree import ProcessTree
from server.local_triton.process import free_ports

ROOT = Path(__file__).parents[2]
COUNT, IN_FLIGHT = 200, 16
ROW = np.array([0.25, -1.5], np.float32)
REQUEST = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\0" * 8]).SerializeToString()


class Service(grpc.GenericRpcHandler):
    """ModelInfer that keeps what it was told; each third call fails where `failing` is set."""

    def __init__(self, row: np.ndarray, *, failing: bool = False) -> None:
        response = pb.ModelInferResponse(model_name="m", raw_output_contents=[row.tobytes()])
        self._response = response.SerializeToString()
        self._failing = failing
        self._lock = threading.Lock()
        self.metadata: list[dict[str, object]] = []
        self.remaining_s: list[float | None] = []
        self.ids: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return grpc.unary_unary_rpc_method_handler(self._infer) if details.method == PATH else None

    def _infer(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        with self._lock:
            self.metadata.append(dict(context.invocation_metadata()))
            self.remaining_s.append(context.time_remaining())
            self.ids.append(pb.ModelInferRequest.FromString(message).id)
            number = len(self.ids)
        if self._failing and number % 3 == 0:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"call {number}")
        return self._response


@contextmanager
def served(service: Service) -> Iterator[str]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=[service])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait(10)


class TestReplay:
    @pytest.mark.parametrize("variant", BLOCKS)
    def test_every_call_arrives_and_is_answered(self, variant: str) -> None:
        """grpcio understands every variant, and gets the headers and ids that it names."""
        service = Service(ROW)
        with served(service) as address:
            result = replay(address, variant, REQUEST, ROW.tobytes(), COUNT, IN_FLIGHT)
        assert (result.statuses, result.right, result.ended) == ({"0": COUNT}, COUNT, COUNT)
        assert all(latency_ns > 0 for latency_ns in result.latencies_ns)
        assert len(service.ids) == COUNT
        assert len(set(service.ids)) == (COUNT if variant == "ids" else 1)
        differing = variant in ("literals", "inserted")
        assert len({metadata.get("traceparent") for metadata in service.metadata}) == (COUNT if differing else 1)
        if differing:
            assert all(remaining_s is not None and 0 < remaining_s <= 21 for remaining_s in service.remaining_s)

    def test_a_status_that_is_an_error_is_counted_as_what_it_is(self) -> None:
        """HTTP says 200 to each of them."""
        with served(Service(ROW, failing=True)) as address:
            result = replay(address, "same", REQUEST, ROW.tobytes(), 90, IN_FLIGHT)
        assert (result.statuses, result.right) == ({"0": 60, "3": 30}, 60)

    @pytest.mark.parametrize(
        ("wanted", "right"),
        [
            pytest.param(ROW + np.float32(1e-6), COUNT, id="the last digits differ"),
            pytest.param(ROW + np.float32(0.1), 0, id="the values differ"),
        ],
    )
    def test_answers_are_held_against_the_wanted_tensor(self, wanted: np.ndarray, right: int) -> None:
        """Each one, within the tolerance that batches of other sizes need."""
        with served(Service(ROW)) as address:
            result = replay(address, "same", REQUEST, wanted.tobytes(), COUNT, IN_FLIGHT)
        assert (result.statuses, result.right) == ({"0": COUNT}, right)

    def test_an_unknown_method_is_a_status_too(self) -> None:
        """Trailers without anything before them."""
        service = Service(ROW)
        service.service = lambda details: None  # type: ignore[method-assign]
        with served(service) as address:
            assert replay(address, "same", REQUEST, b"", 8, 4).statuses == {"12": 8}

    def test_a_server_that_speaks_something_else_is_an_error(self) -> None:
        """It closes the connection, and nothing waits for it."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            def close_one() -> None:
                connection, _ = listener.accept()
                connection.recv(1024)
                connection.close()

            thread = threading.Thread(target=close_one)
            thread.start()
            with pytest.raises(ReplayFailed, match="closed the connection"):
                replay(f"127.0.0.1:{port}", "same", REQUEST, b"", 1, 1)
            thread.join(10)


@pytest.fixture
def echo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an echo server of the kind that the test names."""
    kind, answer = request.param
    (tmp_path / "answer").write_bytes(answer)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "loadtests.echo", kind, str(port), "--answer", str(tmp_path / "answer")]
    with ProcessTree.running(command, tmp_path / "log", cores(), env={}, cwd=ROOT) as tree:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert tree.alive(), tree.log.read_text()
                threading.Event().wait(0.05)
        yield f"127.0.0.1:{port}"
    assert tree.pids() == []


class TestEcho:
    @pytest.mark.parametrize("echo", [("grpc", ROW.tobytes())], indirect=True)
    def test_grpc_clients_and_the_replay_get_the_message(self, echo: str) -> None:
        """It is plain HTTP/2 to grpcio, too, and gives back what it takes of the window."""
        with grpc.insecure_channel(echo) as channel:
            assert channel.unary_unary(PATH)(b"\0" * 200_000, timeout=20) == ROW.tobytes()
        result = replay(echo, "inserted", REQUEST, ROW.tobytes(), 5000, 32)
        assert (result.statuses, result.right) == ({"0": 5000}, 5000)

    @pytest.mark.parametrize("echo", [("http", b'{"y": 1}')], indirect=True)
    def test_http_clients_get_the_body(self, echo: str) -> None:
        """One after the other on one connection."""
        with httpx.Client(trust_env=False) as client:
            assert [client.post(f"http://{echo}/", content=b"x" * 70_000).json() for _ in range(3)] == [{"y": 1}] * 3


_NESTED = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); \
print('up', flush=True); time.sleep(600)"], start_new_session=True)
time.sleep(600)
"""


_BENCHMARK = """
import sys, time
from pathlib import Path
from loadtests.cores import cores
from loadtests.process_tree import ProcessTree
folder = Path(sys.argv[1])
command = [sys.executable, "-c", "import time; time.sleep(600)"]
with ProcessTree.running(command, folder / "1", cores(), env={}, cwd=folder) as one:
    with ProcessTree.running(command, folder / "2", cores(), env={}, cwd=folder) as other:
        print(*one.pids(), *other.pids(), flush=True)
        time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return state(pid) != "Z"
    except OSError:
        return False


def left_of(pids: list[int]) -> list[int]:
    """Those that do not end. Whoever is being killed has lost its environment before it is gone."""
    for _ in range(250):
        if not any(map(alive, pids)):
            break
        threading.Event().wait(0.02)
    return [pid for pid in pids if alive(pid)]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class TestProcessTree:
    def test_nothing_is_left_of_a_tree_that_does_not_want_to_end(self, tmp_path: Path) -> None:
        """A grandchild in a session of its own that ignores SIGTERM is held still, woken and ended with the rest."""
        tree = ProcessTree([sys.executable, "-c", _NESTED], tmp_path / "log", cores(), env={}, cwd=tmp_path)
        try:
            while "up" not in tree.log.read_text():
                assert tree.alive()
                threading.Event().wait(0.02)
            pids = tree.pids()
            assert len(pids) == 2
            assert os.getpid() not in pids
            tree.freeze()
            assert {state(pid) for pid in pids} == {"T"}
            tree.thaw()
            assert "T" not in {state(pid) for pid in pids}
        finally:
            tree.end(1)
        assert tree.pids() == []
        assert left_of(pids) == []

    def test_a_signal_that_ends_a_benchmark_ends_its_trees(self, tmp_path: Path) -> None:
        """One inside the other, as those have them that measure several servers."""
        with (tmp_path / "out").open("wb") as out:
            benchmark = subprocess.Popen([sys.executable, "-c", _BENCHMARK, str(tmp_path)], cwd=ROOT, stdout=out)
        pids: list[int] = []
        try:
            while not (line := (tmp_path / "out").read_text()).endswith("\n"):
                assert benchmark.poll() is None
                threading.Event().wait(0.02)
            pids = [int(pid) for pid in line.split()]
            assert all(map(alive, pids))
            benchmark.terminate()
            status = benchmark.wait(60)
        finally:
            benchmark.kill()
            benchmark.wait()
            left = left_of(pids)
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert (status, left) == (128 + signal.SIGTERM, [])


class Peers:
    """Peers that are small enough for a test: an echo server, and commands that fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.setups: list[Setup] = []
        self.given = {"tiny_mlp": workloads.write(folder)["tiny_mlp"]}

    def echo(self, answer: bytes) -> Peer:
        def command(setup: Setup) -> Command:
            self.setups.append(setup)
            (setup.folder / "answer").write_bytes(answer)
            argv = [sys.executable, "-m", "loadtests.echo", "http", str(setup.http_port), "--answer"]
            return Command([*argv, str(setup.folder / "answer")], ROOT)

        def call(workload: workloads.Workload) -> Call:
            return plain_json(workload, "/")

        return Peer("echo", "none", command, [Line("Echo", call)])

    def failing(self, source: str) -> Peer:
        return Peer("bad", "none", lambda setup: Command([sys.executable, "-c", source], ROOT), self.echo(b"").lines)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Peers:
    return Peers(tmp_path_factory.mktemp("peers"))


def started(peers: Peers, folder: Path, chosen: dict[str, Peer]) -> tuple[list[object], dict[str, str]]:
    running, reasons = start_all(chosen, peers.given, folder, cores()[:1], 1, lambda text: None)
    try:
        return [(server.peer.name, dict(server.wrong)) for server in running], reasons
    finally:
        end_all(running)
        assert [server.tree.pids() for server in running] == [[] for _ in running]


class TestWorkloads:
    def test_every_answer_says_something(self, tmp_path: Path) -> None:
        """A row of zeros would be right for any input, and a label that wins by a hair for none."""
        given = workloads.write(tmp_path)
        for workload in given.values():
            x = np.repeat(workload.row, 3, axis=0)
            output = Model(workload.onnx).rows(x)[2]
            assert np.unique(output).size > 1
            if isinstance(workload.answer, str):
                best, second = np.sort(output)[:-3:-1]
                assert best - second > 100 * workloads.TOLERANCE
                assert Model(workload.onnx).labels([workload.picture])[0] == workload.answer
            else:
                assert workload.right(output)


class TestPeers:
    def test_a_server_that_does_not_start_is_a_reason_and_the_others_go_on(self, peers: Peers, tmp_path: Path) -> None:
        """The last error of its log is what the table says."""
        right = peers.given["tiny_mlp"].answer
        assert isinstance(right, np.ndarray)
        chosen = {
            "bad": peers.failing("raise RuntimeError('no such device')"),
            "echo": peers.echo(f'{{"y": {right.tolist()}}}'.encode()),
        }
        running, reasons = started(peers, tmp_path, chosen)
        assert running == [("echo", {})]
        assert reasons == {"bad": "ended at once: RuntimeError: no such device"}

    def test_a_server_that_answers_something_else_is_not_measured(self, peers: Peers, tmp_path: Path) -> None:
        """How far it is off is what the table says."""
        running, reasons = started(peers, tmp_path, {"echo": peers.echo(b'{"y": [1e6, 0]}')})
        assert running == []
        assert reasons["echo"].startswith("wrong answer: up to 1e+06 from ONNX Runtime's")

    @pytest.mark.skipif(bool(missing()), reason="; ".join(missing()))
    def test_a_server_that_died_is_started_anew_and_measured(self, peers: Peers, tmp_path: Path) -> None:
        """Some do not live through being held still; one that dies each time is given up."""
        right = peers.given["tiny_mlp"].answer
        assert isinstance(right, np.ndarray)
        echo = peers.echo(f'{{"y": {right.tolist()}}}'.encode())
        running, _ = start_all({"echo": echo}, peers.given, tmp_path, cores()[:1], 1, lambda text: None)
        try:
            (server,) = running
            (cell,) = cells_of(server, [2])
            load = Load(1, 2, 1, cores()[-1:])
            server.tree.end()
            found = sample(server, cell, 0, load, lambda text: None)
            assert (found.problem, found.failed) == ("", 0)
            assert found.answered > 0
            assert found.requests_per_s > 0
            server.peer = peers.failing("raise RuntimeError('no more')")
            server.tree.end()
            found = sample(server, cell, 1, load, lambda text: None)
            assert found.problem.endswith("then ended at once: RuntimeError: no more")
            assert sample(server, cell, 2, load, lambda text: None).problem == found.problem
        finally:
            end_all(running)

    def test_an_interruption_ends_what_was_started(self, peers: Peers, tmp_path: Path) -> None:
        """Ctrl-C while the second server starts leaves nothing of the first."""
        right = peers.given["tiny_mlp"].answer
        assert isinstance(right, np.ndarray)

        def interrupted(setup: Setup) -> Command:
            raise KeyboardInterrupt

        first = peers.echo(f'{{"y": {right.tolist()}}}'.encode())
        with pytest.raises(KeyboardInterrupt):
            started(peers, tmp_path, {"echo": first, "next": Peer("next", "", interrupted, first.lines)})
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", peers.setups[-1].http_port), 5)
