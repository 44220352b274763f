"""Splits by time and by group, near duplicates, conflicts: what reaches which side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from exporter.config import make_config
from exporter.data.clean import clean, clean_numbers, leaks, times
from exporter.data.split import divided
from exporter.data.tabular import RawTable, read_file
from exporter.errors import DataError, UsageError
from exporter.recipes.base import RunConfig, Split


def config(split: str, column: str = "") -> RunConfig:
    return RunConfig(recipe="regression", data="-", name="m", split=split, split_column=column)


def raw(frame: pd.DataFrame, target: str = "label") -> RawTable:
    return RawTable("table", "0" * 64, target, frame, tuple(f"row {n}" for n in range(1, len(frame) + 1)))


def test_by_time_the_latest_rows_are_tested() -> None:
    """Train is before validation, validation before test; rows of one time stay together."""
    order = np.repeat(np.arange(20.0), 5)[np.random.default_rng(0).permutation(100)]
    found = divided(config("time", "when"), 100, order=order)
    times_of = {split: order[rows] for split, rows in found.items()}
    assert times_of[Split.TRAIN].max() < times_of[Split.VALIDATION].min()
    assert times_of[Split.VALIDATION].max() < times_of[Split.TEST].min()
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(100))


def test_by_group_no_group_is_on_two_sides() -> None:
    """All rows of a group are in one split, and the seed decides which."""
    groups = np.array([f"g{n % 17}" for n in range(200)], dtype=object)
    found = divided(config("group", "who"), 200, groups=groups)
    sides = [set(groups[rows].tolist()) for rows in found.values()]
    assert sum(map(len, sides)) == 17
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(200))
    assert 30 <= len(found[Split.TEST]) <= 60
    again = divided(config("group", "who"), 200, groups=groups)
    assert all((found[split] == again[split]).all() for split in Split)


def test_too_little_to_split_is_refused() -> None:
    """Two groups, one time, five rows."""
    with pytest.raises(DataError, match="2 groups"):
        divided(config("group", "who"), 20, groups=np.array(["a", "b"] * 10, dtype=object))
    with pytest.raises(DataError, match="different times"):
        divided(config("time", "when"), 20, order=np.zeros(20))
    with pytest.raises(DataError, match="5 rows"):
        divided(config("random"), 5)
    with pytest.raises(DataError, match="no row of 1 labels"):
        divided(config("time", "t"), 20, order=np.arange(20.0), targets=np.array([0] * 19 + [1]))


def test_times_are_numbers_or_dates() -> None:
    """Seconds, ISO 8601 texts, real dates; what is neither is missing."""
    assert times(pd.Series([3, 1])).tolist() == [3.0, 1.0]
    assert times(pd.Series(["3", "1.5"], dtype=object)).tolist() == [3.0, 1.5]
    found = times(pd.Series(["1970-01-02", "1970-01-01T00:00:30+00:00", "7", "soon", None], dtype=object))
    assert found[:3].tolist() == [86400.0, 30.0, 7.0]
    assert np.isnan(found[3:]).all()
    assert times(pd.Series(pd.to_datetime(["1970-01-02"]))).tolist() == [86400.0]


def table(rows: int = 60) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "size": generator.normal(size=rows).round(6),
            "colour": generator.choice(["red", "blue"], rows),
            "when": np.arange(rows),
            "label": np.where(np.arange(rows) % 2, "a", "b"),
        }
    )


def test_near_duplicates_are_dropped_and_conflicts_told() -> None:
    """Equal in five digits and but for case and spaces: dropped with the same label, told with another."""
    frame = table()
    near, other = frame.iloc[4].copy(), frame.iloc[7].copy()
    near["size"] *= 1 + 1e-8
    near["colour"] = f" {near['colour'].upper()}"
    other["label"] = "b"
    frame = pd.concat([frame, pd.DataFrame([near, other])], ignore_index=True).drop(columns="when")
    found = clean(raw(frame))
    assert [(d.where, d.reason) for d in found.duplicates] == [("row 61", "nearly equal to row 5")]
    assert "1 rows are nearly equal to one with another label: row 62 is 'b' and row 8 'a'" in found.notes
    assert len(found.targets) == 61


def test_rows_on_both_sides_are_counted() -> None:
    """A conflict that the split puts on both sides is leakage."""
    keys = np.array([1, 2, 3, 1, 2, 9], dtype=np.uint64)
    splits = {Split.TRAIN: np.array([0, 1, 2]), Split.VALIDATION: np.array([3]), Split.TEST: np.array([4, 5])}
    assert leaks(keys, splits) == 2


def test_the_column_that_splits_is_no_feature() -> None:
    """Neither times nor groups are learnt from; rows without one are broken."""
    frame = table().astype({"when": object})
    frame.loc[3, "when"] = None
    found = clean(raw(frame), config("time", "when"))
    assert list(found.columns) == ["size", "colour"]
    assert found.order is not None
    assert found.order.tolist() == [float(n) for n in range(60) if n != 3]
    assert [(d.where, d.reason) for d in found.broken] == [
        ("row 4", "when: neither a number nor a date like 2024-01-31")
    ]
    by_group = clean(raw(table()), config("group", "colour"))
    assert list(by_group.columns) == ["size", "when"]
    with pytest.raises(UsageError, match="--split-column"):
        clean(raw(table()), config("group", "nothing"))


def test_a_target_that_is_no_number_breaks_its_row() -> None:
    """Rows are named; a target of one value can't be learnt."""
    frame = table().astype({"when": object})
    frame.loc[0, "when"], frame.loc[1, "when"] = "soon", float("inf")
    found = clean_numbers(raw(frame, "when"))
    assert [d.where for d in found.broken] == ["row 1", "row 2"]
    assert found.targets.tolist() == [float(n) for n in range(2, 60)]
    with pytest.raises(DataError, match="fewer than 2 different"):
        clean_numbers(raw(table().assign(when=1), "when"))


def test_jsonl_is_read_line_by_line(tmp_path: Path) -> None:
    """Numbers stay numbers, keys may lack; lines that are no row are listed with their reason."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"x": 1, "c": "red", "label": "a"}\n\n{"x": null, "label": "b", "c": "n/a"}\n[1]\n{x\n{"x": {}}\n')
    found = read_file(path, "label")
    assert found.frame["x"].tolist()[0] == 1.0
    assert found.frame["x"].isna().tolist() == [False, True]
    assert found.frame["c"].tolist() == ["red", None]
    assert found.where == ("line 1", "line 3")
    assert [(d.where, d.reason.partition(":")[0]) for d in found.broken] == [
        ("line 4", "no object"),
        ("line 5", "no JSON"),
        ("line 6", "x"),
    ]


@pytest.mark.parametrize(
    ("recipe", "changes", "option"),
    [
        ("image-classification", {"target": "x"}, "--target"),
        ("tabular-classification", {"interval": 0.5}, "--interval"),
        ("recommendation", {"split": "time", "split_column": "t"}, "--split"),
        ("regression", {"split": "time"}, "--split-column"),
        ("regression", {"split_column": "t"}, "--split-column"),
        ("regression", {"interval": 1.5}, "interval"),
    ],
)
def test_an_option_that_is_not_honoured_is_refused(recipe: str, changes: dict[str, object], option: str) -> None:
    """By its name, before anything is read."""
    with pytest.raises(UsageError, match=option):
        make_config({"recipe": recipe, "data": "-", "name": "m", **changes}, {})
