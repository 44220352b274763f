"""The dashboards by a real Prometheus: every query of every panel, on a real server under load, and the numbers on the
panels beside those of the load's generator.

What this machine can't have (GPUs, RAPL) and what the shipped models don't have is asked of a scripted exposition.
A Prometheus that is missing skips these tests; under CI it fails.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest

from loadtests.prometheus import Prometheus, prometheus
from server.client import Client
from server.local_triton.process import free_ports
from tests.e2e.conftest import REPOSITORY, ROOT, end, start
from tests.support.onnx_models import linear_folder
from tests.support.parts import tool
from tests.support.writing import FOLDER as WRITER

pytestmark = pytest.mark.e2e

HELM = ROOT / "helm"
INTERVAL_MS = 500
WINDOW_S = 5
RATE = 125.0
LOAD_S = 7.0


def module(name: str) -> ModuleType:
    """One of helm's scripts, which import each other by their plain names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HELM))
        spec = importlib.util.spec_from_file_location(name, HELM / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(name, found)
        spec.loader.exec_module(found)
        return found


panels = module("panels")
PANELS = [(board, panel) for board in panels.BOARDS for panel in board.panels]

SCRIPT = """\
forwardpass_padding_elements_total{model="m",version="1"} GROWS
forwardpass_input_elements_total{model="m",version="1"} GROWS
forwardpass_energy_joules_total{zone="package-0"} GROWS
forwardpass_request_energy_joules_total{model="m",version="1"} GROWS
forwardpass_connections_closed_total{listener="grpc",cause="rapid_reset"} GROWS
forwardpass_grpc_streams_refused_total{cause="slow_reader"} GROWS
forwardpass_triton_in_flight{model="m",version="1",triton="a:8001"} 3
forwardpass_triton_window{model="m",version="1",triton="a:8001"} 8
forwardpass_triton_up{triton="a:8001"} 1
forwardpass_sequences_active{model="m",version="1"} 2
forwardpass_sequences_backlog{model="m",version="1"} 0
nv_cache_util 0.5
nv_cache_num_hits_per_model{model="m",version="1"} GROWS
nv_cache_num_misses_per_model{model="m",version="1"} GROWS
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.4
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 1e9
nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 8e10
nv_gpu_power_usage{gpu_uuid="GPU-1"} 300
nv_gpu_power_limit{gpu_uuid="GPU-1"} 700
nv_inference_request_success{model="m",version="1"} GROWS
nv_inference_exec_count{model="m",version="1"} GROWS
nv_inference_queue_duration_us{model="m",version="1"} GROWS
nv_inference_compute_input_duration_us{model="m",version="1"} GROWS
nv_inference_compute_infer_duration_us{model="m",version="1"} GROWS
nv_inference_compute_output_duration_us{model="m",version="1"} GROWS
"""
"""A server and a Triton that have what a machine without them lacks. What GROWS is a counter."""


@dataclass
class Watched:
    """A Prometheus that scraped a server under load until `ended_s`, and what the generator of the load knows."""

    prometheus: Prometheus
    ended_s: float
    answered_s: list[float]
    """When each answer came, of the wall clock."""
    latencies_s: list[float]

    def ask(self, expr: str, job: str) -> list[dict[str, Any]]:
        pictures = module("pictures")
        asked = pictures.asked(expr, f"{WINDOW_S}s", job=job, triton="scripted")
        return self.prometheus.query(asked, self.ended_s)


def scripted() -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = SCRIPT.replace("GROWS", str(time.monotonic())).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody wants to read it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Requests at a constant rate to a model whose batches wait 30 ms for company, so that its latency is no accident
    of this machine; and some predictions and texts beside them."""
    tool("prometheus")
    folder = tmp_path_factory.mktemp("dashboards")
    repository = folder / "models"
    repository.mkdir()
    (repository / "digits").symlink_to(REPOSITORY / "digits")
    (repository / "writer").symlink_to(WRITER)
    window = "dynamic_batching { preferred_batch_size: [64] max_queue_delay_microseconds: 30000 }"
    linear_folder(repository, "linear", max_batch_size=64, more=window)
    with ExitStack() as stack:
        other = scripted()
        stack.callback(other.server_close)
        stack.callback(other.shutdown)
        # It takes Prometheus five seconds to come to its targets, in which the server starts.
        [port] = free_ports(1)
        targets = {"forwardpass": [f"127.0.0.1:{port}"], "scripted": [f"127.0.0.1:{other.server_port}"]}
        running = stack.enter_context(prometheus(folder, targets, interval_ms=INTERVAL_MS))
        server = start(folder / "server.log", "--metrics-port", str(port), repository=repository)
        stack.callback(end, server)
        until = time.monotonic() + 30
        while len(running.query("up == 1", time.time())) < len(targets):
            assert time.monotonic() < until, running.query("up", time.time())
            time.sleep(0.1)
        answered, latencies = generate(server.grpc, server.http)
        # The last scrape that is asked for is of before the last answers.
        yield Watched(running, time.time() - 0.3, answered, latencies)


def generate(address: str, http: str) -> tuple[list[float], list[float]]:
    """An open loop of a constant rate, and a prediction and a text every 100 ms."""
    answered: list[float] = []
    latencies: list[float] = []
    row = {"x": np.ones((1, 3), np.float32)}
    picture = (REPOSITORY / "digits" / "example.png").read_bytes()
    threads = 8
    began = time.monotonic() + 0.1

    def call(number: int, client: Client) -> None:
        for turn in range(int(RATE / threads * LOAD_S)):
            due = began + (turn + number / threads) * threads / RATE
            time.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic()
            client.infer("linear", row)
            latencies.append(time.monotonic() - sent)
            answered.append(time.time())

    def predict(client: Client) -> None:
        while time.monotonic() < began + LOAD_S:
            client.predict("digits", picture)
            time.sleep(0.1)

    def write() -> None:
        wanted = {"model": "writer", "prompt": "The server", "max_tokens": 8}
        with httpx.Client(base_url=http) as client:
            while time.monotonic() < began + LOAD_S:
                client.post("/v1/completions", json=wanted).raise_for_status()
                time.sleep(0.1)

    with Client(f"grpc://{address}") as client:
        workers = [threading.Thread(target=call, args=(number, client)) for number in range(threads)]
        workers += [threading.Thread(target=predict, args=(client,)), threading.Thread(target=write)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return answered, latencies


@pytest.mark.parametrize("board", panels.BOARDS, ids=lambda board: board.uid)
def test_the_dashboards_are_those_of_their_source(board: Any) -> None:
    """`make dashboards` changes nothing."""
    dashboards = module("dashboards")
    file = dashboards.FOLDER / f"{board.uid}.json"
    assert file.read_text() == dashboards.document(board), "run make dashboards"
    assert {path.stem for path in file.parent.iterdir()} == {each.uid for each in panels.BOARDS}


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda value: getattr(value, "uid", "") or value.title)
def test_every_panel_shows_something(watched: Watched, board: Any, panel: Any) -> None:
    """Each of its queries has series, with numbers. `needs` says why one is asked of the script."""
    job = "scripted" if panel.needs else "forwardpass"
    for ask in panel.asks:
        found = watched.ask(ask.expr, job)
        assert found, ask.expr
        assert not all(math.isnan(float(series["value"][1])) for series in found), ask.expr


def test_no_panel_is_asked_of_the_script_that_the_server_has_data_for(watched: Watched) -> None:
    """`needs` is for what is not here: otherwise a panel that shows nothing could hide behind it."""
    for board, panel in PANELS:
        if panel.needs and panel.needs != "a Triton":
            expressions = [ask.expr for ask in panel.asks]
            found = [series for expr in expressions for series in watched.ask(expr, "forwardpass")]
            there = [series for series in found if float(series["value"][1]) > 0]
            assert there == [] or "gpu" in expressions[0], (board.uid, panel.title)


def samples(watched: Watched, metric: str) -> list[tuple[float, float]]:
    [series] = watched.prometheus.query(f"{metric}[{WINDOW_S}s]", watched.ended_s)
    return [(float(at), float(value)) for at, value in series["values"]]


def test_the_rate_on_the_panel_is_the_generators(watched: Watched) -> None:
    """Within 2 % of the answers that it counted between the first scrape of the window and the last."""
    asks = [ask for board, panel in PANELS if panel.title == "Requests by version" for ask in panel.asks]
    [shown] = [
        float(series["value"][1])
        for series in watched.ask(asks[0].expr, "forwardpass")
        if series["metric"]["model"] == "linear"
    ]
    at = [at for at, _ in samples(watched, 'nv_inference_request_success{model="linear"}')]
    assert len(at) >= 0.8 * WINDOW_S * 1000 / INTERVAL_MS, (
        f"scrapes failed: {at} of {WINDOW_S} s up to {watched.ended_s}"
    )
    counted = sum(at[0] < answered <= at[-1] for answered in watched.answered_s)
    assert shown == pytest.approx(counted / (at[-1] - at[0]), rel=0.02)
    assert shown == pytest.approx(RATE, rel=0.05)


@pytest.mark.parametrize("quantile", [0.5, 0.95])
def test_the_latency_on_the_panel_is_the_generators(watched: Watched, quantile: float) -> None:
    """Within the width of the bucket that the generator's own quantile is in, which is what a histogram can tell."""
    expr = panels.quantile(quantile, panels.DURATION).replace("$model", "linear")
    [series] = watched.ask(expr, "forwardpass")
    own = float(np.quantile(watched.latencies_s, quantile))
    bounds = [0.0, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0]
    low, high = next((low, high) for low, high in pairwise(bounds) if low <= own < high)
    assert abs(float(series["value"][1]) - own) <= high - low


def test_stages_sum_to_the_whole(watched: Watched) -> None:
    """What the stacked panel shows at its top is the mean time of a request, but for the answer's own writing."""
    asks = [ask for board, panel in PANELS if panel.title == "A request's time by stage" for ask in panel.asks]
    stacked = sum(
        float(series["value"][1]) for series in watched.ask(asks[0].expr.replace("$model", "linear"), "forwardpass")
    )
    whole = panels.rate(f"{panels.DURATION}_sum") + " / " + panels.rate(f"{panels.DURATION}_count")
    [series] = watched.ask(whole.replace("$model", "linear"), "forwardpass")
    assert stacked == pytest.approx(float(series["value"][1]), rel=0.1)


def test_every_variable_finds_its_values(watched: Watched) -> None:
    """Of the labels that it chooses by."""
    for board in panels.BOARDS:
        document = json.loads((HELM / "forwardpass" / "dashboards" / f"{board.uid}.json").read_text())
        for variable in document["templating"]["list"]:
            if variable["type"] == "query" and variable["name"] != "triton":
                selector, label = variable["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
                values = watched.prometheus.ask(
                    f"label/{label}/values", **{"match[]": selector.replace("$job", "forwardpass")}
                )
                assert values, variable["name"]
