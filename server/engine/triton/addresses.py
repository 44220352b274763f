"""`--triton-url`: from what was written to the endpoints that it stands for now.

    grpc://HOST:PORT     plain text
    grpcs://HOST:PORT    TLS
    dns:///HOST:PORT     as gRPC spells it; TLS where `triton.tls` is set

A name stands for all its addresses, each a server of its own, and is looked up again and again: behind it are the
replicas of today. Of a name with addresses of both families the IPv4 ones count, or each replica would be there twice.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import NamedTuple

_SCHEMES = ("grpc", "grpcs", "dns")


class Target(NamedTuple):
    """One part of the URL."""

    host: str
    port: int
    tls: bool


class Endpoint(NamedTuple):
    """One address of a target."""

    target: Target
    address: str

    @property
    def name(self) -> str:
        """For logs and metrics."""
        return _joined(self.address, self.target.port)

    @property
    def uri(self) -> str:
        """As gRPC wants it."""
        return f"ipv{ip_address(self.address).version}:{self.name}"

    @property
    def authority(self) -> str:
        """Whom a certificate must be for."""
        return _joined(self.target.host, self.target.port)


def parse(urls: str, *, tls: bool) -> list[Target]:
    """The targets of a comma-separated list, in its order. `tls`: all speak it.

    Raises:
        ValueError: says which one is wrong, and how it must be.
    """
    targets = [_target(url.strip(), tls) for url in urls.split(",")]
    for index, target in enumerate(targets):
        if any((target.host, target.port) == (other.host, other.port) for other in targets[:index]):
            raise ValueError(f"{_joined(target.host, target.port)} is there twice")
    return targets


def _target(url: str, tls: bool) -> Target:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"'{url}' must be grpc://HOST:PORT, grpcs://HOST:PORT or dns:///HOST:PORT")
    if scheme == "dns":
        if not rest.startswith("/"):
            raise ValueError(f"'{url}' names a DNS server, which is the system's to choose; write dns:///HOST:PORT")
        rest = rest[1:]
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"'{url}' must end in HOST:PORT, with a port of 1 to 65535")
    return Target(host, int(port), tls or scheme == "grpcs")


async def resolve(target: Target) -> Sequence[Endpoint]:
    """Where it is now; at least one.

    Raises:
        OSError: the name is not known, or nobody can be asked.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = {family: [str(at[0]) for each, *_, at in found if each == family] for family, *_ in found}
    chosen = addresses.get(socket.AF_INET) or addresses.get(socket.AF_INET6, [])
    if not chosen:
        raise OSError(f"{target.host} has no address")
    return [Endpoint(target, address) for address in sorted(set(chosen))]


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
