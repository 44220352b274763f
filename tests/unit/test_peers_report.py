"""The comparison with peers: the order of measuring, what counts as a right answer, and the table."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

import numpy as np
import pytest

from loadtests.benchmarks.peers.alone import limit_text, middle
from loadtests.benchmarks.peers.environments import REQUIREMENTS
from loadtests.benchmarks.peers.registry import PACKAGES, PEERS, chosen, versions
from loadtests.benchmarks.peers.results import Cell, Sample, chart, interleaved, plot, summarise, workload_table
from loadtests.benchmarks.peers.two_cores import row
from loadtests.benchmarks.peers.workloads import agree
from server.local_triton import program

CELLS = [Cell("ours-http2", "Ours", "m", count) for count in (1, 8)] + [Cell("other", "Other", "m", 8)]
LINES = [("other", "Other"), ("ours-http2", "Ours"), ("gone", "Gone")]
BATCHING = {"ours-http2": "on", "other": "off", "gone": "?"}


def sampled(cell: Cell, *rates: float) -> list[Sample]:
    return [Sample(cell, repeat, rate, 1.0, 2.0, 100, 0, 0.9, 0.4) for repeat, rate in enumerate(rates)]


def test_the_limit_is_one_run_of_several() -> None:
    """What is told of its passes is of the batch that is told."""
    runs = [
        {"batch": batch, "rows_per_s": rate, "p50_ms": p50_ms, "p99_ms": 2 * p50_ms}
        for batch, rate, p50_ms in ((1, 240.0, 4.0), (16, 250.0, 64.0), (8, 245.0, 33.0))
    ]
    found = middle(runs)
    assert (found["batch"], found["p50_ms"], found["lowest"], found["highest"]) == (8, 33.0, 240.0, 250.0)
    assert "8 a pass 245 rows/s (240 to 250), p50 / p99 of a pass 33.000 / 66.000 ms" in limit_text(
        [{**found, "draft": False}]
    )
    assert middle(runs[:2])["batch"] == 16, "the harder one to reach"


class TestOrder:
    def test_every_cell_is_measured_once_in_each_repeat(self) -> None:
        """So that a noisy minute hits one repeat of a cell, not all of them."""
        order = interleaved(CELLS, 4, seed=3)
        assert Counter(cell for _, cell in order) == dict.fromkeys(CELLS, 4)
        assert [repeat for repeat, _ in order] == [repeat for repeat in range(4) for _ in CELLS]

    def test_the_order_is_the_seeds_and_changes_from_repeat_to_repeat(self) -> None:
        """The same seed gives the same order again."""
        cells = list(range(20))
        order = interleaved(cells, 2, seed=0)
        assert order == interleaved(cells, 2, seed=0)
        assert order != interleaved(cells, 2, seed=1)
        assert [cell for repeat, cell in order if repeat == 0] != [cell for repeat, cell in order if repeat == 1]


class TestTable:
    def test_a_cell_shows_median_lowest_and_highest(self) -> None:
        """The median counts; what one repeat did is spread."""
        text = workload_table("m", LINES[1:2], [8], summarise(sampled(CELLS[1], 900, 1500, 1000)), BATCHING, {})
        assert text.splitlines()[2] == "| Ours | on | 1,000 (900 to 1,500) | 1.00 / 2.00 | 0.90 | 0.40 |"

    def test_the_fastest_comes_first_and_what_is_not_there_last_with_its_reason(self) -> None:
        """A server that can't be installed is a line, not a gap."""
        samples = sampled(CELLS[0], 10) + sampled(CELLS[1], 50) + sampled(CELLS[2], 40)
        text = workload_table("m", LINES, [1, 8], summarise(samples), BATCHING, {"gone": "can't be installed: no"})
        names = [line.split(" | ")[0].strip("| ") for line in text.splitlines()[2:]]
        assert names == ["Ours", "Other", "Gone"]
        assert text.splitlines()[-1] == "| Gone | ? | can't be installed: no | - | - | - | - | - |"
        assert {line.count("|") for line in text.splitlines()} == {9}

    def test_a_repeat_that_failed_does_not_count_and_failed_answers_are_told(self) -> None:
        """Figures come from what was measured; errors stand beside them."""
        cell = CELLS[1]
        samples = [
            Sample(cell, 0, problem="no answer"),
            Sample(cell, 1, 100, 1, 2, 100, failed=7),
            *sampled(cell, 300),
        ]
        assert summarise(samples)[cell].rate() == "200 (100 to 300, 7 failed)"

    def test_a_cell_without_any_figure_says_why(self) -> None:
        """The problem stands where the figure would."""
        summary = summarise([Sample(CELLS[1], 0, problem="wrong answer: 'a', not 'b'")])[CELLS[1]]
        assert (summary.rate(), summary.latency()) == ("wrong answer: 'a', not 'b'", "-")

    def test_two_cores_are_put_beside_one(self) -> None:
        """The ratio is that of the medians; a side that is missing leaves it open."""
        one, two = summarise(sampled(CELLS[1], 100)), summarise(sampled(CELLS[1], 190))
        assert row(CELLS[1], {1: one, 2: two}, {1: "-", 2: "-"})[-3:] == ["1.90", "2.00", "2.00"]
        assert row(CELLS[1], {1: one, 2: {}}, {1: "-", 2: "ended at once"})[3:] == ["ended at once", *["-"] * 4]


