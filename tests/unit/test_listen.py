"""Addresses to listen on: of one family, or all of the machine's."""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from server.transport.listen import ListenFailed, listen, tls_context
from tests.support.parts import self_signed


def reached(host: str, listener: socket.socket) -> bool:
    """Whether a connection to that address of this machine is taken."""
    try:
        with socket.create_connection((host, listener.getsockname()[1]), timeout=10):
            return True
    except ConnectionRefusedError:
        return False


def test_rfc_9113_9_2_1_tls_is_neither_renegotiated_nor_compressed(tmp_path: Path) -> None:
    """And not older than 1.2, whatever OpenSSL is built with."""
    context = tls_context(self_signed(tmp_path), "h2")
    assert context is not None
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("host", "four", "six"),
    [("::", True, True), ("0.0.0.0", True, False), ("::1", False, True)],  # noqa: S104
)
def test_every_address_is_that_of_both_families(host: str, four: bool, six: bool) -> None:
    """A pod has one of IPv4, of IPv6, or of each, and its server does not know which."""
    with listen(host, 0) as listener:
        assert (reached("127.0.0.1", listener), reached("::1", listener)) == (four, six)


def test_a_kernel_without_ipv6_has_every_address_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was started with ipv6.disable=1."""
    create = socket.create_server

    def without(*arguments: Any, family: int = socket.AF_INET, **more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return create(*arguments, family=family, **{k: v for k, v in more.items() if k != "dualstack_ipv6"})

    monkeypatch.setattr(socket, "create_server", without)
    with listen("::", 0) as listener:
        assert listener.family == socket.AF_INET
        assert reached("127.0.0.1", listener)
    with pytest.raises(ListenFailed, match="not supported"):
        listen("::1", 0)


def test_a_port_that_is_taken_is_not_had_by_another_family() -> None:
    """`::` is IPv4 as well: half of it would be a server that half of the callers find."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenFailed, match=rf"\[::\]:{port}: .*in use"):
            listen("::", port)
