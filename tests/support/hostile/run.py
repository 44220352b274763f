"""Sends every case to one server, with a good request right behind each, and writes down what came."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import grpc

from loadtests.process import rss_bytes
from server.security.keys import KeyFile, new_key, write_file
from tests.support.hostile import pictures, rest, rpc, slow
from tests.support.hostile.case import Answer, Case, Target, http

GOOD = http("", "", f"{rest.BC}/infer", rest.infer(rest.tensor()))
_LONGEST = 110
FLAGS = ("--model-control-mode", "explicit", "--load-model", "*")
ENVIRONMENT = {
    "FORWARDPASS_HTTP__MAX_BODY_BYTES": "1048576",
    "FORWARDPASS_GRPC__MAX_MESSAGE_BYTES": "1048576",
    "FORWARDPASS_HTTP__HEAD_TIMEOUT_S": "0.5",
    "FORWARDPASS_HTTP__BODY_TIMEOUT_S": "0.5",
    "FORWARDPASS_GRPC__HANDSHAKE_TIMEOUT_S": "0.5",
    "FORWARDPASS_GRPC__REQUEST_TIMEOUT_S": "0.5",
}


@dataclass(frozen=True)
class Line:
    """What came of a case. `good`: the status of the good request right behind it, and how long that took."""

    case: Case
    answer: Answer
    seconds: float
    good: str
    good_seconds: float

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Layer, name, status and message as the table has them."""
        # grpcio's own fields are of the time that is left, which has more or fewer digits.
        message = re.sub(r"(header list: )\d+", r"\1...", self.answer.message)
        text = message if len(message) <= _LONGEST else message[: _LONGEST - 3] + "..."
        shown = ascii(text)[1:-1].replace("|", "\\|")
        return self.case.layer, self.case.name, self.answer.status, shown


def write_keys(folder: Path) -> dict[str, str]:
    """The keys of the server: of somebody who may do all, of one that may little, of one that has expired."""
    everything = ("predict", "read", "control")
    past = datetime.now(UTC) - timedelta(days=1)
    made = {
        "ops": new_key(name="ops", roles=everything),
        "small": new_key(name="small", roles=("predict",), models=("digits",)),
        "old": new_key(name="old", roles=everything, expires=past),
    }
    write_file(folder / "keys.yaml", KeyFile(keys=tuple(record for _, record in made.values())))
    return {name: key for name, (key, _) in made.items()}


def all_cases() -> list[Case]:
    return [*rest.cases(), *pictures.cases(), *rpc.cases(), *slow.cases()]


def send_all(cases: Sequence[Case], http_port: int, grpc_port: int, keys: dict[str, str]) -> list[Line]:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}", options=options) as channel:
        target = Target(http_port, grpc_port, keys, channel)
        lines = [_line(target, case) for case in cases if case.layer != slow.LAYER]
        # Those that wait for the server's patience to end wait for it together.
        late = [case for case in cases if case.layer == slow.LAYER]
        with ThreadPoolExecutor(len(late)) as threads:
            return [*lines, *threads.map(partial(_line, target), late)]


def _line(target: Target, case: Case) -> Line:
    began = time.monotonic()
    answer = case.send(target)
    answered = time.monotonic()
    good = GOOD.send(target)
    return Line(case, answer, answered - began, good.status, time.monotonic() - answered)


def resident(pid: int) -> int:
    return rss_bytes(pid)


def table(lines: Sequence[Line]) -> str:
    """The rows, by layer, with the time that an answer took on the machine where they were made."""
    rows = ["| layer | input | status | message | ms |", "|---|---|---|---|---|"]
    for line in lines:
        layer, name, status, message = line.cells
        rows.append(f"| {layer} | {name} | {status} | {message} | {line.seconds * 1000:.0f} |")
    return "\n".join(rows) + "\n"
