"""`forwardpass plan`: replicas, machines, energy and price of a peak, by what one replica holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from server.cli import create_app
from server.load.limits import Limits
from server.planning import BadPlan, Capacity, Fleet, Kind, make_plan, read_capacity

FILE = """
capacity:
  kinds:
    grpc infer fraud: { requestsPerSecond: 800, slo: "p50=5ms,p99=20ms,errors=0,refused=0" }
    rest predict digits: { requestsPerSecond: 50, slo: "p99=100ms,errors=0,refused=0" }
autoscaling: { targetSaturation: 0.5 }
resources: { requests: { cpu: 1500m, memory: 512Mi }, limits: { cpu: 1500m, memory: 512Mi } }
"""


@pytest.fixture
def capacity(tmp_path: Path) -> Path:
    path = tmp_path / "capacity.yaml"
    path.write_text(FILE)
    return path


def asked(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(create_app(), ["plan", *arguments])
    return result.exit_code, result.output


def test_a_peak_is_so_many_replicas_machines_joules_and_so_much_money(capacity: Path) -> None:
    """10,000 of 800 a second at half of what a replica holds: 25; ten fit a machine of 16 cores."""
    status, said = asked(
        *("--peak", "grpc infer fraud=10000rps", "--slo", "p99=20ms", "--capacity", str(capacity)),
        *("--price-per-hour", "1.5", "--watts", "200"),
    )
    assert status == 0, said
    assert said.splitlines() == [
        "replicas   25, 50% busy at the peak",
        "machines   3",
        "energy     0.06 J a request at the peak",
        "cost       4.50 an hour, 3,285 a month",
        "           0.125 for a million requests at the peak",
    ]


def test_kinds_share_the_replicas(capacity: Path) -> None:
    """Four full ones of the one and two of the other are twelve at half; without prices that is all."""
    peaks = ("--peak", "grpc infer fraud=3200/s", "--peak", "rest predict digits=100")
    status, said = asked(*peaks, "--capacity", str(capacity))
    assert (status, said.splitlines()) == (0, ["replicas   12, 50% busy at the peak", "machines   2"])


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["--peak", "100rps"], 1, "of which kind"),
        (["--peak", "grpc infer=100rps"], 1, "no capacity of 'grpc infer'"),
        (["--peak", "many"], 1, "--peak"),
        (["--peak", "grpc infer fraud=0rps"], 1, "--peak"),
        (["--peak", "grpc infer fraud=9rps", "--slo", "p99=10ms"], 1, "p99 <= 10 ms"),
        (["--peak", "grpc infer fraud=9rps", "--slo", "p99.9=100ms"], 1, "p99.9"),
        (["--peak", "grpc infer fraud=9rps", "--slo", "fast"], 2, "--slo"),
        (["--peak", "grpc infer fraud=9rps", "--machine-cores", "1"], 1, "does not fit"),
    ],
)
def test_what_can_not_be_planned_says_why(capacity: Path, arguments: list[str], status: int, why: str) -> None:
    """Another limit than was measured is not guessed at."""
    found, said = asked(*arguments, "--capacity", str(capacity))
    assert found == status
    assert why in said


def test_a_looser_limit_and_a_lower_percentile_are_held_as_well(capacity: Path) -> None:
    """What holds at p99 holds at p95."""
    status, said = asked("--peak", "grpc infer fraud=9rps", "--slo", "p95=25ms", "--capacity", str(capacity))
    assert (status, said.splitlines()[0]) == (0, "replicas   2, 1% busy at the peak")


@pytest.mark.parametrize(
    "text", ["", "[]", "capacity: {kinds: {}}", "capacity: {kinds: {a: {requestsPerSecond: 0}}}", "{"]
)
def test_a_file_without_a_capacity_is_named(tmp_path: Path, text: str) -> None:
    """And one that is not there says who writes it."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(BadPlan, match=r"x\.yaml"):
        read_capacity(path)
    with pytest.raises(BadPlan, match="make capacity"):
        read_capacity(tmp_path / "none.yaml")


@given(st.floats(1, 1e6), st.floats(0.1, 1e4), st.floats(0.05, 1), st.floats(0.1, 8))
def test_a_plan_is_enough_and_not_one_more(peak: float, per_s: float, headroom: float, cores: float) -> None:
    """At the peak no replica is above the headroom; with one fewer each would be, but for the first two."""
    capacity = Capacity({"a": Kind("a", per_s, None)}, headroom, cores)
    plan = make_plan({"a": peak}, capacity, Fleet(16))
    assert plan.busy <= headroom * (1 + 1e-6)
    assert plan.replicas == 2 or peak / per_s / (plan.replicas - 1) > headroom * (1 - 1e-6)
    assert plan.machines == math.ceil(plan.replicas / (16 // cores))


def test_limits_are_written_as_they_are_read() -> None:
    """By `make capacity`, for `plan`."""
    limits = Limits({50.0: 5.0, 99.9: 20.5}, 0.01, 0.0)
    assert Limits.parse(limits.text()) == limits
