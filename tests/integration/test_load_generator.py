"""The generator against a real server: every kind by both wires, faults by their causes, times that are kept."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml
from tritonclient.grpc import service_pb2 as pb

from loadtests import capacity
from loadtests.capacity_report import Capacity, values
from loadtests.cores import cores
from loadtests.process import Server, serving
from server.client.calls import Call
from server.client.errors import ClientError
from server.client.grpcio import V2, Request
from server.load.drive import Leg, closed_loop, open_loop, poisson
from server.load.grpc import GrpcWire
from server.load.http1 import Http1Wire
from server.load.limits import Limits
from server.load.payloads import Payload, payloads
from server.load.search import Found, Probe
from server.load.wire import Wire
from tests.e2e.conftest import REPOSITORY
from tests.support.chart import one, render

pytestmark = pytest.mark.e2e

KINDS = ("rest infer breast_cancer", "rest predict digits", "grpc infer fraud", "grpc predict fraud")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(REPOSITORY, tmp_path_factory.mktemp("server"), tuple(cores())) as running:
        yield running


OPEN: list[Wire] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Every wire of a test."""
    yield
    while OPEN:
        OPEN.pop().close()


def wire(url: str) -> Wire:
    OPEN.append(GrpcWire(url, 2) if url.startswith("grpc") else Http1Wire(url))
    return OPEN[-1]


def leg(server: Server, kind: str, due_ns: list[int], sizes: dict[int, float] | None = None) -> Leg:
    transport, call, model = kind.split()
    url = f"grpc://{server.grpc}" if transport == "grpc" else f"http://{server.http}"
    return Leg(wire(url), payloads(transport, call, model, REPOSITORY, sizes), due_ns)


def test_kinds_are_asked_together_and_answered_rightly(server: Server) -> None:
    """Five legs in one loop, with requests of one row and of five; every one is counted."""
    due = [int(at * 1e9 / 40) for at in range(40)]
    legs = [leg(server, kind, due, {1: 0.5, 5: 0.5}) for kind in (*KINDS, "json infer fraud")]
    samples = open_loop(legs)
    assert samples.faults == {}
    assert samples.share("right") == 1
    assert np.bincount(samples.leg).tolist() == [40] * 5
    assert (samples.ended_ns > samples.sent_ns).all()
    assert (samples.sent_ns >= samples.due_ns).all()


def test_a_closed_loop_keeps_so_many_under_way(server: Server) -> None:
    """Callers who wait: a request is due when it is sent."""
    asked = leg(server, KINDS[2], [])
    samples = closed_loop(asked, 4, 0.5)
    assert samples.share("right") == 1
    assert (samples.due_ns == samples.sent_ns).all()
    assert len(samples) > 8
    under_way = [int(((samples.sent_ns <= at) & (samples.ended_ns > at)).sum()) for at in samples.sent_ns[:-4]]
    assert max(under_way) == 4


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_wrong_answer_is_wrong_and_an_error_has_its_cause(server: Server, transport: str) -> None:
    """A check that nothing passes; a model that is not there."""
    asked = leg(server, f"{transport} infer fraud", [0, 1, 2])
    sound = asked.payloads[0]
    wrong = replace(asked, payloads=[replace(sound, right=lambda _: False, _known=set())])
    assert open_loop([wrong]).faults == {(0, "the answer is not the golden one"): 3}

    nobody = payloads(transport, "infer", "fraud", REPOSITORY)[0]
    request = nobody.call.request
    if transport == "grpc":
        request.message.model_name = "nobody"
    else:
        request = replace(request, path="/v2/models/nobody/infer")
    missing = replace(asked, payloads=[replace(nobody, call=replace(nobody.call, request=request))])
    samples = open_loop([missing])
    assert samples.share("failed") == 1
    ((_, words),) = samples.faults
    assert "nobody" in words


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_server_that_is_not_there_has_failed_requests(server: Server, transport: str) -> None:
    """At once, and not after the grace."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gone = wire(f"{'grpc' if transport == 'grpc' else 'http'}://127.0.0.1:{port}")
    began = time.monotonic()
    samples = open_loop([Leg(gone, payloads(transport, "infer", "fraud", REPOSITORY), [0, 1000])])
    assert samples.share("failed") == 1
    assert time.monotonic() - began < 5
    assert all("refused" in words.lower() or "lost" in words for _, words in samples.faults)


def test_large_messages_wait_for_the_windows_of_the_server() -> None:
    """grpcio's own server, whose windows are 64 KiB at first: messages of 3 MB, several at once on each connection."""

    class Lengths(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            return grpc.unary_unary_rpc_method_handler(
                lambda data, _: pb.ModelInferResponse(id=str(len(data))).SerializeToString()
            )

    listening = grpc.server(ThreadPoolExecutor(2), handlers=(Lengths(),))
    port = listening.add_insecure_port("127.0.0.1:0")
    listening.start()
    try:
        message = pb.ModelInferRequest(raw_input_contents=[bytes(3_000_000)])
        request = Request(f"{V2}ModelInfer", message, pb.ModelInferResponse)
        right = str(message.ByteSize())
        payload = Payload(Call(request, lambda reply: reply.id), lambda answer: answer == right)
        samples = open_loop([Leg(wire(f"grpc://127.0.0.1:{port}"), [payload], [0] * 6)])
    finally:
        listening.stop(0)
    assert samples.faults == {}
    assert samples.share("right") == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "https://127.0.0.1", "http://", "http://host:port"])
