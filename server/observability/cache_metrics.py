"""What the response cache tells of itself, by the names of Triton's metrics of its `local` cache.

Source: the metrics that a Triton 2.51 exposes with --cache-config local,size=BYTES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from server.scheduler.response_cache import CacheCounts

_HELP = {
    "util": "Bytes of the response cache in use, 0 to 1",
    "num_entries": "Answers in the response cache",
    "num_lookups": "Requests looked up in the response cache",
    "num_hits": "Requests found in the response cache",
    "num_misses": "Requests not found in the response cache",
    "num_evictions": "Answers that made room for others",
    "lookup_duration": "Microseconds of looking up",
    "insertion_duration": "Microseconds of keeping answers",
}


class CacheMetrics(Collector):
    """Gauges all of them, as Triton's are; without samples where the server has no cache."""

    def __init__(self, counts: Callable[[], CacheCounts | None]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        for name, text in _HELP.items():
            yield GaugeMetricFamily(
                f"nv_cache_{name}", text, value=None if counts is None else float(getattr(counts, name))
            )
