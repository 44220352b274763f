"""Tables: reading files, cleaning them with everything told, and fitting columns on training rows alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from exporter.data.clean import Table, clean
from exporter.data.columns import fit_columns
from exporter.data.tabular import RawTable, breast_cancer, read_file
from exporter.errors import DataError, UsageError
from server.pipeline.columns import CategoricalColumn, ColumnTransform, NumericColumn

GOOD = [f"{number},{'red' if number % 3 else 'blue'},{'yes' if number % 2 else 'no'}" for number in range(40)]


def csv(tmp_path: Path, *lines: str, header: str = "size,colour,label", name: str = "data.csv") -> Path:
    path = tmp_path / name
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def cleaned(tmp_path: Path, *lines: str, header: str = "size,colour,label") -> Table:
    return clean(read_file(csv(tmp_path, *lines, header=header), "label"))


def raw(frame: pd.DataFrame, target: str = "label") -> RawTable:
    return RawTable("test", "0", target, frame, tuple(f"row {row}" for row in range(1, len(frame) + 1)))


def test_a_csv_becomes_typed_columns(tmp_path: Path) -> None:
    """Columns of numbers are numeric, others categorical, labels are sorted, and the kinds are told."""
    table = cleaned(tmp_path, *GOOD)
    assert table.labels == ("no", "yes")
    assert table.targets.tolist() == [number % 2 for number in range(40)]
    assert table.columns["size"].tolist() == list(range(40))
    assert table.columns["colour"][:3].tolist() == ["blue", "red", "red"]
    assert table.notes == ("numeric columns: size; categorical columns: colour",)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    """The one that is most frequent in the first line."""
    lines = [line.replace(",", delimiter) for line in GOOD]
    assert len(cleaned(tmp_path, *lines, header=f"size{delimiter}colour{delimiter}label").columns) == 2


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    """Spreadsheets write one."""
    path = csv(tmp_path, *GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert "size" in read_file(path, "label").frame.columns


def test_broken_rows_are_listed_with_their_line(tmp_path: Path) -> None:
    """Too few or too many cells, a word among numbers, infinity, no label: each is left out by line and reason."""
    table = cleaned(tmp_path, *GOOD, "1,red", "1,red,yes,4", "many,red,yes", "inf,red,yes", "1e39,red,no", "77,red,")
    assert [(row.where, row.reason) for row in sorted(table.broken, key=lambda row: row.where)] == [
        ("line 42", "2 cells, the first line has 3"),
        ("line 43", "4 cells, the first line has 3"),
        ("line 44", "size: not a number"),
        ("line 45", "size: not a finite 32-bit number"),
        ("line 46", "size: not a finite 32-bit number"),
        ("line 47", "label: no label"),
    ]
    assert len(table.targets) == 40


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    """Rows seen are rows kept, broken and duplicate, each once."""
    source = read_file(csv(tmp_path, *GOOD, GOOD[0], GOOD[1], "x,red,yes", "1", GOOD[0]), "label")
    table = clean(source)
    assert source.rows == 45 == len(table.targets) + len(table.broken) + len(table.duplicates)
    assert [row.where for row in table.duplicates] == ["line 42", "line 43", "line 46"]


def test_rows_that_differ_in_spelling_alone_are_duplicates(tmp_path: Path) -> None:
    """What counts is what the model sees: 1, 1.0 and 1e0 are one number; a different label is a different row."""
    table = cleaned(tmp_path, *GOOD, "1.0,red,yes", "1e0,red,yes", "1,red,no")
    assert [row.where for row in table.duplicates] == ["line 42", "line 43"]
    assert len(table.targets) == 41


def test_missing_cells_are_kept_as_missing(tmp_path: Path) -> None:
    """The usual spellings of no value, in numeric and in categorical columns."""
    table = cleaned(tmp_path, *GOOD, "NA,red,yes", ",blue,yes", "50,null,yes", "51, NaN ,yes")
    assert np.isnan(table.columns["size"]).tolist() == [False] * 40 + [True, True, False, False]
    assert table.columns["colour"][-2:].tolist() == [None, None]


def test_columns_that_tell_nothing_are_left_out_and_told(tmp_path: Path) -> None:
    """Identifiers, constants, empty columns."""
    lines = [
        f"{line},id-{number},7,same," for number, line in enumerate(GOOD + [f"{n},red,no" for n in range(100, 140)])
    ]
    table = cleaned(tmp_path, *lines, header="size,colour,label,id,seven,word,empty")
    assert list(table.columns) == ["size", "colour"]
    assert [note.split(":")[0] for note in table.notes[1:]] == [
        f"column {name} is left out" for name in ("id", "seven", "word", "empty")
    ]


def test_parquet_types_are_kept(tmp_path: Path) -> None:
    """Booleans are categories in JSON's spelling, integers numbers, times are left out; 1.0 is the label 1."""
    frame = pd.DataFrame(
        {
            "count": pd.array([*range(39), None], dtype="Int64"),
            "member": [True, False] * 20,
            "when": pd.date_range("2024-01-01", periods=40),
            "label": [0.0, 1.0] * 20,
        }
    )
    path = tmp_path / "data.parquet"
    frame.to_parquet(path)
    table = clean(read_file(path, "label"))
    assert np.isnan(table.columns["count"][-1])
    assert table.columns["member"][:2].tolist() == ["true", "false"]
    assert list(table.columns) == ["count", "member"]
    assert table.labels == ("0", "1")


