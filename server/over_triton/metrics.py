"""The metrics of the Tritons behind this server, made at each scrape of what is known of them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.over_triton.models import TritonModels

_SERVER = ("triton",)
_PLACE = ("model", "version", "triton")


class TritonMetrics(Collector):
    """A Triton is told by its address."""

    def __init__(self, models: TritonModels) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("forwardpass_triton_up", "1 when requests are sent to it", labels=_SERVER)
        ejections = CounterMetricFamily("forwardpass_triton_ejections_total", "Times it was ejected", labels=_SERVER)
        for server in self._models.pool.servers:
            up.add_metric((server.name,), float(server.up))
            ejections.add_metric((server.name,), server.health.ejections)
        window = GaugeMetricFamily("forwardpass_triton_window", "Most rows in flight at it", labels=_PLACE)
        in_flight = GaugeMetricFamily("forwardpass_triton_in_flight", "Rows in flight at it", labels=_PLACE)
        retries = CounterMetricFamily(
            "forwardpass_triton_retries_total", "Requests sent once more, for they were not executed", labels=_PLACE[:2]
        )
        for version in self._models.placed():
            for name, each in version.windows():
                window.add_metric((*version.key, name), each.size)
                in_flight.add_metric((*version.key, name), each.in_flight)
            retries.add_metric(version.key, version.relay.retries)
        yield from (up, ejections, window, in_flight, retries)
