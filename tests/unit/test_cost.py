"""The model of a pass's time."""

from __future__ import annotations

import random

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
    before = cost.predict_ns(4) or 0
    cost.observe(4, 0)
    assert (cost.predict_ns(4) or 0) > before / 2


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


@pytest.mark.parametrize(
    ("seed", "largest", "expected"),
    [
        ({1: 4000, 2: 8000, 4: 16000, 8: 32000}, 8, 1),
        ({1: 4000, 2: 7950, 4: 15850, 8: 31500}, 8, 1),
        ({1: 1000, 2: 1010, 4: 1020, 8: 1040}, 8, 8),
        ({1: 1000, 2: 1200, 4: 2400, 8: 4800}, 8, 2),
        ({1: 1000, 8: 1000}, 6, 6),
        ({}, 8, 8),
        ({1: 1000}, 0, 0),
    ],
)
def test_the_best_size_is_where_a_row_stops_becoming_cheaper(seed: dict[int, int], largest: int, expected: int) -> None:
    """The smallest size within a tolerance of the cheapest row; with nothing known, the largest."""
    assert CostModel(seed).best_rows(largest) == expected


def test_the_choice_recovers_from_a_wrong_seed() -> None:
    """A seed that says batching gains nothing is found out by trials, one doubling after the other."""
    cost = CostModel({1: 1000, 2: 2000, 4: 4000, 8: 8000})
    for _ in range(20_000):
        cost.observe(cost.best_rows(8), 1000)
    assert cost.best_rows(8) == 8


def test_trials_are_rare_where_they_gain_nothing() -> None:
    """Of some hundred rows one waits longer than it must, for a trial: they are not the 99th percentile."""
    cost = CostModel({rows: 1000 * rows for rows in (1, 2, 4, 8)})
    sizes = []
    for _ in range(40_000):
        sizes.append(cost.best_rows(8))
        cost.observe(sizes[-1], 1000 * sizes[-1])
    late = sum(size - 1 for size in sizes)
    assert {2, 4, 8} <= set(sizes)
    assert sum(sizes) / 2048 < late < sum(sizes) / 256


def test_sizes_not_in_use_follow_the_machine() -> None:
    """When every pass becomes slower, what was measured before must not look better for it."""
    cost = CostModel({1: 1000, 2: 2000, 4: 4000})
    for _ in range(200):
        cost.observe(1, 1300)
    assert cost.predict_ns(4) == pytest.approx(5200, rel=0.02)


def test_the_high_quantile_is_learned() -> None:
    """A tenth of the passes takes twice as long: the high quantile says so, the mean hardly; one outlier neither."""
    cost = CostModel({1: 1000})
    for number in range(2_000):
        cost.observe(1, 2000 if number % 10 == 0 else 1000)
    assert 1000 < (cost.predict_ns(1) or 0) < 1300
    assert (cost.high_ns(1) or 0) > 1500
    steady = CostModel({1: 1000})
    for _ in range(500):
        steady.observe(1, 1000)
    steady.observe(1, 10**9)
    assert (steady.high_ns(1) or 0) < 1600


def test_the_overhead_is_of_the_pass_not_of_the_compute() -> None:
    """The hand-off counts for who waits and for the best size, not for where a pass runs."""
    cost = CostModel({1: 1000, 2: 2000})
    for _ in range(100):
        cost.observe(1, 1000, 500)
    assert cost.predict_ns(1) == pytest.approx(1500, rel=0.01)
    assert cost.compute_ns(1) == pytest.approx(1000, rel=0.01)
    assert cost.best_rows(2) == 2


def test_costs_that_only_service_shows_are_found_out_soon() -> None:
    """Each pass costs more in service than in the warm-up, however many rows it has: the best size follows."""
    cost = CostModel({rows: 1000 * rows for rows in (1, 2, 4, 8)})
    time_ns = 0
    while cost.best_rows(8) < 8 and time_ns < 1_000_000:
        rows = cost.best_rows(8)
        cost.observe(rows, 1000 * rows + 800)
        time_ns += 1000 * rows + 800
    assert cost.best_rows(8) == 8


def test_a_new_model_is_like_another_but_for_its_seed() -> None:
    """What a pass costs without rows is known from two sizes; a new model takes over what does not depend on size."""
    cost = CostModel({2: 300, 4: 500})
    for _ in range(200):
        cost.observe(2, 300, 1000)
    assert cost.fixed_ns() == 100
    other = cost.like({1: 50})
    assert other.predict_ns(1) == pytest.approx(1050, rel=0.02)
    assert CostModel({4: 500}).fixed_ns() == 0


