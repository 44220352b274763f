"""`forwardpass tune`: what is tried, what is kept, what is written; the servers are a formula here."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from server.load.search import Found, Probe
from server.proto.triton import model_config_pb2 as pb
from server.repository.config_text import parse_text
from server.tuning.choices import Choice, applied, axes, present
from server.tuning.run import Bar, best_of, rows, verdict
from server.tuning.search import Failed, Trial, Tried, tune

FIRST = Choice(workers=1, instances=1, threads=0, max_batch_size=32, delay_us=-1)
CONFIG = """
name: "m" backend: "onnxruntime" max_batch_size: 32
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
instance_group { count: 1 }
dynamic_batching { preferred_batch_size: [ 4, 32 ] }
"""


class Formula:
    """A server whose highest rate is a function of its choice."""

    def __init__(self, rate: Callable[[Choice], float]) -> None:
        self.rate = rate
        self.searched: list[Choice] = []
        self.served: list[Choice] = []

    def attempt(self, choice: Choice, measure: Callable[[Trial], None]) -> None:
        self.served.append(choice)
        most = self.rate(choice)
        if most < 0:
            raise Failed("no such batch")
        outer = self

        class At:
            def reaches(self, rate: float) -> Probe:
                return Probe(rate, () if rate <= most else ("p99 50 ms, over 20",), latency_ms={50.0: 1.0, 99.0: 50.0})

            def highest(self, guess: float | None) -> Found:
                outer.searched.append(choice)
                return Found(most, "slo", (Probe(most, (), latency_ms={50.0: 1.0, 99.0: 19.0}),) if most else ())

        measure(At())


def never() -> bool:
    return False


def test_the_best_is_found_one_thing_after_the_other() -> None:
    """Two instances, and then a smaller batch; only what is better is measured to its end."""

    def rate(choice: Choice) -> float:
        return 100 * (1.5 if choice.instances == 2 else 1) * (1.2 if choice.max_batch_size == 8 else 1)

    server = Formula(rate)
    found = tune(FIRST, 2, True, server.attempt, never)
    best = best_of(found)
    assert best is not None
    assert (best.choice.instances, best.choice.max_batch_size, best.rate) == (2, 8, pytest.approx(180))
    assert len(server.searched) == 3
    assert len(set(server.served)) == len(found)
    assert verdict(found) == "The best one, config.pbtxt.tuned, holds 180 requests/s, 1.80 times the 100 before."


def test_what_is_not_clearly_better_changes_nothing() -> None:
    """Two percent."""
    found = tune(FIRST, 2, True, Formula(lambda one: 102 if one.threads == 1 else 100).attempt, never)
    assert best_of(found) is found[0]
    assert "is the best of" in verdict(found)
    assert all(one.note.startswith("at 103/s: p99") for one in found[1:])


def test_a_quiet_minute_is_not_taken_for_a_better_configuration() -> None:
    """All are alike, and answer half as much again from the fourth window on: the first one stays, at its new rate."""
    server = Formula(lambda _: 100 if len(server.served) < 4 else 150)
    found = tune(FIRST, 2, True, server.attempt, never)
    best = best_of(found)
    assert best is not None
    assert (best.choice, best.rate) == (FIRST, 150)
    assert [one.note for one in found if one.note.startswith("so does")] == ["so does the best one, asked again"]
    assert verdict(found).startswith("The config that is there is the best of")


def test_what_can_not_be_served_is_noted_and_the_search_goes_on() -> None:
    """The first one alone must be there."""
    found = tune(FIRST, 2, True, Formula(lambda one: -1 if one.max_batch_size == 8 else 100).attempt, never)
    assert [one.note for one in found if one.choice.max_batch_size == 8] == ["can't be served: no such batch"]
    with pytest.raises(Failed):
        tune(FIRST, 2, True, Formula(lambda _: -1).attempt, never)


def test_where_nothing_holds_that_is_said() -> None:
    """No best."""
    found = tune(FIRST, 1, True, Formula(lambda _: 0).attempt, never)
    assert best_of(found) is None
    assert "Nothing" in verdict(found)


def test_a_later_choice_may_hold_where_the_first_does_not() -> None:
    """Then it is the best, whatever its rate."""
    found = tune(FIRST, 1, True, Formula(lambda one: 50 if one.max_batch_size == 8 else 0).attempt, never)
    best = best_of(found)
    assert best is not None
    assert best.choice.max_batch_size == 8
    assert verdict(found) == "The best one, config.pbtxt.tuned, holds 50 requests/s."


def test_nothing_is_begun_when_the_time_is_over() -> None:
    """After three."""
    server = Formula(lambda _: 100)
    found = tune(FIRST, 4, True, server.attempt, lambda: len(server.served) >= 3)
    assert len(found) == 3


class TestChoices:
    """Configs and back."""

    @pytest.mark.parametrize(
        "choice",
        [
            FIRST,
            Choice(2, 3, 2, 8, 500),
            Choice(1, 1, 1, 1, -1),
        ],
    )
    def test_what_is_applied_is_what_the_config_says(self, choice: Choice) -> None:
        """But for the workers, which are the server's."""
        made = applied(parse_text(CONFIG, "m"), choice)
        assert present(made) == Choice(1, *list(vars(choice).values())[1:])

    def test_all_else_stays(self) -> None:
        """Preferred sizes that no longer fit go."""
        before = parse_text(CONFIG, "m")
        assert applied(before, FIRST) == before
        made = applied(before, Choice(1, 1, 0, 8, -1))
        assert list(made.dynamic_batching.preferred_batch_size) == [4]
        assert made.input == before.input

    def test_a_config_without_an_instance_group_gets_one(self) -> None:
        """Two instances."""
        assert applied(pb.ModelConfig(name="m"), Choice(1, 2, 0, 0, -1)).instance_group[0].count == 2

    def test_batches_are_varied_only_where_there_are_any(self) -> None:
        """Sizes go down from the config's own."""
        assert axes(FIRST, 2, True)["max_batch_size"] == [32, 8, 2, 1]
        assert set(axes(FIRST, 2, False)) == {"workers", "instances", "threads"}
        assert axes(FIRST, 6, True)["workers"] == [1, 2, 4, 6]


