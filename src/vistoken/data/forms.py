"""Data files of other forms and back, without losing anything.

Reading normalises a record: marks move to the front, a leading answer goes, `id` becomes a text.
What a plain way back would not restore is kept in the converted record under `converted_from`, and
used on the way back as long as the record still says what it said then.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from vistoken.core.errors import DataError, UsageError, did_you_mean
from vistoken.data.reading import BadSamples, Rows, open_rows, read_good
from vistoken.data.schema import Message, Report, Role, raise_fault, read_messages
from vistoken.data.turns import from_llava, from_sharegpt
from vistoken.models.templates import IMAGE_MARK

FormName = Literal["schema", "llava", "sharegpt"]
KEPT = "converted_from"
"""Key of what a plain way back would lose."""

_SPEAKERS: dict[Role, str] = {"system": "system", "user": "human", "assistant": "gpt"}


@dataclass(frozen=True, slots=True)
class Form:
    """One way of writing a conversation as a JSON object.

    Attributes:
        name: What the command line calls it.
        turns_key: Key of the list of turns.
        read: A record of this form as a row of the schema.
        write: A row of the schema as a record of this form.
    """

    name: FormName
    turns_key: str
    read: Callable[[Mapping[str, object], str, Report], dict[str, object]]
    write: Callable[[Mapping[str, object], str], dict[str, object]]


def form_names() -> tuple[str, ...]:
    """Names of the forms."""
    return tuple(_FORMS)


def named_form(name: str) -> Form:
    """A form by its name.

    Raises:
        UsageError: There is no such form.
    """
    if name not in _FORMS:
        raise UsageError(f"unknown form {name!r}; {did_you_mean(name, _FORMS)}")
    return _FORMS[name]


def detect_form(record: Mapping[str, object], where: str) -> Form:
    """The form a record is written in.

    Raises:
        DataError: It has neither `messages` nor `conversations`.
    """
    if "messages" in record:
        return _FORMS["schema"]
    turns = record.get("conversations")
    if "conversations" not in record:
        raise DataError(
            f"{where}: neither 'messages' nor 'conversations'; name the form of the file,"
            f" one of {', '.join(_FORMS)}"
        )
    speakers = {
        str(cast("Mapping[str, object]", turn).get("from"))
        for turn in (cast("list[object]", turns) if isinstance(turns, list) else [])
        if isinstance(turn, Mapping)
    }
    other_names = speakers & {"user", "assistant", "chatgpt", "bing", "bard", "system"}
    return _FORMS["sharegpt" if "images" in record or other_names else "llava"]


def form_of(rows: Rows, name: str) -> Form:
    """The form of a file: by name, or for `auto` that of the first row which shows one.

    Raises:
        DataError: None of the first hundred rows does.
        UsageError: There is no such form.
    """
    if name != "auto":
        return named_form(name)
    refusals: list[DataError] = []
    for index in range(min(len(rows), 100)):
        try:
            return detect_form(rows[index], rows.where(index))
        except DataError as error:
            refusals.append(error)
    raise refusals[0]


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
        return convert_record(record, given, wanted, where)

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
    part: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        part = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            write(file)
        part.chmod(0o644)
        os.replace(part, out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _read_schema(record: Mapping[str, object], where: str, report: Report) -> dict[str, object]:
    """The row, its messages in one shape, further keys of a message kept."""
    messages = read_messages(record, where, report)
    given = record.get("messages")
    if isinstance(given, list) and len(given) == len(messages):
        pairs = zip(cast("list[dict[str, object]]", given), messages, strict=True)
        messages = [cast("Message", {**old, **new}) for old, new in pairs]
    return {**record, "messages": messages}


def _write_schema(row: Mapping[str, object], where: str) -> dict[str, object]:
    return dict(row)


def _write_llava(row: Mapping[str, object], where: str) -> dict[str, object]:
    """A system text has no turn in this form and becomes a key of the record."""
    record, turns = _write_turns(row)
    for turn in turns:
        if turn["from"] == "system":
            record["system"] = turn["value"]
    images = cast("list[str]", record.pop("images"))
    if images:
        record["image"] = images[0] if len(images) == 1 else images
    return {**record, "conversations": [turn for turn in turns if turn["from"] != "system"]}


def _write_sharegpt(row: Mapping[str, object], where: str) -> dict[str, object]:
    record, turns = _write_turns(row)
    if not record["images"]:
        del record["images"]
    return {**record, "conversations": turns}


def _write_turns(
    row: Mapping[str, object],
) -> tuple[dict[str, object], list[dict[str, object]]]:
    record = {key: value for key, value in row.items() if key != "messages"}
    images: list[str] = []
    turns: list[dict[str, object]] = []
    for message in cast("list[Message]", row["messages"]):
        paths = [part["path"] for part in message["content"] if part["type"] == "image"]
        texts = [part["text"] for part in message["content"] if part["type"] == "text"]
        value = "\n".join([IMAGE_MARK] * len(paths) + texts)
        extra = {key: item for key, item in message.items() if key not in ("role", "content")}
        turns.append({**extra, "from": _SPEAKERS[message["role"]], "value": value})
        images += paths
    record["images"] = images
    return record, turns


def _without_kept(record: Mapping[str, object]) -> dict[str, object]:
    """The record itself; a key of that name that we did not write stays."""
    kept = record.get(KEPT)
    if isinstance(kept, Mapping) and kept.get("form") in _FORMS:
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


_FORMS: dict[str, Form] = {
    "schema": Form("schema", "messages", _read_schema, _write_schema),
    "llava": Form("llava", "conversations", from_llava, _write_llava),
    "sharegpt": Form("sharegpt", "conversations", from_sharegpt, _write_sharegpt),
}
