"""Every call of tritonclient's public API, by its four clients, to a real Triton and to our server: what it answers,
and the status where it does not. Where they are meant to differ, `differences.py` says so, and that is held as well."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc
import tritonclient.http

from server.local_triton.process import Ports
from server.local_triton.program import TritonMissing, find
from tests.e2e.conftest import ROOT
from tests.integration.triton_api import calls
from tests.integration.triton_api.calls import CALLS, GRPC
from tests.integration.triton_api.differences import DIFFERENCES, markdown, short
from tests.integration.triton_api.servers import Api, both, outcome, same
from tests.support.parts import lacking

ASKED = [pytest.param(name, kind, id=f"{name} [{kind}]") for name, asked in CALLS.items() for kind in asked.kinds]
NOT_OF_A_SERVER = {"close", "plugin", "register_plugin", "unregister_plugin", "generate_request_body"} | {
    "parse_response_body"
}


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ports, Ports]]:
    """Triton's ports, and ours."""
    try:
        program = find(folder=ROOT / "build" / "triton")
    except TritonMissing as missing:
        lacking(str(missing))
    with both(program, tmp_path_factory.mktemp("compared")) as ports:
        yield ports


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "kind"), ASKED)
def test_a_call_is_answered_as_by_triton(sides: tuple[Ports, Ports], name: str, kind: str) -> None:
    """Values, shapes, datatypes, names and statuses; or just the difference that is meant."""
    theirs, ours = (outcome(CALLS[name].ask, Api(kind, side)) for side in sides)
    difference = DIFFERENCES[name].of(kind) if name in DIFFERENCES else None
    if difference is None:
        assert same(theirs, ours), f"Triton: {theirs}\nhere: {ours}"
    else:
        assert (short(theirs), short(ours)) == difference


@pytest.mark.e2e
@pytest.mark.parametrize("kind", GRPC)
def test_a_clients_timeout_is_told_as_grpc_does(sides: tuple[Ports, Ports], kind: str) -> None:
    """By ours alone: Triton 2.51 may crash by it (see `server/engine/triton/cancellation.py`). No time is up to a
    millisecond for grpc, which rounds, so an answer may be there before it is over."""
    api = Api(kind, sides[1])
    told = {str(outcome(lambda api: api.infer(client_timeout=0.0), api)) for _ in range(50)}
    assert "error StatusCode.DEADLINE_EXCEEDED" in told


def test_every_method_of_the_clients_is_asked() -> None:
    """A method that a new tritonclient brings has to be looked at."""
    source = inspect.getsource(calls)
    for module in (tritonclient.grpc, tritonclient.http):
        methods = {name for name in dir(module.InferenceServerClient) if not name.startswith("_")} - NOT_OF_A_SERVER
        assert {name for name in methods if name not in source} == set()


def test_the_page_shows_the_differences() -> None:
    """The table in the docs is that of `differences.py`, and each line is of a call that is made."""
    page = Path(ROOT / "server" / "transport" / "triton_calls.md").read_text()
    assert markdown() in page
    assert DIFFERENCES.keys() <= CALLS.keys()
