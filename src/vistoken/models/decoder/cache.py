"""Key/value cache whose layers may hold different tokens, and that knows which ones.

T tokens seen by the cache in all, S slots stored in a layer. A layer's slots name the tokens by
their place 0..T-1 among all tokens seen, so that causality, padding and kind of a key stay known
when rows were dropped or not written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder.sparse_layer import SparseLayer


class SparseCache(Cache):
    """Cache of the decoder's mechanisms: per-layer slots, one ledger of all tokens seen.

    ``get_seq_length`` gives tokens seen, not stored: generation and positions count on from it.

    Args:
        layers: Number of decoder layers.

    Attributes:
        position_ids (Tensor | None): (B, T), rotary positions of all tokens seen.
        valid (Tensor | None): (B, T) bool, False on padding.
        token_map (Tensor | None): (B, T, K) int64.
        next_positions (Tensor | None): (B,), position of the next token of each row.
    """

    def __init__(self, layers: int) -> None:
        self._own_layers = [SparseLayer() for _ in range(layers)]
        super().__init__(layers=list(self._own_layers))
        self.position_ids: Tensor | None = None
        self.valid: Tensor | None = None
        self.token_map: Tensor | None = None
        self.next_positions: Tensor | None = None
        self._step: int | None = None  # set where a mechanism counts positions itself
        self._settled = 0  # tokens whose dropping cannot be undone

    @property
    def sparse_layers(self) -> list[SparseLayer]:
        """The layers, with their type."""
        return self._own_layers

    @property
    def seen(self) -> int:
        """Tokens seen, T."""
        return 0 if self.valid is None else self.valid.shape[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, whatever a layer has stored of them."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that a layer's attention sees, and their offset."""
        return self._own_layers[layer_idx].get_mask_sizes(query_length)

    def set_next_positions(self, positions: Tensor, step: int = 1) -> None:
        """Let a mechanism count positions; its count then wins over ``generate``'s last + 1.

        Args:
            positions (Tensor): (B,), position of the next token of each row.
            step: Distance between the positions of tokens that follow.
        """
        self.next_positions, self._step = positions, step

    def positions_for(self, rows: int) -> Tensor | None:
        """Positions (B, rows) of the next rows where a mechanism counts them, else None."""
        if self._step is None or self.next_positions is None:
            return None
        steps = torch.arange(rows, device=self.next_positions.device) * self._step
        return self.next_positions[:, None] + steps

    def check_batch(self, batch: int) -> None:
        """Refuse a call whose batch is not the cache's.

        Raises:
            UsageError: If the numbers of sequences differ.
        """
        if self.valid is not None and self.valid.shape[0] != batch:
            raise UsageError(
                f"the cache holds {self.valid.shape[0]} sequences but the call has {batch}; give "
                "the cache of the same batch."
            )

    def open_call(self, position_ids: Tensor, valid: Tensor, token_map: Tensor | None) -> Tensor:
        """Enter the rows of a call into the ledger.

        Args:
            position_ids (Tensor): (B, n).
            valid (Tensor): (B, n) bool.
            token_map (Tensor | None): (B, n, K) int64; None for text.

        Returns:
            (B, n) int64, the rows' places among all tokens seen.
        """
        start, rows = self.seen, valid.shape[1]
        table = _text_rows(valid) if token_map is None else token_map
        self.position_ids = _grown(self.position_ids, position_ids)
        self.valid = _grown(self.valid, valid)
        self.token_map = _grown(self.token_map, table)
        self._count_on(position_ids, valid)
        return (torch.arange(rows, device=valid.device) + start).expand(valid.shape[0], -1)

    def restate(self, order: Tensor, position_ids: Tensor) -> None:
        """Replace the positions of rows (B, n) that a mechanism has renumbered."""
        if self.position_ids is None:
            raise RuntimeError("positions are restated before any row was entered")
        rows = torch.arange(order.shape[0], device=order.device)[:, None].expand_as(order)
        kept = order >= 0
        # whole numbers may become fractions, which the ledger must not round
        wide = torch.promote_types(self.position_ids.dtype, position_ids.dtype)
        positions = self.position_ids.to(wide, copy=True)
        positions[rows[kept], order[kept]] = position_ids[kept].to(wide)
        self.position_ids = positions
        if self._step is None:
            last = position_ids.masked_fill(~kept, -1).amax(1)
            self.next_positions = last + 1

    def settle(self) -> None:
        """Note that rows were dropped in this call: what it has seen cannot be cut short."""
        self._settled = self.seen

    def stored_bytes(self) -> int:
        """Bytes of keys and values that all layers hold."""
        return sum(layer.stored_bytes() for layer in self._own_layers)

    def _count_on(self, position_ids: Tensor, valid: Tensor) -> None:
        if self._step is not None and self.next_positions is not None:
            self.next_positions = self.next_positions + self._step * valid.shape[1]
            return
        last = position_ids.masked_fill(~valid, -1).amax(1) + 1
        known = self.next_positions
        self.next_positions = last if known is None else torch.maximum(known, last)

    def reset(self) -> None:
        """Forget everything."""
        for layer in self._own_layers:
            layer.reset()
        self.position_ids = self.valid = self.token_map = self.next_positions = None
        self._step, self._settled = None, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens seen, in every layer that stores them.

        Args:
            tokens_to_remove: Minus the number of tokens, as in transformers from 5.20 on.

        Raises:
            UsageError: A positive count, more tokens than were seen, or a cut into a prompt whose
                rows a mechanism chose by looking at all of them.
        """
        if tokens_to_remove > 0:
            raise UsageError(
                f"crop({tokens_to_remove}): give the number of tokens to remove as a negative "
                "number."
            )
        kept = self.seen + tokens_to_remove
        if kept < self._settled:
            raise UsageError(
                f"the cache cannot be cut to {kept} of {self.seen} tokens: a mechanism has dropped "
                f"rows among the first {self._settled} by what it saw of all of them."
                if kept >= 0
                else f"the cache has seen {self.seen} tokens and cannot remove {-tokens_to_remove}."
            )
        if tokens_to_remove == 0 or self.valid is None:
            return
        self._each_ledger(lambda table: table[:, :kept])
        if self._step is not None and self.next_positions is not None:
            self.next_positions = self.next_positions + self._step * tokens_to_remove
        else:
            self._recount()
        shared: dict[int, Tensor] = {}
        for layer in self._own_layers:
            layer.keep_first(kept, shared)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the sequences into another order (beam search)."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some sequences."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        if self.valid is not None:
            batch = torch.arange(self.valid.shape[0], device=self.valid.device)
            self._select(batch.repeat_interleave(repeats))

    def _select(self, indices: Tensor) -> None:
        self._each_ledger(lambda table: table[indices.to(table.device)])
        if self.next_positions is not None:
            self.next_positions = self.next_positions[indices.to(self.next_positions.device)]
        shared: dict[int, Tensor] = {}
        for layer in self._own_layers:
            layer.select(indices, shared)

    def _recount(self) -> None:
        if self.position_ids is None or self.valid is None or self.seen == 0:
            self.next_positions = None
            return
        self.next_positions = self.position_ids.masked_fill(~self.valid, -1).amax(1) + 1

    def _each_ledger(self, function: Callable[[Tensor], Tensor]) -> None:
        for name in ("position_ids", "valid", "token_map"):
            table: Tensor | None = self.__dict__[name]
            if table is not None:
                setattr(self, name, function(table))


def _grown(known: Tensor | None, new: Tensor) -> Tensor:
    """Both, in the wider of their types: whole positions may be followed by fractions."""
    return new if known is None else torch.cat([known, new], dim=1)


def _text_rows(valid: Tensor) -> Tensor:
    rows: Any = TOKEN.make(1).to(valid.device).expand(*valid.shape, -1)
    return TOKEN.set(rows, kind=torch.where(valid, int(TokenKind.TEXT), int(TokenKind.PAD)))
