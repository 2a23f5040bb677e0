"""What travels through the decoder's layers during one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder.keys import KeyTable, keys_of
from vistoken.models.decoder.memo import CallMemo


@dataclass(slots=True)
class SequenceState:
    """Rows of one decoder call and what is known about each of them.

    A mechanism that removes rows uses :func:`~vistoken.models.decoder.drop.drop_rows`, which
    replaces everything that has one entry per row together; positions are gathered, never counted
    anew.

    Args:
        hidden (Tensor): (B, n, D), input of the next layer.
        position_ids (Tensor): (B, n), rotary positions.
        valid (Tensor): (B, n) bool, False on padding.
        token_map (Tensor | None): (B, n, K) int64, the batch's TokenMap; None where all rows are
            text. Read it through :attr:`table`.
        side: What the encoder and connector returned besides tokens; not aligned with rows.
        extra: A mechanism's own per-row tensors (B, n, ...), by name.
        layer: Number of the layer about to run, or just run.
        order (Tensor | None): (B, n) int64, place of each row among all rows that the cache (or
            this call, if there is none) has seen, -1 on rows that only fill up; None as long as
            the rows are those of the call.
        cache: The call's key/value cache.
        scores: What the layer's plan asked for, by the requests' names; read after the layer.
        memo: What layers of this call share.
    """

    hidden: Tensor
    position_ids: Tensor
    valid: Tensor
    token_map: Tensor | None = None
    side: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extra: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    layer: int = 0
    order: Tensor | None = None
    cache: Cache | None = None
    scores: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    memo: CallMemo = field(default_factory=CallMemo)

    @property
    def table(self) -> Tensor:
        """TokenMap (B, n, K) int64 of the rows, made up as text and padding where none is known."""
        if self.token_map is None:
            rows = TOKEN.make(1).to(self.valid.device).expand(*self.valid.shape, -1)
            pad = torch.full_like(self.valid, TokenKind.PAD, dtype=torch.int64)
            kind = torch.where(self.valid, torch.full_like(pad, TokenKind.TEXT), pad)
            self.token_map = TOKEN.set(rows, kind=kind)
        return self.token_map

    @property
    def visual(self) -> Tensor:
        """Rows (B, n) bool that belong to a medium, its separators and newlines included."""
        if self.token_map is None:
            return torch.zeros_like(self.valid)
        return TOKEN.get(self.token_map, "media") >= 0

    @property
    def row_order(self) -> Tensor:
        """Place (B, n) int64 of each row among all rows seen, see ``order``."""
        if self.order is None:
            rows = torch.arange(self.valid.shape[1], device=self.valid.device)
            self.order = rows.expand_as(self.valid)
        return self.order

    def keys(self) -> KeyTable:
        """What the keys of the layer about to run are: cached ones first, then the rows.

        Not for use after the layer, when its rows are in the cache already.

        Raises:
            UsageError: If the cache does not say what it holds.
        """
        return keys_of(self)

    def rows_agree(self) -> bool:
        """Whether everything that has one entry per row has the same (B, n)."""
        rows = self.hidden.shape[:2]
        tables = [self.position_ids, self.valid, *self.extra.values()]
        if self.token_map is not None:
            tables.append(self.token_map)
        if self.order is not None:
            tables.append(self.order)
        return all(table.shape[:2] == rows for table in tables)
