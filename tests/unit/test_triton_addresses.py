"""`--triton-url`: what it may say, and what it stands for."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from server.engine.triton.addresses import Endpoint, Target, parse, resolve


def test_every_scheme_is_read() -> None:
    """Names, addresses of both families, TLS or not, in the order written."""
    found = parse("grpc://a:8001, grpcs://10.0.0.1:1,grpc://[::1]:8001,dns:///b.c:65535", tls=False)

    assert found == [
        Target("a", 8001, False),
        Target("10.0.0.1", 1, True),
        Target("::1", 8001, False),
        Target("b.c", 65535, False),
    ]


def test_tls_can_be_for_all() -> None:
    """Whatever their schemes."""
    assert all(target.tls for target in parse("grpc://a:1,dns:///b:2", tls=True))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("a:8001", "must be grpc://HOST:PORT"),
        ("http://a:8001", "must be grpc://HOST:PORT"),
        ("grpc://a", "must end in HOST:PORT"),
        ("grpc://a:0", "port of 1 to 65535"),
        ("grpc://a:65536", "port of 1 to 65535"),
        ("grpc://a:b", "port of 1 to 65535"),
        ("grpc://:8001", "must end in HOST:PORT"),
        ("grpc://a..b:8001", "has no name of a host"),
        ("grpc://" + "a" * 64 + ".b:8001", "has no name of a host"),
        ("grpc://a:1/path", "must end in HOST:PORT"),
        ("dns://1.1.1.1/a:1", "names a DNS server"),
        ("grpc://a:1,grpcs://a:1", "a:1 is there twice"),
        ("unix://run/triton", "must be unix:///PATH"),
        ("unix:///run/", "must be unix:///PATH"),
        ("unix:///" + "a" * 107, "over 107 bytes"),
        ("unix:///a,unix:///a", "unix:/a is there twice"),
        ("", "must be grpc://HOST:PORT"),
    ],
)
def test_what_is_wrong_is_said(url: str, words: str) -> None:
    """The part that is wrong, and how it must be."""
    with pytest.raises(ValueError, match=words):
        parse(url, tls=False)


def test_an_endpoint_is_told_and_dialled_by_its_address_and_certified_by_its_name() -> None:
    """So several addresses of a name are several servers."""
    four, six = Endpoint(Target("triton", 8001, True), "10.0.0.1"), Endpoint(Target("::1", 1, False), "::1")

    assert (four.name, four.uri, four.authority) == ("10.0.0.1:8001", "ipv4:10.0.0.1:8001", "triton:8001")
    assert (six.name, six.uri, six.authority) == ("[::1]:1", "ipv6:[::1]:1", "[::1]:1")


class FakeLoop:
    def __init__(self, *found: tuple[int, str]) -> None:
        self._found = found

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        return [(family, 1, 6, "", (address, port)) for family, address in self._found]


@pytest.mark.parametrize(
    ("found", "addresses"),
    [
        (
            [(socket.AF_INET, "10.0.0.2"), (socket.AF_INET, "10.0.0.1"), (socket.AF_INET, "10.0.0.2")],
            ["10.0.0.1", "10.0.0.2"],
        ),
        ([(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")], ["127.0.0.1"]),
        ([(socket.AF_INET6, "::1")], ["::1"]),
    ],
    ids=["each once", "not twice by two families", "the family that there is"],
)
async def test_a_name_stands_for_all_its_addresses(
    monkeypatch: pytest.MonkeyPatch, found: list[tuple[int, str]], addresses: list[str]
) -> None:
    """In an order that does not change with that of the answer."""
    monkeypatch.setattr("asyncio.get_running_loop", lambda: FakeLoop(*found))

    assert [endpoint.address for endpoint in await resolve(Target("triton", 1, False))] == addresses


async def test_a_name_without_addresses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an empty list, which would be taken for news."""
    monkeypatch.setattr("asyncio.get_running_loop", FakeLoop)

    with pytest.raises(OSError, match="triton has no address"):
        await resolve(Target("triton", 1, False))


async def test_a_socket_is_one_endpoint_and_is_not_looked_up() -> None:
    """Its certificate is for localhost; what is behind it may be on another host, and is lent no memory."""
    (target,) = parse("unix:///run/triton.sock", tls=False)
    (endpoint,) = await resolve(target)

    assert (endpoint.name, endpoint.uri, endpoint.authority) == ("unix:/run/triton.sock",) * 2 + ("localhost",)
    assert not endpoint.on_this_host
