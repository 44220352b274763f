"""Rows of files as other programs write them: spreadsheets, databases, editors."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from exporter.data import tabular, texts
from exporter.data.clean import clean, clean_numbers
from exporter.data.records import csv_rows, jsonl_rows
from exporter.errors import DataError
from exporter.text.rows import TextRows

pytestmark = pytest.mark.training

TEXTS = [("ja, schön; gut", "1"), ('she said "no"\nand left', "2"), ("😀|tab\t", "1")]


def rows(path: Path) -> list[tuple[str, object]]:
    return list(csv_rows(path))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_spreadsheet_s_csv_is_read_as_it_was_meant(tmp_path: Path, delimiter: str) -> None:
    """With a byte order mark and Windows' line ends, quotes doubled in quotes, a line break in a cell."""
    lines = [delimiter.join(("text", "label"))]
    lines += [delimiter.join(('"' + text.replace('"', '""') + '"', label)) for text, label in TEXTS]
    (tmp_path / "a.csv").write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    assert rows(tmp_path / "a.csv") == [
        ("line 1", ["text", "label"]),
        ("line 2", list(TEXTS[0])),
        ("line 3", list(TEXTS[1])),
        ("line 5", list(TEXTS[2])),
    ]


def test_texts_are_the_same_from_each_format(tmp_path: Path) -> None:
    """CSV, JSONL and Parquet; a column of numbers with one missing does not make 1 a label 1.0."""
    frame = pd.DataFrame({"text": [text for text, _ in TEXTS], "label": [1.0, 2.0, None]})
    frame.assign(label=["1", "2", ""]).to_csv(tmp_path / "a.csv", index=False, sep=";")
    frame.to_parquet(tmp_path / "a.parquet")
    lines = [json.dumps({"text": text, "label": int(label)}) for text, label in TEXTS[:2]]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n".join([*lines, '{"text": "😀|tab\\t"}']))
    found = [texts.read_file(tmp_path / f"a.{kind}") for kind in ("csv", "jsonl", "parquet")]
    for each in found:
        assert [(item.text, item.label) for item in each.labelled] == TEXTS[:2]
        assert [row.reason for row in each.broken] == ["has no label"]


def test_one_bad_quotation_mark_costs_its_own_row(tmp_path: Path) -> None:
    """It is named with its lines; the rows behind it are read."""
    (tmp_path / "a.csv").write_text('a,b\n"x"y,1\nz,2\n"u\nv"w,3\nq,4\n')
    told = rows(tmp_path / "a.csv")
    assert [where for where, _ in told] == ["line 1", "line 2", "line 3", "lines 4 to 5", "line 6"]
    assert [row for _, row in told if isinstance(row, list)] == [["a", "b"], ["z", "2"], ["q", "4"]]
    assert "no CSV" in str(told[1][1])


def test_a_quotation_mark_that_is_never_closed_is_no_row(tmp_path: Path) -> None:
    """It would swallow all that is behind it, so the file is refused, by the line."""
    (tmp_path / "a.csv").write_text('a,b\nx,1\n"y,2\nz,3\n')
    with pytest.raises(DataError, match="line 3: a quotation mark is opened and never closed"):
        rows(tmp_path / "a.csv")


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    """Python's reader would refuse the whole file for one of 131,073 characters."""
    (tmp_path / "a.csv").write_text(f"text,label\n{'x' * 200_000},a\nshort,b\n")
    assert [len(row[0]) for _, row in rows(tmp_path / "a.csv")[1:] if isinstance(row, list)] == [200_000, 5]
    assert "200000 characters" in texts.read_file(tmp_path / "a.csv").broken[0].reason


def test_what_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    """Far into a file too, and as a spreadsheet's UTF-16; in JSONL it is one broken row."""
    lines = [b"text,label", *[b"fine,a"] * 3_000, "schön,b".encode("latin-1")]
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match="line 3002: byte 0xf6 is not UTF-8; save the file as UTF-8"):
        rows(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("text,label\na,b\n", encoding="utf-16")
    with pytest.raises(DataError, match="line 1: byte 0xff is not UTF-8"):
        rows(tmp_path / "b.csv")
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xf6"}\n')
    assert [where for where, row in jsonl_rows(tmp_path / "a.jsonl") if isinstance(row, str)] == ["line 2"]


def test_numbers_with_a_comma_are_no_categories(tmp_path: Path) -> None:
    """A column of them is left out and told; a target of them is refused with the reason."""
    lines = [f"{n},5;{n % 7},25;{'yes' if n % 2 else 'no'};{n}" for n in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["size;price;label;count", *lines]))
    table = clean(tabular.read_file(tmp_path / "a.csv", "label"))
    assert list(table.columns) == ["count"]
    assert "column size is left out: its numbers have a comma, like 0,5; write them with a point" in table.notes
    with pytest.raises(DataError, match="target 'price': its numbers have a comma, like 0,25"):
        clean_numbers(tabular.read_file(tmp_path / "a.csv", "price"))


