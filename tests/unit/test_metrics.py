"""The metrics as they are exposed, and the catalog of them."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from server.errors import Cancelled, DeadlineExceeded, Overloaded, QueueFull
from server.observability import catalog
from server.observability.catalog import Rows
from server.observability.certificates import Certificates
from server.observability.definitions import CATALOG, Definition
from server.observability.metrics import Metrics, Told
from server.over_triton.metrics import TritonMetrics
from server.scheduler.histogram import DURATION_BOUNDS_NS, Histogram
from server.scheduler.load import WINDOW_NS
from server.scheduler.statistics import ModelStatistics
from server.settings import GrpcSettings, TlsSettings
from server.transport.http2.server import Http2Server
from server.types import InferRequest
from tests.support.certificates import Authority
from tests.support.fake_dataplane import FakeDataPlane

LABELS = {"model": "m", "version": "1"}


class Counted(FakeDataPlane):
    """A data plane of one model with the counts that a test gives it."""

    def __init__(self, counts: ModelStatistics) -> None:
        super().__init__()
        self.counts = counts

    def statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        return [self.counts]


def exposed(counts: ModelStatistics) -> dict[str, tuple[str, list[Sample]]]:
    """Type and samples by the name in the TYPE line."""
    server = Http2Server(Counted(counts), "127.0.0.1", GrpcSettings(), TlsSettings())  # type: ignore[arg-type]
    tritons: Any = SimpleNamespace(pool=SimpleNamespace(servers=[]), placed=list)
    closed = {"grpc": server.connections.closed}
    more = [TritonMetrics(tritons), Certificates({})]
    text = Metrics(Counted(counts), closed, server, more=more).expose()[0].decode()  # type: ignore[arg-type]
    families = {family.name: family for family in text_string_to_metric_families(text)}
    found = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        samples = families[name.removesuffix("_total")].samples
        found[name] = (kind, samples)
    return found


def value(counts: ModelStatistics, name: str, **labels: str) -> float:
    [sample] = [s for s in exposed(counts)[name][1] if s.name == name and s.labels == {**LABELS, **labels}]
    return sample.value


def test_the_catalog_is_what_is_exposed() -> None:
    """Every metric but those of the process and the interpreter is in the catalog with its type, and no other."""
    kinds = {name: kind for name, (kind, _) in exposed(ModelStatistics("m", "1")).items()}
    ours = {name: kind for name, kind in kinds.items() if not name.startswith(("process_", "python_"))}
    assert ours == {definition.name: definition.kind for definition in CATALOG.values()}


@pytest.mark.parametrize("definition", CATALOG.values(), ids=lambda definition: definition.name)
def test_every_metric_has_help_and_a_unit(definition: Definition) -> None:
    """A sentence, and what one is of; a name that tells of a unit tells of the metric's own."""
    assert len(definition.help.split()) > 1
    assert not definition.help.endswith(".")
    assert definition.unit
    last = definition.base.rpartition("_")[2]
    assert {"seconds": "seconds", "bytes": "bytes", "us": "microseconds"}.get(last, definition.unit) == definition.unit


def test_bounds_are_written_as_the_library_writes_them() -> None:
    """Prometheus 3 does so to all that it scrapes, and queries name them as text."""
    bounds = set(re.findall(r'le="([^"]+)"', Metrics(Counted(ModelStatistics("m", "1")), {}).expose()[0].decode()))

    assert "1.0" in bounds
    assert bounds == {floatToGoString(float(bound)) for bound in bounds}


def test_openmetrics_is_for_those_who_ask() -> None:
    """Its parser, which is strict, reads all of it; Triton's counters keep their names, and units are told."""
    counts = ModelStatistics("m", "1")
    counts.success.add(3, 6000)
    metrics = Metrics(Counted(counts), {})  # type: ignore[arg-type]
    text, content_type = metrics.expose("text/html;q=0.5, application/openmetrics-text;version=1.0.0")
    families = {family.name: family for family in openmetrics_families(text.decode())}
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert families["nv_inference_request_success"].samples[0].value == 3
    assert families["forwardpass_request_duration_seconds"].unit == "seconds"
    assert families["forwardpass_requests_admitted"].type == "counter"
    assert metrics.expose("text/plain")[1] == metrics.expose()[1] == "text/plain; version=0.0.4; charset=utf-8"


def test_what_is_told_by_rows_is_in_the_catalog_once() -> None:
    """Samples that processes tell each other are told again by their labels, those of several processes together."""
    front: Rows = {"forwardpass_cpu_seconds_total": [(["front-0"], 2.0)]}
    engine: Rows = {"forwardpass_cpu_seconds_total": [(["engine"], 3.0)], "forwardpass_model_swaps_total": [(["m"], 4)]}
    lag = Histogram(DURATION_BOUNDS_NS)
    lag.observe(60_000, 2)
    told = Told([front, engine], {"engine": lag})
    text = Metrics(Counted(ModelStatistics("m", "1")), {}, told=lambda: told).expose()[0].decode()  # type: ignore[arg-type]
    assert 'forwardpass_cpu_seconds_total{process="front-0"} 2.0' in text
    assert 'forwardpass_cpu_seconds_total{process="engine"} 3.0' in text
    assert 'forwardpass_model_swaps_total{model="m"} 4.0' in text
    assert 'forwardpass_event_loop_lag_seconds_bucket{le="0.0001",process="engine"} 2.0' in text


