"""`make watch`: a server under a demo load and a Prometheus beside it, until Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import ROOT
from tests.support.parts import tool

pytestmark = pytest.mark.e2e


def test_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    """The demo's requests are answered, Prometheus has our rules; after the signal neither listens, the status is 0."""
    tool("prometheus")
    out = tmp_path / "watch.out"
    command = [sys.executable, "-m", "loadtests.watch", "--port", "0", "--requests", "40"]
    with out.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 60
        while "Ctrl-C ends all" not in out.read_text():
            assert process.poll() is None, out.read_text()
            assert time.monotonic() < until, out.read_text()
            time.sleep(0.05)
        urls = re.findall(r"^(?:metrics|Prometheus) +(\S+)$", out.read_text(), re.MULTILINE)
        metrics, prometheus = urls
        while not answered(metrics):
            assert time.monotonic() < until, out.read_text()
            time.sleep(0.1)
        rules = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
        assert {rule["name"] for group in rules for rule in group["rules"]} > {"ForwardpassSaturated"}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, out.read_text()
    finally:
        process.kill()
        process.wait()
    for url in (metrics, prometheus):
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def answered(metrics: str) -> bool:
    """Whether some requests of the demo were."""
    counts = re.findall(r"^nv_inference_request_success\{.*\} (\S+)$", httpx.get(metrics).text, re.MULTILINE)
    return sum(map(float, counts)) > 5