def test_a_measurement_moves_the_estimate_by_an_eighth_and_the_first_ones_by_more() -> None:
    """The first of a size by a half, for its seed may be wrong, the second by a third, and so on."""
    cost = CostModel({4: 1000})
    expected = 1000.0
    for part in (2, 3, 4, 5, 6, 7, 8, 8, 8):
        expected += (1100 - expected) / part
        cost.observe(4, 1100)
        assert cost.mean_ns(4) == pytest.approx(expected)


def test_an_outlier_counts_once_as_half_as_much_again_and_then_as_it_is() -> None:
    """Two in a row are how things are now, by four times at most; one that is not in a row is one alone."""
    cost = CostModel({1: 1000})
    cost.observe(1, 10_000)
    assert cost.mean_ns(1) == 1250
    cost.observe(1, 10_000)
    assert cost.mean_ns(1) == pytest.approx(1250 + (5000 - 1250) / 3)
    alone = CostModel({1: 1000})
    for ns in (10_000, 1250, 10_000):
        alone.observe(1, ns)
    assert alone.mean_ns(1) == pytest.approx(1250 + 625 / 4)
    just = CostModel({1: 1000})
    just.observe(1, 1500)
    just.observe(1, 10_000)
    assert just.mean_ns(1) == pytest.approx(1250 + 625 / 3), "the first was none"
    fast = CostModel({1: 1000})
    fast.observe(1, 900)
    assert fast.mean_ns(1) == 900, "the warm-up's neighbours are gone"
    fast.observe(1, 1)
    assert fast.mean_ns(1) == pytest.approx(900 + (225 - 900) / 3)


def test_the_high_quantile_moves_by_steps_of_one_size() -> None:
    """Up by nineteen of twenty where a pass is above it, else down by one; from the mean to four times it."""
    cost = CostModel({1: 1000})
    assert cost.high_ns(1) == 1200
    cost.observe(1, 1000)
    assert cost.high_ns(1) == int(1000 * (1.2 - 0.05 * 0.05))
    cost = CostModel({1: 1000})
    cost.observe(1, 1201)
    assert cost.high_ns(1) == int((cost.mean_ns(1)) * (1.2 + 0.05 * 0.95))
    cost = CostModel({1: 1000})
    cost.observe(1, 1200)
    assert cost._ratio < 1.2, "just as long is not above"
    for _ in range(200):
        cost.observe(1, 1)
    assert cost.high_ns(1) == int(cost.mean_ns(1))
    for _ in range(200):
        cost.observe(1, int(cost.mean_ns(1) * 100) + 1)
    assert cost._ratio == 4


def test_an_overhead_moves_by_an_eighth_and_never_by_more_than_a_pass() -> None:
    """A loop that hangs for seconds is no overhead."""
    cost = CostModel({1: 1000})
    cost.observe(1, 1000, 800)
    assert cost.predict_ns(1) == 1100
    cost.observe(1, 1000, 10**9)
    assert cost.predict_ns(1) == int(1100 + (1000 + 100) / 8)
    assert cost.high_ns(1) == int(1000 * cost._ratio + 100 + 1100 / 8)
    assert cost.compute_ns(1) == cost.mean_ns(1) == 1000


def test_the_fixed_part_is_where_the_line_meets_no_rows() -> None:
    """From none to the time of the smallest pass."""
    assert CostModel({1: 300, 2: 400, 4: 600}).fixed_ns() == 200
    assert CostModel({2: 100, 4: 500}).fixed_ns() == 0
    assert CostModel({2: 500, 4: 100}).fixed_ns() == 500


def test_nothing_is_known_until_something_was_measured() -> None:
    """Neither the mean, nor the compute, nor a quantile."""
    cost = CostModel()
    assert (cost.mean_ns(1), cost.compute_ns(1), cost.high_ns(1), list(cost.sizes)) == (0, None, None, [])
    cost.observe(2, 100)
    assert (cost.mean_ns(2), cost.compute_ns(4), list(cost.sizes)) == (100, 200, [2])


def test_what_is_known_of_a_new_size_changes_the_best_one_at_once() -> None:
    """It need not wait for the period's end."""
    cost = CostModel({1: 1000, 4: 4000})
    assert cost.best_rows(4) == 1
    cost.observe(2, 1000)
    assert cost.best_rows(4) == 2


