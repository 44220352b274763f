"""What this process may use of its machine, which in a container is less than what the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
DEVICES = Path("/dev")


def available_cores(cgroup_root: Path = CGROUP_ROOT, own_cgroup: Path = OWN_CGROUP) -> int:
    """Cores of the affinity mask, or of the cgroup's CPU quota where that is less; at least 1.

    A quota of 2.5 cores counts as 2: threads beyond the quota get all of them stopped for the rest of the
    period, which costs a real-time service more than half a core.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = list(_quotas(cgroup_root, own_cgroup))
    return max(1, min([affinity, *(int(quota) for quota in quotas)]))


def _quotas(root: Path, own_cgroup: Path) -> Iterator[float]:
    """The quota of each cgroup above this process, in cores; the tightest one binds."""
    for hierarchy, path in _own_paths(own_cgroup):
        # With a namespace the path is that of the host and is not there: the root is then our own group.
        for folder in (root / hierarchy / path, *(root / hierarchy / path).parents):
            if root not in (folder, *folder.parents):
                break
            quota = _quota_v2(folder) if not hierarchy else _quota_v1(folder)
            if quota:
                yield quota


def _own_paths(own_cgroup: Path) -> Iterator[tuple[str, str]]:
    """(hierarchy's folder, own path): "" for cgroup v2, "cpu" for v1. Source: cgroups(7), /proc/pid/cgroup."""
    for line in _read(own_cgroup).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield "", path.lstrip("/")
        elif "cpu" in controllers.split(","):
            yield "cpu", path.lstrip("/")


def _quota_v2(folder: Path) -> float:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else 0.0


def _quota_v1(folder: Path) -> float:
    quota, period = (_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def visible_gpus(devices: Path = DEVICES, environment: Mapping[str, str] = os.environ) -> tuple[int, ...]:
    """The CUDA device numbers that this process may use, without waking a driver."""
    nodes = [path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    count = len(nodes)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and count:
        # CUDA numbers the visible ones from 0, and stops at the first that it can't parse (-1 hides all).
        count = 0
        for name in visible.split(","):
            if not name.strip() or name.strip().startswith("-"):
                break
            count += 1
    return tuple(range(count))
