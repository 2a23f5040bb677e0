"""Which rows are visual, and which of them are neighbours on their grid.

B batch, n rows, K table columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isqrt

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN, TokenKind

_GRID = ("media", "group", "frame0", "level")
"""A position (row, col) is unique among the rows that agree in these."""


def visual_rows(token_map: Tensor, kinds: Iterable[TokenKind]) -> Tensor:
    """Which rows count as visual.

    Args:
        token_map (Tensor): (B, n, K) int64.
        kinds: The kinds that count.

    Returns:
        (B, n) bool.
    """
    kind = TOKEN.get(token_map, "kind")
    chosen = torch.zeros_like(kind, dtype=torch.bool)
    for wanted in kinds:
        chosen |= kind == wanted
    return chosen


def neighbours(token_map: Tensor, visual: Tensor, window: int) -> Tensor:
    """Which pairs of visual rows are within one window of each other on the same grid.

    Tokens of other grids, other pictures included, are no neighbours. A picture whose tokens have
    no place on a grid is read as a square one, row by row.

    Args:
        token_map (Tensor): (B, n, K) int64.
        visual (Tensor): (B, n) bool.
        window: Side of the square window, odd.

    Returns:
        (B, n, n) bool, False wherever either is not visual.

    Raises:
        UsageError: Tokens without places whose number is no square.
    """
    reach = (window - 1) // 2
    near = visual[:, :, None] & visual[:, None, :]
    for name in _GRID:
        near &= _pairs(TOKEN.get(token_map, name)) == 0
    for place in _places(token_map, visual):
        near &= _pairs(place).abs() <= reach
    return near


def _pairs(values: Tensor) -> Tensor:
    """Differences (B, n, n) of all pairs."""
    return values[:, :, None] - values[:, None, :]


def _places(token_map: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column (B, n) of every visual token, filled in for square grids without them."""
    row, col = TOKEN.get(token_map, "row"), TOKEN.get(token_map, "col")
    missing = visual & ((row < 0) | (col < 0))
    if not bool(missing.any()):
        return row, col
    row, col = row.clone(), col.clone()
    for sample, table in enumerate(token_map):
        where = torch.nonzero(missing[sample]).flatten()
        grid = torch.stack([TOKEN.get(table[where], name) for name in _GRID], dim=-1)
        for wanted in torch.unique(grid, dim=0):
            members = where[(grid == wanted).all(dim=-1)]
            side = _square_side(len(members))
            number = torch.arange(len(members), device=row.device)
            row[sample, members], col[sample, members] = number // side, number % side
    return row, col


def _square_side(count: int) -> int:
    side = isqrt(count)
    if side * side != count:
        raise UsageError(
            f"yopo's window needs a grid: a picture has {count} visual tokens without row and "
            "column, and that is no square; use a connector whose tokens keep their places, or "
            "leave window out"
        )
    return side
