"""What travels through the decoder's layers during one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class SequenceState:
    """Rows of one decoder call and what is known about each of them.

    A mechanism that removes rows replaces ``hidden``, ``position_ids``, ``valid``, ``token_map``
    and its own ``extra`` together; positions are gathered, never counted anew.

    Args:
        hidden (Tensor): (B, n, D), input of the next layer.
        position_ids (Tensor): (B, n), rotary positions.
        valid (Tensor): (B, n) bool, False on padding.
        token_map (Tensor | None): (B, n, K) int64, the batch's TokenMap.
        side: What the encoder and connector returned besides tokens; not aligned with rows.
        extra: A mechanism's own per-row tensors (B, n, ...), by name.
        layer: Number of the layer about to run, or just run.
    """

    hidden: Tensor
    position_ids: Tensor
    valid: Tensor
    token_map: Tensor | None = None
    side: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extra: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    layer: int = 0

    def rows_agree(self) -> bool:
        """Whether everything that has one entry per row has the same (B, n)."""
        rows = self.hidden.shape[:2]
        tables = [self.position_ids, self.valid, *self.extra.values()]
        if self.token_map is not None:
            tables.append(self.token_map)
        return all(table.shape[:2] == rows for table in tables)
