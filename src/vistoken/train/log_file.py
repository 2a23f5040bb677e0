"""`metrics.jsonl`: one JSON object per log record, whatever happens to the process."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vistoken.core.errors import DataError
from vistoken.core.files import writing


class JsonLines(TrainerCallback):
    """Appends every log record to a file."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write a record; of several processes, the main one does."""
        if not state.is_world_process_zero:
            return
        append_record(
            self.path, {"stage": self.stage, "step": state.global_step, "time": time.time(), **logs}
        )


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a line; half a line that a killed process left at the end is taken away first."""
    line = (json.dumps(record) + "\n").encode()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            _drop_half_line(file)
            file.write(line)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics file; half a line at its end is passed over.

    Raises:
        DataError: Another line is no JSON object.
    """
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not a metrics record ({error})") from error
        records.append(record)
    return records


def _drop_half_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    place = end
    while place:
        file.seek(place - 1)
        if file.read(1) == b"\n":
            break
        place -= 1
    if place != end:
        file.truncate(place)
