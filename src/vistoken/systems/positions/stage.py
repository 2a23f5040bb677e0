"""The ``row-col`` connector stage: a patch token learns which row and column it comes from."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistoken.core.errors import UsageError
from vistoken.core.parts import ConnectorStage, ConnectorState, Grid, StageContext
from vistoken.systems.positions.config import RowColConfig


class RowCol(ConnectorStage):
    """Reduce (count kept): one learned vector per row and one per column, added to the cells.

    Tokens in front of the grid (spatial, learned) stay as they are. Rows and columns are those of
    a view's own grid as it enters this stage, so after ``pool`` they are the pooled ones. The
    tables are built for the nominal grid; on a view of another grid they are resized linearly
    over the same picture, so that the middle row stays the middle row.

    Both tables count as spatial modules: they can be trained while the projection is frozen.
    """

    config_class = RowColConfig

    def __init__(self, config: RowColConfig, context: StageContext) -> None:
        super().__init__(config, context)
        rows, cols = context.grid
        self.rows = nn.Parameter(torch.randn(rows, context.width) * config.std)
        self.cols = nn.Parameter(torch.randn(cols, context.width) * config.std)

    def spatial_modules(self) -> list[nn.Module]:
        """The stage itself: it projects nothing."""
        return [self]

    def forward(self, state: ConnectorState) -> ConnectorState:
        """Add its row's and its column's embedding to every grid token."""
        return replace(state, tokens=state.map_tokens(self._place))

    def places(self, grid: Grid) -> Tensor:
        """Sum of row and column embedding of every cell, (R * C, width), row-major."""
        rows, cols = _resize(self.rows, grid[0]), _resize(self.cols, grid[1])
        return (rows[:, None] + cols[None, :]).flatten(0, 1)

    def _place(self, tokens: Tensor, grid: Grid) -> Tensor:
        prefix = tokens.shape[1] - grid[0] * grid[1]
        if prefix < 0:
            raise UsageError(
                f"row-col got {tokens.shape[1]} tokens for a grid of {grid[0]}x{grid[1]}; put it "
                "before the stage that takes the grid apart"
            )
        placed = (tokens[:, prefix:].float() + self.places(grid).float()).to(tokens)
        return torch.cat([tokens[:, :prefix], placed], dim=1)


def _resize(table: Tensor, count: int) -> Tensor:
    """Embeddings of ``count`` rows (or columns) that divide the same picture; (count, width)."""
    if len(table) == count:
        return table
    wide = table.float().T[None]
    return F.interpolate(wide, size=count, mode="linear", align_corners=False)[0].T
