"""A server under mutated messages of every method: it answers each, and is none the larger for it."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from server.transport.methods import METHODS
from tests.e2e.conftest import StartServer
from tests.support.grpc_fuzz import Tally, attack, good, made_up, resident_bytes

pytestmark = pytest.mark.e2e

ROUND = 1500
GROWTH_BYTES = 24 * 2**20
"""What caches and allocators may still take after the first round."""


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_mutated_messages(start_server: StartServer, tmp_path: Path, transport: str) -> None:
    """No fault of ours, no call without an end, no growth; a good message of each method is answered afterwards."""
    server = start_server("--grpc-transport", transport, "--trace-file", str(tmp_path / "trace.json"))
    tally = Tally()
    attack(server.grpc, made_up(1, ROUND), tally)
    settled = resident_bytes(server.process.pid)
    attack(server.grpc, made_up(2, ROUND), tally)
    grown = resident_bytes(server.process.pid) - settled
    assert tally.faults == []
    assert sum(tally.codes.values()) == 2 * ROUND
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND} <= tally.codes.keys()
    assert grown < GROWTH_BYTES
    well = Tally()
    attack(server.grpc, iter([(method, [good(method).SerializeToString()]) for method in METHODS]), well)
    refused = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}
    refused.add(grpc.StatusCode.UNAVAILABLE)  # Load and unload; of any other it would be a fault.
    assert well.faults == []
    assert well.codes.keys() <= {grpc.StatusCode.OK, *refused}
    assert well.codes[grpc.StatusCode.OK] >= len(METHODS) - 4
