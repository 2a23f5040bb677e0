"""Attention scores that mechanisms ask for, reduced without holding all of them at once."""

from __future__ import annotations

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.models.decoder.heads import expand_heads
from vistoken.models.decoder.plan import ScoreRequest
from vistoken.models.decoder.rows import RowSet

CHUNK_BYTES = 1 << 26
"""Size of the float32 scores that are worked out at a time (64 MiB)."""


def read_scores(
    requests: tuple[ScoreRequest, ...],
    query: Tensor,
    keys: Tensor,
    mask: Tensor | None,
    scaling: float,
    queries: RowSet | None,
) -> list[Tensor]:
    """Work out what was asked for; q query rows of the n rows, k keys.

    Args:
        requests: What was asked for.
        query (Tensor): (B, H, q, E), rotated.
        keys (Tensor): (B, G, k, E), rotated.
        mask (Tensor | None): (B, 1 or H, q, k), boolean or additive; None means causal.
        scaling: Factor on the products.
        queries: The query rows; None for all.

    Returns:
        One tensor per request, see :class:`~vistoken.models.decoder.plan.ScoreRequest`.

    Raises:
        UsageError: If a request names rows that are no queries, or does not fit.
    """
    return [_read(request, query, keys, mask, scaling, queries) for request in requests]


def _read(
    request: ScoreRequest,
    query: Tensor,
    keys: Tensor,
    mask: Tensor | None,
    scaling: float,
    queries: RowSet | None,
) -> Tensor:
    batch, heads, count, _ = query.shape
    wanted = _wanted_rows(request, batch, count, queries)
    cols = request.cols.expand(batch, -1)
    if cols.shape[1] != keys.shape[2]:
        raise UsageError(
            f"the score request {request.name!r} names {cols.shape[1]} keys, the layer has "
            f"{keys.shape[2]}."
        )
    with torch.set_grad_enabled(request.grad and torch.is_grad_enabled()):
        keys = expand_heads(keys, heads)
        size = max(CHUNK_BYTES // (4 * batch * heads * keys.shape[2]), 1)
        pieces: list[Tensor] = []
        total: Tensor | None = None
        for start in range(0, wanted.where.shape[1], size):
            rows = wanted.where[:, start : start + size]
            real = wanted.real[:, start : start + size]
            piece = _piece(request, query, keys, mask, scaling, rows, cols)
            piece = piece.masked_fill(~real[:, None, :, None], 0)
            piece = _over(piece, cols, request)
            if request.over_rows == "none":
                pieces.append(piece)
            else:
                summed = piece.sum(2)
                total = summed if total is None else total + summed
        if request.over_rows == "none":
            result = torch.cat(pieces, dim=2) if pieces else _nothing(request, query, keys)
        elif total is None:
            result = _nothing(request, query, keys).sum(2)
        else:
            result = total
        if request.over_rows == "mean":
            number = wanted.real.sum(1).clamp(min=1).to(result.dtype)
            result = result / number.reshape(-1, *[1] * (result.dim() - 1))
        return result.mean(1) if request.heads == "mean" else result


def _piece(
    request: ScoreRequest,
    query: Tensor,
    keys: Tensor,
    mask: Tensor | None,
    scaling: float,
    rows: Tensor,
    cols: Tensor,
) -> Tensor:
    """Scores (B, H, r, k) float32 of some query rows; 0 at keys that were not asked for."""
    heads, total = query.shape[1], keys.shape[2]
    where = rows[:, None, :, None]
    asked = query.gather(2, where.expand(-1, heads, -1, query.shape[3]))
    scores = (asked @ keys.transpose(2, 3)).float() * scaling
    if request.kind == "probs":
        scores = _masked(scores, mask, rows, query.shape[2], total).softmax(-1)
    return scores.masked_fill(~cols[:, None, None, :], 0)


def _masked(scores: Tensor, mask: Tensor | None, rows: Tensor, count: int, total: int) -> Tensor:
    lowest = torch.finfo(scores.dtype).min
    if mask is None:
        # "causal" with the last query at the last key: a single query sees every key
        last = torch.arange(total, device=scores.device)
        seen = last[None, None] <= rows[:, :, None] + (total - count)
        return scores.masked_fill(~seen[:, None], lowest)
    full = mask.expand(rows.shape[0], -1, -1, total)
    where = rows[:, None, :, None].expand(-1, full.shape[1], -1, total)
    part = full.gather(2, where)
    if part.dtype == torch.bool:
        return scores.masked_fill(~part, lowest)
    return scores + part.float()


def _over(piece: Tensor, cols: Tensor, request: ScoreRequest) -> Tensor:
    if request.over_cols == "none":
        return piece
    summed = piece.sum(3)
    if request.over_cols == "sum":
        return summed
    return summed / cols.sum(1).clamp(min=1)[:, None, None].to(summed.dtype)


def _nothing(request: ScoreRequest, query: Tensor, keys: Tensor) -> Tensor:
    sizes = [query.shape[0], query.shape[1], 0]
    if request.over_cols == "none":
        sizes.append(keys.shape[2])
    return query.new_zeros(sizes, dtype=torch.float32)


def _wanted_rows(request: ScoreRequest, batch: int, count: int, queries: RowSet | None) -> RowSet:
    """The asked rows, as places among the query rows."""
    rows = request.rows.expand(batch, -1)
    total = count if queries is None else queries.mask.shape[1]
    if rows.shape[1] != total:
        raise UsageError(
            f"the score request {request.name!r} names {rows.shape[1]} rows, the call has {total}."
        )
    if queries is None:
        return RowSet(rows)
    if bool((rows & ~queries.mask).any()):
        raise UsageError(
            f"the score request {request.name!r} names rows that are no queries in this layer."
        )
    return RowSet(queries.gather(rows, dim=1) & queries.real)
