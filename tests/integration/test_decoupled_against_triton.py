"""Several responses to one request: the same calls to a real Triton, with a model of its Python backend, and to us."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from server.local_triton.process import LocalTriton, Ports, free_ports
from server.local_triton.program import TritonMissing, find
from server.settings import GrpcSettings, HttpSettings, TlsSettings
from server.transport.http2.server import Http2Server
from server.transport.rest import RestServer
from tests.e2e.conftest import ROOT
from tests.integration.test_decoupled import asking, plane, stream, told, url  # noqa: F401 - plane is a fixture
from tests.support.parts import lacking
from tests.unit.test_dataplane import Plane

CONFIG = """
name: "m" backend: "python" max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
model_transaction_policy { decoupled: true }
"""
MODEL = """
import sys
sys.path[:0] = [{packages!r}]
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            sender = request.get_response_sender()
            for number in range(int(x[0, 0])):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", x + np.float32(number))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
"""What the scripted engine does by default: x responses, with x, x + 1, ..."""


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    try:
        program = find(folder=ROOT / "build" / "triton")
    except TritonMissing as missing:
        lacking(str(missing))
    folder = tmp_path_factory.mktemp("decoupled")
    (folder / "models" / "m" / "1").mkdir(parents=True)
    (folder / "models" / "m" / "config.pbtxt").write_text(CONFIG)
    (folder / "models" / "m" / "1" / "model.py").write_text(MODEL.format(packages=str(program.packages)))
    log = folder / "triton.log"
    with log.open("wb") as output:
        theirs = LocalTriton(program, folder / "models", Ports(*free_ports(3)), output=output)
        with theirs:
            try:
                theirs.wait_ready(60)
            except Exception as error:
                error.add_note(log.read_text())
                raise
            yield theirs.ports


@pytest.fixture
async def ours(plane: Plane) -> AsyncIterator[Ports]:  # noqa: F811 - the fixture
    servers = (
        RestServer(plane.dataplane, "127.0.0.1", HttpSettings(port=0)),
        Http2Server(plane.dataplane, "127.0.0.1", GrpcSettings(port=0), TlsSettings()),
    )
    yield Ports(await servers[0].start(), await servers[1].start(), 0)
    await asyncio.gather(*(server.stop(0) for server in servers))


@pytest.mark.parametrize("empty_final", [False, True])
@pytest.mark.parametrize("number", [0, 1, 3])
async def test_a_stream_is_answered_as_by_triton(triton: Ports, ours: Ports, number: int, empty_final: bool) -> None:
    """As many messages, with the same values, ids, models, versions and final flags."""
    asked = {"triton_enable_empty_final_response": empty_final}
    theirs, mine = [await stream(f"127.0.0.1:{ports.grpc}", asking(number, **asked)) for ports in (triton, ours)]
    assert [told(one) for one in theirs] == [told(one) for one in mine]
    for one, other in zip(theirs, mine, strict=True):
        assert one.infer_response.model_name == other.infer_response.model_name
        assert one.infer_response.model_version == other.infer_response.model_version


@pytest.mark.parametrize("number", [0, 1, 3])
async def test_events_are_those_of_triton(triton: Ports, ours: Ports, number: int) -> None:
    """The same status, content type and JSON."""
    async with httpx.AsyncClient() as client:
        theirs, mine = [
            await client.post(url(ports.http, "generate_stream"), json={"x": number, "id": "r"})
            for ports in (triton, ours)
        ]
    assert theirs.status_code == mine.status_code == 200
    assert theirs.headers["content-type"] == mine.headers["content-type"]
    assert _events(theirs.text) == _events(mine.text)


def _events(text: str) -> list[Any]:
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


async def test_generate_of_other_than_one_response_is_an_error(triton: Ports, ours: Ports) -> None:
    """Triton tells it with status 200, we with 400; one response is answered alike."""
    async with httpx.AsyncClient() as client:
        for number in (0, 3):
            theirs, mine = [await client.post(url(p.http, "generate"), json={"x": number}) for p in (triton, ours)]
            assert (theirs.status_code, mine.status_code) == (200, 400)
            assert theirs.json().keys() == mine.json().keys() == {"error"}
        theirs, mine = [await client.post(url(p.http, "generate"), json={"x": 1}) for p in (triton, ours)]
        assert theirs.json() == mine.json()
