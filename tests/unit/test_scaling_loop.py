"""The autoscaler's rule as Kubernetes has it, and the day that is simulated with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.benchmarks.simulate_scaling import main
from loadtests.hpa import Autoscaler, chart, wanted
from loadtests.scaling_day import SIGNALS, Pod, live, serve, traffic

BEHAVIOR = {
    "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]},
    "scaleDown": {
        "stabilizationWindowSeconds": 60,
        "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}],
    },
}


@pytest.mark.parametrize(
    ("metrics", "replicas", "count"),
    [
        ([1.4, 1.4], 2, 4),
        ([0.75, 0.72], 2, 2),
        ([0.2, 0.2, 0.2, 0.2], 4, 2),
        ([2.8, 2.8, None, None], 4, 8),
        ([1.4, 1.4, None, None], 4, 4),
        ([0.8, None], 2, 2),
        ([None, None], 2, 2),
    ],
    ids=["twice", "within the tolerance", "fewer", "still not enough", "enough are starting", "one starts", "none is"],
)
def test_the_count_is_the_documented_formulas(metrics: list[float | None], replicas: int, count: int) -> None:
    """ceil(replicas * metric / target); pods that start count as idle, and turn no wish round."""
    assert wanted(metrics, replicas, 0.7) == count


def test_up_by_the_policies_and_down_after_the_window() -> None:
    """Four more in fifteen seconds; down by half a minute's worth, once the highest wish is a minute old."""
    autoscaler = Autoscaler(0.7, 1, 50, BEHAVIOR)
    assert autoscaler.replicas(0, [7.0], 1) == 5
    assert autoscaler.replicas(10, [7.0] * 5, 5) == 5
    assert autoscaler.replicas(16, [7.0] * 5, 5) == 9
    assert autoscaler.replicas(30, [0.01] * 9, 9) == 9
    assert autoscaler.replicas(80, [0.01] * 9, 9) == 4
    assert autoscaler.replicas(90, [0.01] * 4, 4) == 4
    assert autoscaler.replicas(141, [0.01] * 4, 4) == 2


@given(
    st.lists(st.floats(0, 5), min_size=2, max_size=40),
    st.integers(1, 5),
    st.integers(6, 30),
)
def test_the_count_stays_within_its_bounds(loads: list[float], least: int, most: int) -> None:
    """Whatever the metric does; and what is steady and on target is never changed."""
    autoscaler, replicas = Autoscaler(0.7, least, most), least
    for index, load in enumerate(loads):
        replicas = autoscaler.replicas(15.0 * index, [load] * replicas, replicas)
        assert least <= replicas <= most
    for index in range(5):
        steady = autoscaler.replicas(1e6 + 15 * index, [0.7] * replicas, replicas)
        assert steady == replicas


def test_it_goes_by_the_charts_own_values() -> None:
    """The behaviour that is simulated is the one that is shipped."""
    assert Autoscaler(0.7, 1, 2).behavior == chart()["behavior"]


def test_a_pod_holds_its_objective_up_to_the_use_that_the_signal_allows() -> None:
    """There about one in a hundred is late, far below hardly any, beyond the whole all that is too much."""
    pod = Pod()
    edge = pod.per_s * pod.use()
    assert 0.001 < serve(edge, 1, pod).late < 0.02
    assert serve(edge / 2, 1, pod).late < 1e-5
    assert serve(2 * pod.per_s, 1, pod).late == pytest.approx(0.5)
    assert serve(10, 0, pod).late == 1


def test_saturation_keeps_the_day_where_cpu_and_queue_time_do_not() -> None:
    """Of the same traffic, crowds and all: fewer late than CPU at the same target; no hunting as queue time's."""
    rates = traffic(1000, 1)[20_000:60_000]
    days = {signal: live(signal, rates) for signal in ("saturation", "CPU", "queue time")}
    late = {signal: day.late / day.offered for signal, day in days.items()}
    assert late["saturation"] < 0.5 * late["CPU"]
    assert days["saturation"].flaps < 0.2 * days["queue time"].flaps


def test_a_steady_load_is_served_by_a_steady_count() -> None:
    """No change after the first minutes, by saturation."""
    day = live("saturation", [1500.0] * 3600)
    assert len(set(day.pods[10:])) == 1
    assert day.flaps == 0


def test_the_same_seed_writes_the_same_report(tmp_path: Path) -> None:
    """A table with a line for each signal, and a plot below 80 KB."""
    assert main(["--hours", "3", "--seed", "3", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "scaling_day.md").read_text()
    assert all(f"| {signal} |" in text for signal in SIGNALS)
    assert 5_000 < (tmp_path / "scaling_day.svg").stat().st_size < 80_000
