"""A peer while it runs: started, asked whether its answers are right, held still, measured, ended."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import httpx
import numpy as np

from loadtests.benchmarks.peers.calls import Call
from loadtests.benchmarks.peers.environments import Unavailable
from loadtests.benchmarks.peers.peer import Line, Peer, Setup
from loadtests.benchmarks.peers.workloads import Answer, Workload, agree
from loadtests.generators import Load, Measured, h2load, wrk
from loadtests.process_tree import ProcessTree
from server.local_triton.process import free_ports

START_S = 120
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends the benchmark, and its servers with it."""
_SOON_S = 30
_PAUSE_S = 0.2
_ASK_S = 20
_REASON_CHARACTERS = 300
_WARM_UP_S = 1
_MOST_REVIVALS = 5
"""Of one server: each costs its start, and one that needs more would tell nothing."""


class Wrong(Exception):
    """A server answers, and not what ONNX Runtime answers; the text is what its line says."""


class Running:
    """One server process, with all its lines."""

    def __init__(self, peer: Peer, setup: Setup, cores: Sequence[int]) -> None:
        """Start it, and wait until every line answers.

        Raises:
            Unavailable: it can't be installed, or does not come up. Nothing of it is left then.
        """
        self.peer = peer
        self.setup = setup
        self._cores = cores
        self.wrong: dict[tuple[str, str], str] = {}
        """Why a line is not measured for a workload, by line and workload."""
        self.gone = ""
        """Why it is not measured any more."""
        self._revivals = 0
        self.tree = self._start()

    def _start(self) -> ProcessTree:
        command = self.peer.command(self.setup)
        log = self.setup.folder.with_suffix(".log")
        tree = ProcessTree(command.argv, log, self._cores, env=command.env, cwd=command.cwd)
        try:
            self._await(tree)
        except BaseException:
            tree.end()
            raise
        return tree

    def _await(self, tree: ProcessTree) -> None:
        until = time.monotonic() + START_S
        self.wrong = {}
        for line in self.peer.lines:
            for name, workload in self.setup.workloads.items():
                call = line.call(workload)
                if call is None:
                    continue
                if problem := self._await_answer(tree, call, workload, until):
                    self.wrong[line.title, name] = problem
                else:
                    # It is up: what does not answer soon now does not answer at all.
                    until = time.monotonic() + _SOON_S
        asked = sum(bool(line.call(each)) for line in self.peer.lines for each in self.setup.workloads.values())
        if len(self.wrong) == asked:
            raise Unavailable(f"{next(iter(self.wrong.values()))}; its log: {_tail(tree.log)}")

    def _await_answer(self, tree: ProcessTree, call: Call, workload: Workload, until: float) -> str:
        while True:
            problem = self.problem(call, workload)
            if not tree.alive():
                raise Unavailable(f"ended at once: {_tail(tree.log)}")
            if not problem.startswith("no answer") or time.monotonic() > until:
                return problem
            time.sleep(_PAUSE_S)

    def problem(self, call: Call, workload: Workload) -> str:
        """What is wrong with an answer, or an empty string."""
        try:
            answer = self.answer(call)
        except (grpc.RpcError, httpx.HTTPError) as error:
            return f"no answer: {_reason(error)}"
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return f"wrong answer: {type(error).__name__}: {error}"
        wanted = workload.answer if call.answer is None else call.answer
        if agree(answer, wanted):
            return ""
        if isinstance(answer, str) or isinstance(wanted, str):
            return f"wrong answer: {answer!r}, not {wanted!r}"
        if answer.size != wanted.size:
            return f"wrong answer: {answer.size} values, not {wanted.size}"
        worst = np.abs(answer.reshape(-1) - wanted.reshape(-1)).max()
        return f"wrong answer: up to {worst:.3g} from ONNX Runtime's"

    def answer(self, call: Call) -> Answer:
        """What it answers now. Raises what `ask` and the call's `read` raise."""
        return call.read(ask(call, self.address(call)))

    def address(self, call: Call) -> str:
        return f"127.0.0.1:{self.setup.grpc_port if call.grpc else self.setup.http_port}"

    def measure(self, line: Line, workload: Workload, load: Load) -> tuple[Measured, float]:
        """One run after a short warm-up, and the server's processor time over that of the run (1: a whole core).

        Answers are checked before and after, and a server that counts its successes must have counted as many.

        Raises:
            GeneratorFailed: the generator failed.
            Wrong: an answer before or after is not right, or the server counted fewer successes.
        """
        call = line.call(workload)
        assert call is not None
        try:
            return self._measure(call, workload, load)
        except (grpc.RpcError, httpx.HTTPError) as error:
            raise Wrong(f"no answer: {_reason(error)}") from error

    def _measure(self, call: Call, workload: Workload, load: Load) -> tuple[Measured, float]:
        self._check(call, workload)
        answer_bytes = len(ask(call, self.address(call)))
        generate(call, self.address(call), answer_bytes, replace(load, seconds=_WARM_UP_S))
        counted = self._succeeded(call, workload)
        began, before_s = time.monotonic(), self.tree.cpu_s()
        measured = generate(call, self.address(call), answer_bytes, load)
        busy = (self.tree.cpu_s() - before_s) / (time.monotonic() - began)
        grown = self._succeeded(call, workload) - counted
        self._check(call, workload)
        if self.peer.succeeded and grown < measured.answered - measured.failed:
            raise Wrong(f"the server counted {grown:.0f} successes, the generator {measured.answered}")
        return measured, busy

    def revive(self, problem: str) -> bool:
        """Start anew a server that has a problem, or give it up: see `gone`."""
        self.tree.end()
        self._revivals += 1
        if self._revivals > _MOST_REVIVALS:
            self.gone = f"given up: {problem}"
            return False
        self.setup = fresh(self.setup)
        try:
            self.tree = self._start()
        except Unavailable as error:
            self.gone = f"{problem}; then {error}"
            return False
        return True

    def _check(self, call: Call, workload: Workload) -> None:
        if problem := self.problem(call, workload):
            raise Wrong(problem)

    def _succeeded(self, call: Call, workload: Workload) -> float:
        if self.peer.succeeded is None:
            return 0.0
        return self.peer.succeeded(self.setup, call.model or workload.name)


