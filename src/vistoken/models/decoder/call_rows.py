"""Rotary positions of a call's rows, and which of them are no padding."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import Cache

from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder.cache import SparseCache
from vistoken.models.decoder.masks import AttentionMask, is_padding_mask


def row_positions(hidden: Tensor, position_ids: Tensor | None, cache: Cache | None) -> Tensor:
    """Positions (B, n), counted on from the cache where the caller gives none."""
    batch, rows = hidden.shape[:2]
    if position_ids is None:
        steps = torch.arange(rows, device=hidden.device)
        if isinstance(cache, SparseCache) and cache.next_positions is not None:
            cache.check_batch(batch)
            return cache.next_positions[:, None] + steps
        seen = 0 if cache is None else cache.get_seq_length()
        position_ids = (steps + seen).unsqueeze(0)
    return position_ids.expand(batch, -1)


def valid_rows(hidden: Tensor, attention_mask: AttentionMask, token_map: Tensor | None) -> Tensor:
    """Which rows (B, n) of this call are no padding."""
    rows = hidden.shape[1]
    if is_padding_mask(attention_mask):
        mask = cast(Tensor, attention_mask)[:, -rows:].bool()
        # a model on the meta device is run for its costs: what rows are must stay known
        return mask if hidden.is_meta else mask.to(hidden.device)
    if token_map is not None:  # a ready mask does not say which rows are padding
        return TOKEN.get(token_map, "kind") != TokenKind.PAD
    return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
