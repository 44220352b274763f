"""Addresses to listen on, and the one error for those that can't be had."""

from __future__ import annotations

import errno
import socket
import ssl

from server.settings import TlsSettings

BACKLOG = 2048
"""Connections that wait to be accepted. Who gives the socket to asyncio must say so again: it would make it 100."""


EVERY_ADDRESS = "::"


class ListenFailed(Exception):
    """`address` can't be listened on; `reason` is the system's."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"can't listen on {address}: {reason}")
        self.address = address
        self.reason = reason


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. The port is this process's alone (no SO_REUSEPORT).

    `::` is every address of this machine, those of IPv4 too: of a machine without IPv6, those alone.

    Raises:
        ListenFailed: the port is taken, or the host is not an address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        if host != EVERY_ADDRESS:
            return socket.create_server((host, port), family=family, backlog=BACKLOG)
        return _listen_everywhere(port)
    except OSError as error:
        raise ListenFailed(format_address(host, port), error.strerror or str(error)) from error


def _listen_everywhere(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server((EVERY_ADDRESS, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        # A kernel that was started without IPv6.
        if error.errno != errno.EAFNOSUPPORT:
            raise
        every = "0.0.0.0"  # nosec B104 # noqa: S104 - what was asked for
        return socket.create_server((every, port), backlog=BACKLOG)


def tls_context(settings: TlsSettings, *protocols: str) -> ssl.SSLContext | None:
    """TLS 1.2 or newer, for `protocols` by ALPN, the first that a client has too; None where no certificate is set.

    Raises:
        ListenFailed: the certificate or its key can't be read, or do not belong together, or one of them is missing;
            or the authorities of clients' certificates can't be read.
    """
    if not settings.given:
        return None
    if not settings.certificate or not settings.key:
        raise ListenFailed("TLS", "certificate and key are needed, and one of them is not set")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # For RFC 9113, section 9.2.1; who may renegotiate may do so without end.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(protocols)
    try:
        context.load_cert_chain(settings.certificate, settings.key)
    except OSError as error:  # ssl.SSLError is one.
        raise ListenFailed("TLS", f"{settings.certificate}, {settings.key}: {error.strerror or error}") from error
    if settings.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cafile=settings.client_ca)
        except OSError as error:
            raise ListenFailed("TLS", f"{settings.client_ca}: {error.strerror or error}") from error
    return context
