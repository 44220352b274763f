"""`serve --workers 2`: real processes, of which some are killed."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import httpx
import pytest

from loadtests.process import by_name
from server.proto.triton import service_pb2 as pb
from tests.e2e.conftest import REPOSITORY, ServerProcess, StartServer, end, start

pytestmark = pytest.mark.e2e

PICTURE = (REPOSITORY / "digits" / "example.png").read_bytes()
CALLERS = 16


def children(server: ServerProcess) -> dict[str, int]:
    """The server's processes, as they are called in `ps`. Raises ValueError while one is missing."""
    found = by_name(server.process.pid)
    if found.keys() != {"engine", "front-0", "front-1"}:
        raise ValueError(found)
    return found


def connections_of(pid: int, port: int) -> int:
    """Open connections to the port that the process has. Source: proc_pid_net(5), its table tcp."""
    ours = {
        f"socket:[{fields[9]}]"
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[3] == "01" and int(fields[1].partition(":")[2], 16) == port
    }
    count = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            count += str(file.readlink()) in ours
    return count


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.005)


def ready(server: ServerProcess) -> bool:
    try:
        return httpx.get(f"{server.http}/v2/health/ready").status_code == 200
    except httpx.HTTPError:
        return False


class Callers:
    """Threads that ask for predictions one after the other, each over its own connection, until they are stopped."""

    def __init__(self, server: ServerProcess) -> None:
        self.port = server.port("REST")
        self.seen: Counter[int] = Counter()
        """Answers by status; 0: the connection was lost before one."""
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CALLERS)]

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        while not self._stop.is_set():
            try:
                connection.request("POST", "/v2/models/digits/predict", PICTURE, {"Content-Type": "image/png"})
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            self.seen[status] += 1
        connection.close()

    def until_answered(self, more: int = 100) -> None:
        wanted = self.seen[200] + more
        until(lambda: self.seen[200] >= wanted)

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        self.until_answered()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("workers")
    models = Path(shutil.copytree(REPOSITORY, folder / "models"))
    flags = ("--workers", "2", "--model-control-mode", "explicit", "--load-model", "*")
    running = start(folder / "server.log", *flags, repository=models)
    yield running
    assert running.terminate() == 0, running.log.read_text()
    end(running)


def successes(statistics: dict[str, object]) -> dict[str, int]:
    models: list[dict[str, object]] = statistics["model_stats"]  # type: ignore[assignment]
    return {model["name"]: model["inference_stats"]["success"]["count"] for model in models}  # type: ignore[index, misc]


def test_few_connections_are_spread_evenly(pair: ServerProcess) -> None:
    """Of 16 connections each of the two fronts gets 8, which chance would give in a fifth of all cases. Of the first
    eight, which come at once, one may have got more: what the other has is told a moment later."""
    fronts = [pid for name, pid in children(pair).items() if name != "engine"]
    for listener in ("gRPC", "REST"):
        port = pair.port(listener)

        def counts(port: int = port) -> list[int]:
            return [connections_of(pid, port) for pid in fronts]

        until(lambda counts=counts: counts() == [0, 0])  # type: ignore[misc]
        connections: list[socket.socket] = []
        for so_far in range(8, 17):
            while len(connections) < so_far:
                connections.append(socket.create_connection(("127.0.0.1", port)))
            until(lambda counts=counts, so_far=so_far: sum(counts()) == so_far)  # type: ignore[misc]
        assert counts() == [8, 8]
        for connection in connections:
            connection.close()


def test_counts_agree_wherever_they_are_asked(pair: ServerProcess) -> None:
    """After 60 requests to each model over both protocols and many connections, both fronts and the metrics say so."""
    before = successes(httpx.get(f"{pair.http}/v2/models/stats").json())
    rows = {
        name: re.search(rf"models/{name}/predict .* -d '(.*)'", pair.banner)[1]  # type: ignore[index]
        for name in ("breast_cancer", "fraud")
    }
    for _ in range(20):
        with httpx.Client(base_url=pair.http) as client:
            for _ in range(3):
                picture = {"content": PICTURE, "headers": {"Content-Type": "image/png"}}
                assert client.post("/v2/models/digits/predict", **picture).status_code == 200  # type: ignore[arg-type]
                for name, body in rows.items():
                    assert client.post(f"/v2/models/{name}/predict", content=body).status_code == 200
    wanted = {name: before[name] + 60 for name in before}
    connections = [httpx.Client(base_url=pair.http) for _ in range(4)]
    for client in connections:
        assert successes(client.get("/v2/models/stats").json()) == wanted
    for client in connections:
        client.close()
    with grpc.insecure_channel(pair.grpc) as channel:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelStatistics",
            request_serializer=pb.ModelStatisticsRequest.SerializeToString,
            response_deserializer=pb.ModelStatisticsResponse.FromString,
        )
        answer = ask(pb.ModelStatisticsRequest(), timeout=20)
        assert {model.name: model.inference_stats.success.count for model in answer.model_stats} == wanted
    text = httpx.get(pair.metrics).text
    told = re.findall(r'^nv_inference_request_success\{model="(\w+)",version="1"\} (\S+)$', text, re.MULTILINE)
    assert {name: int(float(count)) for name, count in told} == wanted


