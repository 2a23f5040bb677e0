"""Tokenised rows, and how much of their beginning they can share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vistoken.core.tables import TextRole

IGNORE = -100


@dataclass(frozen=True)
class Row:
    """One tokenised row of data.

    Attributes:
        input_ids: Token ids, pictures expanded.
        labels: Token id where supervised, -100 elsewhere.
        image_end: Position after the last picture's tokens, 0 without pictures.
        kind: What the row asks, for metrics by kind.
        role: Code of ``TextRole`` per token; where it is empty, only what labels tell is known.
        turn: Number of the round per token; -1 where it is empty.
    """

    input_ids: list[int]
    labels: list[int]
    image_end: int
    kind: str = ""
    role: Sequence[int] = ()
    turn: Sequence[int] = ()

    @property
    def roles(self) -> list[int]:
        """Role of every token."""
        if self.role:
            return list(self.role)
        return [
            TextRole.TEMPLATE if label == IGNORE else TextRole.ASSISTANT for label in self.labels
        ]

    @property
    def turns(self) -> list[int]:
        """Round of every token, -1 where it is not known."""
        return list(self.turn) or [-1] * len(self.input_ids)


def shared_prefix(rows: Sequence[Row]) -> int:
    """Length of the prefix that rows share and none is supervised in.

    Raises:
        ValueError: The rows differ before the end of the picture.
    """
    limit = min(_unsupervised(row) for row in rows)
    # every branch keeps a token of its own
    limit = min(limit, min(len(row.input_ids) for row in rows) - 1)
    first = rows[0].input_ids
    length = 0
    while length < limit and all(row.input_ids[length] == first[length] for row in rows[1:]):
        length += 1
    # a row of its own may well show a picture after its first answer
    if len(rows) > 1 and length < max(row.image_end for row in rows):
        raise ValueError("rows packed behind one picture must have the same text before it")
    return length


def sharable_prefix(row: Row) -> tuple[int, ...] | None:
    """What rows must have in common to share a prefix: their tokens up to the last picture.

    None for a row that has no picture, or an answer before the last one: it shares with none.
    """
    if not row.image_end or _unsupervised(row) < row.image_end:
        return None
    return tuple(row.input_ids[: row.image_end])


def _unsupervised(row: Row) -> int:
    """Number of positions before the first supervised one."""
    for place, label in enumerate(row.labels):
        if label != IGNORE:
            return place
    return len(row.labels)
