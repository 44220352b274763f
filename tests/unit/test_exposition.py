"""What a scrape gets, against the library whose formats they are."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as library
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from server.observability.catalog import Family
from server.observability.exposition import written
from server.scheduler.histogram import DURATION_BOUNDS_NS, Histogram

AWKWARD = 'a "quoted"\\name\nof two lines, {with} braces'


def metrics() -> list[Metric]:
    """A counter of ours, one of Triton's, a gauge of odd values, a histogram with an exemplar; one of the library's."""
    requests = Family("forwardpass_requests_admitted_total")
    requests.add((AWKWARD, "1"), 3)
    tritons = Family("nv_inference_request_success")
    tritons.add(("m", "1"), 7)
    gauges = Family("forwardpass_saturation")
    for version, value in (("1", math.inf), ("2", -math.inf), ("3", math.nan), ("4", 1e-07), ("5", 1 / 3)):
        gauges.add(("m", version), value)
    histogram = Histogram(DURATION_BOUNDS_NS)
    histogram.observe(60_000, 3)
    histogram.observe(20_000_000_000)
    histogram.exemplify(61_000, "0af7651916cd43dd8448eb211c80319c")
    durations = Family("forwardpass_request_duration_seconds")
    durations.add_histogram(("m", "1"), histogram, 1e-9)
    other = GaugeMetricFamily("process_open_fds", 'Files, "open"', labels=["kind"])
    other.add_metric(["a"], 4)
    return [requests.metric, tritons.metric, gauges.metric, durations.metric, other]


class Parsed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def lines(text: bytes) -> list[str]:
    return sorted(text.decode().splitlines())


def test_the_library_reads_openmetrics_and_writes_the_same() -> None:
    """Line by line: heads, units, values, escapes and exemplars."""
    ours = written(metrics(), openmetrics=True)
    again = library.generate_latest(Parsed(openmetrics_families(ours.decode())))
    again = again.replace(b"000000\n", b"\n")  # It has nanoseconds, of which nobody knows any.
    assert lines(again) == lines(ours)
    assert b'# {trace_id="0af7651916cd43dd8448eb211c80319c"} 6.1' in ours


def test_the_library_reads_the_text_and_writes_the_same() -> None:
    """But for Triton's counter, whose name the library would change."""
    own = [metric for metric in metrics() if metric.name != "nv_inference_request_success"]
    ours = written(own, openmetrics=False)
    registry = CollectorRegistry()
    registry.register(Parsed(text_string_to_metric_families(ours.decode())))
    assert lines(generate_latest(registry)) == lines(ours)


def test_tritons_counters_keep_their_names() -> None:
    """Of type counter in the text, as Triton has them; OpenMetrics has no such counter."""
    tritons = metrics()[1:2]
    assert lines(written(tritons, openmetrics=False)) == [
        "# HELP nv_inference_request_success Requests answered",
        "# TYPE nv_inference_request_success counter",
        'nv_inference_request_success{model="m",version="1"} 7.0',
    ]
    assert "# TYPE nv_inference_request_success unknown" in lines(written(tritons, openmetrics=True))