def test_models_are_controlled_from_any_front(pair: ServerProcess) -> None:
    """What one front unloads or loads, the other one knows as soon as the first has answered."""
    with httpx.Client(base_url=pair.http, timeout=20) as one, httpx.Client(base_url=pair.http, timeout=20) as other:
        for client in (one, other):
            assert client.get("/v2/models/fraud/ready").status_code == 200
        for _ in range(3):
            assert one.post("/v2/repository/models/fraud/unload").status_code == 200
            assert other.get("/v2/models/fraud/ready").status_code == 503
            assert one.post("/v2/repository/models/fraud/load").status_code == 200
            assert other.get("/v2/models/fraud/ready").status_code == 200
        assert one.post("/v2/repository/models/nobody/load").status_code == 404


def test_a_swap_under_load_fails_nobody(pair: ServerProcess) -> None:
    """A model is loaded anew three times while both fronts are asked for it."""
    with Callers(pair) as callers, httpx.Client(base_url=pair.http, timeout=30) as client:
        for _ in range(3):
            assert client.post("/v2/repository/models/digits/load").status_code == 200
            callers.until_answered()
    assert set(callers.seen) == {200}, callers.seen


def children_or_none(server: ServerProcess) -> dict[str, int]:
    try:
        return children(server)
    except ValueError:  # One of them is gone and its successor not there.
        return {}


def whole(server: ServerProcess) -> dict[str, int]:
    """Its processes, once all are there and it is ready."""
    until(lambda: bool(children_or_none(server)) and ready(server))
    return children(server)


def test_deadlines_are_kept_while_the_engine_process_is_stopped(pair: ServerProcess) -> None:
    """Whoever asks over REST, where no client library ends the call, is told in time."""
    server, engine = pair, whole(pair)["engine"]
    url = f"{server.http}/v2/models/digits/predict"
    headers = {"content-type": "image/png", "x-request-timeout": "700"}
    os.kill(engine, signal.SIGSTOP)
    try:
        began = time.monotonic()
        answer = httpx.post(url, content=PICTURE, headers=headers, timeout=20)
        took = time.monotonic() - began
    finally:
        os.kill(engine, signal.SIGCONT)
    assert (answer.status_code, took < 5) == (504, True)
    assert httpx.post(url, content=PICTURE, headers=headers, timeout=20).status_code == 200


def test_a_supervisor_without_descriptors_goes_on(pair: ServerProcess) -> None:
    """Nobody new gets in while there is none, nor is who died replaced; both are made up for when there are again."""
    server, front = pair, whole(pair)["front-0"]
    pid, said = server.process.pid, len(server.log.read_text())
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # Not as many as it has now: among these may be a connection that is just being handed over.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    with socket.create_connection(("127.0.0.1", server.port("REST")), timeout=20) as waiting:
        waiting.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: "can't accept connections" in server.log.read_text()[said:])
        os.kill(front, signal.SIGKILL)
        until(lambda: "it is replaced" in server.log.read_text()[said:])
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert b" 200 " in waiting.recv(100)

    assert front not in whole(server).values()


def closed(server: ServerProcess) -> float:
    """Connections that were closed for a fault of their peer, as metrics tell."""
    return sum(
        map(float, re.findall(r"^forwardpass_connections_closed_total\{.*\} (\S+)$", metrics(server), re.MULTILINE))
    )


def metrics(server: ServerProcess) -> str:
    return httpx.get(server.metrics).text


def test_a_front_that_is_killed_is_replaced(pair: ServerProcess) -> None:
    """Its connections are lost, nobody else is answered otherwise, and a new front takes its part. What it had told of
    connections that it closed stays told."""
    before = children(pair)
    bad = [socket.create_connection(("127.0.0.1", pair.port("REST"))) for _ in range(4)]
    for connection in bad:
        connection.sendall(b"no request\r\n\r\n")
    until(lambda: closed(pair) >= 4)
    closed_before = closed(pair)
    with Callers(pair) as callers:
        os.kill(before["front-1"], signal.SIGKILL)
        until(lambda: bool(now := children_or_none(pair)) and before["front-1"] not in now.values())
        callers.until_answered()
    assert set(callers.seen) <= {200, 0}, callers.seen
    assert callers.seen[0] <= CALLERS
    assert children(pair)["engine"] == before["engine"]
    assert closed(pair) >= closed_before
    for connection in bad:
        connection.close()


