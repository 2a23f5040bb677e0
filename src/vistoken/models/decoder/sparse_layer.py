"""One layer of the mechanisms' cache: stores some of the tokens, and which ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class SparseLayer(DynamicLayer):
    """Keys and values of the tokens that this layer was told to keep.

    A batch row that keeps fewer tokens than another ends in empty slots: ``index`` -1.

    Attributes:
        index (Tensor | None): (B, S) int64, which token (its place among all tokens seen) each
            slot holds; layers with the same history share the tensor.
    """

    keys: Tensor | None
    values: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.index: Tensor | None = None
        self._pending: Pending | None = None

    @property
    def stored(self) -> int:
        """Slots, S."""
        return 0 if self.index is None else self.index.shape[1]

    @property
    def lengths(self) -> Tensor | None:
        """Tokens (B,) int64 that each batch row stores."""
        return None if self.index is None else (self.index >= 0).sum(1)

    def stored_bytes(self) -> int:
        """Bytes of keys and values."""
        if self.keys is None or self.values is None:
            return 0
        return self.keys.nbytes + self.values.nbytes

    def expect(self, pending: Pending) -> None:
        """Say what the rows of the next ``update`` are."""
        self._pending = pending

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store what is to be stored.

        Args:
            key_states (Tensor): (B, G, n, E).
            value_states (Tensor): (B, G, n, E).
            *args: Unused.
            **kwargs: Unused.

        Returns:
            Keys and values (B, G, S + n, E) of the slots before, then of all n rows.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            raise RuntimeError(
                "this cache belongs to the decoder loop; it cannot be filled by another model"
            )
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
            keys, values = key_states, value_states
        elif self.stored == 0:
            keys, values = key_states, value_states
        else:
            keys = torch.cat([self.keys, key_states], dim=-2)
            values = torch.cat([self.values, value_states], dim=-2)
        self.index = pending.index
        if pending.slots is None:
            self.keys, self.values = keys, values
        else:
            self.keys, self.values = _gather(keys, pending.slots), _gather(values, pending.slots)
        return keys, values

    def note(self, pending: Pending) -> None:
        """Keep book of an update whose keys and values nobody works out (cost counting)."""
        self.index = pending.index

    def get_seq_length(self) -> int:
        """Slots; how many tokens were seen is known to the cache."""
        return self.stored

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that attention sees, and their offset."""
        return self.stored + query_length, 0

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = self.index = self._pending = None
        self.is_initialized = False

    def keep_first(self, tokens: int, shared: dict[int, Tensor]) -> None:
        """Forget slots of all but the first ``tokens`` tokens seen."""
        if self.index is None or self.keys is None or self.values is None:
            return
        known = self.index
        index = known.masked_fill(known >= tokens, -1)
        slots = compaction(index)
        if slots is None:
            return
        self.keys, self.values = _gather(self.keys, slots), _gather(self.values, slots)
        if id(known) not in shared:
            shared[id(known)] = index.gather(1, slots)
        self.index = shared[id(known)]

    def select(self, indices: Tensor, shared: dict[int, Tensor]) -> None:
        """Choose batch rows."""
        if self.index is None or self.keys is None or self.values is None:
            return
        known = self.index
        self.keys = self.keys.index_select(0, indices.to(self.keys.device))
        self.values = self.values.index_select(0, indices.to(self.values.device))
        if id(known) not in shared:
            shared[id(known)] = known.index_select(0, indices.to(known.device))
        self.index = shared[id(known)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose batch rows."""
        self.select(beam_idx, {})

    def batch_select_indices(self, indices: Tensor) -> None:
        """Choose batch rows."""
        self.select(indices, {})

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat batch rows."""
        if self.index is not None:
            rows = torch.arange(self.index.shape[0], device=self.index.device)
            self.select(rows.repeat_interleave(repeats), {})

    def crop(self, tokens_to_remove: int) -> None:
        """Only the whole cache can be cut: a layer does not know what was seen."""
        raise RuntimeError("crop the whole cache, not one of its layers")


class Pending:
    """What the next update of a layer stores.

    Args:
        index (Tensor): (B, S') int64, the layer's index afterwards.
        slots (Tensor | None): (B, S') int64, which of the S + n keys go there; None for all.
    """

    __slots__ = ("index", "slots")

    def __init__(self, index: Tensor, slots: Tensor | None) -> None:
        self.index, self.slots = index, slots

    @classmethod
    def of(cls, known: Tensor | None, order: Tensor, write: Tensor | None) -> Pending:
        """Work out what a layer stores.

        Args:
            known (Tensor | None): (B, S), the layer's index.
            order (Tensor): (B, n) int64, the rows' places among all tokens seen, -1 on filling.
            write (Tensor | None): (B, n) bool, rows to store.
        """
        new = order if write is None else order.masked_fill(~write, -1)
        index = new if known is None else torch.cat([known, new], dim=1)
        slots = compaction(index)
        return cls(index if slots is None else index.gather(1, slots), slots)


def compaction(index: Tensor) -> Tensor | None:
    """Slots (B, S') int64 that remain when empty ones move behind and common ones go.

    Args:
        index (Tensor): (B, S) int64, -1 on empty slots.

    Returns:
        None if no slot is empty in all rows' common tail, that is: nothing to gain.
    """
    empty = index < 0
    longest = int((~empty).sum(1).max()) if index.shape[1] else 0
    if longest == index.shape[1]:
        return None
    return empty.int().argsort(dim=1, stable=True)[:, :longest]


def _gather(states: Tensor, slots: Tensor) -> Tensor:
    slots = slots.to(states.device)
    where = slots[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, where)
