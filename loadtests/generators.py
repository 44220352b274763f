"""Load generators that others wrote: h2load for gRPC, wrk for HTTP/1.1; how they are run and what they say.

Both are closed loops: so many requests are always in flight. h2load counts HTTP statuses only, and a gRPC error
is HTTP 200 as well; so the bytes of its answers are counted too, which must be those of as many right answers.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.cores import pinned

PACKAGES = {"h2load": "nghttp2-client", "wrk": "wrk"}
"""The Debian package of each."""

_PREFIX_BYTES = 5
"""Of a gRPC message: a flag and its length."""
_GRACE_S = 30


class GeneratorFailed(Exception):
    """It did not run to its end, or said something that is not understood."""


@dataclass(frozen=True)
class Measured:
    """One closed-loop run."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    answered: int
    failed: int
    """Answers that were errors, or not those that were expected."""
    generator_busy: float = math.nan
    """Processor time that the generator took, over the time of the run: 1 is a whole core."""


@dataclass(frozen=True)
class Load:
    """How a server is loaded: over `connections`, with `streams` requests in flight on each."""

    connections: int
    streams: int
    seconds: int
    cores: Sequence[int]
    """Where the generator runs, with a thread on each."""


def missing() -> list[str]:
    """What has to be installed, as people are told."""
    return [f"{name} is missing: apt install {package}" for name, package in PACKAGES.items() if not shutil.which(name)]


def h2load(url: str, message: bytes, answer_bytes: int, load: Load) -> Measured:
    """Call a unary gRPC method with `message`; each right answer has a message of `answer_bytes`.

    Raises:
        GeneratorFailed: see there.
    """
    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        folder = Path(name)
        (folder / "body").write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        command = ["h2load", f"-t{len(load.cores)}", f"-c{load.connections}", f"-m{load.streams}", f"-D{load.seconds}"]
        command += ["-d", str(folder / "body"), "-H", "content-type: application/grpc", "-H", "te: trailers"]
        command += [f"--log-file={folder / 'log'}", url]
        text, busy = _run(command, load)
        return parse_h2load(text, (folder / "log").read_bytes(), answer_bytes, busy)


def parse_h2load(text: str, log: bytes, answer_bytes: int, generator_busy: float = math.nan) -> Measured:
    """From what h2load prints and logs. Raises GeneratorFailed if that is not a finished run."""
    rate = _number(r"finished in [^,]+, ([\d.]+) req/s", text)
    done = int(_number(r"(\d+) done", text))
    wrong = done - int(_number(r"status codes: (\d+) 2xx", text)) + int(_number(r"(\d+) errored", text))
    data_bytes = int(_number(r"\((\d+)\) data", text))
    # Answers that were under way at the end are in the bytes and not in the count, so less is what tells.
    whole = data_bytes // (answer_bytes + _PREFIX_BYTES)
    latencies_us = np.array([line.split(b"\t")[2] for line in log.splitlines()], dtype=np.int64)
    if not latencies_us.size:
        raise GeneratorFailed(f"no request was answered in time:\n{text}")
    p50, p99 = np.percentile(latencies_us, (50, 99), method="inverted_cdf") / 1e3
    return Measured(rate, float(p50), float(p99), done, max(wrong, done - whole, 0), generator_busy)


def wrk(url: str, body: bytes, headers: Mapping[str, str], load: Load) -> Measured:
    """POST `body` over `load.connections` connections, one request at a time on each.

    Raises:
        GeneratorFailed: see there.
    """
    if load.streams != 1:
        raise ValueError("wrk has one request in flight on each connection")
    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        (Path(name) / "body").write_bytes(body)
        script = Path(name) / "script.lua"
        lines = [f"wrk.headers[{json.dumps(key)}] = {json.dumps(value)}" for key, value in headers.items()]
        lines += ['wrk.method = "POST"', f'wrk.body = io.open({json.dumps(f"{name}/body")}, "rb"):read("*a")']
        script.write_text("\n".join(lines))
        command = ["wrk", f"-t{len(load.cores)}", f"-c{load.connections}", f"-d{load.seconds}s", "--latency"]
        text, busy = _run([*command, "--timeout", "30s", "-s", str(script), url], load)
        return parse_wrk(text, busy)


def parse_wrk(text: str, generator_busy: float = math.nan) -> Measured:
    """From what wrk prints with --latency. Raises GeneratorFailed if that is not a finished run."""
    answered = int(_number(r"(\d+) requests in", text))
    if not answered:
        raise GeneratorFailed(f"no request was answered in time:\n{text}")
    failed = sum(int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    for errors in re.findall(r"Socket errors: (.*)", text):
        failed += sum(int(number) for number in re.findall(r"\d+", errors))
    p50, p99 = (_milliseconds(_text(rf"^\s+{share}%\s+(\S+)", text)) for share in (50, 99))
    return Measured(_number(r"Requests/sec:\s+([\d.]+)", text), p50, p99, answered, failed, generator_busy)


def _run(command: Sequence[str], load: Load) -> tuple[str, float]:
    """What the command prints, and the share of one core that it took."""
    began = time.monotonic()
    before = os.times()
    with pinned(*load.cores):
        try:
            done = subprocess.run(  # noqa: S603 - our own command
                command, capture_output=True, text=True, timeout=load.seconds + _GRACE_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise GeneratorFailed(f"{command[0]} did not end") from error
    after = os.times()
    if done.returncode:
        raise GeneratorFailed(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    used_s = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout, max(0.0, used_s) / (time.monotonic() - began)


def _memory() -> str | None:
    """A folder that is no disk, where there is one: a log line is written for each request."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a private folder is made in it


def _text(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise GeneratorFailed(f"no {pattern!r} in:\n{text}")
    return match[1]


def _number(pattern: str, text: str) -> float:
    return float(_text(pattern, text))


def _milliseconds(duration: str) -> float:
    """wrk's durations: 950.00us, 1.20ms, 3.00s, 1.50m."""
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)", duration)
    if match is None:
        raise GeneratorFailed(f"no duration: {duration!r}")
    return float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6}[match[2]]
