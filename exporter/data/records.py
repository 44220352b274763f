"""The rows of a CSV or JSONL file: each with the line that it begins on, or what is wrong with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from exporter.errors import DataError

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
CSV_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
SUFFIXES = CSV_SUFFIXES | PARQUET_SUFFIXES | JSONL_SUFFIXES
_LONGEST_CELL = 2**31 - 1
"""Python's own limit is 131,072 characters, and refuses the file for one longer cell."""
_NEVER_CLOSED = "unexpected end of data"
"""What Python's reader says of a quotation mark that is open where the file ends."""


def kind_of(path: Path) -> str:
    """`.csv`, `.jsonl` or `.parquet`. Raises DataError: there is no such file, or its name ends otherwise."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    for kind, suffixes in ((".csv", CSV_SUFFIXES), (".jsonl", JSONL_SUFFIXES), (".parquet", PARQUET_SUFFIXES)):
        if path.suffix.lower() in suffixes:
            return kind
    raise DataError(f"{path}: the name ends with none of {', '.join(sorted(SUFFIXES))}")


def csv_rows(path: Path) -> Iterator[tuple[str, list[str] | str]]:
    """First the names of the columns, then each row: as many cells, or a text that says what is wrong with it.

    Comma, semicolon, tab or bar, whichever is in the first line most; UTF-8, with or without a byte order mark.

    Raises:
        DataError: the file is not UTF-8, or a quotation mark is open at its end; names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _rows_of(file, path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {_not_utf8(path.read_bytes())}") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error}") from error


def _rows_of(file: TextIO, path: Path) -> Iterator[tuple[str, list[str] | str]]:
    csv.field_size_limit(_LONGEST_CELL)
    delimiter = _delimiter(file.readline())
    file.seek(0)
    reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
    names: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if str(error) == _NEVER_CLOSED:
                raise DataError(f"{path}: line {start}: a quotation mark is opened and never closed") from error
            if names is None:
                raise DataError(f"{path}: the first line has no names of columns: {error}") from error
            lines = f"line {start}" if start == reader.line_num else f"lines {start} to {reader.line_num}"
            yield lines, f"no CSV: {error}"
            continue
        if names is None:
            names = [name.strip() for name in cells]
            yield f"line {start}", names
        elif len(cells) == len(names):
            yield f"line {start}", cells
        elif cells:
            yield f"line {start}", f"{len(cells)} cells, the first line has {len(names)}"


def jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """An object a line, or a text that says what is wrong with it. Raises DataError: the file can't be read."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError:
            yield f"line {number}", _not_utf8(line, told="")
            continue
        except (ValueError, RecursionError) as error:
            yield f"line {number}", f"no JSON: {error}"
            continue
        if not isinstance(row, dict):
            yield f"line {number}", "no object"
        elif b"\\ud" in line.lower() and not _is_text(row):
            yield f"line {number}", "half of a surrogate pair"
        else:
            yield f"line {number}", row


def _is_text(row: dict[str, Any]) -> bool:
    """JSON can spell what no encoding of text can hold."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def parquet_frame(path: Path) -> pd.DataFrame:
    """The columns, those of a named index among them. Raises DataError: it can't be read, or is no Parquet."""
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: no readable Parquet file: {error}") from error
    frame = frame.reset_index(drop=all(name is None for name in frame.index.names))
    frame.columns = pd.Index([str(name) for name in frame.columns])
    return frame


def _delimiter(first_line: str) -> str:
    return max(",;\t|", key=first_line.count)


def _not_utf8(data: bytes, told: str = "line {line}: ") -> str:
    """Of bytes that are not."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        where = told.format(line=data.count(b"\n", 0, error.start) + 1)
        return f"{where}byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
    return "it is not UTF-8"
