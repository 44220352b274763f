"""What a run is told beside its requests: what the server counted, what the machine used, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from loadtests.process import grown, samples
from server.observability.energy import Powercap

POWERCAP = "/sys/class/powercap"

_COUNTS = {
    "success": "nv_inference_request_success",
    "failure": "nv_inference_request_failure",
    "rows": "nv_inference_count",
    "passes": "nv_inference_exec_count",
    "request_us": "nv_inference_request_duration_us",
    "queue_us": "nv_inference_queue_duration_us",
    "compute_us": "nv_inference_compute_infer_duration_us",
}


@dataclass(frozen=True)
class Served:
    """What the server counted of a model during the run."""

    success: float = 0.0
    failure: float = 0.0
    rows: float = 0.0
    passes: float = 0.0
    request_us: float = 0.0
    """Sums over its requests."""
    queue_us: float = 0.0
    compute_us: float = 0.0

    def mean_ms(self, us: float) -> float:
        asked = self.success + self.failure
        return us / asked / 1e3 if asked else 0.0


@dataclass(frozen=True)
class Around:
    """Circumstances of a run, for its report."""

    loop: str
    seconds: float
    processes: int = 1
    generator: str = "Locust"
    served: Mapping[str, Served] = field(default_factory=dict)
    """By model; empty where the server's metrics were not read."""
    joules: float | None = None
    """Of the machine's processors and their memory, generator and all; None: it does not tell."""
    price_per_hour: float | None = None
    """Of the machine, in whatever money."""


class Meter:
    """Reads at the start and at the end."""

    def __init__(self, metrics_url: str = "", models: tuple[str, ...] = (), powercap: str = POWERCAP) -> None:
        self._url = metrics_url
        self._models = models
        self._before = self._scrape()
        self._powercap = Powercap(powercap)

    def served(self) -> dict[str, Served]:
        after = self._scrape()
        return {name: _served(grown(self._before.get(name, {}), counts)) for name, counts in after.items()}

    def joules(self) -> float | None:
        self._powercap.read()
        # A counter that stands still is none: virtual machines have such.
        return sum(self._powercap.joules.values()) or None

    def _scrape(self) -> dict[str, dict[str, float]]:
        """Of each model; of a server that does not tell, nothing."""
        if not self._url:
            return {}
        try:
            text = httpx.get(self._url, timeout=10).raise_for_status().text
        except httpx.HTTPError:
            return {}
        return {name: samples(text, name) for name in self._models}


def _served(counts: Mapping[str, float]) -> Served:
    """Counts with a label, a reason say, are added up."""
    totals = {
        field_name: sum(value for name, value in counts.items() if name.split(" ")[0] == metric)
        for field_name, metric in _COUNTS.items()
    }
    return Served(**totals)
