"""Parts of messages that a data file may hold and no model of this package reads yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vistoken.core.errors import DataError

_UNREAD = {"video": "videos", "box": "boxes"}


def refuse_unread_parts(messages: Sequence[Any], where: str = "conversation") -> None:
    """Refuse a conversation with videos or boxes before a template could leave them out.

    Args:
        messages: The conversation; content is a text or a list of typed parts.
        where: Names the conversation in errors.

    Raises:
        DataError: There is such a part.
    """
    for number, message in enumerate(messages, start=1):
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else []:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(kind, str) and kind in _UNREAD:
                raise DataError(
                    f"{where}, message {number}: this model has no part that reads"
                    f" {_UNREAD[kind]}; leave the sample out, or take its {_UNREAD[kind]} away"
                )
