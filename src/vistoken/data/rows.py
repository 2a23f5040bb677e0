"""Rows of a data file by number, without holding the file in memory.

Only the places of the rows are kept (16 bytes each). A reader can be forked, pickled and shared by
the workers of a data loader, because it keeps no file open.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, overload

from vistoken.core.errors import DataError
from vistoken.data.schema import SampleFault

RowAt = Callable[[int], dict[str, Any]]
"""Gives the row of a number, from 0."""


class Rows(Sequence[dict[str, Any]]):
    """The rows of one data file.

    Attributes:
        path: The file.
    """

    path: Path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.reader() as row:
            for index in range(len(self)):
                yield row(index)

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

    @contextmanager
    def reader(self) -> Iterator[RowAt]:
        """For reading many rows: the file stays open inside the block.

        The function it gives raises `DataError` for a damaged row, and can be asked for the next.
        """
        yield self._row


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

    @contextmanager
    def reader(self) -> Iterator[RowAt]:
        """See :meth:`Rows.reader`."""
        with self._open() as file:
            yield lambda index: self._read(file, index)

    def _row(self, index: int) -> dict[str, Any]:
        with self._open() as file:
            return self._read(file, index)

    def _open(self) -> IO[bytes]:
        try:
            file = self.path.open("rb")
            if file_stamp(self.path) != self.stamp:
                file.close()
                raise DataError(f"{self.path} has changed since it was opened; start again")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        return file

    def _read(self, file: IO[bytes], index: int) -> dict[str, Any]:
        where = self.where(index)
        try:
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


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        SampleFault: It is damaged or no object.
    """
    try:
        value = json.loads(data, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise SampleFault(
            "json", f"{where}: not UTF-8 ({error.reason} at byte {error.start}); encode it so"
        ) from error
    except (ValueError, RecursionError) as error:
        comma = "; take away the comma at its end" if data.rstrip()[-1:] == b"," else ""
        raise SampleFault("json", f"{where}: not valid JSON ({error}){comma}") from error
    if not isinstance(value, dict):
        raise SampleFault("json", f"{where}: must be a JSON object")
    return value


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no JSON number; write null or leave the key out")


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change, which together tell whether a file is still the same."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
