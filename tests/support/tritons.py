"""Real tritonservers on free ports, and a server in front of them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import httpx
from prometheus_client.parser import text_string_to_metric_families

from server.local_triton.process import LocalTriton, Ports, free_ports
from server.local_triton.program import Program, TritonMissing, find
from tests.e2e.conftest import REPOSITORY, ROOT, ServerProcess, end, start
from tests.support.parts import lacking


def program() -> Program:
    """The test is skipped where there is none."""
    try:
        return find(folder=ROOT / "build" / "triton")
    except TritonMissing as missing:
        lacking(str(missing))


def triton(stack: ExitStack, folder: Path, repository: Path = REPOSITORY, flags: Sequence[str] = ()) -> LocalTriton:
    """A running one, ready; `stack` stops it, without a long wait for what it still does. Its log is in `folder`. The
    test is skipped where there is none."""
    found = program()
    ports = Ports(*free_ports(3))
    output = stack.enter_context((folder / f"triton{ports.grpc}.log").open("ab"))
    server = LocalTriton(
        found, repository, ports, flags=["--log-verbose=0", "--exit-timeout-secs=1", *flags], output=output
    )
    stack.enter_context(server)
    server.wait_ready(90)
    return server


def url(*servers: LocalTriton) -> str:
    return ",".join(f"grpc://127.0.0.1:{server.ports.grpc}" for server in servers)


@contextmanager
def in_front_of(
    folder: Path,
    *servers: LocalTriton,
    flags: Sequence[str] = (),
    repository: Path = REPOSITORY,
    probe_timeout_s: float = 20.0,
) -> Iterator[ServerProcess]:
    """Our server over these, ended at the end: it has found them all, with all that they have.

    `probe_timeout_s`: by its default a Triton that is only slow, as on a busy machine, is not taken for one that hangs.
    """
    with ExitStack() as stack:
        log = folder / "gateway.log"
        with patch.dict(os.environ, FORWARDPASS_TRITON__PROBE_TIMEOUT_S=str(probe_timeout_s)):
            server = start(log, "--engine", "triton", "--triton-url", url(*servers), *flags, repository=repository)
        stack.callback(end, server)
        until(lambda: has_found(server, *servers))
        yield server


def has_found(server: ServerProcess, *servers: LocalTriton) -> bool:
    """Whether all that these have is served over each: a server is ready with the first that is, and a Triton is up
    before it has said what it has."""
    with httpx.Client(timeout=60) as client:
        index = client.post(f"{server.http}/v2/repository/index", json={}).raise_for_status().json()
        states = {(each["name"], each.get("version", "")): each["state"] for each in index}
        for one in servers:
            theirs = client.post(f"http://127.0.0.1:{one.ports.http}/v2/repository/index").raise_for_status().json()
            wanted = [(each["name"], each["version"]) for each in theirs if each.get("state") == "READY"]
            if any(states.get(version) != "READY" for version in wanted):
                return False
        families = text_string_to_metric_families(client.get(server.metrics).raise_for_status().text)
    samples = [sample for family in families for sample in family.samples]
    up = sum(sample.value for sample in samples if sample.name == "forwardpass_triton_up")
    # Of one version there is one for each Triton that it is sent to.
    windows = Counter(
        (sample.labels["model"], sample.labels["version"])
        for sample in samples
        if sample.name == "forwardpass_triton_window"
    )
    return up == len(servers) and set(windows.values()) <= {len(servers)}


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for a state; on a busy machine that may take long."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.1)
