"""A server under a demo load, and a Prometheus with the chart's rules that scrapes it: `make watch`.

    python -m loadtests.watch

The shipped models are asked by an open loop whose rate goes up and down, and those that write text by another, slower
one. Ctrl-C ends all of it.
"""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import httpx

from loadtests.cores import cores
from loadtests.process import Server, serving
from loadtests.prometheus import program, prometheus
from server.client import Client, ClientError
from server.repository.golden import read_golden

log = logging.getLogger("watch")

_PERIOD_S = 60.0
"""Of the rate's ups and downs."""
_DEEP = 0.6
_TEXTS = 0.1
"""For each of the other requests."""
_TOKENS = (8, 64, 20)
"""That a text may have."""


class Demo:
    """Callers of the shipped models, until `stop`."""

    def __init__(self, server: Server, repository: Path, per_s: float) -> None:
        self._stop = threading.Event()
        self.failed = 0
        grpc, http = Client(f"grpc://{server.grpc}"), Client(f"http://{server.http}")
        texts = httpx.Client(base_url=f"http://{server.http}/v1")
        self._clients = (grpc, http, texts)
        asked = [(_inferences(grpc, repository), per_s / 2), (_predictions(http, repository), per_s / 2)]
        if writers := [model["id"] for model in texts.get("models").json()["data"]]:
            asked.append((_completions(texts, writers), per_s * _TEXTS))
        self._threads = [threading.Thread(target=self._run, args=calls, daemon=True) for calls in asked]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        for client in self._clients:
            client.close()

    def _run(self, calls: Iterator[Callable[[], object]], per_s: float) -> None:
        began = due = time.monotonic()
        for call in calls:
            swing = 1 + _DEEP * math.sin(2 * math.pi * (due - began) / _PERIOD_S)
            due += 1 / (per_s * swing)
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            try:
                call()
            except (ClientError, httpx.HTTPError):
                self.failed += 1


def _inferences(client: Client, repository: Path) -> Iterator[Callable[[], object]]:
    golden = {name: read_golden(repository / name, "1") for name in ("breast_cancer", "fraud", "digits")}
    inputs = {name: {key: array[:1] for key, array in found.inputs.items()} for name, found in golden.items() if found}
    for name in cycle(inputs):
        yield lambda name=name: client.infer(name, inputs[name])  # type: ignore[misc]


def _predictions(client: Client, repository: Path) -> Iterator[Callable[[], object]]:
    picture = (repository / "digits" / "example.png").read_bytes()
    while True:
        yield lambda: client.predict("digits", picture)


def _completions(client: httpx.Client, models: Sequence[str]) -> Iterator[Callable[[], object]]:
    for name, tokens in zip(cycle(models), cycle(_TOKENS), strict=False):
        wanted = {"model": name, "prompt": "A request that waits", "max_tokens": tokens}
        yield lambda wanted=wanted: client.post("completions", json=wanted).raise_for_status()  # type: ignore[misc]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=float, default=100.0, help="a second, in the mean (default: 100)")
    parser.add_argument("--seconds", type=float, default=0.0, help="until the end (default: until Ctrl-C)")
    parser.add_argument("--port", type=int, default=9090, help="of Prometheus; 0: a free one (default: 9090)")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    options = parser.parse_args(arguments)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forwardpass-watch-")))
        server = stack.enter_context(serving(options.model_repository, folder, tuple(cores())))
        told = [f"server      http://{server.http}", f"metrics     {server.metrics_url}"]
        if program() is None:
            told.append("Prometheus is not installed (Debian: apt install prometheus): nothing scrapes them")
        else:
            address = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
            running = stack.enter_context(prometheus(folder, {"forwardpass": [address]}, port=options.port))
            told.append(f"Prometheus  {running.url}")
        sys.stdout.write(
            "\n".join([*told, "", "Dashboards for Grafana: helm/forwardpass/dashboards. Ctrl-C ends all.", ""])
        )
        sys.stdout.flush()
        demo = Demo(server, options.model_repository, options.requests)
        stack.callback(demo.stop)
        over.wait(options.seconds or None)
    if demo.failed:
        sys.stdout.write(f"{demo.failed} requests failed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
