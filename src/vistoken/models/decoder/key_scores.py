"""How much attention rows of a prompt pay to some of its keys, without a square of scores.

B batch, n rows, q asking rows, H query heads, G key/value heads, E head size, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistoken.models.decoder.asym import rotate
from vistoken.models.decoder.families import LayerModules
from vistoken.models.decoder.plan import Rotation
from vistoken.models.decoder.rows import RowSet
from vistoken.models.decoder.scores import CHUNK_BYTES


def mean_key_scores(
    parts: LayerModules,
    hidden: Tensor,
    rotation: Rotation,
    *,
    positions: Tensor,
    valid: Tensor,
    window: int | None,
    rows: Tensor,
    cols: Tensor,
    after: Tensor,
) -> Tensor:
    """Attention of one layer to each key, averaged over heads and over the rows that count.

    Only keys, the asking rows' queries and their probabilities are worked out, some rows at a
    time: neither values nor output nor FFN, and never all rows against all keys.

    Args:
        parts: The layer's modules.
        hidden (Tensor): (B, n, D), the layer's input.
        rotation: The model's rotary tables of all rows.
        positions (Tensor): (B, n), rotary positions, for a sliding window.
        valid (Tensor): (B, n) bool, False on padding.
        window: Size of a sliding window in positions.
        rows (Tensor): (B, n) bool, rows that ask.
        cols (Tensor): (B, n) bool, keys that are asked about.
        after (Tensor): (B, n) int64; for a key, only rows at later places than this count.

    Returns:
        (B, n) float32, 0 at keys that were not asked about or that no row counts for.
    """
    asking, device = RowSet(rows), hidden.device
    normed = parts.input_norm(hidden)
    keys = rotate(parts.heads(parts.k_proj(normed), parts.k_norm).transpose(1, 2), rotation)
    query = parts.heads(parts.q_proj(asking.gather(normed, dim=1)), parts.q_norm).transpose(1, 2)
    cos, sin = (asking.gather(table, dim=1) for table in rotation)
    query = rotate(query, (cos, sin))
    shared, heads = keys.shape[1], query.shape[1]
    batch, count = valid.shape
    size = max(CHUNK_BYTES // (4 * batch * heads * count), 1)
    total = torch.zeros(batch, count, device=device)
    number = torch.zeros(batch, count, device=device)
    for start in range(0, query.shape[2], size):
        where = asking.where[:, start : start + size]
        piece = query[:, :, start : start + size].unflatten(1, (shared, -1)).flatten(2, 3)
        scores = (piece @ keys.transpose(2, 3)).float() * parts.scaling  # (B, G, H / G * r, n)
        scores = scores.unflatten(2, (heads // shared, -1)).flatten(1, 2)
        seen = _seen(where, positions, valid, window).to(device)
        scores = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min)
        counts = asking.real[:, start : start + size, None] & (where[:, :, None] > after[:, None])
        counts = counts.to(device)
        total += (scores.softmax(-1).mean(1) * counts).sum(1)
        number += counts.sum(1)
    wanted = cols.to(device) & (number > 0)
    return torch.where(wanted, total / number.clamp(min=1), 0.0)


def _seen(where: Tensor, positions: Tensor, valid: Tensor, window: int | None) -> Tensor:
    """Keys (B, r, n) bool that rows at some places (B, r) attend to."""
    places = torch.arange(valid.shape[1], device=where.device)
    seen = (places <= where[:, :, None]) & valid[:, None]
    if window is not None:
        asking = positions.gather(1, where)
        seen &= asking[:, :, None] - positions[:, None] < window
    return seen
