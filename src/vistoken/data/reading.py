"""Data files of every kind, opened for access by row number."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from vistoken.core.errors import DataError
from vistoken.data.bad_samples import BadSamples, LeftOut, OnBadSample
from vistoken.data.json_lists import Places, list_places
from vistoken.data.rows import JsonRows, Rows, file_stamp, parse_object
from vistoken.data.table_files import TableRows, is_table, open_table

__all__ = [
    "BadSamples",
    "JsonRows",
    "LeftOut",
    "OnBadSample",
    "Rows",
    "TableRows",
    "open_rows",
    "parse_object",
    "read_good",
]

T = TypeVar("T")

_BOM = b"\xef\xbb\xbf"


def open_rows(path: Path) -> Rows:
    """Open a data file for access by number.

    Args:
        path: JSON Lines, a JSON list, or what `datasets` reads from a local path: Parquet, CSV,
            Arrow, compressed JSON Lines, a folder of `save_to_disk`.

    Returns:
        The rows; nothing but their places is in memory.

    Raises:
        DataError: The file is missing, empty or no such file.
        MachineError: The file needs `datasets`, which is not installed.
    """
    if not path.exists():
        raise DataError(f"data file {path} does not exist; check the path")
    rows: Rows = open_table(path) if is_table(path) else _open_json(path)
    if not len(rows):
        raise DataError(f"data file {path} has no rows")
    return rows


def read_good(
    rows: Rows, read: Callable[[dict[str, Any], str], T], bad: BadSamples
) -> Iterator[tuple[int, T]]:
    """Read rows one after the other.

    Args:
        rows: The rows.
        read: Makes something of a row and its place, or raises a `DataError`.
        bad: What to do with rows that are damaged or refused.

    Yields:
        Index of a row and what was made of it.

    Raises:
        DataError: From `bad`.
    """
    with rows.reader() as row_at:
        for index in range(len(rows)):
            sample = ""
            try:
                row = row_at(index)
                sample = str(row.get("id", ""))
                made = read(row, rows.where(index))
            except DataError as error:
                bad.take(error, sample)
                continue
            yield index, made


def _open_json(path: Path) -> JsonRows:
    try:
        stamp = file_stamp(path)
        with path.open("rb") as file:
            opening = file.read(4096)
        if opening.removeprefix(_BOM).lstrip()[:1] == b"[":
            return JsonRows(path, *list_places(path, stamp), lines=False, stamp=stamp)
        return JsonRows(path, *_line_places(path), lines=True, stamp=stamp)
    except OSError as error:
        raise DataError(f"data file {path} cannot be read: {error.strerror}") from error


def _line_places(path: Path) -> Places:
    """First byte and number of every line that is not blank."""
    starts, numbers = array("q"), array("i")
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            skipped = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
            if line[skipped:].strip():
                starts.append(start + skipped)
                numbers.append(number)
            start += len(line)
    return starts, numbers
