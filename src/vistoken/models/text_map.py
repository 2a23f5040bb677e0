"""The TokenMap of prompts that a processor made: who wrote each position, in which round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TextRole, split_media
from vistoken.models.outputs import ImageFeatures
from vistoken.models.scatter import batch_token_map

if TYPE_CHECKING:
    from vistoken.models.dialogue import Dialogue
    from vistoken.models.processing import VistokenProcessor

Codes = NDArray[np.int64]


def prompt_maps(
    processor: VistokenProcessor, dialogues: Sequence[Dialogue], made: dict[str, Any]
) -> Tensor:
    """What every position of a batch of prompts is.

    Args:
        processor: Made the prompts.
        dialogues: Their conversations.
        made: The model inputs, with ``offset_mapping`` and ``special_tokens_mask``.

    Returns:
        (B, n, K) int64, the map that the model will return.

    Raises:
        UsageError: The prompts differ in length.
    """
    if len({len(row) for row in made["input_ids"]}) > 1:
        raise UsageError("a text map of prompts of several lengths needs padding=True")
    ids = torch.as_tensor(made["input_ids"])
    maps = [TOKEN.make(0)]
    if "view_table" in made:
        plan = processor.image_processor.plan
        maps = [plan.arrange(table).token_map for table in split_media(made["view_table"])]
        maps = [TOKEN.set(table, media=number) for number, table in enumerate(maps)]
    counts = iter([len(media) for media in maps])
    table = torch.stack(
        [
            TOKEN.make(ids.shape[1], **_said(processor, dialogue, counts, offsets, added))
            for dialogue, offsets, added in zip(
                dialogues,
                torch.as_tensor(made["offset_mapping"]).tolist(),
                torch.as_tensor(made["special_tokens_mask"]).tolist(),
                strict=True,
            )
        ]
    )
    features = ImageFeatures(pooler_output=[], token_map=maps)
    visual = ids == processor.image_token_id
    complete = batch_token_map(visual, torch.as_tensor(made["attention_mask"]), features, table)
    return table if complete is None else complete


def _said(
    processor: VistokenProcessor,
    dialogue: Dialogue,
    counts: Any,
    offsets: list[list[int]],
    added: list[int],
) -> dict[str, list[int]]:
    """Role and turn of each token of a prompt; those the tokenizer added are the template's."""
    roles, turns = _expanded(processor, dialogue, counts)
    role, turn = [], []
    for (start, stop), is_added in zip(offsets, added, strict=True):
        own = not is_added and start < len(roles)
        # a token without characters of its own belongs where it stands
        role.append(int(roles[start : max(stop, start + 1)].max()) if own else TextRole.TEMPLATE)
        turn.append(int(turns[start]) if own else 0)
    return {"role": role, "turn": turn}


def _expanded(processor: VistokenProcessor, dialogue: Dialogue, counts: Any) -> tuple[Codes, Codes]:
    """Role and turn of every character of a prompt as it was tokenised: each mark repeated."""
    mark = processor.image_token
    length = len(dialogue.text)
    roles = np.frombuffer(dialogue.speakers, np.uint8).astype(np.int64)
    ends = np.array([stop for _, stop in dialogue.answers], np.int64)
    turns = np.searchsorted(ends, np.arange(length), side="right")
    turns = np.minimum(turns, dialogue.rounds - 1)
    places: list[Codes] = []
    start = 0
    for number, piece in enumerate(dialogue.text.split(mark)):
        if number:
            shown = np.arange(start, start + len(mark))
            roles[shown] = TextRole.USER
            places.append(np.tile(shown, next(counts)))
            start += len(mark)
            if piece:  # the gap goes with the text behind it
                places.append(np.full(len(processor.image_gap), start))
        places.append(np.arange(start, start + len(piece)))
        start += len(piece)
    order = np.concatenate(places)
    return roles[order], turns[order]
