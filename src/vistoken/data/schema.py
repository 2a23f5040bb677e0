"""The messages schema (version 1): what a data row may hold, and how its faults are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as shorten
from typing import Literal, TypedDict, cast

from vistoken.core.errors import DataError, did_you_mean
from vistoken.models.templates import IMAGE_MARK

Role = Literal["system", "user", "assistant"]
FaultKind = Literal[
    "json", "id", "schema", "role", "role-order", "empty", "placeholder",
    "image-missing", "image-broken", "unsupervised", "too-long", "template",
]  # fmt: skip

_ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class ImagePart(TypedDict):
    """A picture, by its path relative to the image root."""

    type: Literal["image"]
    path: str


class TextPart(TypedDict):
    """A stretch of text."""

    type: Literal["text"]
    text: str


Part = ImagePart | TextPart


class Message(TypedDict):
    """One turn, its content always a list of parts."""

    role: Role
    content: list[Part]


class SampleFault(DataError):
    """One thing wrong with one sample.

    Args:
        kind: What sort of fault it is.
        message: One sentence that names place, sample and fix.
    """

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


Report = Callable[[SampleFault], None]
"""Takes a fault: raises it, or keeps it and lets reading go on."""


def raise_fault(fault: SampleFault) -> None:
    """The report of a reader that stops at the first fault.

    Raises:
        SampleFault: Always.
    """
    raise fault


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
    for number, message in enumerate(cast("list[object]", messages), start=1):
        place = f"{sample}, message {number}"
        due = due_roles(before)
        if not isinstance(message, Mapping):
            report(_schema(f"{place}: must be an object with 'role' and 'content'"))
            before = due[-1]
            continue
        fields = cast("Mapping[str, object]", message)
        before = _read_role(fields.get("role"), due, place, report)
        content = _read_message(fields.get("content"), before, f"{place} ({before})", report)
        if content is not None:
            read.append({"role": before, "content": content})
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


def _read_message(content: object, role: Role, place: str, report: Report) -> list[Part] | None:
    """The parts of a message; None where a fault was reported."""
    try:
        parts = _read_content(content, place)
    except SampleFault as fault:
        report(fault)
        return None
    images = sum(part["type"] == "image" for part in parts)
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    marks = text.count(IMAGE_MARK)
    if images and role != "user":
        report(_schema(f"{place}: only a user message may hold images; move them there"))
    elif marks not in (0, images):
        report(
            SampleFault(
                "placeholder",
                f"{place}: {marks} {IMAGE_MARK} marks in the text for {images} image parts;"
                " write one image part per mark, or no marks at all",
            )
        )
    elif not _is_text(text):
        report(_schema(f"{place}: the text holds half of a surrogate pair; write the whole one"))
    elif not images and not text.strip():
        report(
            SampleFault("empty", f"{place}: the text is empty; write it or leave the message out")
        )
    else:
        return _without_marks(parts) if marks else parts
    return None


def _is_text(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can write and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_content(content: object, place: str) -> list[Part]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise _schema(f"{place}: 'content' must be a text or a list of parts")
    parts: list[Part] = []
    for number, part in enumerate(cast("list[object]", content), start=1):
        kind = cast("Mapping[str, object]", part).get("type") if isinstance(part, Mapping) else None
        if kind not in ("image", "text"):
            raise _schema(f"{place}, part {number}: 'type' must be 'image' or 'text', not {kind!r}")
        key = "path" if kind == "image" else "text"
        value = cast("Mapping[str, object]", part).get(key)
        if not isinstance(value, str) or (kind == "image" and not value):
            got = shorten(value)
            raise _schema(f"{place}, part {number} ({kind}): {key!r} must be a text, not {got}")
        # Further keys of a part (a box, say) belong to the systems that read them.
        parts.append(cast("Part", dict(cast("Mapping[str, object]", part))))
    return parts


def _without_marks(content: Sequence[Part]) -> list[Part]:
    kept: list[Part] = []
    for part in content:
        if part["type"] == "image":
            kept.append(part)
        elif text := part["text"].replace(IMAGE_MARK, "").strip():
            kept.append({"type": "text", "text": text})
    return kept


def _schema(message: str) -> SampleFault:
    return SampleFault("schema", message)
