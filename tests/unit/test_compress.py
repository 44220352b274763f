"""Answers in gzip or deflate: who gets them, when it is worth it, and what is in them."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from server.explain import ANSWER_KEY, parse_server_timing
from server.settings import HttpSettings
from server.tensor import Tensor
from server.transport.compress import Accepted, NotAcceptable, accepted, compressed
from server.transport.http1.server import Http1Server
from server.transport.rest import RestApp
from tests.support.fake_dataplane import MODEL, FakeDataPlane
from tests.support.http1 import Answer, Peer

INFER = f"/v2/models/{MODEL}/infer"
FROM = 1000
INFLATE: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}

PLAIN = Accepted("", False)


def elements(value: str) -> list[bytes]:
    return [part.strip().encode() for part in value.lower().split(",")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("gzip", Accepted("gzip")),
        ("deflate", Accepted("deflate")),
        ("gzip, deflate", Accepted("gzip")),
        ("deflate, gzip", Accepted("deflate")),
        ("gzip;q=0.5, deflate;q=0.6", Accepted("deflate")),
        ("gzip; q=0.5 , deflate ;q=0.500", Accepted("gzip")),
        ("GZIP;Q=1.000", Accepted("gzip")),
        ("gzip, deflate, br, zstd", Accepted("gzip")),
        ("br", PLAIN),
        ("br;q=1, gzip;q=0.1", Accepted("gzip")),
        ("identity", PLAIN),
        ("identity, gzip", PLAIN),
        ("gzip, identity", PLAIN),
        ("gzip, identity;q=0.9", Accepted("gzip")),
        ("identity;q=0.5, gzip;q=0.4", PLAIN),
        ("identity;q=0, gzip", Accepted("gzip", True)),
        ("gzip;q=0, identity;q=0, deflate;q=0.1", Accepted("deflate", True)),
        ("gzip;q=0", PLAIN),
        ("*", PLAIN),
        ("*;q=0.5, gzip;q=0.1", Accepted("gzip")),
        ("*;q=0, gzip", Accepted("gzip", True)),
        ("*;q=0, identity", PLAIN),
        ("*, identity;q=0", Accepted("gzip", True)),
        ("*, gzip;q=0, identity;q=0", Accepted("deflate", True)),
        ("gzip;q=2, deflate", Accepted("deflate")),
        ("gzip;q=-1", PLAIN),
        ("gzip;q=0.1234", PLAIN),
        ("gzip;level=9", PLAIN),
        ("gzip;q=", PLAIN),
        (";q=1", PLAIN),
        ("\xff", PLAIN),
    ],
)
def test_the_coding_that_a_client_accepts(value: str, expected: Accepted) -> None:
    """The weightiest, of equal ones the first; answers as they are where it says so, or nothing that is known."""
    assert accepted([part.strip().encode("latin-1") for part in value.lower().split(",")]) == expected


@pytest.mark.parametrize(
    "value", ["identity;q=0", "*;q=0", "br, identity;q=0", "gzip;q=0, *;q=0", "identity;q=0, *;q=0"]
)
def test_a_client_that_accepts_nothing(value: str) -> None:
    with pytest.raises(NotAcceptable):
        accepted(elements(value))


@pytest.mark.parametrize("encoding", INFLATE)
def test_what_does_not_compress_is_left_as_it_is(encoding: str) -> None:
    """Told by a sample of its middle, whatever it begins with; but for those who take nothing else."""
    noise = b"{" * 5000 + np.random.default_rng(1).bytes(100_000)
    assert compressed(Accepted(encoding), noise) is None
    forced = compressed(Accepted(encoding, always=True), noise)
    assert forced is not None
    assert INFLATE[encoding](forced) == noise
    text = compressed(Accepted(encoding), b"1.25, " * 20_000)
    assert text is not None
    assert len(text) < 12_000
    assert INFLATE[encoding](text) == b"1.25, " * 20_000


# --- the routes ---------------------------------------------------------------------------------------


class Client:
    """Calls the app over a connection in memory."""

    def __init__(self, dataplane: FakeDataPlane, from_bytes: int = FROM) -> None:
        self.app = RestApp(dataplane, max_body_bytes=10**7, compress_from_bytes=from_bytes)  # type: ignore[arg-type]
        self.server = Http1Server(self.app, "127.0.0.1", 0, HttpSettings())

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> Peer:
        fields = {"Host": "x", "Content-Length": str(len(body)), **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {text}" for name, text in fields.items())]
        peer = Peer(self.app, self.server)
        peer.send("\r\n".join([*lines, "", ""]).encode() + body)
        return peer

    async def __call__(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        peer = self.send(method, path, body, **headers)
        async with asyncio.timeout(10):
            await peer.transport.written.wait()
        [answer] = peer.answers(method)
        return answer


def asked(*, binary: bool = False, id: str = "") -> bytes:
    tensor = {"name": "a", "datatype": "FP32", "shape": [1], "data": [1]}
    document = {"inputs": [tensor], "parameters": {"binary_data_output": binary}}
    return json.dumps({"id": id, **document} if id else document).encode()


@pytest.fixture
def dataplane() -> FakeDataPlane:
    return FakeDataPlane(answers=[Tensor.from_numpy("y", np.arange(2000, dtype=np.float32).reshape(1, -1))])


@pytest.fixture
def call(dataplane: FakeDataPlane) -> Client:
    return Client(dataplane)


@pytest.mark.parametrize("encoding", INFLATE)
@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "binary"])
async def test_an_answer_of_infer(call: Client, encoding: str, binary: bool) -> None:
    """Inflated, it is the answer that others get; the length of the JSON counts bytes of that."""
    plain = await call("POST", INFER, asked(binary=binary, id="7"))
    answer = await call("POST", INFER, asked(binary=binary, id="7"), Accept_Encoding=encoding)

    assert (answer.status, answer.headers["content-encoding"]) == (200, encoding)
    assert answer.headers["vary"] == "accept-encoding"
    assert len(answer.body) < len(plain.body)
    assert INFLATE[encoding](answer.body) == plain.body
    lengths = [each.headers.get("inference-header-content-length") for each in (plain, answer)]
    assert lengths[0] == lengths[1]
    assert (lengths[0] is not None) == binary
    assert "content-encoding" not in plain.headers


async def test_binary_requests_that_repeat(dataplane: FakeDataPlane, call: Client) -> None:
    """Whose head, JSON and answer are known by their bytes: each time compressed, and plain for whoever asks so."""
    tensor = {"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body, length = text + b"\0\0\x80\x3f", str(len(text))
    plain = await call("POST", INFER, body, Inference_Header_Content_Length=length)
    for _ in range(3):
        answer = await call("POST", INFER, body, Inference_Header_Content_Length=length, Accept_Encoding="gzip")
        assert gzip.decompress(answer.body) == plain.body
        again = await call("POST", INFER, body, Inference_Header_Content_Length=length)
        assert again == plain


@pytest.mark.parametrize("path", ["/v2/docs/openapi.json", INFER])
async def test_small_answers_and_those_who_do_not_ask_get_them_plain(dataplane: FakeDataPlane, path: str) -> None:
    """Below the limit, with a limit of 0, and without the header."""
    method, body = ("POST", asked()) if path == INFER else ("GET", b"")
    size = len((await Client(dataplane)(method, path, body)).body)
    for from_bytes, encoding, told in ((size + 300, "gzip", False), (0, "gzip", False), (size, "gzip", True)):
        answer = await Client(dataplane, from_bytes)(method, path, body, Accept_Encoding=encoding)
        assert ("content-encoding" in answer.headers) is told
    assert "content-encoding" not in (await Client(dataplane)(method, path, body, Accept_Encoding="br, *")).headers


async def test_a_document_tells_caches_that_it_varies(call: Client) -> None:
    """Compressed or not; HEAD says the same of it; what is too small to vary does not."""
    plain = await call("GET", "/v2/docs/openapi.json")
    coded = await call("GET", "/v2/docs/openapi.json", Accept_Encoding="deflate")
    head = await call("HEAD", "/v2/docs/openapi.json", Accept_Encoding="deflate")

    assert (plain.headers["vary"], coded.headers["vary"]) == ("accept-encoding",) * 2
    assert zlib.decompress(coded.body) == plain.body
    assert {**head.headers, "date": ""} == {**coded.headers, "date": ""}
    assert "vary" not in (await call("GET", "/v2", Accept_Encoding="gzip")).headers


async def test_whoever_takes_nothing_else_gets_small_answers_compressed(dataplane: FakeDataPlane) -> None:
    """Also where answers are not compressed at all; an empty one needs no coding."""
    call = Client(dataplane, 0)
    answer = await call("GET", "/v2", Accept_Encoding="gzip, identity;q=0")
    assert json.loads(gzip.decompress(answer.body))["name"]
    unload = await call("POST", f"/v2/repository/models/{MODEL}/unload", Accept_Encoding="gzip, *;q=0")
    assert (unload.status, unload.body, unload.headers.get("content-encoding")) == (200, b"", None)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v2"), ("POST", INFER)])
async def test_whoever_takes_nothing_at_all_is_told_so(call: Client, method: str, path: str) -> None:
    """406, by name, and nothing is executed."""
    answer = await call(method, path, asked() if method == "POST" else b"", Accept_Encoding="br, identity;q=0")
    assert (answer.status, answer.error[:16]) == (406, "Accept-Encoding:")


async def test_an_error_is_never_compressed(call: Client) -> None:
    answer = await call("POST", INFER, b'{"inputs": [' + b" " * 5000, Accept_Encoding="gzip")
    assert (answer.status, "content-encoding" in answer.headers) == (400, False)


async def test_an_explanation_tells_of_the_compression_as_encoding(call: Client) -> None:
    """The header is beside the body that it explains."""
    answer = await call("POST", INFER, asked(), Accept_Encoding="gzip", X_Explain="1")
    explained = parse_server_timing(answer.headers[ANSWER_KEY])
    assert answer.headers["content-encoding"] == "gzip"
    assert explained.parts_ms["encode"] > 0
    assert sum(explained.parts_ms.values()) == pytest.approx(explained.total_ms)


async def test_answers_keep_their_order(dataplane: FakeDataPlane, call: Client) -> None:
    """Of pipelined requests the second, which is not compressed, waits for the first, which is."""
    peer = call.send("POST", INFER, asked(), Accept_Encoding="gzip")
    peer.send(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not peer.transport.sent
    async with asyncio.timeout(10):
        await peer.transport.written.wait()
    first, second = peer.answers()
    assert (first.headers["content-encoding"], second.body) == ("gzip", b'{"live":true}')


async def test_a_client_that_leaves_meanwhile(call: Client) -> None:
    """Nothing is sent to nobody, and the next one is answered."""
    peer = call.send("POST", INFER, asked(), Accept_Encoding="gzip")
    peer.protocol.connection_lost(None)
    assert (await call("POST", INFER, asked(), Accept_Encoding="gzip")).headers["content-encoding"] == "gzip"
    assert not peer.transport.sent


async def test_the_end_of_the_listener_meanwhile(call: Client) -> None:
    """Who still waits for a thread when the grace is over is told so."""
    peer = call.send("POST", INFER, asked(), Accept_Encoding="gzip")
    peer.protocol.cut_off()
    async with asyncio.timeout(10):
        await peer.transport.written.wait()
    [answer] = peer.answers()
    assert answer.status == 503
