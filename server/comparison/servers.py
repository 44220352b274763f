"""The servers of a comparison, each as the URL of its gRPC listener: our own in threads, a Triton beside us."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.app import Server
from server.environment import load_settings
from server.local_triton.process import LocalTriton, Ports, TritonFailed, free_ports
from server.local_triton.program import Program
from server.settings import Settings

_START_S = 120.0
_LOG_LINES = 15
_HOST = "127.0.0.1"


class NotServed(Exception):
    """One of them does not serve the model; the text says which, and why."""


@contextmanager
def embedded(repository: Path, model: str) -> Iterator[str]:
    """The model on the embedded engine, behind our own gateway.

    Raises:
        NotServed: it can't be loaded.
    """
    mode = {"control_mode": "explicit", "load_models": (model,)}
    with _gateway({"repository": {"path": (str(repository),), **mode}}) as server:
        _demand(server, model, "the embedded engine")
        yield _url(server)


@contextmanager
def over_triton(repository: Path, model: str, triton_url: str) -> Iterator[str]:
    """Our gateway in front of the Triton at `triton_url`, with the pipelines of `repository`.

    Raises:
        NotServed: it does not serve the model.
    """
    engine = {"engine": {"kind": "triton"}, "triton": {"url": triton_url}}
    with _gateway({"repository": {"path": (str(repository),)}, **engine}) as server:
        _demand(server, model, f"the gateway over {triton_url}")
        yield _url(server)


@contextmanager
def _gateway(overrides: Mapping[str, Any]) -> Iterator[Server]:
    """A server on free ports, in a thread of its own."""
    ports = {name: {"port": 0} for name in ("http", "grpc", "metrics")}
    settings = load_settings({"host": _HOST, **ports, "shutdown": {"delay_s": 0}, **overrides})
    ready: Future[Server] = Future()
    done: Future[None] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(settings, ready, done)), name="gateway")
    thread.start()
    try:
        yield ready.result()
    finally:
        done.set_result(None)
        thread.join()


def _demand(server: Server, model: str, who: str) -> None:
    reasons = [entry.reason for entry in server.models.index() if entry.name == model and entry.state != "READY"]
    if reasons or not server.models.versions(model):
        raise NotServed(f"{who} does not serve '{model}': {'; '.join(reasons) or 'there is no such model'}")


def _url(server: Server) -> str:
    return f"grpc://{_HOST}:{server.ports['grpc']}"


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
        triton = LocalTriton(program, repository, Ports(*free_ports(3)), host=_HOST, flags=flags, output=log)
        with triton:
            try:
                triton.wait_ready(_START_S)
            except TritonFailed as failure:
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
                raise NotServed("\n".join([f"Triton does not serve '{model}': {failure}", *lines])) from failure
            yield f"grpc://{_HOST}:{triton.ports.grpc}"
