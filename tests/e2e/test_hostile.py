"""Bad input of every layer, field by field, to one server that goes on as if nothing had been."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, ServerProcess, end, start
from tests.support.hostile.run import ENVIRONMENT, FLAGS, Line, all_cases, resident, send_all, write_keys

pytestmark = pytest.mark.e2e

PAGE = ROOT / "server" / "security" / "HOSTILE.md"
HONEST = {"501", "505", "UNIMPLEMENTED", "UNAVAILABLE"}
"""What the server does not have, and a client's own word for a connection that was ended."""
MEMORY = 10_000_000
PATIENCE_S = 5.0


class Sent:
    """What came of two rounds, and what the server held after each."""

    def __init__(self, server: ServerProcess, keys: dict[str, str]) -> None:
        ports = (server.port("REST"), server.port("gRPC"))
        cases = all_cases()
        self.lines = send_all(cases, *ports, keys)
        self.after_one = resident(server.process.pid)
        self.again = send_all(cases, *ports, keys)
        self.after_two = resident(server.process.pid)
        self.log = server.log.read_text()
        self.keys = keys


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        keys = write_keys(folder)
        server = start(folder / "server.log", "--auth-keys", str(folder / "keys.yaml"), *FLAGS)
    try:
        yield Sent(server, keys)
        assert server.process.poll() is None
    finally:
        end(server)


def test_the_page_says_what_is_answered(sent: Sent) -> None:
    """Run `python -m tests.support.hostile` after a change."""
    written = re.findall(r"^\| (.*) \| \d+ \|$", PAGE.read_text(), re.M)
    assert ["| ".join(f"{cell} " for cell in line.cells).rstrip() for line in sent.lines] == [
        row.rstrip() for row in written
    ]
    assert len(written) >= 150


def test_no_fault_is_the_servers(sent: Sent) -> None:
    """No 5xx but those that say what is not there; nothing that nobody foresaw in the log."""
    faults = [
        line for line in sent.lines if re.match(r"5\d\d|INTERNAL|UNKNOWN|UNAVAILABLE|UNIMPLEMENTED", line.answer.status)
    ]
    assert [line.cells for line in faults if line.answer.status not in HONEST] == []
    assert re.findall(r".*(?:\bERROR\b|Traceback).*", sent.log) == []


def test_each_is_answered_soon_and_the_next_request_as_ever(sent: Sent) -> None:
    both = (*sent.lines, *sent.again)
    assert [line.cells for line in both if line.good != "200"] == []
    assert [line.cells for line in both if max(line.seconds, line.good_seconds) > PATIENCE_S] == []


def test_it_is_answered_the_same_again(sent: Sent) -> None:
    """Nothing of the first round changed what the second is told."""
    assert [line.cells[:3] for line in sent.again] == [line.cells[:3] for line in sent.lines]


def test_nothing_of_it_is_kept(sent: Sent) -> None:
    """Less than 10 MB stay of a second round of all of it, bombs and all."""
    assert sent.after_two - sent.after_one < MEMORY


def test_no_message_shows_what_is_secret(sent: Sent) -> None:
    """No key, no path of the machine, no trace of Python."""
    texts = [line.answer.message for line in sent.lines]
    secret = [key.split("_", 2)[2] for key in sent.keys.values()]
    assert not [text for text in texts if any(part in text for part in (*secret, str(ROOT), "Traceback", ".py"))]


def named(lines: list[Line], layer: str) -> list[str]:
    return [line.case.name for line in lines if line.case.layer == layer]


def test_every_layer_is_there_and_no_name_twice(sent: Sent) -> None:
    layers = {line.case.layer for line in sent.lines}
    assert len(layers) >= 15
    for layer in layers:
        names = named(sent.lines, layer)
        assert len(names) == len(set(names)), layer
