"""Rows of data files by number, without holding the file in memory.

Only the places of the rows are kept (16 bytes each). Every access opens the file anew, so a reader
can be forked, pickled and shared by the workers of a data loader.
"""

from __future__ import annotations

import json
import logging
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from vistoken.core.errors import DataError, MachineError
from vistoken.data.json_lists import Places, list_places
from vistoken.data.schema import SampleFault

logger = logging.getLogger(__name__)

OnBadSample = Literal["error", "skip"]
T = TypeVar("T")

# Pictures of `datasets` come as dictionaries of bytes; a messages row holds paths instead.
_TABLES = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow", ".feather": "arrow"}
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_BOM = b"\xef\xbb\xbf"


class Rows(Sequence[dict[str, Any]]):
    """The rows of one data file.

    Attributes:
        path: The file.
    """

    path: Path

    @abstractmethod
    def where(self, index: int) -> str:
        """File and place of a row, for errors."""

    @abstractmethod
    def _row(self, index: int) -> dict[str, Any]:
        """The row at an index within range."""

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """A row, read now.

        Raises:
            DataError: The row is damaged; the error names its place.
        """
        if isinstance(index, slice):
            return [self._row(place) for place in range(len(self))[index]]
        return self._row(range(len(self))[index])


@dataclass(frozen=True)
class JsonRows(Rows):
    """JSON objects at known places of a file: one per line, or the items of one list.

    Attributes:
        path: The file.
        starts: First byte of every row.
        numbers: Line (from 1) or number in the list (from 0) of every row.
        lines: Whether the rows are lines.
        stamp: Size and time of change of the file when it was indexed.
    """

    path: Path
    starts: array[int]
    numbers: array[int]
    lines: bool
    stamp: tuple[int, int]

    def __len__(self) -> int:
        return len(self.starts)

    def where(self, index: int) -> str:
        """File and line, or number in the list."""
        return f"{self.path}, {'line' if self.lines else 'record'} {self.numbers[index]}"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._row(index) for index in range(len(self)))

    def _row(self, index: int) -> dict[str, Any]:
        where = self.where(index)
        try:
            with self.path.open("rb") as file:
                if file_stamp(self.path) != self.stamp:
                    raise DataError(f"{self.path} has changed since it was opened; start again")
                file.seek(self.starts[index])
                # A row of a list ends where the next one starts, but for the comma between.
                data = file.readline() if self.lines else file.read(self._length(index))
        except OSError as error:
            raise DataError(f"{where}: cannot be read ({error.strerror})") from error
        return parse_object(data if self.lines else data.rstrip(b", \t\r\n"), where)

    def _length(self, index: int) -> int:
        # The place behind the last row is kept as one more number.
        end = self.starts[index + 1] if index + 1 < len(self.starts) else self.numbers[-1]
        return end - self.starts[index]


@dataclass(frozen=True)
class TableRows(Rows):
    """Rows of anything `datasets` reads; it keeps them in a memory-mapped file.

    Attributes:
        path: The file or folder.
        table: The data set.
    """

    path: Path
    table: Any

    def __len__(self) -> int:
        return len(self.table)

    def where(self, index: int) -> str:
        """File and row, from 0."""
        return f"{self.path}, row {index}"

    def _row(self, index: int) -> dict[str, Any]:
        # A column exists for all rows or none: an empty field is how it says that a key is absent.
        row: dict[str, Any] = _without_nulls(self.table[index])
        return row


@dataclass
class BadSamples:
    """What to do with samples that cannot be used, and how many there were.

    Args:
        policy: `error` stops at the first one; `skip` counts and reports it.

    Attributes:
        skipped: Number of samples skipped.
        first: Messages of the first ten.
    """

    policy: OnBadSample = "error"
    skipped: int = 0
    first: list[str] = field(default_factory=list)

    def take(self, error: DataError) -> None:
        """Stop, or count and report a bad sample.

        Raises:
            DataError: The error itself, with policy `error`.
        """
        if self.policy == "error":
            raise error
        self.skipped += 1
        if len(self.first) < 10:
            self.first.append(str(error))
        logger.warning("skipped sample %d: %s", self.skipped, error)


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
    if path.is_dir() or path.suffix in _TABLES or path.suffix in _COMPRESSED:
        rows: Rows = _open_table(path)
    else:
        rows = _open_json(path)
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
    for index in range(len(rows)):
        try:
            made = read(rows[index], rows.where(index))
        except DataError as error:
            bad.take(error)
            continue
        yield index, made


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        SampleFault: It is damaged or no object.
    """
    try:
        value = json.loads(data)
    except UnicodeDecodeError as error:
        raise SampleFault("json", f"{where}: not UTF-8 ({error.reason}); encode it so") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise SampleFault("json", f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise SampleFault("json", f"{where}: must be a JSON object")
    return value


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change, which together tell whether a file is still the same."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


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
    starts, numbers = array("q"), array("q")
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            skipped = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
            if line[skipped:].strip():
                starts.append(start + skipped)
                numbers.append(number)
            start += len(line)
    return starts, numbers


def _open_table(path: Path) -> TableRows:
    try:
        import datasets
    except ImportError as error:
        raise MachineError(
            f"{path} needs the 'datasets' package; pip install 'vistoken[train]', or convert it to"
            " JSON Lines"
        ) from error
    if path.is_dir():
        table = datasets.load_from_disk(str(path))
        if isinstance(table, datasets.DatasetDict):
            raise DataError(f"{path} holds the splits {', '.join(table)}; name one split's folder")
        return TableRows(path, table)
    builder = _TABLES.get(path.suffix, "json")
    try:
        return TableRows(path, datasets.load_dataset(builder, data_files=str(path), split="train"))
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise DataError(f"data file {path} cannot be read as {builder}: {cause}") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
