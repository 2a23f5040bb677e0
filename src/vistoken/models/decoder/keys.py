"""What the keys of a layer are, cached ones included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN
from vistoken.models.decoder.cache import SparseCache

if TYPE_CHECKING:
    from vistoken.models.decoder.state import SequenceState


@dataclass(frozen=True, slots=True, eq=False)
class KeyTable:
    """The k keys that a layer attends to: what the cache holds for it, then the call's rows.

    Args:
        position_ids (Tensor): (B, k), rotary positions.
        valid (Tensor): (B, k) bool, False on padding.
        order (Tensor): (B, k) int64, place among all rows seen; -1 on padding that fills up.
        token_map (Tensor): (B, k, K) int64.
    """

    position_ids: Tensor
    valid: Tensor
    order: Tensor
    token_map: Tensor

    @property
    def visual(self) -> Tensor:
        """Keys (B, k) bool that belong to a medium."""
        return self.valid & (TOKEN.get(self.token_map, "media") >= 0)


def keys_of(state: SequenceState) -> KeyTable:
    """Say what the keys of the layer about to run are.

    Raises:
        UsageError: If the cache does not know what it holds.
    """
    cache = state.cache
    if isinstance(cache, SparseCache):
        index = cache.sparse_layers[state.layer].index
        order = state.row_order
        return state.memo.get("keys", (index, order), lambda: _from_ledger(cache, index, order))
    if cache is not None and (cache.is_compileable or cache.get_seq_length() > 0):
        raise UsageError(
            "a decoder mechanism asks what the cache holds, and this cache does not know; leave "
            "past_key_values to the model, or pass a SparseCache."
        )
    return KeyTable(state.position_ids, state.valid, state.row_order, state.table)


def _from_ledger(cache: SparseCache, index: Tensor | None, order: Tensor) -> KeyTable:
    if cache.position_ids is None or cache.valid is None or cache.token_map is None:
        raise RuntimeError("the call's rows were not entered into the cache")
    places = order if index is None else torch.cat([index, order], dim=1)
    where = places.clamp(min=0)
    columns = cache.token_map.shape[2]
    return KeyTable(
        position_ids=cache.position_ids.gather(1, where),
        valid=cache.valid.gather(1, where) & (places >= 0),
        order=places,
        token_map=cache.token_map.gather(1, where[:, :, None].expand(-1, -1, columns)),
    )