def test_an_error_names_the_first_row_that_was_lost(tmp_path: Path) -> None:
    """There is no report yet that could be looked at."""
    (tmp_path / "a.csv").write_text("\n".join(["size,label", *["1"] * 3, *[f"{n},yes" for n in range(20)]]))
    with pytest.raises(DataError, match=r"1 labels after clean-up, .*; 3 broken rows, the first: line 2: 1 cells"):
        clean(tabular.read_file(tmp_path / "a.csv", "label"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (r'{"x": 1, "c": "\ud83d", "y": "a"}', "half of a surrogate pair"),
        ('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "no JSON: maximum recursion depth"),
        ('{"x": 1' + "0" * 400 + ', "y": "a"}', "x: not a finite 32-bit number"),
        (r'{"x": 1, "c": "a", "y": "a\nb"}', "y: a label of several lines"),
        ('{"x": [1], "y": "a"}', "x: an object or a list is no value of a column"),
    ],
    ids=["half a character", "deep", "a huge number", "a label of two lines", "a list"],
)
def test_a_row_that_no_model_could_take_is_a_broken_one(tmp_path: Path, line: str, reason: str) -> None:
    """No traceback, and no file of labels with a line too many."""
    good = [json.dumps({"x": n, "c": "uv"[n % 3 == 0], "y": "ab"[n % 2]}) for n in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join([*good, line]))
    table = clean(tabular.read_file(tmp_path / "a.jsonl", "y"))
    [broken] = table.broken
    assert broken.where == "line 41"
    assert broken.reason.startswith(reason)
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"line 1: |1 broken rows|no usable column"):
        clean(tabular.read_file(tmp_path / "a.jsonl", "y"))


def test_parquet_keeps_what_a_table_had_and_leaves_out_what_no_model_takes(tmp_path: Path) -> None:
    """A named index is a column; days, lists and bytes are told by their type, and are no categories."""
    frame = pd.DataFrame(
        {
            "day": [date(2024, 1, 1 + n % 28) for n in range(40)],
            "list": [[n, n % 3] for n in range(40)],
            "bytes": [b"ab", b"cd"] * 20,
            "y": ["u", "v"] * 20,
        },
        index=pd.Index(range(40), name="size"),
    )
    frame.to_parquet(tmp_path / "a.parquet")
    table = clean(tabular.read_file(tmp_path / "a.parquet", "y"))
    assert list(table.columns) == ["size"]
    told = " ".join(table.notes)
    assert "day is left out: times are not supported" in told
    assert "list is left out: values of the type ndarray" in told
    assert "bytes is left out: values of the type bytes" in told


def test_labels_may_be_numbers_and_booleans(tmp_path: Path) -> None:
    """As JSON spells them; half a number is none."""
    lines = [json.dumps({"text": f"t {n}", "label": label}) for n, label in enumerate((True, 1, 2.0, 0.5, None, " z "))]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert [item.label for item in texts.read_file(tmp_path / "a.jsonl").labelled] == ["true", "1", "2", "z"]


@pytest.mark.parametrize(("rows", "problem"), [(9, "'rare' has 9"), (12, ""), (20, "")])
def test_few_rows_of_a_label_are_refused_or_told(rows: int, problem: str) -> None:
    """By the label's name, whatever the data is: texts here."""
    found = [texts.LabelledText(f"line {n}", f"text {n}", "rare" if n < rows else "usual") for n in range(60)]
    if problem:
        with pytest.raises(DataError, match=problem):
            TextRows(found, seed=0)
    else:
        told = ["labels with fewer than 20 rows, whose metrics mean little: 'rare' 12"] if rows < 20 else []
        assert TextRows(found, seed=0).notes == told


@pytest.mark.parametrize(
    ("text", "problem"),
    [('"x"y,b\n1,2\n', "the first line has no names"), ("text,text,label\na,b,c\n", "two columns are named 'text'")],
)
def test_a_first_line_that_names_no_columns_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    """It would make a row of each that could not be told from others."""
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=problem):
        texts.read_file(tmp_path / "a.csv")
