"""What a server is held to, as a command line gives it: ``p99=20ms,errors=0.1%``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.load.samples import Samples

_LATENCY = re.compile(r"p(\d{1,2}(?:\.\d+)?)\s*=\s*(\d+(?:\.\d+)?)\s*(us|ms|s)")
_RATE = re.compile(r"(errors|refused)\s*=\s*(\d+(?:\.\d+)?)\s*(%?)")
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Limits:
    latency_ms: Mapping[float, float] = field(default_factory=dict)
    """By percentile."""
    max_error_rate: float = 0.0
    """Of all requests: failed, or answered wrongly."""
    max_refused_rate: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Raises ValueError that says what is wrong."""
        latency: dict[float, float] = {}
        rates = {"errors": 0.0, "refused": 0.0}
        for part in filter(None, map(str.strip, text.split(","))):
            if match := _LATENCY.fullmatch(part):
                latency[float(match[1])] = float(match[2]) * _MS[match[3]]
            elif match := _RATE.fullmatch(part):
                rates[match[1]] = float(match[2]) / (100 if match[3] else 1)
            else:
                raise ValueError(f"{part!r} is none of p99=20ms, errors=0.1%, refused=0.01")
        if not latency:
            raise ValueError("a latency must be among them, as in p99=20ms")
        if not all(latency.values()):
            raise ValueError("a latency must be above 0")
        if max(rates.values()) > 1:
            raise ValueError("a rate of errors or refusals is at most 1, or 100%")
        return cls(latency, rates["errors"], rates["refused"])

    def window_s(self, overload: float) -> float:
        """How long a window must be for a rate that is above what can be served by that part to break a limit.

        The queue grows from its start to its end, so a part of `q` of 100 requests wait for less than what it has
        become by then.
        """
        shown = [ms / 1e3 / (q / 100 * overload) for q, ms in self.latency_ms.items()]
        return min(shown, default=0.0)

    def text(self) -> str:
        """As `parse` reads it."""
        parts = [f"p{q:g}={ms:g}ms" for q, ms in self.latency_ms.items()]
        return ",".join([*parts, f"errors={self.max_error_rate:g}", f"refused={self.max_refused_rate:g}"])

    def __str__(self) -> str:
        parts = [f"p{q:g} <= {ms:g} ms" for q, ms in self.latency_ms.items()]
        return ", ".join([*parts, f"errors <= {self.max_error_rate:g}", f"refused <= {self.max_refused_rate:g}"])

    def broken(self, samples: Samples) -> list[str]:
        """What is not held, in words; nothing measured holds nothing."""
        found = []
        for q, limit in self.latency_ms.items():
            measured = samples.latency_ms(q)
            if not measured <= limit:
                found.append(f"p{q:g} {measured:.3g} ms, over {limit:g}")
        for what, limit, share in (
            ("errors", self.max_error_rate, samples.share("failed", "wrong")),
            ("refused", self.max_refused_rate, samples.share("refused")),
        ):
            if not share <= limit:
                found.append(f"{what} {share:.3g}, over {limit:g}")
        return found
