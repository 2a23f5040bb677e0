"""The TokenMap of a conversation, known before any weight is touched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vistoken.core.tables import TEXT_COLUMNS, TOKEN, TokenKind
from vistoken.data.labels import EncodedConversation


def conversation_map(encoded: EncodedConversation, media_maps: Sequence[Tensor]) -> Tensor:
    """What every token of a conversation is: what it shows, who said it, in which round.

    Args:
        encoded: The conversation.
        media_maps: Map (N_i, K) of each of its pictures, as the image processor's ``token_map``
            gives them.

    Returns:
        (N, K) int64. As ``text_map`` of a model's call it brings turn and role to the map that the
        model returns, which then equals this one.

    Raises:
        ValueError: The conversation holds other pictures than the maps are of.
    """
    spans = encoded.images
    if [stop - start for start, stop in spans] != [len(media) for media in media_maps]:
        raise ValueError(
            f"the conversation has pictures of {[stop - start for start, stop in spans]} tokens,"
            f" the maps are of {[len(media) for media in media_maps]}"
        )
    table = TOKEN.make(len(encoded.input_ids), turn=encoded.turn, role=encoded.role)
    for number, ((start, stop), media) in enumerate(zip(spans, media_maps, strict=True)):
        said = {column: TOKEN.get(table[start:stop], column) for column in TEXT_COLUMNS}
        table[start:stop] = TOKEN.set(media, media=number, **said)
    return table


def batch_maps(maps: Sequence[Tensor], left: bool = False) -> Tensor:
    """Pad the maps of several conversations to one length.

    Args:
        maps: (N_i, K) each; media are numbered anew over the batch.
        left: Pad on the left, as generation wants it.

    Returns:
        (B, N, K) int64, padding of kind PAD.
    """
    length = max(len(table) for table in maps)
    batch = TOKEN.make(len(maps) * length, kind=TokenKind.PAD)
    batch = batch.unflatten(0, (len(maps), length))
    first = 0
    for number, table in enumerate(maps):
        media = TOKEN.get(table, "media")
        shifted = TOKEN.set(table, media=torch.where(media < 0, media, media + first))
        start = length - len(table) if left else 0
        batch[number, start : start + len(table)] = shifted
        first += int(media.max()) + 1 if len(media) else 0
    return batch
