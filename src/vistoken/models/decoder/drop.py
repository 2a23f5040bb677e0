"""Taking rows out of a running sequence."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder.cache import SparseCache
from vistoken.models.decoder.state import SequenceState


def drop_rows(state: SequenceState, keep: Tensor) -> tuple[SequenceState, Tensor]:
    """Keep some rows of every sequence; positions stay what they were.

    Padding goes too. Where sequences keep different numbers of rows, shorter ones are filled up
    on the left, so that the last row stays the last token.

    Args:
        state: The sequences.
        keep (Tensor): (B, n) bool.

    Returns:
        The shorter sequences (B, m), and the index map (B, m) int64: which of the n rows each row
        was, -1 on filling.

    Raises:
        UsageError: If ``keep`` has another shape, or leaves nothing of the whole batch.
    """
    if keep.shape != state.valid.shape or keep.dtype != torch.bool:
        raise UsageError(
            f"drop_rows needs a bool per row, {tuple(state.valid.shape)}, got "
            f"{str(keep.dtype).removeprefix('torch.')} of {tuple(keep.shape)}."
        )
    kept = keep & state.valid
    longest = int(kept.sum(1).max())
    if longest == 0:
        raise UsageError("a decoder mechanism drops every row of the batch; keep at least one.")
    # stable: dropped rows first, kept ones behind in their order
    where = kept.int().argsort(dim=1, stable=True)[:, kept.shape[1] - longest :]
    real = kept.gather(1, where)
    if isinstance(state.cache, SparseCache):
        state.cache.settle()
    shorter = replace(
        state,
        hidden=_gather(state.hidden, where) * real[:, :, None].to(state.hidden),
        position_ids=_gather(state.position_ids, where) * real.to(state.position_ids.dtype),
        valid=real,
        token_map=None if state.token_map is None else _gather_map(state.token_map, where, real),
        extra={name: _gather(values, where) for name, values in state.extra.items()},
        order=_gather(state.row_order, where).masked_fill(~real, -1),
    )
    return shorter, where.masked_fill(~real, -1)


def restore_rows(rows: Tensor, order: Tensor, length: int, fill: float) -> Tensor:
    """Put rows back to where they were before some were dropped.

    Args:
        rows (Tensor): (B, m, ...).
        order (Tensor): (B, m) int64, their places, -1 on filling.
        length: Number of rows before.
        fill: What places hold whose rows were dropped.

    Returns:
        (B, length, ...).
    """
    restored = rows.new_full((rows.shape[0], length, *rows.shape[2:]), fill)
    batch = torch.arange(rows.shape[0], device=rows.device)[:, None].expand_as(order)
    real = order >= 0
    restored[batch[real], order[real]] = rows[real]
    return restored


def shifted_labels(labels: Tensor, rows: Tensor, ignore: int = -100) -> Tensor:
    """What each row that is left should predict: the label behind its place in the call.

    Args:
        labels (Tensor): (B, n) int64 of the call's rows.
        rows (Tensor): (B, m) int64, which of them are left, -1 on filling.
        ignore: Label of what is not supervised.

    Returns:
        (B, m) int64, already shifted.
    """
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=ignore)
    rows = rows.to(labels.device)
    return following.gather(1, rows.clamp(min=0)).masked_fill(rows < 0, ignore)


def _gather(values: Tensor, where: Tensor) -> Tensor:
    index = where.to(values.device).reshape(*where.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def _gather_map(token_map: Tensor, where: Tensor, real: Tensor) -> Tensor:
    pad = TOKEN.make(1, kind=TokenKind.PAD).to(token_map.device)
    return torch.where(real[:, :, None], _gather(token_map, where), pad)
