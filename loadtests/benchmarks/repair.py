"""Two Tritons behind the gateway, under load; one is killed and started again: what callers are told, and when it is
used again.

    python -m loadtests.benchmarks.repair

Eight callers, each with its next request when it is answered. Per round: SIGKILL (to the processes of the models as
well), a new start a second later, and from the time that the new one says it is ready until it has answered a request
of the gateway's. Requests that it had when it was killed may have been executed, and are the only ones that may fail.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx

from loadtests.client import infer, message
from loadtests.cores import cores
from loadtests.flags import counted
from loadtests.models import tiny_mlp
from loadtests.process import unwinding
from loadtests.process_tree import ProcessTree
from loadtests.report import publish, table
from server.local_triton.process import LocalTriton, Ports, TritonFailed, free_ports
from server.local_triton.program import TritonMissing, find

_ROOT = Path(__file__).parents[2]
_MODEL = "tiny_mlp"
_CALLERS = 8
_START_S = 60.0
_DOWN_S = 1.0
_SETTLED_S = 2.0
_AGAIN_S = 30.0
HEADER = ("round", "answers", "failed", "slowest ms", "last failure after the kill, s", "used after it was ready, s")


@dataclass
class Round:
    answered: int = 0
    failed_at: list[float] = field(default_factory=list)
    slowest_s: float = 0.0
    killed_at: float = 0.0
    ready_at: float = 0.0
    used_at: float = 0.0

    @property
    def used_after_s(self) -> float:
        return self.used_at - self.ready_at

    def cells(self, number: int) -> list[object]:
        last = max(self.failed_at, default=self.killed_at) - self.killed_at
        times = (f"{self.slowest_s * 1e3:.0f}", f"{last:.2f}", f"{self.used_after_s:.2f}")
        return [number, self.answered, len(self.failed_at), *times]


async def one_round(address: str, triton: LocalTriton) -> Round:
    found, over = Round(), asyncio.Event()
    data = message(_MODEL, tiny_mlp().dims)
    async with grpc.aio.insecure_channel(address) as channel:
        call = infer(channel)

        async def caller() -> None:
            while not over.is_set():
                began = time.monotonic()
                try:
                    await call(data, timeout=30)
                except grpc.aio.AioRpcError:
                    found.failed_at.append(time.monotonic())
                else:
                    found.answered += 1
                found.slowest_s = max(found.slowest_s, time.monotonic() - began)

        async def deed() -> None:
            try:
                await asyncio.sleep(_SETTLED_S)
                await kill_and_restart(triton, found)
                await asyncio.sleep(_SETTLED_S)
            finally:
                over.set()

        await asyncio.gather(deed(), *(caller() for _ in range(_CALLERS)))
    return found


async def kill_and_restart(triton: LocalTriton, found: Round) -> None:
    """Raises TritonFailed: it does not come up, or is not used within half a minute."""
    found.killed_at = time.monotonic()
    triton.kill()
    await asyncio.sleep(_DOWN_S)
    triton.stop()
    triton.start()
    await asyncio.to_thread(triton.wait_ready, _START_S)
    found.ready_at = time.monotonic()
    async with httpx.AsyncClient() as client:
        while not await _answers(client, triton):
            if time.monotonic() > found.ready_at + _AGAIN_S:
                raise TritonFailed(f"it is not used {_AGAIN_S:.0f} s after it was ready")
            await asyncio.sleep(0.02)
    found.used_at = time.monotonic()


async def _answers(client: httpx.AsyncClient, triton: LocalTriton) -> bool:
    answer = await client.get(f"http://127.0.0.1:{triton.ports.http}/v2/models/{_MODEL}/stats", timeout=10)
    return bool(answer.json()["model_stats"][0]["inference_stats"]["success"].get("count"))


@contextmanager
def gateway(folder: Path, tritons: Sequence[LocalTriton]) -> Iterator[str]:
    """Its gRPC address. Raises TritonFailed."""
    http, port, metrics = free_ports(3)
    urls = ",".join(f"grpc://127.0.0.1:{triton.ports.grpc}" for triton in tritons)
    command = [sys.executable, "-m", "server", "serve", "--engine", "triton", "--triton-url", urls]
    command += ["--http-port", str(http), "--grpc-port", str(port), "--metrics-port", str(metrics)]
    command += ["--model-repository", str(folder / "models"), "--drain-delay-secs", "0"]
    with ProcessTree.running(command, folder / "gateway.log", cores(), env={}, cwd=_ROOT) as tree:
        until = time.monotonic() + _START_S
        while not _ready(f"http://127.0.0.1:{http}/v2/models/{_MODEL}/ready"):
            if time.monotonic() > until:
                raise TritonFailed(f"the gateway is not ready: {tree.log.read_text()[-500:]}")
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"


def _ready(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False


def run(rounds: int) -> list[Round]:
    """Raises TritonMissing, TritonFailed."""
    program = find(folder=_ROOT / "build" / "triton")
    with tempfile.TemporaryDirectory() as name, unwinding(), ExitStack() as stack:
        folder = Path(name)
        tiny_mlp().save(folder / "models", _MODEL)
        output = stack.enter_context((folder / "triton.log").open("ab"))
        tritons = [LocalTriton(program, folder / "models", Ports(*free_ports(3)), output=output) for _ in range(2)]
        for triton in tritons:
            stack.enter_context(triton)
        for triton in tritons:
            triton.wait_ready(_START_S)
        address = stack.enter_context(gateway(folder, tritons))
        return [asyncio.run(one_round(address, tritons[number % 2])) for number in range(rounds)]


def report(rounds: Sequence[Round]) -> str:
    used = [each.used_after_s for each in rounds]
    lines = [each.cells(number + 1) for number, each in enumerate(rounds)]
    return (
        f"# Two Tritons, one killed under load and started again\n\n{table(HEADER, lines)}\n"
        f"Used {statistics.median(used):.2f} s after it was ready, at most {max(used):.2f} s.\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=counted, default=5, help="(default: 5)")
    parser.add_argument("--out", type=Path, help="also write repair.md into this folder")
    options = parser.parse_args(arguments)
    try:
        rounds = run(options.rounds)
    except (TritonMissing, TritonFailed) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    publish(report(rounds), "repair.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