class TestPlot:
    def test_bars_are_sorted_and_names_are_escaped(self) -> None:
        """The plot is XML with a bar for each line that has a figure."""
        samples = sampled(Cell("other", "<Other> & more", "m", 8), 40, 60) + sampled(CELLS[1], 100)
        found = chart("model", "m", [("other", "<Other> & more"), *LINES], [1, 8], summarise(samples))
        assert [bar.name for bar in found.bars] == ["Ours", "<Other> & more"]
        root = ElementTree.fromstring(plot([found]))  # noqa: S314 - our own output
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "<Other> & more" in texts


class TestAnswers:
    @pytest.mark.parametrize(
        ("given", "right"),
        [
            pytest.param(np.array([1.0, 2.00001], np.float32), True, id="within the tolerance"),
            pytest.param(np.array([[1.0, 2.0]], np.float32), True, id="of another shape"),
            pytest.param(np.array([1.0, 2.1], np.float32), False, id="another value"),
            pytest.param(np.array([1.0], np.float32), False, id="too few values"),
            pytest.param(np.array([1.0, np.nan], np.float32), False, id="not a number"),
            pytest.param("1", False, id="a label in place of values"),
        ],
    )
    def test_a_row_is_right_if_its_values_are(self, given: object, right: bool) -> None:
        """Servers batch, so the last digits may differ."""
        assert agree(given, np.array([1.0, 2.0], np.float32)) is right  # type: ignore[arg-type]


class TestChoice:
    def test_a_name_stands_for_all_that_begin_with_it(self) -> None:
        """ours is both of our transports."""
        assert list(chosen("triton,ours")) == ["triton", "ours-http2", "ours-grpcio"]
        assert list(chosen(None)) == list(PEERS)

    def test_a_name_that_is_none_is_refused_with_those_that_are(self) -> None:
        """A typing error does not measure less in silence."""
        with pytest.raises(ValueError, match=r"'tritn' is none of .*triton"):
            chosen("tritn")

    def test_every_requirement_is_pinned(self) -> None:
        """The environments of peers are the same on every machine."""
        for file in (*REQUIREMENTS.glob("*.txt"), *program.REQUIREMENTS.parent.glob("requirements-*.txt")):
            lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
            assert lines
            assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.+!]+", line) for line in lines), file.name

    def test_every_peer_has_a_version(self) -> None:
        """The report names what was measured."""
        assert set(PACKAGES) == {name for name in PEERS if not name.startswith("ours")}
        assert all(re.search(r"\d", version) for version in versions().values())