def generate(call: Call, address: str, answer_bytes: int, load: Load) -> Measured:
    """Of HTTP/1.1, a connection has one request in flight, so streams become connections."""
    url = f"http://{address}{call.path}"
    if call.grpc:
        return h2load(url, call.body, answer_bytes, load)
    one_each = replace(load, connections=load.connections * load.streams, streams=1)
    return wrk(url, call.body, call.headers, one_each)


def ask(call: Call, address: str) -> bytes:
    """The message or body of one answer. Raises grpc.RpcError or httpx.HTTPError."""
    if call.grpc:
        with grpc.insecure_channel(address) as channel:
            method = channel.unary_unary(call.path, request_serializer=None, response_deserializer=None)
            message: bytes = method(call.body, timeout=_ASK_S)
            return message
    url = f"http://{address}{call.path}"
    response = httpx.post(url, content=call.body, headers=dict(call.headers), timeout=_ASK_S, trust_env=False)
    return response.raise_for_status().content


def fresh(setup: Setup) -> Setup:
    """The same with an empty folder and other ports."""
    number = sum(path.is_dir() for path in setup.folder.parent.iterdir())
    folder = setup.folder.parent / f"{setup.folder.name.partition('.')[0]}.{number}"
    folder.mkdir(parents=True)
    grpc_port, http_port, other_port = free_ports(3)
    return replace(setup, folder=folder, grpc_port=grpc_port, http_port=http_port, other_port=other_port)


def start_all(
    peers: Mapping[str, Peer],
    workloads: Mapping[str, Workload],
    folder: Path,
    cores: Sequence[int],
    window_ms: int,
    tell: Callable[[str], None],
) -> tuple[list[Running], dict[str, str]]:
    """Every peer, one after the other, each held still once it answers; and why the others are not there."""
    running: list[Running] = []
    reasons: dict[str, str] = {}
    try:
        for name, peer in peers.items():
            (folder / name).mkdir(parents=True)
            grpc_port, http_port, other_port = free_ports(3)
            own, models = folder / name, folder / "models"
            setup = Setup(own, workloads, models, grpc_port, http_port, other_port, len(cores), window_ms)
            tell(f"starting {name}")
            try:
                server = Running(peer, setup, cores)
            except Unavailable as error:
                reasons[name] = str(error)
                tell(f"{name}: {error}")
                continue
            running.append(server)
            server.tree.freeze()
    except BaseException:
        end_all(running)
        raise
    return running, reasons


def end_all(running: Sequence[Running]) -> None:
    """Not to be interrupted: who presses Ctrl-C twice still wants no server left."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDINGS}
    try:
        for server in running:
            server.tree.end()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tail(log: Path) -> str:
    """What a log says went wrong, short enough for a table."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    for pattern in (r"^[\w.]*(Error|Exception)\b", r"error|failed|exception", ""):
        if found := [line for line in lines if re.search(pattern, line, re.IGNORECASE)]:
            return found[-1].replace("|", "/")[:_REASON_CHARACTERS]
    return "it printed nothing"


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"[:200]
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}: {error.response.text[:160]}"
    return f"{type(error).__name__}: {error}"