def test_an_engine_process_that_is_killed_is_replaced(pair: ServerProcess) -> None:
    """Who waited for it is answered UNAVAILABLE, the fronts stay, and the server is ready again. All counts begin anew
    with it: a sum of which a part is gone would look like a burst. Log settings stay."""
    before = children(pair)
    row = re.search(r"models/breast_cancer/predict .* -d '(.*)'", pair.banner)
    assert row is not None
    answer = httpx.post(f"{pair.http}/v2/models/breast_cancer/predict", content=row[1])
    assert answer.status_code == 200
    until(lambda: successes(httpx.get(f"{pair.http}/v2/models/stats").json())["breast_cancer"] > 0)
    changed = httpx.post(f"{pair.http}/v2/logging", json={"log_info": False})
    assert changed.status_code == 200
    with Callers(pair) as callers:
        os.kill(before["engine"], signal.SIGKILL)
        until(lambda: callers.seen[503] > 0)
        until(lambda: ready(pair))
        callers.until_answered()
    assert set(callers.seen) == {200, 503}, callers.seen
    assert {name for name, pid in children(pair).items() if before[name] == pid} == {"front-0", "front-1"}
    told = [line for line in pair.log.read_text().splitlines() if "the link to the engine process is lost" in line]
    # While it dies it may be given another link, which is lost as well; but nobody goes on and on about it.
    assert 2 <= len(told) < 10
    assert successes(httpx.get(f"{pair.http}/v2/models/stats").json())["breast_cancer"] == 0
    assert 'nv_inference_request_success{model="breast_cancer",version="1"} 0' in metrics(pair)
    assert pair.log.read_text().count("action=log.change") == 1
    loads = pair.log.read_text().count(" engine server.engine.onnxruntime: model 'fraud'")
    assert httpx.post(f"{pair.http}/v2/repository/models/fraud/load").status_code == 200
    assert pair.log.read_text().count(" engine server.engine.onnxruntime: model 'fraud'") == loads
    assert httpx.post(f"{pair.http}/v2/logging", json={"log_info": True}).status_code == 200


@contextmanager
def sent_to(server: ServerProcess, connections: int) -> Iterator[list[socket.socket]]:
    """Connections that have sent a picture each."""
    head = "POST /v2/models/digits/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    head += f"Connection: close\r\nContent-Length: {len(PICTURE)}"
    opened = [socket.create_connection(("127.0.0.1", server.port("REST"))) for _ in range(connections)]
    for connection in opened:
        connection.settimeout(30)
        connection.sendall(head.encode() + b"\r\n\r\n" + PICTURE)
    yield opened
    for connection in opened:
        connection.close()


def test_sigterm_amid_100_requests_answers_each(start_server: StartServer) -> None:
    """100 connections have sent a picture when the signal comes: each gets its prediction, and the status is 0."""
    server = start_server("--workers", "2", "--log-format", "json")
    with sent_to(server, 100) as connections:
        server.process.send_signal(signal.SIGTERM)
        answers = [b"".join(iter(lambda one=one: one.recv(65536), b"")) for one in connections]
    assert [answer[:15] for answer in answers] == [b"HTTP/1.1 200 OK"] * 100
    assert server.process.wait(40) == 0, server.log.read_text()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {line["process"] for line in lines} == {"supervisor", "engine", "front-0", "front-1"}


def test_an_engine_process_may_die_while_it_loads_and_while_all_drain(start_server: StartServer) -> None:
    """The one is replaced by a third; amid the other nobody is left without an answer, and the status is 0."""
    server = start_server("--workers", "2")
    first = children(server)
    os.kill(first["engine"], signal.SIGKILL)
    until(lambda: bool(others(server, first)))
    [second] = others(server, first)
    os.kill(second, signal.SIGKILL)
    until(lambda: others(server, first) not in ([], [second]) and ready(server))
    with sent_to(server, 60) as connections:
        server.process.send_signal(signal.SIGTERM)
        os.kill(*others(server, first), signal.SIGKILL)
        answers = [b"".join(iter(lambda one=one: one.recv(65536), b""))[:12] for one in connections]
    assert set(answers) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}
    assert server.process.wait(40) == 0, server.log.read_text()


def others(server: ServerProcess, known: dict[str, int]) -> list[int]:
    """The server's processes that are none of these."""
    pids = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [pid for pid in map(int, pids) if pid not in known.values()]


def test_a_second_signal_ends_all_processes_at_once(start_server: StartServer) -> None:
    """The status is 128 + the signal, and nothing is left running."""
    server = start_server("--workers", "2", "--drain-delay-secs", "600")
    pids = list(children(server).values())
    server.process.send_signal(signal.SIGTERM)
    until(lambda: not ready(server))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 128 + signal.SIGTERM
    until(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    """A zombie that nobody has waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_process_that_hangs_is_killed_and_replaced(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, it says nothing any more; readiness says so of the engine process, and another one serves."""
    monkeypatch.setenv("FORWARDPASS_WORKERS__HANG_S", "2")
    server = start_server("--workers", "2")
    for which in ("front-0", "engine"):  # Whoever is replaced starts last.
        before = whole(server)
        os.kill(before[which], signal.SIGSTOP)
        until(lambda pid=before[which]: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]
        until(lambda: ready(server))
        url = f"{server.http}/v2/models/digits/predict"
        assert httpx.post(url, content=PICTURE, headers={"content-type": "image/png"}).status_code == 200
        assert f"{which} (process {before[which]}) hangs" in server.log.read_text()
    assert server.terminate() == 0