def test_a_url_of_another_form_is_refused(url: str) -> None:
    """By both wires."""
    for made in (Http1Wire, GrpcWire):
        with pytest.raises(ClientError, match="url"):
            made(url)


def test_a_connection_that_ends_takes_its_requests_with_it_and_another_is_made(tmp_path: Path) -> None:
    """The server is killed while it stands still; what is asked afterwards of its successor's port is asked anew."""
    with serving(REPOSITORY, tmp_path, tuple(cores())) as running:
        legs = [leg(running, "grpc infer fraud", [0, 10**9]), leg(running, "rest infer fraud", [0, 10**9])]
        assert open_loop([replace(each, due_ns=[0]) for each in legs]).share("right") == 1
        os.kill(running.pid, signal.SIGSTOP)
        killing = threading.Timer(0.5, os.kill, (running.pid, signal.SIGKILL))
        killing.start()
        samples = open_loop(legs)
        killing.join()
    assert samples.share("failed") == 1
    assert len(samples.faults) >= 2


def test_a_request_is_sent_when_it_is_due_and_its_latency_counts_from_then(server: Server) -> None:
    """The server stands still for half a second: those who came meanwhile waited for the rest of it."""
    asked = leg(server, KINDS[0], poisson(200, 1.5, 0))
    stall = threading.Timer(0.5, os.kill, (server.pid, signal.SIGSTOP))
    resume = threading.Timer(1.0, os.kill, (server.pid, signal.SIGCONT))
    stall.start()
    resume.start()
    samples = open_loop([asked])
    stall.join()
    resume.join()
    assert samples.share("right") == 1
    assert samples.latency_ms(100) > 350
    assert samples.latency_ms(80) > 100, "a third of them came during the stall"
    assert len(samples.between(0.6, 0.9)) == len([at for at in asked.due_ns if 0.6e9 <= at < 0.9e9])


