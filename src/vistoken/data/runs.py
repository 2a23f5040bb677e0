"""A tokenised conversation cut into stretches of one role, for showing its label mask."""

from __future__ import annotations

from dataclasses import dataclass

from vistoken.data.labels import EncodedConversation


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens of one role.

    Attributes:
        start: First position.
        stop: Position behind the last one.
        role: One of the `ROLE_` codes of `vistoken.data.labels`.
        picture: Number of the picture the tokens stand for, None for text.
    """

    start: int
    stop: int
    role: int
    picture: int | None


def label_runs(encoded: EncodedConversation) -> list[Run]:
    """Cut a conversation where role or picture changes.

    Args:
        encoded: The conversation.

    Returns:
        The runs, in order; together they cover every token.
    """
    picture_at = {
        position: number for number, span in enumerate(encoded.images) for position in range(*span)
    }
    runs: list[Run] = []
    for position, role in enumerate(encoded.role):
        picture = picture_at.get(position)
        if runs and (runs[-1].role, runs[-1].picture) == (role, picture):
            runs[-1] = Run(runs[-1].start, position + 1, role, picture)
        else:
            runs.append(Run(position, position + 1, role, picture))
    return runs
