"""Pixel shuffle: neighbouring cells of a feature grid become the channels of one token."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vistoken.core.errors import UsageError
from vistoken.core.parts import ConnectorStage, ConnectorState, Grid, StageContext, ViewMap
from vistoken.core.tables import TOKEN, TokenKind, rectangles, set_rectangles
from vistoken.systems.mini_monkey.config import PixelShuffleConfig, Version


def pixel_shuffle(features: Tensor, factor: int, version: Version = "v2") -> Tensor:
    """Turn every ``factor`` x ``factor`` cells into the channels of one.

    Args:
        features (Tensor): (B, R, C, width).
        factor: Cells per token and axis; divides R and C.
        version: ``v2``, or ``v1``, which leaves the result transposed.

    Returns:
        (B, R / factor, C / factor, width * factor**2); with ``v1`` the two middle axes swapped.
        Channels come row of cells by row of cells.

    Source: arXiv 2312.14238; OpenGVLab/InternVL:modeling_internvl_chat.py.
    """
    rows, cols = features.shape[1:3]
    if rows % factor or cols % factor:
        raise UsageError(
            f"pixel-shuffle: a feature grid of {rows}x{cols} cells cannot be divided by "
            f"{factor}; choose another factor, tower or picture size"
        )
    parts = features.unflatten(2, (cols // factor, factor)).unflatten(1, (rows // factor, factor))
    grouped = parts.permute(0, 1, 3, 2, 4, 5).flatten(3)
    return grouped if version == "v2" else grouped.transpose(1, 2).contiguous()


class PixelShuffle(ConnectorStage):
    """Project: a norm and two linear layers over pixel-shuffled features, InternVL2's connector.

    Tokens without a place on the grid (CLS, registers) are dropped.

    Source: arXiv 2408.02034 section 3; OpenGVLab/InternVL:modeling_internvl_chat.py (``mlp1``).
    """

    config_class = PixelShuffleConfig
    fewer_tokens = "give pixel-shuffle a larger factor"

    def __init__(self, config: PixelShuffleConfig, context: StageContext) -> None:
        super().__init__(config, context)
        width = context.width * config.factor**2
        hidden = config.hidden_width or context.text_width
        self.norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, context.text_width)

    @classmethod
    def context_after(cls, config: PixelShuffleConfig, context: StageContext) -> StageContext:
        """The grid shrinks by the factor; channels become the decoder's."""
        grid = _grid_after(config, context.grid)
        return replace(context, width=context.text_width, grid=grid)

    @classmethod
    def token_map(
        cls, config: PixelShuffleConfig, context: StageContext, maps: list[ViewMap]
    ) -> list[ViewMap]:
        """One token per ``factor`` x ``factor`` cells, with the union of their rectangles."""
        return [_shuffled_map(config, view_map) for view_map in maps]

    def forward(self, state: ConnectorState) -> ConnectorState:
        """Shuffle and project every view's cells."""
        tokens = state.map_tokens(self._project)
        return replace(
            state, tokens=tokens, grids=[_grid_after(self.config, grid) for grid in state.grids]
        )

    def _project(self, tokens: Tensor, grid: Grid) -> Tensor:
        cells = tokens[:, -grid[0] * grid[1] :].unflatten(1, grid)
        shuffled = pixel_shuffle(cells, self.config.factor, self.config.version).flatten(1, 2)
        hidden = nn.functional.gelu(self.linear_1(self.norm(shuffled)))
        projected: Tensor = self.linear_2(hidden)
        return projected


def _grid_after(config: PixelShuffleConfig, grid: Grid) -> Grid:
    """Grid whose cells the tokens are, row by row as they come; v1 writes columns as rows."""
    if grid[0] % config.factor or grid[1] % config.factor:
        raise UsageError(
            f"pixel-shuffle: a feature grid of {grid[0]}x{grid[1]} cells cannot be divided by "
            f"{config.factor}; choose another factor, tower or picture size"
        )
    rows, cols = grid[0] // config.factor, grid[1] // config.factor
    return (rows, cols) if config.version == "v2" else (cols, rows)


def _shuffled_map(config: PixelShuffleConfig, view_map: ViewMap) -> ViewMap:
    factor, (rows, cols) = config.factor, view_map.grid
    grid = _grid_after(config, view_map.grid)
    cells = view_map.tokens[-rows * cols :]

    def grouped(values: Tensor) -> Tensor:
        """(tokens, factor**2, ...), the cells of each token in the order of the tokens."""
        shuffled = pixel_shuffle(values.view(1, rows, cols, -1), factor, config.version)
        return shuffled.view(grid[0] * grid[1], factor**2, -1)

    first = grouped(cells)[:, 0]
    boxes = grouped(rectangles(cells))
    union = torch.cat([boxes[:, :, :2].amin(1), boxes[:, :, 2:].amax(1)], dim=-1)
    row, col = (TOKEN.get(first, name) // factor for name in ("row", "col"))
    tokens = TOKEN.set(first, kind=TokenKind.VISUAL, row=row, col=col)
    return replace(view_map, grid=grid, tokens=set_rectangles(tokens, union))
