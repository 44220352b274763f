"""The model of a pass's time."""

from __future__ import annotations

import pytest

from server.scheduler.cost import CostModel


def test_nothing_measured_is_not_zero() -> None:
    """An unknown cost is None, never a number that looks cheap."""
    assert CostModel().predict_ns(4) is None


@pytest.mark.parametrize(
    ("rows", "expected_ns"),
    [(2, 200), (4, 300), (3, 250), (1, 200), (8, 500), (6, 400), (16, 900)],
)
def test_prediction(rows: int, expected_ns: int) -> None:
    """Known sizes as measured, interpolated between, the smallest's below, the last slope beyond."""
    assert CostModel({2: 200, 4: 300, 8: 500}).predict_ns(rows) == expected_ns


def test_one_size_known() -> None:
    """From one size alone larger passes are expected to cost in proportion."""
    assert CostModel({2: 200}).predict_ns(6) == 600


def test_larger_is_never_predicted_cheaper_than_the_largest_known() -> None:
    """A falling slope at the end is noise: it is not followed below the largest size's time."""
    assert CostModel({1: 500, 2: 400}).predict_ns(50) == 400


def test_it_learns_a_change() -> None:
    """A lasting change is followed, up and down."""
    cost = CostModel({4: 1000})
    for _ in range(60):
        cost.observe(4, 9000)
    assert cost.predict_ns(4) == pytest.approx(9000, rel=0.01)
    for _ in range(60):
        cost.observe(4, 1000)
    assert cost.predict_ns(4) == pytest.approx(1000, rel=0.01)


def test_one_outlier_moves_little() -> None:
    """A single pass that took a thousand times as long changes the prediction by less than a half."""
    cost = CostModel({4: 1000})
    cost.observe(4, 1_000_000)
    assert 1000 < (cost.predict_ns(4) or 0) < 1500
    cost.observe(4, 0)
    assert (cost.predict_ns(4) or 0) > 1000


def test_the_first_pass_of_a_size_may_be_an_outlier_too() -> None:
    """An unknown size's first time is held against what its neighbours let expect."""
    cost = CostModel({2: 200, 4: 400})
    cost.observe(3, 1_000_000)
    assert cost.predict_ns(3) == 4 * 300


def test_the_very_first_pass_is_believed() -> None:
    """With nothing known the first measurement is all there is; later sizes are added in order."""
    cost = CostModel()
    cost.observe(4, 400)
    assert cost.predict_ns(4) == 400
    cost.observe(2, 300)
    assert cost.predict_ns(3) == 350
