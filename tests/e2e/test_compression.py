"""Compressed requests and answers over REST, by Triton's own client and by others, against a real server."""

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton_http

from tests.e2e.conftest import ServerProcess, end, start
from tests.support.onnx_models import echo_folder

pytestmark = pytest.mark.e2e

X = np.tile(np.linspace(-1, 1, 25, dtype=np.float32), 400).reshape(4, -1)
"""Large enough to be compressed, and it compresses well."""
DEFLATE: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.fixture(scope="module", params=["one process", "workers"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("compression")
    echo_folder(folder / "models", "echo")
    flags = ["--workers", "2"] if request.param == "workers" else []
    running = start(folder / "server.log", *flags, repository=folder / "models")
    yield running
    end(running)


def split(binary: bool) -> tuple[bytes, bytes]:
    """A request's JSON and, if it is `binary`, what follows."""
    how: dict[str, object] = {"parameters": {"binary_data_size": X.nbytes}} if binary else {"data": X.ravel().tolist()}
    document = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": list(X.shape), **how}],
        "parameters": {"binary_data_output": binary},
    }
    return json.dumps(document).encode(), X.tobytes() if binary else b""


@pytest.mark.parametrize("encoding", DEFLATE)
@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "binary"])
def test_tritonclient_both_ways(server: ServerProcess, encoding: str, binary: bool) -> None:
    """Its `request_compression_algorithm` and `response_compression_algorithm`; the answer is what was sent."""
    with triton_http.InferenceServerClient(server.http.removeprefix("http://")) as client:
        tensor = triton_http.InferInput("x", list(X.shape), "FP32").set_data_from_numpy(X, binary_data=binary)
        wanted = [triton_http.InferRequestedOutput("y", binary_data=binary)]
        for _ in range(3):
            result = client.infer(
                "echo",
                [tensor],
                outputs=wanted,
                request_compression_algorithm=encoding,
                response_compression_algorithm=encoding,
            )
            np.testing.assert_array_equal(result.as_numpy("y"), X)


@pytest.mark.parametrize("encoding", DEFLATE)
@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "binary"])
def test_a_client_that_inflates_by_itself(server: ServerProcess, encoding: str, binary: bool) -> None:
    """It gets the same bytes in fewer; the length of the JSON counts those of the whole."""
    text, data = split(binary)
    headers = {"Inference-Header-Content-Length": str(len(text))} if binary else {}
    url = f"{server.http}/v2/models/echo/infer"
    plain = httpx.post(url, content=text + data, headers={**headers, "Accept-Encoding": "identity"})
    coded = httpx.post(url, content=text + data, headers={**headers, "Accept-Encoding": encoding})

    assert "content-encoding" not in plain.headers
    assert coded.headers["content-encoding"] == encoding
    assert coded.content == plain.content
    assert coded.num_bytes_downloaded < len(plain.content) / 2
    name = "inference-header-content-length"
    assert coded.headers.get(name) == plain.headers.get(name)


@pytest.mark.parametrize("encoding", DEFLATE)
@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "binary"])
def test_a_body_that_is_compressed_and_chunked(server: ServerProcess, encoding: str, binary: bool) -> None:
    """In pieces of any size, of which none ends where something in it does."""
    text, data = split(binary)
    body = DEFLATE[encoding](text + data)
    headers = {"Content-Encoding": encoding, "Accept-Encoding": "identity"}
    if binary:
        headers["Inference-Header-Content-Length"] = str(len(text))
    pieces = (body[at : at + 777] for at in range(0, len(body), 777))
    connection = http.client.HTTPConnection(server.http.removeprefix("http://"), timeout=30)
    connection.request("POST", "/v2/models/echo/infer", pieces, headers, encode_chunked=True)
    answer = connection.getresponse()
    received = answer.read()
    connection.close()

    assert answer.status == 200, received
    if binary:
        assert received.endswith(data)
    else:
        [output] = json.loads(received)["outputs"]
        np.testing.assert_array_equal(np.array(output["data"], np.float32), X.ravel())


@pytest.mark.parametrize("encoding", DEFLATE)
def test_raw_binary_data_may_be_compressed(server: ServerProcess, encoding: str) -> None:
    """`Inference-Header-Content-Length: 0`: all of the inflated body is the tensor."""
    row = X[:1]
    headers = {"Content-Encoding": encoding, "Inference-Header-Content-Length": "0"}
    answer = httpx.post(
        f"{server.http}/v2/models/echo/infer", content=DEFLATE[encoding](row.tobytes()), headers=headers
    )
    assert answer.status_code == 200, answer.text
    assert answer.content.endswith(row.tobytes())


def test_a_chunked_bomb_is_stopped(server: ServerProcess) -> None:
    """413, and the server answers on."""
    zeros = zlib.compressobj()
    bomb = b"".join(zeros.compress(bytes(1 << 20)) for _ in range(80)) + zeros.flush()
    pieces = (bomb[at : at + 10_000] for at in range(0, len(bomb), 10_000))
    url = f"{server.http}/v2/models/echo/infer"
    assert httpx.post(url, content=pieces, headers={"Content-Encoding": "deflate"}).status_code == 413
    text, _ = split(False)
    assert httpx.post(url, content=text).status_code == 200


@pytest.mark.parametrize("path", ["/v2/docs/openapi.json", "/v2/models/echo/stats", "/v2/models/echo/config"])
def test_the_other_routes(server: ServerProcess, path: str) -> None:
    """What is large enough comes compressed to whoever accepts it, with the same content."""
    plain = httpx.get(server.http + path, headers={"Accept-Encoding": "identity"})
    coded = httpx.get(server.http + path, headers={"Accept-Encoding": "gzip"})
    assert coded.json() == plain.json()
    assert ("content-encoding" in coded.headers) == (len(plain.content) >= 4096)


def test_the_log_has_no_traceback(server: ServerProcess) -> None:
    """After all of the above."""
    assert "Traceback" not in Path(server.log).read_text()
