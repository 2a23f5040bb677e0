"""LLaVA's and ShareGPT's records read as rows of the messages schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import cast

from vistoken.data.schema import (
    Message,
    Part,
    Report,
    Role,
    SampleFault,
    due_roles,
    name_sample,
    raise_fault,
    read_messages,
)
from vistoken.models.templates import IMAGE_MARK


@dataclass(frozen=True, slots=True)
class Dialect:
    """What distinguishes one family of files with `conversations` from another.

    Attributes:
        roles: Role of every speaker under `from`.
        image_keys: Keys that may hold a path or a list of paths.
        system_key: Key of a system text beside the turns, empty for none.
        advice: What to write instead of an unknown speaker.
    """

    roles: Mapping[str, Role]
    image_keys: tuple[str, ...]
    system_key: str
    advice: str


LLAVA = Dialect({"human": "user", "gpt": "assistant"}, ("image",), "", "write human or gpt")
SHAREGPT = Dialect(
    {
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "chatgpt": "assistant",
        "bing": "assistant",
        "bard": "assistant",
        "system": "system",
    },
    ("images", "image"),
    "system",
    "write system, human or gpt",
)


def from_llava(
    record: Mapping[str, object], where: str, report: Report = raise_fault
) -> dict[str, object]:
    """Read one record of a LLaVA training file as a row of the messages schema.

    The text is normalised as the released training code does: in a turn with an `<image>` mark, all
    marks are taken out, the rest is stripped and the picture stands first; a leading answer is
    dropped. `image` may also be a list, with one mark per picture.

    Args:
        record: A record with `id`, `conversations` and perhaps `image`; other keys are kept, as are
            further keys of a turn.
        where: File and position, for errors.
        report: Told of every fault; the default raises the first one.

    Returns:
        The row, checked with `read_messages`.

    Raises:
        DataError: An unknown speaker, a value that is no text, or marks unlike the images.
    """
    return _from_turns(record, where, LLAVA, report)


def from_sharegpt(
    record: Mapping[str, object], where: str, report: Report = raise_fault
) -> dict[str, object]:
    """Read one ShareGPT record as a row of the messages schema.

    As :func:`from_llava`, with more names for the speakers, pictures under `images` as well, and a
    system text that is the first turn or stands beside the turns.

    Args:
        record: A record with `id` and `conversations`; other keys are kept.
        where: File and position, for errors.
        report: Told of every fault; the default raises the first one.

    Returns:
        The row, checked with `read_messages`.

    Raises:
        DataError: An unknown speaker, a value that is no text, or marks unlike the images.
    """
    return _from_turns(record, where, SHAREGPT, report)


def _from_turns(
    record: Mapping[str, object], where: str, dialect: Dialect, report: Report
) -> dict[str, object]:
    try:
        sample = name_sample(record, where)
    except SampleFault as fault:
        report(fault)
        sample = where
    image_key, left = _images(record, sample, dialect, report)
    extra = {key: value for key, value in record.items() if key not in (image_key, "conversations")}
    row: dict[str, object] = {**extra, "id": str(record.get("id", "")), "messages": []}
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        report(
            SampleFault(
                "schema", f"{sample}: 'conversations' must be a list with at least one turn"
            )
        )
        return row
    messages = _system_messages(row, dialect)
    several = len(left) > 1
    before: Role | None = messages[-1]["role"] if messages else None
    for number, turn in enumerate(cast("list[object]", turns), start=1):
        place = f"{sample}, turn {number}"
        role, value = _turn(turn, before, place, dialect, report)
        if before in (None, "system") and role == "assistant":
            continue
        before = role
        marks = value.count(IMAGE_MARK)
        # A single picture marked twice in a turn is still one picture to the released code.
        taken = marks if several else min(marks, 1)
        if taken > len(left):
            report(
                SampleFault(
                    "placeholder",
                    f"{place}: an {IMAGE_MARK} mark has no image left;"
                    " list as many files under 'image' as there are marks",
                )
            )
        messages.append(_message(turn, role, value, left[:taken]))
        left = left[taken:]
    if left:
        report(
            SampleFault(
                "placeholder",
                f"{sample}: image {left[0]!r} has no {IMAGE_MARK} mark in the conversation;"
                " put the mark into the user turn that asks about it",
            )
        )
    row["messages"] = messages
    extras = [_extra_keys(message) for message in messages]
    checked = read_messages(row if row["id"] else {**row, "id": "?"}, where, report)
    # A row that kept faults may have lost messages; then nobody asks for their further keys.
    if len(checked) == len(messages):
        row["messages"] = [
            {**message, **extra} for message, extra in zip(checked, extras, strict=True)
        ]
    return row


def _message(turn: object, role: Role, value: str, images: list[str]) -> Message:
    content: list[Part] = [{"type": "image", "path": path} for path in images]
    text = value.replace(IMAGE_MARK, "").strip() if IMAGE_MARK in value else value
    if text or not content:
        content.append({"type": "text", "text": text})
    further = cast("Mapping[str, object]", turn) if isinstance(turn, Mapping) else {}
    extra = {key: further[key] for key in further if key not in ("from", "value")}
    return cast("Message", {**extra, "role": role, "content": content})


def _extra_keys(message: Message) -> dict[str, object]:
    fields = cast("Mapping[str, object]", message)
    return {key: fields[key] for key in fields if key not in ("role", "content")}


def _system_messages(row: dict[str, object], dialect: Dialect) -> list[Message]:
    """The system text beside the turns, taken out of the row."""
    text = row.get(dialect.system_key) if dialect.system_key else None
    if not isinstance(text, str) or not text.strip():
        return []
    del row[dialect.system_key]
    return [{"role": "system", "content": [{"type": "text", "text": text}]}]


def _images(
    record: Mapping[str, object], sample: str, dialect: Dialect, report: Report
) -> tuple[str, list[str]]:
    """The key that holds the pictures, and their paths."""
    held = [key for key in dialect.image_keys if record.get(key) is not None]
    key = held[0] if held else dialect.image_keys[0]
    image = record.get(key)
    if image is None:
        return key, []
    images = cast("list[object]", image) if isinstance(image, list) else [image]
    for path in images:
        if not isinstance(path, str) or not path:
            report(
                SampleFault(
                    "schema",
                    f"{sample}: {key!r} must be a path or a list of paths, not {shorten(path)};"
                    " write pictures to files and name those",
                )
            )
            return key, []
    return key, cast("list[str]", images)


def _turn(
    turn: object, before: Role | None, place: str, dialect: Dialect, report: Report
) -> tuple[Role, str]:
    """Speaker and text; where one is at fault, what keeps its neighbours from blame."""
    due = due_roles(before)[-1]
    if not isinstance(turn, Mapping):
        report(SampleFault("schema", f"{place}: must be an object with 'from' and 'value'"))
        return due, "?"
    fields = cast("Mapping[str, object]", turn)
    speaker, value = fields.get("from"), fields.get("value")
    role = dialect.roles.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        report(
            SampleFault(
                "role", f"{place}: unknown speaker {speaker!r} under 'from'; {dialect.advice}"
            )
        )
    if not isinstance(value, str):
        report(SampleFault("schema", f"{place}: 'value' must be a text, not {shorten(value)}"))
        value = "?"
    return role or due, value
