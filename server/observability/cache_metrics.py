"""What the response cache tells of itself, by the names of Triton's metrics of its `local` cache.

Source: the metrics that a Triton 2.51 exposes with --cache-config local,size=BYTES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server.observability.catalog import gauge

if TYPE_CHECKING:
    from server.scheduler.response_cache import CacheCounts

_FIELDS = (
    "util",
    "num_entries",
    "num_lookups",
    "num_hits",
    "num_misses",
    "num_evictions",
    "lookup_duration",
    "insertion_duration",
)


class CacheMetrics(Collector):
    """Gauges all of them, as Triton's are; without samples where the server has no cache."""

    def __init__(self, counts: Callable[[], CacheCounts | None]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        for field in _FIELDS:
            yield gauge(f"nv_cache_{field}", None if counts is None else float(getattr(counts, field)))
