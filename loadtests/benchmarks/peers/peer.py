"""What the benchmark knows of a server that it measures: how it is started, and how it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.benchmarks.peers.apps.onnx_model import SPEC_VARIABLE
from loadtests.benchmarks.peers.calls import Call
from loadtests.benchmarks.peers.environments import environment
from loadtests.benchmarks.peers.workloads import MAX_BATCH_SIZE, Workload

APPS = Path(__file__).parent / "apps"


@dataclass(frozen=True)
class Setup:
    """What a server is started with."""

    folder: Path
    """Its own, empty."""
    workloads: Mapping[str, Workload]
    repository: Path
    """Our model folders."""
    grpc_port: int
    http_port: int
    other_port: int
    """For whatever else it listens on."""
    workers: int
    """Copies of each model: as many as the server has cores."""
    window_ms: int
    """How long a batch is waited for, where a server has no better way."""

    def spec(self) -> dict[str, object]:
        """For an app, which runs in another environment."""
        return {
            "models": {name: str(workload.onnx) for name, workload in self.workloads.items()},
            "dims": {name: list(workload.row.shape[1:]) for name, workload in self.workloads.items()},
            "grpc_port": self.grpc_port,
            "http_port": self.http_port,
            "other_port": self.other_port,
            "workers": self.workers,
            "window_ms": self.window_ms,
            "max_batch_size": MAX_BATCH_SIZE,
            "folder": str(self.folder),
        }


@dataclass(frozen=True)
class Command:
    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One way to ask a server: a line of the table."""

    title: str
    call: Callable[[Workload], Call | None]
    """None: it is not asked for this workload."""


@dataclass(frozen=True)
class Peer:
    name: str
    batching: str
    """What is switched on, in the words of its own settings."""
    command: Callable[[Setup], Command]
    """Installs on first use what is needed, and says how to start it. Raises Unavailable."""
    lines: Sequence[Line]
    succeeded: Callable[[Setup, str], float] | None = None
    """The server's own count of answers for a model, where it has one."""


def app(name: str, module: str, setup: Setup, *, env: Mapping[str, str] | None = None) -> Command:
    """Run ``apps/<module>.py`` in the environment `name`. Raises Unavailable."""
    return Command([str(environment(name)), str(APPS / f"{module}.py")], setup.folder, app_env(setup, env))


def app_env(setup: Setup, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """What apps find their spec by, and each other."""
    spec = setup.folder / "spec.json"
    spec.write_text(json.dumps(setup.spec()))
    return {SPEC_VARIABLE: str(spec), "PYTHONPATH": str(APPS), "PYTHONUNBUFFERED": "1", **(env or {})}
