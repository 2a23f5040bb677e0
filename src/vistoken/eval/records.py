"""Results of an evaluation on disk: its settings, and one line per question.

Lines are appended as questions are answered, so a run that is killed loses at most the pictures it
was asked about; half a last line is what a kill leaves, and is taken off before going on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vistoken.core.errors import DataError, UsageError
from vistoken.core.files import write_atomically, writing

SETTINGS = "settings.json"
SAMPLES = "samples.jsonl"
SUMMARY = "summary.json"
TABLE = "table.txt"

_DESCRIPTIVE = ("model", "versions")
"""Settings that say what was run without deciding the result."""


@dataclass(frozen=True)
class Record:
    """One answered question.

    Attributes:
        task: Name of the task.
        id: Id of the question in it.
        kind: What it asks.
        cluster: The pictures it is about.
        reference: The right answer.
        answer: What the model said.
        complete: False where ``answer`` stops at the first token that makes it wrong.
        right: Whether it is right.
        prior: Whether the most common answer of the kind is right.
        grey: Whether the model is right without seeing the picture; None where it was not asked.
    """

    task: str
    id: str
    kind: str
    cluster: str
    reference: str
    answer: str
    complete: bool
    right: bool
    prior: bool
    grey: bool | None = None


class Results:
    """A folder of results.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def begin(self, settings: Mapping[str, Any]) -> list[Record]:
        """Make the folder, or go on in it.

        Args:
            settings: What the results depend on.

        Returns:
            What was answered before.

        Raises:
            UsageError: The folder holds results of other settings, or something else.
            MachineError: It cannot be written.
        """
        path = self.folder / SETTINGS
        if path.is_file():
            changed = differences(self.settings(), settings)
            if changed:
                raise UsageError(
                    f"{self.folder} holds results of other settings: {'; '.join(changed)}; "
                    "name another folder"
                )
            self._mend()
            return self.records()
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UsageError(f"{self.folder} is not empty and holds no results; name another one")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, settings)
        return []

    def settings(self) -> dict[str, Any]:
        """The settings of these results.

        Raises:
            DataError: There are none, or the file is damaged.
        """
        path = self.folder / SETTINGS
        if not path.is_file():
            raise DataError(f"{self.folder} holds no results; name a folder that 'eval' wrote")
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}); evaluate again") from error
        return values

    def records(self) -> list[Record]:
        """Every answered question; half a last line is left out.

        Raises:
            DataError: A line is no record.
        """
        path = self.folder / SAMPLES
        if not path.is_file():
            return []
        records = []
        for number, line in enumerate(_whole_lines(path.read_bytes()), start=1):
            try:
                records.append(Record(**json.loads(line)))
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{path}, line {number}: no record of a question ({error}); evaluate again in "
                    "another folder"
                ) from error
        return records

    def append(self, records: Sequence[Record]) -> None:
        """Add answered questions; they are on disk when this returns."""
        lines = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in records)
        with writing(self.folder), (self.folder / SAMPLES).open("ab") as file:
            file.write(lines.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    def _mend(self) -> None:
        """Take off half a last line."""
        path = self.folder / SAMPLES
        if path.is_file():
            whole = sum(len(line) for line in _whole_lines(path.read_bytes()))
            if whole < path.stat().st_size:
                with writing(self.folder):
                    os.truncate(path, whole)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignored: Sequence[str] = _DESCRIPTIVE
) -> list[str]:
    """Settings that differ, each as one phrase; in words that name both values."""
    named = sorted({*old, *new} - set(ignored))
    return [
        f"{name} is {_short(old.get(name))} there and {_short(new.get(name))} here"
        for name in named
        if old.get(name) != new.get(name)
    ]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8"))


def _whole_lines(content: bytes) -> list[bytes]:
    lines = content.splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:  # a digest
        return value[:12]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    return str(value)
