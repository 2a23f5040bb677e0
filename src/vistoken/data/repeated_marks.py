"""Turns that mark their one picture more than once, which released code reads as one mark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from vistoken.models.templates import IMAGE_MARK


def repeated_marks(record: Mapping[str, object], where: str) -> list[str]:
    """One sentence for every turn with several marks of a record with one picture.

    Several marks with several pictures are one each; without a picture they are a fault.

    Args:
        record: A record as it stands in the file, of any form.
        where: Names the record.
    """
    turns = record.get("conversations")
    pictures = record.get("images") or record.get("image")
    several = isinstance(pictures, list) and len(cast("list[object]", pictures)) > 1
    if not pictures or several or not isinstance(turns, list):
        return []
    said = []
    for number, turn in enumerate(cast("list[object]", turns), start=1):
        fields = cast("Mapping[str, object]", turn) if isinstance(turn, Mapping) else {}
        value = fields.get("value")
        marks = value.count(IMAGE_MARK) if isinstance(value, str) else 0
        if marks > 1:
            said.append(
                f"{where}, turn {number}: {marks} {IMAGE_MARK} marks for one picture are read as "
                "one; delete the others, or list a picture for each"
            )
    return said
