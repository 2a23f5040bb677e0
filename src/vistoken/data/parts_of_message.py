"""The typed parts of a message (text, image, video, box), and what each of them must hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from reprlib import repr as shorten
from typing import Literal, NotRequired, TypedDict, cast

from vistoken.data.faults import schema_fault
from vistoken.models.templates import IMAGE_MARK

Role = Literal["system", "user", "assistant"]


class ImagePart(TypedDict):
    """A picture, by its path relative to the image root."""

    type: Literal["image"]
    path: str


class TextPart(TypedDict):
    """A stretch of text."""

    type: Literal["text"]
    text: str


class VideoPart(TypedDict):
    """A video, by its path relative to the image root."""

    type: Literal["video"]
    path: str


class BoxPart(TypedDict):
    """A rectangle on a picture, in that picture's pixels: top, left, bottom, right.

    `image` counts the conversation's pictures from 0, in the order of the messages; without it the
    first one is meant.
    """

    type: Literal["box"]
    box: list[float]
    image: NotRequired[int]


Part = ImagePart | TextPart | VideoPart | BoxPart

_TYPES = ("text", "image", "video", "box")


def read_parts(content: object, place: str) -> list[Part]:
    """The parts of a message's content, each checked by itself.

    Args:
        content: A text, or a list of parts.
        place: Names sample and message in errors.

    Raises:
        SampleFault: Something else; the error names the part.
    """
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise schema_fault(f"{place}: 'content' must be a text or a list of parts")
    parts: list[Part] = []
    for number, part in enumerate(cast("list[object]", content), start=1):
        kind = cast("Mapping[str, object]", part).get("type") if isinstance(part, Mapping) else None
        if kind not in _TYPES:
            raise schema_fault(
                f"{place}, part {number}: 'type' must be 'text', 'image', 'video' or 'box',"
                f" not {kind!r}"
            )
        fields = cast("Mapping[str, object]", part)
        here = f"{place}, part {number} ({kind})"
        if kind == "box":
            _check_box(fields, here)
        else:
            _check_text(fields, "text" if kind == "text" else "path", here)
        # Further keys of a part belong to the systems that read them.
        parts.append(cast("Part", dict(fields)))
    return parts


def check_places(parts: Sequence[Part], role: Role, shown: int | None, place: str) -> None:
    """Check that every part may stand where it does.

    Args:
        parts: The parts of a message.
        role: Its role.
        shown: Pictures of the messages before it; None where a fault hides their number.
        place: Names sample and message in errors.

    Raises:
        SampleFault: An image or a video outside a user message, or a box in a system message or of
            a picture that was not shown yet.
    """
    images = sum(part["type"] == "image" for part in parts)
    for number, part in enumerate(parts, start=1):
        here = f"{place}, part {number} ({part['type']})"
        if part["type"] in ("image", "video") and role != "user":
            raise schema_fault(f"{here}: only a user message may hold {part['type']}s; move it")
        if part["type"] != "box":
            continue
        if role == "system":
            raise schema_fault(f"{here}: a system message holds no boxes; move it")
        index = part.get("image", 0)
        if shown is not None and index >= shown + images:
            raise schema_fault(
                f"{here}: it is on picture {index}, but {shown + images} pictures are shown up to"
                " here; 'image' counts the conversation's pictures from 0"
            )


def without_marks(content: Sequence[Part]) -> list[Part]:
    """The parts without the image marks in their texts; texts that held nothing else go."""
    kept: list[Part] = []
    for part in content:
        if part["type"] != "text":
            kept.append(part)
        elif text := part["text"].replace(IMAGE_MARK, "").strip():
            kept.append({"type": "text", "text": text})
    return kept


def video_places(messages: object) -> Iterator[tuple[str, str]]:
    """Message and part of every video of a row, and its path.

    Args:
        messages: The row's messages as they stand in the file, with their faults.
    """
    listed = cast("list[object]", messages) if isinstance(messages, list) else []
    for number, message in enumerate(listed, start=1):
        content = cast("Mapping[str, object]", message) if isinstance(message, Mapping) else {}
        role, held = content.get("role"), content.get("content")
        parts = cast("list[object]", held) if isinstance(held, list) else []
        for place, part in enumerate(parts, start=1):
            fields = cast("Mapping[str, object]", part) if isinstance(part, Mapping) else {}
            path = fields.get("path")
            if fields.get("type") == "video" and isinstance(path, str) and path:
                yield f"message {number} ({role}), part {place} (video)", path


def describe_part(part: Part) -> str:
    """A part as a line of text, for people to read."""
    if part["type"] == "text":
        return part["text"]
    if part["type"] == "box":
        edges = ", ".join(f"{edge:g}" for edge in part["box"])
        return f"[box {edges} on picture {part.get('image', 0)}]"
    return f"[{part['type']} {part['path']}]"


def _check_text(part: Mapping[str, object], key: str, here: str) -> None:
    value = part.get(key)
    if not isinstance(value, str) or (key == "path" and not value):
        raise schema_fault(f"{here}: {key!r} must be a text, not {shorten(value)}")


def _check_box(part: Mapping[str, object], here: str) -> None:
    box, index = part.get("box"), part.get("image", 0)
    edges = cast("list[object]", box) if isinstance(box, list) else []
    if len(edges) != 4 or not all(map(_is_finite, edges)):
        raise schema_fault(
            f"{here}: 'box' must be four finite numbers, top, left, bottom, right in pixels,"
            f" not {shorten(box)}"
        )
    top, left, bottom, right = cast("list[float]", edges)
    if bottom <= top or right <= left:
        raise schema_fault(
            f"{here}: bottom must be more than top, and right more than left, not {shorten(box)};"
            " the order is top, left, bottom, right"
        )
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise schema_fault(
            f"{here}: 'image' must be the number of a picture, counted from 0, not {shorten(index)}"
        )


def _is_finite(edge: object) -> bool:
    if isinstance(edge, bool) or not isinstance(edge, int | float):
        return False
    try:
        return math.isfinite(edge)
    except OverflowError:  # an integer beyond every float
        return False
