"""Rows without a picture, from the manual that every Python brings along."""

from __future__ import annotations

import json
import platform
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vistoken.core.errors import DataError
from vistoken.core.files import write_atomically

_WORDS = 120
"""Words of a passage at least, but for a topic's last one."""

_REQUESTS = (
    "Go on: {start}",
    "Continue the text.\n{start}",
    "How does this go on? {start}",
    "Tell me more. {start}",
    "{start}",
)


def prose_rows(times: int = 1) -> list[dict[str, Any]]:
    """Passages of Python's language reference, each begun by the user and continued by the model.

    They differ between versions of Python. With the objective ``keep-language`` it does not matter
    what such rows say, only that they are prose.

    Args:
        times: How often each passage comes, behind requests drawn anew.

    Returns:
        Rows in the data schema, of kind ``text``, in an order of their own.
    """
    passages = [
        (f"prose-{topic}-{number:04d}", start, rest)
        for number, (topic, passage) in enumerate(_passages())
        for start, _, rest in [passage.partition(". ")]
        if rest
    ]
    chance = random.Random("vistoken/prose")
    rows = [
        {
            "id": f"{name}-{time}",
            "kind": "text",
            "messages": [
                _message("user", chance.choice(_REQUESTS).format(start=f"{start}.")),
                _message("assistant", rest),
            ],
        }
        for time in range(times)
        for name, start, rest in passages
    ]
    chance.shuffle(rows)
    return rows


def write_prose(path: Path, times: int = 1) -> int:
    """Write :func:`prose_rows` as JSON lines.

    Args:
        path: File to make.
        times: How often each passage comes.

    Returns:
        Number of rows.

    Raises:
        DataError: The file exists, or its folder does not.
        MachineError: There is no space, or no permission to write.
    """
    check_new(path)
    rows = prose_rows(times)
    write_atomically(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    return len(rows)


def check_new(path: Path) -> None:
    """Refuse a file that exists, and one in a folder that does not.

    Raises:
        DataError: Either.
    """
    if path.exists():
        raise DataError(f"{path} exists; name a new file or delete it")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent} is not a folder; make it, or name a file in another one")


def source() -> str:
    """What the passages come from, for a card."""
    return f"language reference of Python {platform.python_version()} (pydoc_data.topics)"


def _passages() -> Iterator[tuple[str, str]]:
    """Topic and passage; tables, listings and headings are left out, and repetitions too."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for topic, text in sorted(topics.items()):
        passage: list[str] = []
        for paragraph in _paragraphs(text):
            if paragraph in seen:
                continue
            seen.add(paragraph)
            passage += paragraph.split()
            if len(passage) >= _WORDS:
                yield topic, " ".join(passage)
                passage = []
        if passage:
            yield topic, " ".join(passage)


def _paragraphs(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        listing = "::=" in block or ">>>" in block or " = " in block
        if not listing and len(paragraph) >= 80 and paragraph.endswith("."):
            yield paragraph


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