@pytest.mark.parametrize(
    ("header", "lines", "problem"),
    [
        ("size,colour,label", [], "no row can be read"),
        ("size,,label", GOOD, "column 2 has no name"),
        ("size,size,label", GOOD, "two columns are named 'size'"),
        ("label", ["yes"], "1 columns"),
        ("size,colour,label", [*GOOD, "1,red,maybe"], "'maybe' has 1"),
        ("size,colour,label", [line for line in GOOD if line.endswith("yes")], "1 labels"),
        ("size,colour,label", [f"{n},red,{n}" for n in range(200)], "200 different values"),
        ("size,colour,label", ["1,red,yes", "1,red,no"] * 20, "no usable column"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(tmp_path: Path, header: str, lines: list[str], problem: str) -> None:
    """The error names the file or the target and says what is missing."""
    with pytest.raises(DataError, match=problem):
        cleaned(tmp_path, *lines, header=header)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """No such file, a folder, another format, bytes that are not what the name promises."""
    (tmp_path / "data.xlsx").write_bytes(b"PK")
    (tmp_path / "data.parquet").write_bytes(b"no parquet")
    (tmp_path / "latin.csv").write_bytes(b"size,label\n1,caf\xe9\n")
    for name, problem in {
        "none.csv": "no such file",
        "": "no such file",
        "data.xlsx": "ends with none of",
        "data.parquet": "no readable Parquet file",
        "latin.csv": "not UTF-8",
    }.items():
        with pytest.raises(DataError, match=problem):
            read_file(tmp_path / name, "label")


def test_a_target_must_be_named_and_there(tmp_path: Path) -> None:
    """An unknown target is answered with the columns that there are."""
    path = csv(tmp_path, *GOOD)
    with pytest.raises(UsageError, match="--target"):
        read_file(path, "")
    with pytest.raises(UsageError, match="no column 'price'; there are size, colour, label"):
        read_file(path, "price")


def test_the_bundled_tumours_are_what_they_are_known_to_be() -> None:
    """569 rows, 30 measurements, 357 benign and 212 malignant."""
    table = clean(breast_cancer())
    assert len(table.columns) == 30
    assert table.labels == ("benign", "malignant")
    assert np.bincount(table.targets).tolist() == [357, 212]


def test_statistics_come_from_training_rows_alone() -> None:
    """No value of another split moves a mean, a bound, a fill value or a list of categories."""
    size = np.arange(100.0)
    colour = np.array(["red", "blue"] * 50, dtype=object)
    train = np.arange(60)
    before = fit_columns({"size": size, "colour": colour}, train)
    changed_size, changed_colour = size.copy(), colour.copy()
    changed_size[60:] = 1e6
    changed_colour[60:] = "green"
    assert fit_columns({"size": changed_size, "colour": changed_colour}, train) == before


def test_fitted_columns_standardise_the_training_rows() -> None:
    """Mean 0 and standard deviation 1 behind the serving transform, on a large offset and on a log scale too."""
    generator = np.random.default_rng(0)
    columns = {"offset": 1.7e9 + generator.normal(0, 30, 500), "skewed": generator.lognormal(3, 1.5, 500)}
    columns["skewed"][::7] = np.nan
    fitted = fit_columns(columns, np.arange(500))
    features = ColumnTransform(fitted).features(columns).astype(np.float64)
    assert isinstance(fitted[1], NumericColumn)
    assert fitted[1].transform == "signed_log1p"
    assert fitted[1].missing == fitted[1].typical == np.nanmedian(columns["skewed"])
    np.testing.assert_allclose(features[:, :2].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(features[:, :2].std(axis=0), 1, atol=1e-5)
    assert features[:, 2].tolist() == np.isnan(columns["skewed"]).tolist()


def test_a_column_that_never_lacks_a_value_demands_one() -> None:
    """A missing value outside of the training rows makes the column nullable; none at all makes it required."""
    values = np.arange(20.0)
    late = values.copy()
    late[19] = np.nan
    required, nullable = fit_columns({"always": values, "mostly": late}, np.arange(15))
    assert isinstance(required, NumericColumn)
    assert isinstance(nullable, NumericColumn)
    (absent,) = fit_columns({"never": np.where(values < 15, np.nan, values)}, np.arange(15))
    assert isinstance(absent, NumericColumn)
    assert not absent.indicator
    assert required.missing == "error"
    assert nullable.missing == 7.0
    assert not nullable.indicator


def test_a_constant_column_in_training_does_not_divide_by_zero() -> None:
    """It may vary elsewhere; its features stay finite."""
    values = np.array([3.0] * 10 + [4.0])
    features = ColumnTransform(fit_columns({"x": values}, np.arange(10))).features({"x": values})
    assert np.isfinite(features).all()


def test_rare_categories_are_unknown_ones() -> None:
    """Categories are listed by frequency; those with too few training rows share the index of unknown ones."""
    values = np.array(["a"] * 30 + ["b"] * 50 + ["c"] * 9, dtype=object)
    (column,) = fit_columns({"x": values}, np.arange(len(values)))
    assert isinstance(column, CategoricalColumn)
    assert column.categories == ("b", "a")
    assert column.missing == "error"
    assert ColumnTransform([column]).categories({"x": ["c", "b"]}).tolist() == [[1], [2]]
