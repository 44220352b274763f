"""What passes cost, by class of length and by device."""

from __future__ import annotations

import pytest

from server.scheduler.cost import CostModel
from server.scheduler.costs import CostsByDevice, CostsByLength, size_of

LINE = {16: {1: 200, 2: 300, 4: 500}, 64: {1: 500, 2: 900, 4: 1700}}
"""100 for the pass and 6.25 an element at both."""


def mean(costs: CostsByLength, signature: object, rows: int) -> int:
    return costs.for_signature(signature).predict_ns(rows) or 0


def test_one_class_is_its_own_book() -> None:
    """Where no size varies a cost model stands for all signatures and devices."""
    cost = CostModel({1: 100})
    assert cost.on("gpu0").for_signature(None) is cost
    assert cost.speed("gpu0") == 1


@pytest.mark.parametrize(
    ("signature", "size"),
    [(None, 0), (48, 48), (((3, 4), (5,)), 17), (((0,),), 0), (((),), 1)],
    ids=["no size varies", "a bucket", "two inputs", "no elements", "a scalar"],
)
def test_the_size_of_a_signature(signature: object, size: int) -> None:
    """A bucket's length, else the elements of a row over all inputs."""
    assert size_of(signature) == size


def test_each_bucket_has_what_was_measured_for_it() -> None:
    """A bucket that the warm-up reached is told as measured, and learns for itself alone."""
    costs = CostsByLength(LINE, (16, 64))
    assert (mean(costs, 16, 4), mean(costs, 64, 4)) == (500, 1700)
    for _ in range(50):
        costs.for_signature(64).observe(4, 3000)
    assert mean(costs, 64, 4) == pytest.approx(3000, rel=0.02)
    assert mean(costs, 16, 4) == 500


@pytest.mark.parametrize(
    ("size", "expected"),
    [(32, 900), (128, 3300), (8, 300)],
    ids=["between two, on the line", "beyond, in proportion but for the pass", "below, in proportion but for the pass"],
)
def test_a_class_without_a_pass_is_estimated_by_its_neighbours(size: int, expected: int) -> None:
    """The estimate follows the length and keeps what a pass costs without rows."""
    costs = CostsByLength(LINE, (8, 16, 32, 64, 128))
    assert mean(costs, size, 4) == pytest.approx(expected, rel=0.01)


def test_an_unknown_length_is_never_free() -> None:
    """However short, a pass costs what it costs without rows; with nothing known nothing is said."""
    costs = CostsByLength(LINE, (1, 16, 64))
    assert mean(costs, 1, 1) >= 100
    assert CostsByLength({}, (16,)).for_signature(16).predict_ns(1) is None


@pytest.mark.parametrize("size", [4, 16, 1 << 20])
def test_sizes_that_were_measured_backwards_make_no_time_negative(size: int) -> None:
    """A larger batch may have been measured faster than a smaller one, by chance: a class that is estimated from them,
    many times longer, still takes time, and has a best size."""
    for seed in ({1: 1000, 2: 400, 8: 900}, {1: 500, 8: 100}, {1: 300, 2: 100, 4: 350}):
        cost = CostsByLength({16: seed}, (4, 16, 1 << 20)).for_signature(size)
        assert all((cost.predict_ns(rows) or 0) > 0 for rows in (1, 2, 3, 4, 8, 32))
        assert 1 <= cost.best_rows(8) <= 8


def test_lengths_beyond_the_buckets_share_classes_by_powers_of_two() -> None:
    """So an unbounded number of lengths is a bounded number of cost models."""
    costs = CostsByLength(LINE, (16, 64))
    assert costs.for_signature(65) is costs.for_signature(128)
    assert costs.for_signature(129) is not costs.for_signature(128)


def test_shapes_of_like_size_share_a_class() -> None:
    """Without buckets the elements of a row say the class, whatever their shape."""
    costs = CostsByLength({((3, 100, 100),): {1: 30_000}})
    assert costs.for_signature(((3, 90, 100),)) is costs.for_signature(((3, 100, 90),))
    assert mean(costs, ((3, 200, 200),), 1) == 4 * 30_000


def test_signatures_without_end_do_not_fill_the_memory() -> None:
    """What is kept of signatures is bounded, and a class keeps what it learned."""
    costs = CostsByLength({((8,),): {1: 100}})
    first = costs.for_signature(((8,),))
    first.observe(1, 150)
    for length in range(5000):
        costs.for_signature(((length,),))
    assert len(costs._of) <= 1024
    assert costs.for_signature(((8,),)) is first


def test_a_new_class_starts_with_the_overhead_of_its_neighbour() -> None:
    """What a hand-off costs is the same for all lengths."""
    costs = CostsByLength(LINE, (16, 64, 128))
    for _ in range(100):
        costs.for_signature(64).observe(1, 500, 1000)
    assert mean(costs, 128, 1) == pytest.approx(900 + 1000, rel=0.05)


def test_devices_have_their_own_costs() -> None:
    """Instances of one device share a model; what one device learns says nothing of another."""
    costs = CostsByDevice({"cpu": CostModel({1: 1000}), "gpu0": CostModel({1: 100, 8: 200})}, 8)
    costs.on("cpu").for_signature(None).observe(1, 1100)
    assert costs.on("gpu0").for_signature(None).predict_ns(1) == 100


def test_the_speed_of_a_device_is_told_by_the_rows_it_does() -> None:
    """The fastest, by rows in a time, is 1 and stands for the model; one of unknown cost is not taken for slow."""
    gpu, cpu = CostModel({1: 100, 8: 200}), CostModel({1: 100, 8: 800})
    costs = CostsByDevice({"cpu": cpu, "gpu0": gpu, "gpu1": CostModel()}, 8)
    assert costs.for_signature(None) is gpu
    assert costs.speed("gpu0") == 1
    assert costs.speed("cpu") == pytest.approx(0.25)
    assert costs.speed("gpu1") == 1
