"""The table of the recipes, in the exporter's README."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.examples import MARKERS, README, table, write

ROW = {
    "recipe": "regression",
    "command": "forwardpass train regression",
    "metric": "r2 0.5",
    "baseline": "0.4 (ridge)",
    "certificate": "`quantiles` 1e-06 at most",
    "synthetic": "yes",
    "answer": "3 from 1 to 5",
}


def test_the_table_stands_between_its_markers(tmp_path: Path) -> None:
    """What is around it stays, what was there goes; without markers nothing is written."""
    page = tmp_path / "README.md"
    page.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    write(table([ROW]), page)
    text = page.read_text()
    assert text.startswith(f"before\n{MARKERS[0]}\n\n| recipe and command |")
    assert text.endswith(f"| `3 from 1 to 5` |\n\n{MARKERS[1]}\nafter\n")
    assert "`forwardpass train regression (synthetic data)`" in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="not found"):
        write("x", page)
    assert page.read_text() == "no markers"


def test_the_exporters_page_has_the_markers() -> None:
    """In their order, once each."""
    text = README.read_text()
    assert [text.count(marker) for marker in MARKERS] == [1, 1]
    assert text.index(MARKERS[0]) < text.index(MARKERS[1])
