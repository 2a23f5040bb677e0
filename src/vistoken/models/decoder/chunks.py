"""Prompts that arrive in pieces."""

from __future__ import annotations

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN
from vistoken.models.decoder.cache import SparseCache
from vistoken.models.decoder.state import SequenceState


def refuse_split_media(state: SequenceState, mechanism: str) -> None:
    """Refuse a call that opens inside a medium whose first rows an earlier call has seen.

    For mechanisms in whose blocks early rows need keys that come later, or that look at a medium
    as a whole; to be called in ``begin``.

    Args:
        state: The call's rows.
        mechanism: Name for the message.

    Raises:
        UsageError: If a sequence goes on inside a medium.
    """
    cache = state.cache
    if not isinstance(cache, SparseCache) or cache.token_map is None or state.token_map is None:
        return
    started = cache.seen - state.valid.shape[1]
    if started <= 0:
        return
    before = TOKEN.get(cache.token_map[:, started - 1], "media")
    first = state.valid.int().argmax(1)  # padding may stand in front
    media = TOKEN.get(state.token_map, "media").gather(1, first[:, None])[:, 0]
    if bool(((before >= 0) & (before == media)).any()):
        raise UsageError(
            f"the mechanism {mechanism!r} needs every medium in one call, but this one opens "
            "inside a medium; move the edge of the piece, or generate without prefill_chunk_size."
        )
