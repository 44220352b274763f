"""A Prometheus of our own, on a free port of the loopback: what it scrapes, with the chart's rules."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from loadtests.process import end
from server.local_triton.process import free_ports

RULES = Path(__file__).parents[1] / "helm" / "forwardpass" / "rules" / "forwardpass.yaml"
_START_S = 30.0


class PrometheusFailed(Exception):
    """It is not installed, or did not start."""


class Prometheus:
    """One that runs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=10)

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer of its API. Raises ValueError with its words if it has none."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        if answer["status"] != "success":
            raise ValueError(f"{parameters}: {answer.get('error')}")
        return answer["data"]

    def query(self, expr: str, at_s: float) -> list[dict[str, Any]]:
        """The series of an instant: `metric` and `value`, or `values` of a range."""
        found: list[dict[str, Any]] = self.ask("query", query=expr, time=f"{at_s:.3f}")["result"]
        return found

    def query_range(self, expr: str, begin_s: float, end_s: float, step_s: float) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("query_range", query=expr, start=begin_s, end=end_s, step=step_s)[
            "result"
        ]
        return found

    def close(self) -> None:
        self._client.close()


def config(targets: Mapping[str, Sequence[str]], interval_ms: int) -> str:
    """Of jobs by name, each of them HOST:PORTs."""
    return yaml.safe_dump(
        {
            "global": {"scrape_interval": f"{interval_ms}ms", "evaluation_interval": f"{interval_ms}ms"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                for job, addresses in targets.items()
            ],
        }
    )


def program() -> str | None:
    """None: it is not installed."""
    return shutil.which("prometheus")


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, Sequence[str]], *, interval_ms: int = 1000, port: int = 0
) -> Iterator[Prometheus]:
    """Its data and its log are in `folder`; `port` of 0: a free one.

    Raises:
        PrometheusFailed: see there.
    """
    path = program()
    if path is None:
        raise PrometheusFailed("prometheus is not installed")
    (folder / "prometheus.yml").write_text(config(targets, interval_ms))
    address = f"127.0.0.1:{port or free_ports(1)[0]}"
    flags = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": address,
        "enable-feature": "exemplar-storage",
        "log.level": "warn",
    }
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [path, *(f"--{flag}={value}" for flag, value in flags.items())], stdout=output, stderr=output
        )
    running = Prometheus(f"http://{address}")
    try:
        _wait(process, running.url, log)
        yield running
    finally:
        running.close()
        end(process, 10)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/-/ready", timeout=1).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise PrometheusFailed(f"prometheus did not start:\n{log.read_text()}")