def test_the_grpc_transport_counts_by_cause() -> None:
    """Connections ended and streams refused are told by their causes, what is open by gauges."""
    server = Http2Server(FakeDataPlane(), "127.0.0.1", GrpcSettings(), TlsSettings())  # type: ignore[arg-type]
    server.connections.count_closed("rapid_reset")
    server.refused["slow_reader"] += 2
    dataplane = Counted(ModelStatistics("m", "1"))
    text = Metrics(dataplane, {"grpc": server.connections.closed}, server).expose()[0].decode()  # type: ignore[arg-type]
    assert 'forwardpass_connections_closed_total{cause="rapid_reset",listener="grpc"} 1.0' in text
    assert 'forwardpass_grpc_streams_refused_total{cause="slow_reader"} 2.0' in text
    assert "forwardpass_grpc_connections 0.0" in text


def test_failures_are_told_by_what_became_of_the_request() -> None:
    """Refused by cause, expired and cancelled are different counts, each of its own error."""
    counts = ModelStatistics("m", "1")
    for error, times in ((QueueFull("m", 1), 1), (Overloaded("m", 5), 2), (DeadlineExceeded("m", 0), 3)):
        for _ in range(times):
            counts.count_failure(error, 1)
    for _ in range(4):
        counts.count_failure(Cancelled(), 1)
    assert value(counts, "forwardpass_requests_refused_total", cause="queue_full") == 1
    assert value(counts, "forwardpass_requests_refused_total", cause="overload") == 2
    assert value(counts, "forwardpass_requests_expired_total") == 3
    assert value(counts, "forwardpass_requests_cancelled_total") == 4


def test_admitted_and_late_requests() -> None:
    """Late is who was answered after the deadline, to the nanosecond."""
    counts = ModelStatistics("m", "1")
    counts.admitted = 7
    made = [InferRequest("m", [], on_settle=lambda _, __: None, received_ns=0, deadline_ns=d) for d in (9, 10, 11)]
    counts.count_success(made, 0, 10, 1, 2, 3)
    assert value(counts, "forwardpass_requests_admitted_total") == 7
    assert value(counts, "forwardpass_requests_late_total") == 1


def test_predicted_and_actual_cost_are_of_the_same_passes() -> None:
    """A pass whose cost was not known is in neither."""
    counts = ModelStatistics("m", "1")
    counts.count_end(1_500_000_000, 2_000_000_000)
    counts.count_end(None, 9_000_000_000)
    assert value(counts, "forwardpass_pass_predicted_seconds_total") == 1.5
    assert value(counts, "forwardpass_pass_actual_seconds_total") == 2


def test_the_expiry_of_a_certificate_is_that_of_the_first_of_its_chain(tmp_path: Path) -> None:
    """As its file is at each scrape; while that can't be read, the one before is told, which is in use."""

    def told() -> dict[str, float]:
        [family] = certificates.collect()
        assert isinstance(family, catalog.Told)
        return {line.labels.split('"')[1]: line.value for line in family.lines}

    certificate, _ = Authority(tmp_path).issue("server")
    leaf, chain = certificate.read_bytes(), (tmp_path / "ca.crt").read_bytes()
    until = [x509.load_pem_x509_certificate(each).not_valid_after_utc.timestamp() for each in (leaf, chain)]
    certificates = Certificates({"grpc": "", "http": str(certificate), "other": str(tmp_path / "none")})
    assert told() == {"http": until[0]}
    for bad in (b"", b"-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----"):
        certificate.write_bytes(bad)
        assert told() == {"http": until[0]}
    late, _ = Authority(tmp_path, days=40_000).issue("late")
    certificate.write_bytes(late.read_bytes())
    assert told()["http"] > until[0] + 30_000 * 86_400
    certificate.write_bytes(late.read_bytes() + chain)
    assert told() == {"http": until[1]}


def test_saturation_is_of_now() -> None:
    """Work for a quarter of a second that arrives now is as much as one instance can do in the shortest window;
    work that arrived long ago is forgotten at the scrape."""
    now_ns = time.monotonic_ns()
    fresh, old = ModelStatistics("m", "1"), ModelStatistics("m", "1")
    for counts, arrived_ns in ((fresh, now_ns), (old, now_ns - 2 * WINDOW_NS)):
        counts.instances = 1
        counts.load.arrive(250_000_000, arrived_ns)
    assert 0 < value(fresh, "forwardpass_saturation") <= 1
    assert value(old, "forwardpass_saturation") == 0
