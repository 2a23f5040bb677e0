"""Data files of other forms and back, without losing anything.

Reading normalises a record: marks move to the front, a leading answer goes, `id` becomes a text.
What a plain way back would not restore is kept in the converted record under `converted_from`, and
used on the way back as long as the record still says what it said then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

from vistoken.core.errors import DataError, UsageError
from vistoken.core.files import replacing
from vistoken.data.forms import Form, FormName, form_names, form_of, named_form
from vistoken.data.reading import BadSamples, open_rows, read_good
from vistoken.data.repeated_marks import repeated_marks
from vistoken.data.schema import raise_fault

KEPT = "converted_from"
"""Key of what a plain way back would lose."""


def convert_record(
    record: Mapping[str, object], source: Form, target: Form, where: str
) -> dict[str, object]:
    """Write a record in another form so that converting it back gives the record again.

    Args:
        record: The record.
        source: Its form.
        target: The form wanted.
        where: File and position, for errors.

    Raises:
        DataError: The record breaks its form.
    """

    def forward(fields: Mapping[str, object]) -> dict[str, object]:
        return target.write(source.read(fields, where, raise_fault), where)

    def backward(fields: Mapping[str, object]) -> dict[str, object]:
        return source.write(target.read(fields, where, raise_fault), where)

    if source is target:
        source.read(record, where, raise_fault)
        return dict(record)
    plain = _without_kept(record)
    made = forward(plain)
    kept = record.get(KEPT)
    if isinstance(kept, Mapping) and kept.get("form") == target.name:
        original = _restore(made, cast("Mapping[str, Any]", kept), target.turns_key)
        # Somebody may have edited the record since; then what was kept no longer belongs to it.
        try:
            said = {key: value for key, value in original.items() if key != KEPT}
            if _same(backward(said), plain):
                return original
        except DataError:
            pass
        return made
    lost = _difference(record, backward(made), source.turns_key)
    if lost:
        if KEPT in record:
            lost["keys"] = {**cast("dict[str, object]", lost.get("keys", {})), KEPT: record[KEPT]}
        made[KEPT] = {"form": source.name, **lost}
    return made


def convert_file(
    path: Path, out: Path, source: str, target: str, bad: BadSamples
) -> tuple[int, FormName]:
    """Convert a data file.

    Args:
        path: The file.
        out: The file to write: one object per line for ``.jsonl``, a list for ``.json``.
        source: Its form, or `auto`.
        target: The form wanted.
        bad: What to do with bad samples.

    Returns:
        Number of records written, and the form they were in.

    Raises:
        DataError: From `bad`, or `out` cannot be written.
        UsageError: A form is unknown, or `out` has another suffix.
    """
    if out.suffix not in (".json", ".jsonl"):
        raise UsageError(f"{out} must end in .jsonl (one object per line) or .json (a list)")
    wanted = named_form(target)
    rows = open_rows(path)
    given = form_of(rows, source)

    def read(record: dict[str, Any], where: str) -> dict[str, object]:
        made = convert_record(record, given, wanted, where)
        bad.warn(repeated_marks(record, f"{where}: sample {str(record.get('id', ''))!r}"))
        return made

    opening, between, closing = ("[\n", ",\n", "\n]\n") if out.suffix == ".json" else ("", "\n", "")
    written = 0

    def write(file: TextIO) -> None:
        nonlocal written
        file.write(opening)
        for _, made in read_good(rows, read, bad):
            file.write((between if written else "") + json.dumps(made, ensure_ascii=False))
            written += 1
        file.write(closing if opening else "\n" * bool(written))

    write_whole(out, write)
    return written, given.name


def write_whole(out: Path, write: Callable[[TextIO], None]) -> None:
    """Write a text file that is there whole or not at all.

    Args:
        out: The file.
        write: Writes its text.

    Raises:
        DataError: The disk is full or the folder may not be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as scratch:
            with scratch.open("w", encoding="utf-8") as file:
                write(file)
            scratch.chmod(0o644)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}") from error


def _without_kept(record: Mapping[str, object]) -> dict[str, object]:
    """The record itself; a key of that name that we did not write stays."""
    kept = record.get(KEPT)
    if isinstance(kept, Mapping) and kept.get("form") in form_names():
        return {key: value for key, value in record.items() if key != KEPT}
    return dict(record)


def _difference(
    original: Mapping[str, object], back: Mapping[str, object], turns_key: str
) -> dict[str, object]:
    """What to change in `back` to get `original`."""
    lost: dict[str, object] = {}
    changed = {
        key: value
        for key, value in original.items()
        if key not in back or not _same(value, back[key])
    }
    old, new = changed.get(turns_key), back.get(turns_key)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        del changed[turns_key]
        lost["turns"] = {
            str(number): turn
            for number, (turn, other) in enumerate(zip(old, new, strict=True))
            if not _same(turn, other)
        }
    if changed:
        lost["keys"] = changed
    if gone := [key for key in back if key not in original]:
        lost["without"] = gone
    return lost


def _restore(
    made: Mapping[str, object], kept: Mapping[str, Any], turns_key: str
) -> dict[str, object]:
    original = {key: value for key, value in made.items() if key not in kept.get("without", [])}
    turns = cast("list[object]", original.get(turns_key, []))
    changed = cast("dict[str, object]", kept.get("turns", {}))
    if changed:
        original[turns_key] = [changed.get(str(number), turn) for number, turn in enumerate(turns)]
    return {**original, **kept.get("keys", {})}


def _same(one: object, other: object) -> bool:
    """Equal as JSON: 1 and true differ."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