def test_the_best_size_stands_until_the_period_ends() -> None:
    """Sixteen passes, by whatever sizes."""
    cost = CostModel({1: 1000, 2: 1990})
    assert cost.best_rows(2) == 1
    for _ in range(7):
        cost.observe(1, 1000)
    for _ in range(8):
        cost.observe(2, 1200)
        cost._since_trial = 0
    assert cost.best_rows(2) == 1
    cost.observe(1, 1000)
    assert cost.best_rows(2) == 2


@pytest.mark.parametrize(
    ("one", "two", "four", "best"),
    [
        (1.015, 1.005, 1.0, 2),  # one row is good enough, and two are in use
        (1.01, 1.005, 1.0, 1),
        (1.05, 1.02, 1.0, 2),
        (1.05, 1.021, 1.0, 4),
        (1.015, 1.021, 1.0, 1),  # two are not good enough any more: as if none had been in use
    ],
)
def test_the_size_in_use_stays_while_it_is_good_enough(one: float, two: float, four: float, best: int) -> None:
    """What noise moves between two sizes makes those late who are in the larger batch. A smaller one must be better."""
    cost = CostModel({1: 2000, 2: 2000, 4: 4000})
    assert cost.best_rows(4) == 2
    cost._ns = {rows: 1000.0 * rows * by_row for rows, by_row in ((1, one), (2, two), (4, four))}
    assert cost.best_rows(4) == 2, "until the period ends"
    cost._judged.clear()
    assert cost.best_rows(4) == best


@pytest.mark.parametrize(("trials", "rows"), [(0, 256), (1, 512), (2, 1024), (3, 2048), (4, 2048), (10**9, 2048)])
def test_of_so_many_rows_one_may_be_late_for_a_trial(trials: int, rows: int) -> None:
    """Each further trial of a size is half as frequent, and late are all its rows but those of the last batch."""
    cost = CostModel({rows: 1000 * rows for rows in (1, 2, 4)})
    cost._passes.update({2: trials, 4: 1} if trials else {4: 1})
    for _ in range(rows):
        assert cost.best_rows(4) == 1
        cost._since_trial += 1
    assert cost.best_rows(4) == 1
    cost._since_trial += 1
    assert cost.best_rows(4) == 2, "and not 4"
    cost._passes.update({2: 1})
    cost._passes.pop(4)
    cost._since_trial = 3 * 256
    assert cost.best_rows(4) == 1
    cost._since_trial += 1
    assert cost.best_rows(4) == 4


@pytest.mark.parametrize(("seed_ns", "rows"), [(2500, 256), (2501, 8)])
def test_what_the_warm_up_shows_to_be_dear_is_tried_soon(seed_ns: int, rows: int) -> None:
    """Once, and then as any other: it may be as dear as that."""
    cost = CostModel({1: 1000, 2: seed_ns})
    cost._since_trial = rows
    assert cost.best_rows(2) == 1
    cost._since_trial += 1
    assert cost.best_rows(2) == 2
    cost.observe(2, seed_ns)
    cost._since_trial = 512
    assert cost.best_rows(2) == 1


def test_sizes_that_service_has_not_shown_are_tried_first() -> None:
    """One after the other, then twice the best."""
    cost = CostModel({1: 1000, 2: 2000, 4: 4000, 8: 8000})
    for passes, tried in (({}, 2), ({2: 1}, 4), ({2: 1, 4: 1}, 8), ({2: 3, 4: 1, 8: 1}, 2)):
        cost._passes = dict(passes)
        cost._since_trial = 10**9
        assert cost.best_rows(8) == tried


def test_a_trial_that_is_never_filled_is_made_as_rarely_as_any() -> None:
    """Of 8 rows only 7 ever wait: they tell nothing of 8, and that is not asked for again and again."""
    cost = CostModel({rows: 1000 * rows for rows in (1, 2, 4, 8)})
    sizes = []
    for _ in range(8000):
        sizes.append(min(cost.best_rows(8), 7))
        cost.observe(sizes[-1], 1000 * sizes[-1])
    assert sizes.count(7) == 1
    assert sum(size for size in sizes[4000:] if size > 1) < 4000 / 200


def test_what_was_not_seen_for_long_is_soon_known_again() -> None:
    """A size that was out of use while the machine became faster beside it: one pass brings it half of the way up, and
    all of the way down, as one in the place of a seed."""
    cost = CostModel({1: 1000, 8: 8000})
    for _ in range(16):
        cost.observe(8, 8000)
    cost._ns[8], cost._then = 9600.0, dict(cost._ns)
    for _ in range(32):
        cost.observe(1, 1000)
    assert cost.mean_ns(8) == 9600
    cost.observe(8, 10_000)
    assert cost.mean_ns(8) == 9800
    for _ in range(32):
        cost.observe(1, 1000)
    cost.observe(8, 8000)
    assert cost.mean_ns(8) == 8000


