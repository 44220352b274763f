"""The metrics of the Tritons behind this server, made at each scrape of what is known of them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server.observability.catalog import Family
from server.over_triton.models import TritonModels


class TritonMetrics(Collector):
    """A Triton is told by its address."""

    def __init__(self, models: TritonModels) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        up, ejections = Family("forwardpass_triton_up"), Family("forwardpass_triton_ejections_total")
        for server in self._models.pool.servers:
            up.add((server.name,), float(server.up))
            ejections.add((server.name,), server.health.ejections)
        window, in_flight = Family("forwardpass_triton_window"), Family("forwardpass_triton_in_flight")
        retries = Family("forwardpass_triton_retries_total")
        for version in self._models.placed():
            for name, each in version.windows():
                window.add((*version.key, name), each.size)
                in_flight.add((*version.key, name), each.in_flight)
            retries.add(version.key, version.relay.retries)
        yield from (each.metric for each in (up, ejections, window, in_flight, retries))
