"""Two ways to divide a map by n: contiguous tiles and strided phases, and their exact inverses.

Maps are channel-last; part ``row * n + col`` is the tile, or the offset, at (row, col).
"""

from __future__ import annotations

from torch import Tensor


def split_local(whole: Tensor, n: int) -> Tensor:
    """Cut a map (B, n*h, n*w, C) into its tiles (B, n*n, h, w, C)."""
    height, width = _part_size(whole, n)
    parts = whole.unflatten(2, (n, width)).unflatten(1, (n, height))
    return parts.transpose(2, 3).flatten(1, 2)


def combine_local(parts: Tensor, n: int) -> Tensor:
    """Join tiles (B, n*n, h, w, C) to one map (B, n*h, n*w, C)."""
    return parts.unflatten(1, (n, n)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def split_global(whole: Tensor, n: int) -> Tensor:
    """Take every n-th cell of a map (B, n*h, n*w, C) from each offset: (B, n*n, h, w, C)."""
    height, width = _part_size(whole, n)
    parts = whole.unflatten(2, (width, n)).unflatten(1, (height, n))
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def combine_global(parts: Tensor, n: int) -> Tensor:
    """Interleave strided parts (B, n*n, h, w, C) to one map (B, n*h, n*w, C)."""
    return parts.unflatten(1, (n, n)).permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)


def _part_size(whole: Tensor, n: int) -> tuple[int, int]:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    height, width = whole.shape[1:3]
    for side in (height, width):
        if side % n:
            raise ValueError(f"a side of {side} cannot be divided by n = {n}; resize it first")
    return height // n, width // n
