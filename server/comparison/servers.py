"""The two servers of a comparison, each as the URL of its gRPC listener: ours in a thread, a Triton beside us."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from server.app import Server
from server.local_triton.process import LocalTriton, Ports, TritonFailed
from server.local_triton.program import Program
from server.settings import Settings, load_settings

_START_S = 120.0
_LOG_LINES = 15
_HOST = "127.0.0.1"


class NotServed(Exception):
    """One of the two does not serve the model; the text says which, and why."""


@contextmanager
def embedded(repository: Path, model: str) -> Iterator[str]:
    """The model on the embedded engine, behind our own gateway.

    Raises:
        NotServed: it can't be loaded.
    """
    settings = load_settings(
        {
            "host": _HOST,
            "http": {"port": 0},
            "grpc": {"port": 0},
            "metrics": {"port": 0},
            "repository": {"path": (str(repository),), "control_mode": "explicit", "load_models": (model,)},
            "shutdown": {"delay_s": 0},
        }
    )
    ready: Future[Server] = Future()
    done: Future[None] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(settings, ready, done)), name="embedded")
    thread.start()
    try:
        server = ready.result()
        reasons = [entry.reason for entry in server.models.index() if entry.name == model and entry.state != "READY"]
        if reasons or not server.models.versions(model):
            why = "; ".join(reasons) or "there is no such model"
            raise NotServed(f"the embedded engine does not serve '{model}': {why}")
        yield f"grpc://{_HOST}:{server.ports['grpc']}"
    finally:
        done.set_result(None)
        thread.join()


async def _serve(settings: Settings, ready: Future[Server], done: Future[None]) -> None:
    try:
        server = Server(settings)
        await server.start()
    except BaseException as error:  # noqa: BLE001 - whoever waits for it is told
        ready.set_exception(error)
        return
    ready.set_result(server)
    await asyncio.wrap_future(done)
    await server.drain()


@contextmanager
def local_triton(program: Program, repository: Path, model: str) -> Iterator[str]:
    """The model on a Triton of its own, on ports that nobody has.

    Raises:
        NotServed: Triton did not load it; with the last lines of its log.
    """
    flags = ("--model-control-mode=explicit", f"--load-model={model}")
    with tempfile.TemporaryFile() as log:
        triton = LocalTriton(program, repository, _free_ports(), host=_HOST, flags=flags, output=log)
        with triton:
            try:
                triton.wait_ready(_START_S)
            except TritonFailed as failure:
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
                raise NotServed("\n".join([f"Triton does not serve '{model}': {failure}", *lines])) from failure
            yield f"grpc://{_HOST}:{triton.ports.grpc}"


def _free_ports() -> Ports:
    sockets = [socket.create_server((_HOST, 0)) for _ in range(3)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return Ports(*ports)
