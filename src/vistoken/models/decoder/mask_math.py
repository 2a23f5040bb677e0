"""Arithmetic of attention masks: who may attend, and how a plan narrows it."""

from __future__ import annotations

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.models.decoder.keys import KeyTable
from vistoken.models.decoder.plan import LayerPlan
from vistoken.models.decoder.rows import RowSet
from vistoken.models.decoder.state import SequenceState


def allowed_keys(
    state: SequenceState,
    keys: KeyTable,
    window: int | None,
    mask_or: Tensor | None,
    queries: RowSet | None,
    *,
    may_skip: bool,
) -> Tensor | None:
    """Who may attend: causality and window, widened by ``mask_or``, then padding.

    Args:
        state: The rows.
        keys: The keys, the rows among them last.
        window: Size of a sliding window in positions.
        mask_or (Tensor | None): (B, 1, n, k) bool.
        queries: The rows that are queries; None for all.
        may_skip: Whether None may stand for "causal", or for "every key" with a single query.

    Returns:
        (B, 1, q, k) bool.
    """
    order, positions = state.row_order, state.position_ids
    if queries is not None:
        order, positions = queries.gather(order, dim=1), queries.gather(positions, dim=1)
    elif may_skip and window is None and bool(keys.valid.all()):
        rows, total = order.shape[1], keys.order.shape[1]
        if rows in (1, total):  # sdpa aligns its own causality at the first key
            return None
    allowed = order[:, :, None] >= keys.order[:, None, :]  # (B, q, k)
    if window is not None:
        allowed &= positions[:, :, None] - keys.position_ids[:, None, :] < window
    if mask_or is not None:
        total = keys.order.shape[1]
        _require_fit("mask_or", mask_or, (*state.valid.shape, total), 1, state.layer)
        wider = mask_or.to(allowed.device)
        if queries is not None and wider.shape[2] > 1:
            wider = queries.gather(wider, dim=2)
        allowed = allowed | wider[:, 0]
    return (allowed & keys.valid[:, None, :])[:, None]


def to_additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where attention is allowed, the lowest number elsewhere."""
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)


def widen(base: Tensor, mask_or: Tensor, state: SequenceState) -> Tensor:
    """Widen a ready mask (packed samples) by a plan's ``mask_or``.

    A ready mask does not say which of its zeros are padding or another sample. Two rows of one
    sample are those of which one may attend to the other: only there may a plan add attention.

    Raises:
        UsageError: If the mask also covers keys of earlier calls.
    """
    if base.shape[2] != base.shape[3]:
        raise UsageError(
            "a mechanism widens attention under a ready 4-D attention_mask and a filled cache; "
            "give a 2-D attention_mask."
        )
    batch = state.valid.shape[0]  # one ready mask may serve all sequences
    _require_fit("mask_or", mask_or, (batch, base.shape[2], base.shape[3]), 1, state.layer)
    allowed = base if base.dtype == torch.bool else base > torch.finfo(base.dtype).min / 2
    wider = mask_or.to(base.device) & allowed.transpose(2, 3)
    return base | wider if base.dtype == torch.bool else base.masked_fill(wider, 0)


def narrow(base: Tensor, plan: LayerPlan, state: SequenceState, queries: RowSet | None) -> Tensor:
    """Narrow a ready mask (B, 1 or H, q, k) by a plan's mask and add its bias.

    A bias always goes in through an additive mask: sdpa and eager attention both add it to the
    scores, whereas eager attention drops a separate bias argument without a word.
    """
    dtype = state.hidden.dtype
    lowest = torch.finfo(dtype).min
    if plan.mask is not None:
        allowed = _for_queries("mask", plan.mask, base, state, queries)
        base = base & allowed if base.dtype == torch.bool else torch.where(allowed, base, lowest)
    if plan.key_bias is not None:
        bias = _for_queries("key_bias", plan.key_bias, base, state, queries).to(dtype)
        if base.dtype == torch.bool:
            return torch.where(base, bias, lowest)
        base = (base + bias).clamp(min=lowest)  # lowest + bias must not become -inf
    return base


def _for_queries(
    field: str, tensor: Tensor, base: Tensor, state: SequenceState, queries: RowSet | None
) -> Tensor:
    _, heads, rows, total = base.shape
    rows = rows if queries is None else queries.mask.shape[1]
    _require_fit(field, tensor, (state.valid.shape[0], rows, total), heads, state.layer)
    tensor = tensor.to(base.device)
    if queries is not None and tensor.shape[2] > 1:
        tensor = queries.gather(tensor, dim=2)
    return tensor


def _require_fit(
    field: str, tensor: Tensor, sizes: tuple[int, int, int], heads: int, layer: int
) -> None:
    """Refuse a plan's 4-D tensor that is not (B or 1, heads, n or 1, k or 1)."""
    batch, rows, total = sizes
    fits = tensor.dim() == 4 and all(
        size in (1, wanted) or (axis == 1 and field != "mask_or" and wanted == 1)
        for axis, (size, wanted) in enumerate(
            zip(tensor.shape, (batch, heads, rows, total), strict=True)
        )
    )
    if not fits:
        raise UsageError(
            f"a mechanism's {field} for layer {layer} has shape {tuple(tensor.shape)} but "
            f"attention there is (batch, heads, queries, keys) = {(batch, heads, rows, total)}."
        )
