"""The messages schema (version 1): what a data row may hold, and how its faults are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

from vistoken.core.errors import did_you_mean
from vistoken.data.faults import FaultKind, Report, SampleFault, raise_fault
from vistoken.data.faults import schema_fault as _schema
from vistoken.data.parts_of_message import (
    BoxPart,
    ImagePart,
    Part,
    Role,
    TextPart,
    VideoPart,
    check_places,
    read_parts,
    without_marks,
)
from vistoken.models.templates import IMAGE_MARK

__all__ = [
    "BoxPart",
    "FaultKind",
    "ImagePart",
    "Message",
    "Part",
    "Report",
    "Role",
    "SampleFault",
    "TextPart",
    "VideoPart",
    "due_roles",
    "image_paths",
    "is_picture_file",
    "name_sample",
    "raise_fault",
    "read_messages",
]

_ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn, its content always a list of parts."""

    role: Role
    content: list[Part]


def read_messages(
    row: Mapping[str, object], where: str, report: Report = raise_fault
) -> list[Message]:
    """Check a row's messages and bring them to one shape.

    A message whose content is a string becomes one text part. `<image>` marks written in a text are
    taken out where the message has as many image parts; the template writes them again.

    Args:
        row: One row of a data file: `id`, `messages` and whatever else it carries.
        where: File and line, for errors.
        report: Told of every fault; the default raises the first one.

    Returns:
        The messages: an optional system message, then user and assistant in turn. Where `report`
        kept faults, what could be read.

    Raises:
        DataError: The row breaks the schema; the error names sample, message and fix.
    """
    sample = _sample_or_place(row, where, report)
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        report(_schema(f"{sample}: 'messages' must be a list with at least one message"))
        return []
    read: list[Message] = []
    before: Role | None = None
    shown: int | None = 0
    for number, message in enumerate(cast("list[object]", messages), start=1):
        place = f"{sample}, message {number}"
        due = due_roles(before)
        if not isinstance(message, Mapping):
            report(_schema(f"{place}: must be an object with 'role' and 'content'"))
            before, shown = due[-1], None
            continue
        fields = cast("Mapping[str, object]", message)
        before = _read_role(fields.get("role"), due, place, report)
        content = _read_message(fields.get("content"), before, shown, f"{place} ({before})", report)
        if content is None:
            shown = None  # it may have held pictures
            continue
        read.append({"role": before, "content": content})
        if shown is not None:
            shown += sum(part["type"] == "image" for part in content)
    if before == "system":
        report(_schema(f"{sample}: there is only a system message; add a user message"))
    return read


def image_paths(messages: Sequence[Message]) -> list[str]:
    """Paths of all image parts, in the order in which a template renders them."""
    return [
        part["path"]
        for message in messages
        for part in message["content"]
        if part["type"] == "image"
    ]


def is_picture_file(path: Path) -> bool:
    """Whether there is a file of this name, however strange the name is."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def name_sample(row: Mapping[str, object], where: str) -> str:
    """How errors name a row: its place and its id.

    Raises:
        DataError: The row has no id.
    """
    sample_id = row.get("id")
    if isinstance(sample_id, bool) or not isinstance(sample_id, str | int) or sample_id == "":
        raise SampleFault(
            "id", f"{where}: the row has no 'id'; give it one that is unique in the file"
        )
    return f"{where}: sample {str(sample_id)!r}"


def due_roles(before: Role | None) -> tuple[Role, ...]:
    """Roles that may follow a message, the usual one last."""
    if before is None:
        return ("system", "user")
    return ("assistant",) if before == "user" else ("user",)


def _sample_or_place(row: Mapping[str, object], where: str, report: Report) -> str:
    try:
        return name_sample(row, where)
    except SampleFault as fault:
        report(fault)
        return where


def _read_role(role: object, due: tuple[Role, ...], place: str, report: Report) -> Role:
    """The role, or the one that is due where it is none: its neighbours are not at fault."""
    if role not in _ROLES:
        near = did_you_mean(str(role), _ROLES)
        report(SampleFault("role", f"{place}: unknown role {role!r}; {near}"))
        return due[-1]
    if role not in due:
        report(
            SampleFault(
                "role-order",
                f"{place}: role {role!r} where {' or '.join(map(repr, due))} is due;"
                " after an optional system message, user and assistant take turns",
            )
        )
    return role


def _read_message(
    content: object, role: Role, shown: int | None, place: str, report: Report
) -> list[Part] | None:
    """The parts of a message; None where a fault was reported."""
    try:
        parts = read_parts(content, place)
        check_places(parts, role, shown, place)
    except SampleFault as fault:
        report(fault)
        return None
    images = sum(part["type"] == "image" for part in parts)
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    marks = text.count(IMAGE_MARK)
    if marks not in (0, images):
        report(
            SampleFault(
                "placeholder",
                f"{place}: {marks} {IMAGE_MARK} marks in the text for {images} image parts;"
                " write one image part per mark, or no marks at all",
            )
        )
    elif not _is_text(text):
        report(_schema(f"{place}: the text holds half of a surrogate pair; write the whole one"))
    elif not text.strip() and all(part["type"] == "text" for part in parts):
        report(
            SampleFault("empty", f"{place}: the text is empty; write it or leave the message out")
        )
    else:
        return without_marks(parts) if marks else parts
    return None


def _is_text(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can write and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