def test_capacity_is_written_for_people_and_for_the_chart(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two short searches of one kind, side by side: the table, the plot, and values that Helm renders. They stay where
    another kind is answered otherwise than its replay file says, which is told; a stream has no rate."""
    slo = tmp_path / "slo.yaml"
    wrong = {"inputs": {"features": [[0.0] * 10], "categories": [[0] * 3]}, "outputs": {"logits": [[1.0, 2.0]]}}
    (tmp_path / "wrong.jsonl").write_text(json.dumps(wrong))
    objectives = [
        {"kind": KINDS[1], "rate": 1, "latency_ms": {"p50": 15}, "rows": {1: 0.5, 2: 0.5}},
        {"kind": "rest infer fraud", "rate": 1, "latency_ms": {"p50": 40}, "replay": "wrong.jsonl"},
        {"kind": "rest stream digits", "rate": 1},
    ]
    slo.write_text(yaml.safe_dump({"max_lag_ms": 5_000, "objectives": objectives}))
    out = tmp_path / "out"
    urls = ["--rest", f"http://{server.http}", "--metrics", server.metrics_url]
    arguments = ["--slo", str(slo), "--windows", "5", "--window", "0.2", "--hold", "0.2", "--out", str(out), *urls]
    assert capacity.main([*arguments, "--repeats", "2"]) == capacity.UNASKED
    told = capsys.readouterr().err
    assert re.search(r"rest infer fraud: \d+ of \d+ requests: the answer is not", told)
    windows = re.findall(r"rest predict digits \(1 of 2\), search (\d) of 2, window (\d+): [\d,]+ requests/s", told)
    assert windows[:4] == [("1", "1"), ("2", "1"), ("2", "2"), ("1", "2")]
    assert len(windows) == 2 * 5

    runs = json.loads((out / "capacity.json").read_text())["runs"]
    assert [[one["kind"] for one in run] for run in runs] == [[KINDS[1]]] * 2
    ((first,), (last,)) = runs
    assert min(first["found"]["rate"], last["found"]["rate"]) > 5
    assert len(first["found"]["probes"]) == len(last["found"]["probes"]) == 5
    assert last["machine_per_s"][:2] == [first["closed_per_s"], last["closed_per_s"]]
    assert len(last["machine_per_s"]) == 2 + len(windows) // 10 + 1
    assert (first["saturation"], first["sweep"]) == (None, [])
    assert last["saturation"] > 0
    assert len(last["sweep"]) == 5
    assert re.search(r"wandered by [\d.]+% at most", (out / "capacity.md").read_text())
    assert "p99 in ms" in (out / "capacity.svg").read_text()
    assert set(yaml.safe_load((out / "capacity.yaml").read_text())) == {"autoscaling", "capacity"}


def test_capacities_as_values_are_what_helm_renders() -> None:
    """The target is of the kind with the lowest saturation at its capacity; where no model is the limit, of the CPU."""
    found = Found(100.0, "slo", (Probe(100.0, ()),))
    limits = Limits({99.0: 20.0})
    made = [
        Capacity("rest predict digits", limits, found, (), 120.0, 0.5, 100 * 2**20, (120.0,)),
        Capacity("grpc infer fraud", limits, found, (), 120.0, 0.9, 120 * 2**20, (120.0,)),
        Capacity("rest infer breast_cancer", limits, found, (), 120.0, 0.05, 110 * 2**20, (120.0,)),
    ]
    written = yaml.safe_load(values(made, 2, 0.8))
    assert written["autoscaling"] == {"targetSaturation": 0.4, "targetCPUUtilizationPercentage": 80}
    documents = render({**written, "autoscaling": {**written["autoscaling"], "kind": "hpa"}})
    saturation, cpu = one(documents, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert float(saturation["pods"]["target"]["averageValue"]) == 0.4
    assert cpu["resource"]["target"]["averageUtilization"] == 80
    (container,) = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert (
        container["resources"]
        == written["resources"]
        == {key: {"cpu": "2", "memory": "192Mi"} for key in ("requests", "limits")}
    )


def test_what_can_not_be_asked_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model without golden files; a server that is not there; a kind whose server has no address."""
    slo = tmp_path / "slo.yaml"
    for kind, said in (
        ("rest infer nobody", "nobody"),
        ("rest infer fraud", "refused"),
        ("grpc infer fraud", "url: ''"),
    ):
        slo.write_text(yaml.safe_dump({"objectives": [{"kind": kind, "rate": 1, "latency_ms": {"p50": 1}}]}))
        assert capacity.main(["--slo", str(slo), "--rest", "http://127.0.0.1:1", "--window", "0.1"]) == capacity.UNASKED
        assert said in capsys.readouterr().err


def test_a_server_that_serves_does_not_import_the_generator() -> None:
    """Nor what it needs."""
    code = "import sys, server.app; print([name for name in sys.modules if name.startswith('server.load')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
