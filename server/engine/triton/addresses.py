"""`--triton-url`: from what was written to the endpoints that it stands for now.

    grpc://HOST:PORT     plain text
    grpcs://HOST:PORT    TLS
    dns:///HOST:PORT     as gRPC spells it; TLS where `triton.tls` is set
    unix:///PATH         a socket of this host, on which something listens that leads to a Triton, which has none

A name stands for all its addresses, each a server of its own, and is looked up again and again: behind it are the
replicas of today. Of a name with addresses of both families the IPv4 ones count, or each replica would be there twice.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import NamedTuple

_SCHEMES = ("grpc", "grpcs", "dns", "unix")
_SOCKET_PATH_BYTES = 107
"""The longest path that the kernel takes. Source: unix(7)."""


class Target(NamedTuple):
    """One part of the URL."""

    host: str
    """Of a socket its path, which begins with /."""
    port: int
    tls: bool

    @property
    def is_socket(self) -> bool:
        return self.host.startswith("/")

    @property
    def name(self) -> str:
        """For people."""
        return f"unix:{self.host}" if self.is_socket else _joined(self.host, self.port)


class Endpoint(NamedTuple):
    """One address of a target."""

    target: Target
    address: str

    @property
    def name(self) -> str:
        """For logs and metrics."""
        return self.target.name if self.target.is_socket else _joined(self.address, self.target.port)

    @property
    def uri(self) -> str:
        """As gRPC wants it."""
        return self.name if self.target.is_socket else f"ipv{ip_address(self.address).version}:{self.name}"

    @property
    def on_this_host(self) -> bool:
        """Whether it is likely to be. What listens on a socket leads to Tritons that may be anywhere."""
        return not self.target.is_socket and ip_address(self.address).is_loopback

    @property
    def authority(self) -> str:
        """Whom a certificate must be for. As gRPC has it, a socket is localhost."""
        return "localhost" if self.target.is_socket else self.target.name


def parse(urls: str, *, tls: bool) -> list[Target]:
    """The targets of a comma-separated list, in its order. `tls`: all speak it.

    Raises:
        ValueError: says which one is wrong, and how it must be.
    """
    targets = [_target(url.strip(), tls) for url in urls.split(",")]
    for index, target in enumerate(targets):
        if any((target.host, target.port) == (other.host, other.port) for other in targets[:index]):
            raise ValueError(f"{target.name} is there twice")
    return targets


def _target(url: str, tls: bool) -> Target:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"'{url}' must be grpc://HOST:PORT, grpcs://HOST:PORT, dns:///HOST:PORT or unix:///PATH")
    if scheme == "unix":
        return _socket(url, rest, tls)
    if scheme == "dns":
        if not rest.startswith("/"):
            raise ValueError(f"'{url}' names a DNS server, which is the system's to choose; write dns:///HOST:PORT")
        rest = rest[1:]
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"'{url}' must end in HOST:PORT, with a port of 1 to 65535")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"'{url}' has no name of a host: {error.__cause__ or error}") from error
    return Target(host, int(port), tls or scheme == "grpcs")


def _socket(url: str, path: str, tls: bool) -> Target:
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError(f"'{url}' must be unix:///PATH, the whole path of a socket")
    if len(path.encode()) > _SOCKET_PATH_BYTES:
        raise ValueError(f"'{url}' has a path of over {_SOCKET_PATH_BYTES} bytes, the most that a socket may have")
    return Target(path, 0, tls)


async def resolve(target: Target) -> Sequence[Endpoint]:
    """Where it is now; at least one.

    Raises:
        OSError: the name is not known, or nobody can be asked.
    """
    if target.is_socket:
        return [Endpoint(target, target.host)]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = {family: [str(at[0]) for each, *_, at in found if each == family] for family, *_ in found}
    chosen = addresses.get(socket.AF_INET) or addresses.get(socket.AF_INET6, [])
    if not chosen:
        raise OSError(f"{target.host} has no address")
    return [Endpoint(target, address) for address in sorted(set(chosen))]


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
