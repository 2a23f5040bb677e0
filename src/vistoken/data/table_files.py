"""Data files read by the `datasets` package: Parquet, CSV, Arrow, compressed lines, folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistoken.core.errors import DataError, MachineError
from vistoken.data.faults import SampleFault
from vistoken.data.rows import Rows

# Pictures of `datasets` come as dictionaries of bytes; a messages row holds paths instead.
_TABLES = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow", ".feather": "arrow"}
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
# A cell of CSV is text or a number; these are lists, written as JSON in their cell.
_LISTS = ("messages", "conversations", "images")


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
        return self._with_lists(row, index) if self.path.suffix == ".csv" else row

    def _with_lists(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        for name in _LISTS:
            if isinstance(row.get(name), str):
                try:
                    row[name] = json.loads(row[name])
                except ValueError as error:
                    raise SampleFault(
                        "json",
                        f"{self.where(index)}: the cell {name!r} holds no JSON ({error});"
                        " write the list as JSON, or use JSON Lines",
                    ) from error
        return row


def is_table(path: Path) -> bool:
    """Whether a path is for `datasets` to read."""
    return path.is_dir() or path.suffix in _TABLES or path.suffix in _COMPRESSED


def open_table(path: Path) -> TableRows:
    """Open a file or folder that `datasets` reads.

    Raises:
        DataError: It cannot be read, or holds several splits.
        MachineError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MachineError(
            f"{path} needs the 'datasets' package; pip install 'vistoken[train]', or convert it to"
            " JSON Lines"
        ) from error
    if path.is_dir():
        try:
            table = datasets.load_from_disk(str(path))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is a folder that 'save_to_disk' of datasets did not write"
                f" ({str(error).splitlines()[0]}); name a file"
            ) from error
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
