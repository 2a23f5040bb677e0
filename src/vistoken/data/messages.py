"""The messages schema (version 1): what a data row may hold, and LLaVA's JSON read as it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, cast

from vistoken.core.errors import DataError, did_you_mean
from vistoken.models.templates import IMAGE_MARK

Role = Literal["system", "user", "assistant"]

_ROLES = ("system", "user", "assistant")
_LLAVA_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}


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


def read_messages(row: Mapping[str, object], where: str) -> list[Message]:
    """Check a row's messages and bring them to one shape.

    A message whose content is a string becomes one text part. `<image>` marks written in a text are
    taken out where the message has as many image parts; the template writes them again.

    Args:
        row: One row of a data file: `id`, `messages` and whatever else it carries.
        where: File and line, for errors.

    Returns:
        The messages: an optional system message, then user and assistant in turn.

    Raises:
        DataError: The row breaks the schema; the error names sample, message and fix.
    """
    sample = name_sample(row, where)
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{sample}: 'messages' must be a list with at least one message")
    read: list[Message] = []
    for number, message in enumerate(cast("list[object]", messages), start=1):
        place = f"{sample}, message {number}"
        expected = _expected_roles(read)
        read.append(_read_message(message, expected, place))
    if read[-1]["role"] == "system":
        raise DataError(f"{sample}: there is only a system message; add a user message")
    return read


def image_paths(messages: Sequence[Message]) -> list[str]:
    """Paths of all image parts, in the order in which a template renders them."""
    return [
        part["path"]
        for message in messages
        for part in message["content"]
        if part["type"] == "image"
    ]


def from_llava(record: Mapping[str, object], where: str) -> dict[str, object]:
    """Read one record of a LLaVA training file as a row of the messages schema.

    The text is normalised as the released training code does: in a turn with an `<image>` mark, all
    marks are taken out, the rest is stripped and the picture stands first; a leading answer is
    dropped. `image` may also be a list, with one mark per picture.

    Args:
        record: A record with `id`, `conversations` and perhaps `image`; other keys are kept.
        where: File and position, for errors.

    Returns:
        The row, checked with `read_messages`.

    Raises:
        DataError: An unknown speaker, a value that is no text, or marks unlike the images.
    """
    sample = name_sample(record, where)
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{sample}: 'conversations' must be a list with at least one turn")
    left = _llava_images(record, sample)
    several = len(left) > 1
    messages: list[Message] = []
    for number, turn in enumerate(cast("list[object]", turns), start=1):
        role, value = _llava_turn(turn, f"{sample}, turn {number}")
        if number == 1 and role == "assistant":
            continue
        marks = value.count(IMAGE_MARK)
        # A single picture marked twice in a turn is still one picture to the released code.
        taken = marks if several else min(marks, 1)
        if taken > len(left):
            raise DataError(
                f"{sample}, turn {number}: an {IMAGE_MARK} mark has no image left;"
                " list as many files under 'image' as there are marks"
            )
        content: list[Part] = [{"type": "image", "path": path} for path in left[:taken]]
        left = left[taken:]
        text = value.replace(IMAGE_MARK, "").strip() if marks else value
        if text or not content:
            content.append({"type": "text", "text": text})
        messages.append({"role": role, "content": content})
    if left:
        raise DataError(
            f"{sample}: image {left[0]!r} has no {IMAGE_MARK} mark in the conversation;"
            " put the mark into the user turn that asks about it"
        )
    extra = {key: value for key, value in record.items() if key not in ("image", "conversations")}
    row: dict[str, object] = {**extra, "id": str(record["id"]), "messages": messages}
    row["messages"] = read_messages(row, where)
    return row


def name_sample(row: Mapping[str, object], where: str) -> str:
    """How errors name a row: its place and its id.

    Raises:
        DataError: The row has no id.
    """
    sample_id = row.get("id")
    if isinstance(sample_id, bool) or not isinstance(sample_id, str | int) or sample_id == "":
        raise DataError(f"{where}: the row has no 'id'; give it one that is unique in the file")
    return f"{where}: sample {str(sample_id)!r}"


def _expected_roles(before: Sequence[Message]) -> tuple[Role, ...]:
    if not before:
        return ("system", "user")
    return ("assistant",) if before[-1]["role"] == "user" else ("user",)


def _read_message(message: object, expected: tuple[Role, ...], place: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f"{place}: must be an object with 'role' and 'content'")
    fields = cast("Mapping[str, object]", message)
    role = fields.get("role")
    if role not in _ROLES:
        raise DataError(f"{place}: unknown role {role!r}; {did_you_mean(str(role), _ROLES)}")
    if role not in expected:
        raise DataError(
            f"{place}: role {role!r} where {' or '.join(map(repr, expected))} is due;"
            " after an optional system message, user and assistant take turns"
        )
    content = _read_content(fields.get("content"), f"{place} ({role})")
    images = sum(part["type"] == "image" for part in content)
    text = "".join(part["text"] for part in content if part["type"] == "text")
    if images and role != "user":
        raise DataError(f"{place} ({role}): only a user message may hold images; move them there")
    marks = text.count(IMAGE_MARK)
    if marks not in (0, images):
        raise DataError(
            f"{place} ({role}): {marks} {IMAGE_MARK} marks in the text for {images} image parts;"
            " write one image part per mark, or no marks at all"
        )
    if marks:
        content = _without_marks(content)
    if not images and not text.strip():
        raise DataError(f"{place} ({role}): the text is empty; write it or leave the message out")
    return {"role": role, "content": content}


def _read_content(content: object, place: str) -> list[Part]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise DataError(f"{place}: 'content' must be a text or a list of parts")
    parts: list[Part] = []
    for number, part in enumerate(cast("list[object]", content), start=1):
        kind = cast("Mapping[str, object]", part).get("type") if isinstance(part, Mapping) else None
        if kind not in ("image", "text"):
            raise DataError(
                f"{place}, part {number}: 'type' must be 'image' or 'text', not {kind!r}"
            )
        key = "path" if kind == "image" else "text"
        value = cast("Mapping[str, object]", part).get(key)
        if not isinstance(value, str) or (kind == "image" and not value):
            raise DataError(
                f"{place}, part {number} ({kind}): {key!r} must be a text, not {value!r}"
            )
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


def _llava_images(record: Mapping[str, object], sample: str) -> list[str]:
    image = record.get("image")
    if image is None:
        return []
    images = cast("list[object]", image) if isinstance(image, list) else [image]
    for path in images:
        if not isinstance(path, str) or not path:
            raise DataError(f"{sample}: 'image' must be a path or a list of paths, not {path!r}")
    return cast("list[str]", images)


def _llava_turn(turn: object, place: str) -> tuple[Role, str]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{place}: must be an object with 'from' and 'value'")
    fields = cast("Mapping[str, object]", turn)
    speaker, value = fields.get("from"), fields.get("value")
    if not isinstance(speaker, str) or speaker not in _LLAVA_ROLES:
        raise DataError(f"{place}: unknown speaker {speaker!r} under 'from'; write human or gpt")
    if not isinstance(value, str):
        raise DataError(f"{place}: 'value' must be a text, not {value!r}")
    return _LLAVA_ROLES[speaker], value