def test_the_bar_is_lines_where_nobody_watches() -> None:
    """And drawn where somebody does."""
    tried = Tried(FIRST, 100.0, Probe(100.0, (), latency_ms={50.0: 1.0, 99.0: 2.0}), "", better=True)
    out = io.StringIO()
    bar = Bar(60, out)
    bar.tell(tried)
    assert out.getvalue() == "workers 1, instances 1, threads auto, batch 32, delay auto: 100/s\n"

    watched = io.StringIO()
    watched.isatty = lambda: True  # type: ignore[method-assign]
    bar = Bar(60, watched)
    bar.tell(tried)
    assert "1 tried, best 100/s" in watched.getvalue()
    assert not bar.over()
    assert Bar(0.0001, watched).over() in (True, False)


def test_the_table_has_a_line_for_each() -> None:
    """What did not hold says at which rate."""
    found = [
        Tried(FIRST, 100.0, Probe(100.0, (), latency_ms={50.0: 1.0, 99.0: 2.0}), "", better=True),
        Tried(FIRST, 0.0, Probe(103.0, ("p99",), latency_ms={50.0: 1.0, 99.0: 50.0}), "at 103/s: p99", better=False),
        Tried(FIRST, 0.0, None, "can't be served: why", better=False),
    ]
    assert [line[1:] for line in rows(found)] == [
        ("100", "1.00", "2.00", "best"),
        ("< 103", "1.00", "50.00", "at 103/s: p99"),
        ("", "", "", "can't be served: why"),
    ]
