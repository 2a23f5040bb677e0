"""Questions without wording: what is asked, a direction, names; an answer of one word.

A small language model that starts from nothing would spend a short run on learning to read. Said
like this, the same questions about the same pictures leave it nothing to learn but the pictures:
"Of the bus and the gift, which is further left?" becomes "relation left bus gift".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from vistoken.core.errors import DataError
from vistoken.data.scenes.grammar import plural
from vistoken.data.scenes.names import icon_names

ASKED: dict[str, int] = {
    "name1": 0,
    "nameN": 0,
    "colour": 0,
    "count": 0,
    "count-of": 1,
    "presence": 1,
    "nearest": 1,
    "relation": 2,
    "relation-check": 2,
    "between": 2,
    "size": 2,
}
"""Kind of question -> how many things it names."""

DIRECTIONS = ("left", "right", "above", "below", "larger", "smaller")


def one_word(name: str) -> str:
    """A name as one word: ``roller coaster`` -> ``roller-coaster``."""
    return name.replace(" ", "-")


def terse_row(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row of vistoken-scenes in terse words.

    Args:
        row: A row with ``kind``, short ``answer`` and ``messages``.

    Returns:
        The row, or None where its question does not name as many things as its kind asks about.

    Raises:
        DataError: The kind has no terse form, or the row has no short answer.
    """
    kind = str(row.get("kind"))
    if kind not in ASKED or "answer" not in row:
        raise DataError(
            f"row {row.get('id')!r} of kind {kind!r} has no terse form; these kinds of "
            f"vistoken-scenes-v1 have one: {', '.join(ASKED)}"
        )
    content = row["messages"][-2]["content"]
    pictures = [part for part in content if part["type"] == "image"]
    asked = " ".join(part["text"] for part in content if part["type"] == "text")
    things = named(asked) if ASKED[kind] else []
    if len(things) != ASKED[kind]:
        return None
    direction = row.get("direction")
    text = " ".join([kind, *([str(direction)] if direction else []), *map(one_word, things)])
    user = {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}
    answer = one_word(str(row["answer"]))
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return {**row, "messages": [user, reply]}


def terse_scene(row: Mapping[str, Any]) -> dict[str, Any]:
    """An annotation whose names are one word each."""
    things = [{**thing, "name": one_word(thing["name"])} for thing in row["objects"]]
    return {**row, "objects": things}


def named(text: str) -> list[str]:
    """Names of things in a question, singular, in their order; of overlapping ones the longest."""
    forms, pattern = _forms()
    return [forms[found.group().lower()] for found in pattern.finditer(text)]


@cache
def _forms() -> tuple[dict[str, str], re.Pattern[str]]:
    """Every name in singular and plural -> the name, and a pattern that finds them."""
    words = [name.word for name in icon_names()]
    forms = {plural(word): word for word in words} | {word: word for word in words}
    longest_first = sorted(forms, key=len, reverse=True)
    pattern = r"\b(?:" + "|".join(re.escape(form) for form in longest_first) + r")\b"
    return forms, re.compile(pattern, re.IGNORECASE)