def test_a_warm_up_amid_neighbours_is_found_wrong() -> None:
    """Larger sizes looked many times as dear as they are, and each doubling gains less than the tolerance: what all
    together gain is found out all the same, in the time of some hundred passes."""
    real = {1: 1000, 2: 1960, 4: 3840, 8: 7520}
    cost = CostModel({1: 1000, 2: 5000, 4: 14_000, 8: 30_000})
    for _ in range(300):
        rows = cost.best_rows(8)
        cost.observe(rows, real[rows])
    assert cost._best[8] == 8


def test_a_trial_is_over_once_more_rows_than_the_best_size_were_run() -> None:
    """With less room than twice the best size it is of the largest. Of too few it is made again, in its time."""
    cost = CostModel({1: 1000, 2: 1000, 3: 3000, 4: 6000})
    assert cost.best_rows(3) == 2
    cost._since_trial = 10**9
    cost.observe(2, 1000)
    assert cost._since_trial == 10**9 + 2, "rows"
    assert cost.best_rows(3) == 3
    cost.observe(3, 3000)
    assert (cost.best_rows(3), cost._trials) == (2, {3: 1})
    wide = CostModel({2: 2000, 4: 4000, 8: 8000})
    assert wide.best_rows(8) == 2
    wide._since_trial = 10**9
    assert wide.best_rows(8) == 4
    wide.observe(2, 2000)
    assert wide._since_trial == 10**9 + 2
    wide.observe(3, 3000)
    assert (wide._since_trial, wide._trials) == (0, {})
    wide._since_trial = 10**9
    assert wide.best_rows(8) == 4
    wide.observe(4, 4000)
    assert (wide._since_trial, wide._trials) == (0, {4: 1})


def test_requests_of_several_rows_put_no_trial_off() -> None:
    """One of fifty has two rows: what larger batches gain, less than the tolerance by each doubling, is found all the
    same."""
    real = {1: 1000, 2: 1964, 4: 3857, 8: 7575}
    cost = CostModel({rows: 1000 * rows for rows in real})
    for index in range(20_000):
        rows = max(cost.best_rows(8), 2 if not index % 50 else 1)
        cost.observe(rows, real[rows])
    assert cost.best_rows(8) >= 4


def test_the_drift_of_the_commonest_size_moves_those_that_did_not_occur() -> None:
    """Those that did have their own measurements; the next drift is told from here."""
    cost = CostModel({1: 1000, 2: 2000, 4: 4000})
    for _ in range(6):
        cost.observe(2, 2000)
    for _ in range(10):
        cost.observe(1, 1400)
    drift = cost.mean_ns(1) / 1000
    assert 1.3 < drift < 1.4
    assert cost.mean_ns(2) == 2000
    assert cost.mean_ns(4) == pytest.approx(4000 * drift)
    before = cost.mean_ns(1)
    for _ in range(16):
        cost.observe(1, 1400)
    assert cost.mean_ns(4) == pytest.approx(4000 * drift * cost.mean_ns(1) / before)


def test_a_size_that_was_not_there_at_the_periods_begin_tells_of_no_drift() -> None:
    """There is nothing to hold it against."""
    cost = CostModel({4: 4000})
    for _ in range(16):
        cost.observe(1, 100)
    assert cost.mean_ns(4) == 4000


def test_drifts_of_several_sizes_do_not_add_up() -> None:
    """A machine that is slow now and then, and has larger batches then: the commonest size is another one each time."""
    rng = random.Random(0)

    def compute_ns(rows: int) -> int:
        return 300_000 + 1_000_000 * rows

    cost = CostModel({rows: compute_ns(rows) for rows in (1, 2, 4, 8, 16, 32)})
    for turn in range(20_000):
        slow = turn // 100 % 2
        larger = slow or rng.random() < 0.06
        rows = rng.choice((3, 3, 3, 4) if larger else (1, 1, 1, 2))
        cost.observe(rows, int(compute_ns(rows) * (1 + 1.5 * slow) * rng.uniform(0.9, 1.1)))
        for unseen in (8, 16, 32):
            assert 1 / 12 < cost.mean_ns(unseen) / compute_ns(unseen) < 12
