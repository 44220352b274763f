"""What real servers tell of real requests, as one process and as several."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from server.observability.definitions import CATALOG
from tests.e2e.conftest import REPOSITORY, ServerProcess, end, start
from tests.support.otlp import Collector, Span, collector

pytestmark = pytest.mark.e2e

PICTURE = (REPOSITORY / "digits" / "example.png").read_bytes()
CALLS = 12


@pytest.fixture(scope="module")
def sink() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture(scope="module", params=[1, 2], ids=["one_process", "two_fronts"])
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sink: Collector
) -> Iterator[ServerProcess]:
    """A server that was asked some things, and loaded a model anew. Its processors' energy is that of a script."""
    zone = tmp_path_factory.mktemp("powercap") / "intel-rapl:0"
    zone.mkdir()
    for name, text in (("name", "package-0"), ("energy_uj", "0"), ("max_energy_range_uj", "1000000000")):
        (zone / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORWARDPASS_METRICS__POWERCAP_FOLDER", str(zone.parent))
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        flags = ["--model-control-mode", "explicit", "--load-model", "digits", "--workers", str(request.param)]
        flags += ["--otlp-endpoint", sink.grpc, "--otlp-ratio", "1"]
        server = start(tmp_path_factory.mktemp("server") / "server.log", *flags)
    try:
        with httpx.Client(base_url=server.http, timeout=30) as client:
            for _ in range(CALLS):
                answer = client.post(
                    "/v2/models/digits/predict", content=PICTURE, headers={"content-type": "image/png"}
                )
                assert answer.status_code == 200
                assert "server-timing" not in answer.headers
            assert client.post("/v2/repository/models/digits/load").status_code == 200
            assert client.post("/v2/repository/models/none/load").status_code == 404
            config = {"parameters": {"config": '{"max_batch_size": -1}'}}
            assert client.post("/v2/repository/models/digits/load", json=config).status_code == 400
        (zone / "energy_uj").write_text("5000000")
        yield server
    finally:
        end(server)


def scraped(server: ServerProcess) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Values by name and labels."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(httpx.get(server.metrics).text):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_the_stages_of_all_calls_are_told(asked: ServerProcess) -> None:
    """Each stage of a prediction, of each call, for they are few; the queue's reasons sum to the queue."""
    found = scraped(asked)
    model = {"model": "digits", "version": "1"}
    for stage in ("decode", "preprocess", "queue", "compute", "postprocess", "encode", "loop"):
        assert found[key("forwardpass_stage_duration_seconds_count", **model, stage=stage)] == CALLS, stage
        assert found[key("forwardpass_stage_duration_seconds_sum", **model, stage=stage)] > 0, stage
    waited = sum(value for (name, _), value in found.items() if name == "forwardpass_queue_wait_seconds_total")
    assert waited == pytest.approx(
        found[key("forwardpass_stage_duration_seconds_sum", **model, stage="queue")], rel=1e-6
    )


def test_loads_and_their_phases_are_told(asked: ServerProcess) -> None:
    """Two loads, one of them in the place of the other, one that failed; golden outputs were given. What no repository
    has is a client's invention, and a metric would have a series for each."""
    found = scraped(asked)
    assert found[key("forwardpass_model_loads_total", model="digits", outcome="loaded")] == 2
    assert found[key("forwardpass_model_loads_total", model="digits", outcome="failed")] == 1
    assert not [name for name, labels in found if ("model", "none") in labels]
    assert found[key("forwardpass_model_swaps_total", model="digits")] == 1
    assert found[key("forwardpass_model_parity", model="digits", version="1")] == 1
    for phase in ("files", "engine", "golden", "warmup"):
        assert found[key("forwardpass_model_load_seconds", model="digits", version="1", phase=phase)] > 0


def test_every_process_tells_of_itself(asked: ServerProcess) -> None:
    """Memory, time and the lag of each process's loop; energy goes to the model whose passes ran."""
    found = scraped(asked)
    processes = {dict(labels)["process"] for name, labels in found if name == "forwardpass_resident_memory_bytes"}
    assert processes in ({"server"}, {"engine", "front-0", "front-1"})
    for process in processes:
        assert found[key("forwardpass_resident_memory_bytes", process=process)] > 10_000_000
        assert found[key("forwardpass_cpu_seconds_total", process=process)] > 0
        assert found[key("forwardpass_event_loop_lag_seconds_count", process=process)] > 0
    assert found[key("forwardpass_energy_joules_total", zone="package-0")] == 5
    assert found[key("forwardpass_request_energy_joules_total", model="digits", version="1")] == 5
    assert found[key("forwardpass_engine_busy_seconds_total", model="digits", version="1")] > 0
    assert not [name for name, _ in found if name.startswith("nv_gpu")]  # of a machine without one


def test_every_process_tells_the_spans_of_its_own_calls(asked: ServerProcess, sink: Collector) -> None:
    """Those that have callers: all calls are told once, and the span of the pass is below its call's."""

    def enough(spans: list[Span]) -> bool:
        return len([span for span in spans if span.name == "predict digits"]) >= CALLS

    spans = sink.until(enough)
    sink.spans.clear()
    calls = {span.span_id: span for span in spans if span.name == "predict digits"}
    assert len(calls) == CALLS
    passes = [span for span in spans if span.name == "compute"]
    assert {span.parent_id for span in passes} == calls.keys()


def test_the_process_that_is_told_of_is_the_one_that_was_started(asked: ServerProcess) -> None:
    """Whichever front answers: one that is replaced, or another that is asked, would look like a restart."""
    fields = Path(f"/proc/{asked.process.pid}/stat").read_text().rpartition(") ")[2].split()
    boot_s = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
    assert boot_s is not None
    began_s = int(boot_s[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    assert scraped(asked)[key("process_start_time_seconds")] == pytest.approx(began_s, abs=0.02)


def test_both_formats_tell_the_same(asked: ServerProcess) -> None:
    """OpenMetrics has every metric of the catalog that the text has, by a parser that takes nothing else."""
    response = httpx.get(asked.metrics, headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    names: set[str] = set()
    samples: list[Sample] = []
    for family in openmetrics_families(response.text):
        names.add(family.name)
        samples += family.samples
    known = {definition.base for definition in CATALOG.values()}
    assert {name for name in names if name.startswith(("nv_", "forwardpass_"))} <= known
    told = {sample.name.removesuffix("_total") for sample in samples}
    assert {name.removesuffix("_total") for name, _ in scraped(asked)} == told
