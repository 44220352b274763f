"""The simulator of overload: what it says of the scheduler, and that it can be believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.arrivals import STEADY, bursty, poisson
from loadtests.benchmarks.simulate import LOADS, SERVERS, main, simulate
from loadtests.simulation import Engine, Fifo, clairvoyant

MS = 1_000_000
DEADLINE_NS = 100 * MS
ENGINE = Engine()
EXACT = Engine(base_ns=0, row_ns=4 * MS, noise=0.0)
SECONDS = 5.0


@pytest.mark.parametrize("process", STEADY)
@pytest.mark.parametrize("load", [0.8, 2.0, 3.0])
@pytest.mark.parametrize("server", SERVERS)
def test_every_request_is_settled_once(server: str, load: float, process: str) -> None:
    """What was offered was answered, refused or told that its time is over; nothing failed or got lost."""
    tally = simulate(server, process, load, ENGINE, DEADLINE_NS, SECONDS, seed=1).tally
    assert tally.offered == tally.in_time + tally.late + tally.refused + tally.expired
    assert tally.failed == 0


@pytest.mark.parametrize("process", STEADY)
@pytest.mark.parametrize("load", LOADS)
def test_an_expired_request_is_never_executed(load: float, process: str) -> None:
    """No pass begins with a request whose deadline is over, whatever the load."""
    assert simulate("ours", process, load, ENGINE, DEADLINE_NS, SECONDS, seed=2).tally.executed_expired == 0


@pytest.mark.parametrize("seed", [3, 4, 5])
@pytest.mark.parametrize("process", STEADY)
@pytest.mark.parametrize("load", [1.2, 2.0, 3.0])
def test_goodput_beyond_saturation_is_nearly_all_that_is_possible(load: float, process: str, seed: int) -> None:
    """Above the baselines, and at least 95 % of what a server that knew the future would answer in time."""
    goodput = {
        server: simulate(server, process, load, ENGINE, DEADLINE_NS, SECONDS, seed).goodput for server in SERVERS
    }
    assert goodput["ours"] >= max(goodput["fixed window"], goodput["unbounded queue"])
    assert goodput["ours"] >= 0.95 * goodput["clairvoyant bound"]


def test_below_saturation_everybody_is_answered_in_time() -> None:
    """At 0.8 of capacity hardly any of Poisson's arrivals is refused, late or expired."""
    tally = simulate("ours", "poisson", 0.8, ENGINE, DEADLINE_NS, 20.0, seed=0).tally
    assert tally.in_time >= 0.995 * tally.offered


@pytest.mark.parametrize("process", STEADY)
def test_the_same_seed_is_the_same_run(process: str) -> None:
    """Arrivals and passes are seeded and the clock is simulated: nothing of the machine shows."""
    first, second = (simulate("ours", process, 2.0, ENGINE, DEADLINE_NS, 2.0, seed=6).tally for _ in range(2))
    assert first == second
    assert first != simulate("ours", process, 2.0, ENGINE, DEADLINE_NS, 2.0, seed=7).tally


def test_the_arrivals_have_the_rate_that_was_asked_for() -> None:
    """Both processes, over a time that is long against their bursts, ascending."""
    for process in (poisson, bursty):
        times = process(200.0, 500.0, 8)
        assert times == sorted(times)
        assert len(times) == pytest.approx(200 * 500, rel=0.05)


def test_the_bursty_process_is_burstier_than_poisson() -> None:
    """The count in windows of 100 ms varies as its mean for Poisson, and by far more for the other."""

    def dispersion(times: list[int]) -> float:
        counts = [0] * 1000
        for at_ns in times:
            counts[at_ns // (100 * MS)] += 1
        mean = sum(counts) / len(counts)
        return sum((count - mean) ** 2 for count in counts) / len(counts) / mean

    assert dispersion(poisson(200.0, 100.0, 9)) == pytest.approx(1.0, abs=0.2)
    assert dispersion(bursty(200.0, 100.0, 9)) > 5


def test_a_window_waits_for_company_and_ends_when_the_batch_is_full() -> None:
    """Three arrivals in a window of 5 ms go together at its end; two fill a batch of two at once."""
    window = Fifo(max_batch_size=8, window_ns=5 * MS)([0, 1 * MS, 2 * MS], EXACT, DEADLINE_NS, 0)
    assert window.latencies_ns == [17 * MS, 16 * MS, 15 * MS]
    full = Fifo(max_batch_size=2, window_ns=5 * MS)([0, 1 * MS], EXACT, DEADLINE_NS, 0)
    assert full.latencies_ns == [9 * MS, 8 * MS]


def test_a_baseline_executes_the_expired_and_refuses_beyond_its_queue() -> None:
    """Its queue holds two: of four who arrive during a long pass two are refused, and two are run too late."""
    slow = Engine(base_ns=0, row_ns=200 * MS, noise=0.0)
    tally = Fifo(max_batch_size=2, window_ns=0, max_queue_size=2)([0, 1, 2, 3, 4], slow, DEADLINE_NS, 0)
    assert (tally.refused, tally.executed_expired, tally.late, tally.passes) == (2, 2, 3, 2)


def test_the_bound_leaves_out_whoever_would_be_late() -> None:
    """25 rows of 4 ms fit into 100 ms: of 40 who come at once the first 25 are answered."""
    tally = clairvoyant([0] * 40, EXACT, DEADLINE_NS, 0)
    assert (tally.in_time, tally.refused, tally.late) == (25, 15, 0)


def test_the_report_is_written_and_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a line for each server, load and process; the plot has a line for each server in each panel."""
    assert main(["--seconds", "0.5", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "simulate.md").read_text()
    assert capsys.readouterr().out == text
    for server in SERVERS:
        assert text.count(f"| {server} |") == len(LOADS) * len(STEADY)
    assert (tmp_path / "simulate.svg").read_text().count('stroke-width="2"') == len(SERVERS) * 5
