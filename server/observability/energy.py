"""The machine's energy, and each model's part of it.

What RAPL (the powercap folder of Linux) and GPUs count is shared out over the models by the time of their passes. So a
model's part has in it what else the machine did meanwhile, and what nobody's passes used is nobody's. Where the machine
tells nothing (no RAPL, no right to read it, no GPU), nothing is told: never a zero.

Source: Linux, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from server.observability.catalog import Rows
from server.observability.gpu import Gpus

log = logging.getLogger(__name__)

Passes = tuple[str, str, int]
"""A model, its version, and nanoseconds of its instances with a pass under way since the server started."""


class _Zone(NamedTuple):
    name: str
    file: Path
    range_uj: int
    """Where its count begins anew."""


class Powercap:
    """The zones of RAPL that together are what the processors and their memory use."""

    def __init__(self, folder: str) -> None:
        self._zones: list[_Zone] = []
        self._last_uj: dict[str, int] = {}
        self.joules: dict[str, float] = {}
        """By zone, since this was made; empty: unknown."""
        for path in sorted(Path(folder).glob("intel-rapl:*")):
            try:
                name = (path / "name").read_text().strip()
                if name == "dram":
                    # Beside its package; what else is below a package is a part of it.
                    parent = path.parent / path.name.rpartition(":")[0]
                    name = f"{(parent / 'name').read_text().strip()}/dram"
                elif not name.startswith("package-"):
                    continue
                zone = _Zone(name, path / "energy_uj", int((path / "max_energy_range_uj").read_text()))
                self._last_uj[name] = int(zone.file.read_text())
            except (OSError, ValueError) as error:
                log.info("the energy of %s is unknown: %s", path.name, error)
                continue
            self._zones.append(zone)
            self.joules[name] = 0.0

    def read(self) -> None:
        """Bring `joules` up to now. A zone that can't be read any more stays where it is."""
        for zone in self._zones:
            try:
                now_uj = int(zone.file.read_text())
            except (OSError, ValueError):
                continue
            used_uj = now_uj - self._last_uj[zone.name]
            if used_uj < 0:
                used_uj += zone.range_uj
            self._last_uj[zone.name] = now_uj
            self.joules[zone.name] += max(0, used_uj) / 1e6


class EnergyMeter:
    """What the machine used, and what each model did of it, brought up to date at each scrape."""

    def __init__(self, powercap: Powercap, gpus: Gpus) -> None:
        self._powercap = powercap
        self._gpus = gpus
        self._last_j = dict(powercap.joules)
        self._busy_ns: dict[tuple[str, str], int] = {}
        self._shares_j: dict[tuple[str, str], float] = {}

    def rows(self, passes: Iterable[Passes]) -> Rows:
        self._powercap.read()
        zones = self._powercap.joules
        gpus = {reading.uuid: reading.energy_j for reading in self._gpus.readings if reading.energy_j is not None}
        busy_ns = {(name, version): ns for name, version, ns in passes}
        self._share({**zones, **gpus}, busy_ns)
        if not zones and not gpus:
            return {}
        return {
            "forwardpass_energy_joules_total": [([zone], joules) for zone, joules in zones.items()],
            "forwardpass_request_energy_joules_total": [
                (list(key), joules) for key, joules in self._shares_j.items() if key in busy_ns
            ],
        }

    def _share(self, joules: dict[str, float], busy_ns: dict[tuple[str, str], int]) -> None:
        # A GPU that is seen the first time has counted for others before.
        used_j = sum(now - self._last_j.get(source, now) for source, now in joules.items())
        worked_ns = {key: max(0, ns - self._busy_ns.get(key, 0)) for key, ns in busy_ns.items()}
        self._last_j |= joules
        self._busy_ns = busy_ns
        total_ns = sum(worked_ns.values())
        for key, ns in worked_ns.items():
            part = used_j * ns / total_ns if total_ns else 0.0
            self._shares_j[key] = self._shares_j.get(key, 0.0) + max(0.0, part)
