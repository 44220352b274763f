"""Plots, tables and JSON of results."""

from __future__ import annotations

import json
import math
import re
from xml.etree import ElementTree

import pytest

from loadtests.report import Panel, as_json, svg

LINE = [(0.0, 1.0), (1.0, 2.0)]


def strokes(drawn: str) -> list[list[tuple[str, ...]]]:
    """Colour and dashes of the lines: of the legend, and of each panel."""
    parts = drawn.split("<g ")
    return [re.findall(r'stroke-width="2" stroke="(#\w+)"(?: stroke-dasharray="([\d ]+)")?', part) for part in parts]


def test_a_name_has_the_same_colour_in_the_legend_and_in_each_panel() -> None:
    """Also where the first panel has nothing to say of one: latencies of a server that refuses everything."""
    empty_first = Panel("latency", "s", {"a": [], "b": LINE}, 2.0, [0.0])
    both = Panel("errors", "s", {"a": LINE, "b": LINE}, 2.0, [0.0])
    drawn = svg([empty_first, both, Panel("nothing at all", "s", {}, 1.0, [0.0])])
    ElementTree.fromstring(drawn)  # noqa: S314 - our own
    legend, first, second, third = strokes(drawn)
    assert re.findall(r'y="22">(\w)</text>', drawn) == ["a", "b"]
    assert first == [legend[1]]
    assert second == legend
    assert third == []


@pytest.mark.parametrize("count", [1, 5, 12])
def test_lines_differ_and_the_legend_is_within_the_picture(count: int) -> None:
    """However many there are, and however long their names."""
    names = [f"rest infer a_model_with_a_long_name_{number}" for number in range(count)]
    drawn = svg([Panel("p99", "s", dict.fromkeys(names, LINE), 2.0, [0.0])])
    legend = strokes(drawn)[0]
    assert len(set(legend)) == count
    width, height = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', drawn)[0])
    at = [(float(x), float(y), name) for x, y, name in re.findall(r'<text x="([\d.]+)" y="(\d+)">(rest[^<]*)<', drawn)]
    assert [name for _, _, name in at] == names
    assert all(x + 6 * len(name) < width for x, _, name in at)
    assert len({(x, y) for x, y, _ in at}) == count
    below = float(re.findall(r"translate\(0 (\d+)\)", drawn)[0])
    assert max(y for _, y, _ in at) < below < height


def test_json_has_null_for_what_was_not_measured() -> None:
    """At any depth."""
    told = as_json({"a": [{"p99": math.nan}, (math.inf, 1.5)], "b": {99.0: -math.inf}, "c": "NaN"})
    assert json.loads(told, parse_constant=pytest.fail) == {
        "a": [{"p99": None}, [None, 1.5]],
        "b": {"99.0": None},
        "c": "NaN",
    }
