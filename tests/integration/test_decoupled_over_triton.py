"""Several responses to one request, in front of a real Triton: as if its clients had asked Triton itself."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2_grpc

from server.local_triton.process import LocalTriton
from server.local_triton.program import TritonMissing, find
from tests.e2e.conftest import ROOT, ServerProcess
from tests.integration.test_decoupled import asking, stream, told, url
from tests.integration.test_decoupled_against_triton import CONFIG, MODEL
from tests.support.parts import lacking
from tests.support.tritons import in_front_of, triton

MANY = 20_000
"""More than anybody takes here; the model goes on to its end, whoever has left."""


@dataclass(frozen=True)
class Sides:
    triton: LocalTriton
    over: ServerProcess

    @property
    def grpc(self) -> tuple[str, str]:
        return f"127.0.0.1:{self.triton.ports.grpc}", self.over.grpc

    @property
    def http(self) -> tuple[int, int]:
        return self.triton.ports.http, self.over.port("REST")


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    folder = tmp_path_factory.mktemp("over_triton")
    try:
        packages = find(folder=ROOT / "build" / "triton").packages
    except TritonMissing as missing:
        lacking(str(missing))
    (folder / "models" / "m" / "1").mkdir(parents=True)
    (folder / "models" / "m" / "config.pbtxt").write_text(CONFIG)
    (folder / "models" / "m" / "1" / "model.py").write_text(MODEL.format(packages=str(packages)))
    with ExitStack() as stack:
        behind = triton(stack, folder, folder / "models")
        yield Sides(behind, stack.enter_context(in_front_of(folder, behind, repository=folder / "models")))


@pytest.mark.parametrize("empty_final", [False, True])
@pytest.mark.parametrize("number", [0, 1, 3])
async def test_responses_are_passed_on(sides: Sides, number: int, empty_final: bool) -> None:
    """The same messages as Triton's own, values, ids and final flags."""
    asked = asking(number, triton_enable_empty_final_response=empty_final)
    theirs, ours = [await stream(address, asked) for address in sides.grpc]
    assert [told(one) for one in theirs] == [told(one) for one in ours]
    assert [one.infer_response.model_version for one in theirs] == [one.infer_response.model_version for one in ours]


async def test_events_are_passed_on(sides: Sides) -> None:
    """generate_stream has one for each response, and none of Triton's own parameters in them."""
    async with httpx.AsyncClient() as client:
        theirs, ours = [await client.post(url(port, "generate_stream"), json={"x": 3}) for port in sides.http]
        assert _events(theirs.text) == _events(ours.text)
        assert (await client.post(url(sides.http[1], "generate"), json={"x": 1})).json()["y"] == 1
        assert (await client.post(url(sides.http[1], "generate"), json={"x": 2})).status_code == 400


def _events(text: str) -> list[object]:
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


async def test_a_unary_call_is_refused(sides: Sides) -> None:
    """By this server, before Triton is asked, with Triton's status."""
    for address in sides.grpc:
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(asking(1))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "decoupled transaction policy" in (caught.value.details() or "")


async def test_a_caller_that_goes_away_ends_its_call(sides: Sides) -> None:
    """The request is settled as cancelled at once, and others are served."""
    async with httpx.AsyncClient() as client:
        before = await _cancelled(client, sides.over)
        async with client.stream("POST", url(sides.http[1], "generate_stream"), json={"x": MANY}) as response:
            await anext(response.aiter_lines())
        async with asyncio.timeout(20):
            while await _cancelled(client, sides.over) == before:  # noqa: ASYNC110 - counts make no event
                await asyncio.sleep(0.05)


async def _cancelled(client: httpx.AsyncClient, server: ServerProcess) -> float:
    text = (await client.get(server.metrics)).text
    match = re.search(
        r'^nv_inference_request_failure\{model="m",reason="CANCELED",version="1"\} (\S+)$', text, re.MULTILINE
    )
    return float(match[1]) if match else 0.0
