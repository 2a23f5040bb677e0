"""Per-head factors on values and on the outputs of attention."""

from __future__ import annotations

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.models.decoder.rows import RowSet


def scale_values(
    keys: Tensor, values: Tensor, keep: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, int]:
    """Multiply values by a factor of each query head.

    Key/value heads that several query heads share are given out to them only where their factors
    differ.

    Args:
        keys (Tensor): (B, G, k, E).
        values (Tensor): (B, G, k, E).
        keep (Tensor | None): (B or 1, H or 1, k or 1).
        heads: Query heads, H.

    Returns:
        Keys and values, with G or H heads, and the query heads that share one of them.

    Raises:
        UsageError: If the factors do not fit.
    """
    shared, total = keys.shape[1], keys.shape[2]
    groups = heads // shared
    if keep is None:
        return keys, values, groups
    if (
        keep.dim() != 3
        or keep.shape[0] not in (1, keys.shape[0])
        or keep.shape[1] not in (1, heads)
        or keep.shape[2] not in (1, total)
    ):
        raise UsageError(
            f"a mechanism's head_value_keep has shape {tuple(keep.shape)} but the layer has "
            f"(batch, query heads, keys) = {(keys.shape[0], heads, total)}."
        )
    factors = keep.to(values.dtype)
    if keep.shape[1] == 1 or groups == 1:
        return keys, values * factors[..., None].to(values.device), groups
    grouped = factors.unflatten(1, (shared, groups))  # (B, G, groups, k)
    if bool((grouped == grouped[:, :, :1]).all()):
        return keys, values * grouped[:, :, 0, :, None].to(values.device), groups
    keys = keys.repeat_interleave(groups, dim=1)
    values = values.repeat_interleave(groups, dim=1)
    return keys, values * factors[..., None].to(values.device), 1


def kept_heads(
    output: Tensor, keep: Tensor | None, queries: RowSet | None, dead: Tensor | None
) -> Tensor:
    """Multiply the heads' outputs by a factor of each head and row.

    Args:
        output (Tensor): (B, q, H, E).
        keep (Tensor | None): (B or 1, H or 1, n or 1).
        queries: The q rows among the n.
        dead (Tensor | None): (B, 1 or H, q, 1) bool, rows without a key: their output is 0.

    Raises:
        UsageError: If the factors do not fit.
    """
    if dead is not None:
        output = output.masked_fill(dead.transpose(1, 2).to(output.device), 0)
    if keep is None:
        return output
    batch, rows, heads, _ = output.shape
    rows = rows if queries is None else queries.mask.shape[1]
    if (
        keep.dim() != 3
        or keep.shape[0] not in (1, batch)
        or keep.shape[1] not in (1, heads)
        or keep.shape[2] not in (1, rows)
    ):
        raise UsageError(
            f"a mechanism's head_out_keep has shape {tuple(keep.shape)} but the layer has "
            f"(batch, query heads, rows) = {(batch, heads, rows)}."
        )
    if queries is not None and keep.shape[2] > 1:
        keep = queries.gather(keep, dim=2)
    return output * keep.transpose(1, 2)[..., None].to(output)


def expand_heads(states: Tensor, heads: int) -> Tensor:
    """Give shared key/value heads (B, G, k, E) out to all H query heads."""
    groups = heads // states.shape[1]
    return states if groups == 1 else torch.repeat_interleave(states, groups, dim=1)
