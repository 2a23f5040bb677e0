"""Baseline connector stages: fuse ``concat-grid``, project ``mlp``, and small ones after it.

A view's tokens are ``prefix + grid``: tokens without a place on the grid (spatial, register,
learned) come first, then one token per grid cell, row-major. Stages here keep that order.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistoken.core.errors import UsageError
from vistoken.core.parts import ConnectorStage, ConnectorState, Grid, StageContext, ViewMap
from vistoken.core.tables import TOKEN, TokenKind, rectangles, set_rectangles
from vistoken.systems.llava.config import (
    ConcatGridConfig,
    FreeTokensConfig,
    MlpConfig,
    PoolConfig,
    RmsScaleConfig,
)


class ConcatGrid(ConnectorStage):
    """Fuse: several towers' features, channel by channel, on the first tower's grid.

    ``config.grid`` names a coarser grid: fewer tokens, before anything is projected. Maps of
    another grid are resized bilinearly in float32, corners not aligned (a cell keeps its place in
    the picture), and antialiased where they get coarser. Each channel is then centred and scaled by
    the buffers ``mean`` and ``std`` (0 and 1 until set from data, saved with the weights). Tokens
    without a place on the grid (CLS, registers) are dropped: towers that differ in width have no
    common form for them.
    """

    config_class = ConcatGridConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: ConcatGridConfig, context: StageContext) -> None:
        super().__init__(config, context)
        width = sum(context.tower_widths)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """The buffers ``mean`` and ``std``."""
        return self.mean, self.std

    @classmethod
    def context_after(cls, config: ConcatGridConfig, context: StageContext) -> StageContext:
        """Widths add up; the grid stays the first tower's where no other is named."""
        if config.grid is not None:
            _check_coarser("concat-grid", config.grid, context.grid)
        grid = config.grid or context.grid
        return replace(context, width=sum(context.tower_widths), grid=grid)

    @classmethod
    def token_map(
        cls, config: ConcatGridConfig, context: StageContext, maps: list[ViewMap]
    ) -> list[ViewMap]:
        """One token per cell; a coarser cell's rectangle is the union of those it covers."""
        cells = [m.with_tokens(m.tokens[-m.grid[0] * m.grid[1] :]) for m in maps]
        if config.grid is None:
            return cells
        return [_coarser_map("concat-grid", m, config.grid) for m in cells]

    def forward(self, state: ConnectorState) -> ConnectorState:
        """Fill tokens and grids from the towers' features."""
        tokens, grids = [], []
        for maps in state.features:
            grid = self.config.grid or (maps[0].shape[0], maps[0].shape[1])
            fused = torch.cat([resize_grid(m, grid).to(maps[0]) for m in maps], dim=-1)
            fused = (fused - self.mean.to(fused)) / self.std.to(fused)
            tokens.append(fused.flatten(0, 1))
            grids.append(grid)
        return replace(state, tokens=tokens, grids=grids)


class Mlp(ConnectorStage):
    """Project: ``linear_2(gelu(linear_1(x)))`` per token, GELU exact.

    As a chain of its own it has the parameter names of Hugging Face Llava's projector.

    Source: arXiv 2310.03744 section 3.2 (``mlp2x_gelu``); transformers:models/llava.
    """

    config_class = MlpConfig
    flat_when_alone = True

    def __init__(self, config: MlpConfig, context: StageContext) -> None:
        super().__init__(config, context)
        hidden = config.hidden_width or context.text_width
        self.linear_1 = nn.Linear(context.width, hidden)
        self.linear_2 = nn.Linear(hidden, context.text_width)

    @classmethod
    def context_after(cls, config: MlpConfig, context: StageContext) -> StageContext:
        """Channels become the decoder's."""
        return replace(context, width=context.text_width)

    def forward(self, state: ConnectorState) -> ConnectorState:
        """Project every token."""
        return replace(state, tokens=state.map_tokens(self._project))

    def _project(self, tokens: Tensor, grid: Grid) -> Tensor:
        hidden: Tensor = self.linear_2(F.gelu(self.linear_1(tokens)))
        return hidden


class Pool(ConnectorStage):
    """Reduce: grid tokens averaged to ``config.grid``; tokens in front of them stay as they are.

    Windows are those of PyTorch's adaptive average pooling: they overlap where the target does
    not divide the grid. A pooled token's rectangle is the union of its window.
    """

    config_class = PoolConfig
    fewer_tokens = "give pool a smaller grid"

    @classmethod
    def context_after(cls, config: PoolConfig, context: StageContext) -> StageContext:
        """The grid becomes the target; refused if that is larger."""
        _check_coarser("pool", config.grid, context.grid)
        return replace(context, grid=config.grid)

    @classmethod
    def token_map(
        cls, config: PoolConfig, context: StageContext, maps: list[ViewMap]
    ) -> list[ViewMap]:
        """Grid tokens become the target's, their rectangles the windows' unions."""
        return [_coarser_map("pool", m, config.grid) for m in maps]

    def forward(self, state: ConnectorState) -> ConnectorState:
        """Average the grid tokens of every view."""
        for grid in set(state.grids):
            _check_coarser("pool", self.config.grid, grid)
        tokens = state.map_tokens(self._pool)
        return replace(state, tokens=tokens, grids=[self.config.grid] * len(tokens))

    def _pool(self, tokens: Tensor, grid: Grid) -> Tensor:
        prefix, cells = split_prefix(tokens, grid)
        maps = cells.transpose(1, 2).unflatten(2, grid)
        pooled = F.adaptive_avg_pool2d(maps, self.config.grid)
        return torch.cat([prefix, pooled.flatten(2).transpose(1, 2)], dim=1)


class RmsScale(ConnectorStage):
    """Reduce (count kept): every token divided by its root mean square, times one learned gain.

    Keeps visual tokens at the magnitude of the language model's own embeddings, which raw tower
    features are far from.
    """

    config_class = RmsScaleConfig

    def __init__(self, config: RmsScaleConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.gain = nn.Parameter(torch.full((1,), float(config.gain)))

    def forward(self, state: ConnectorState) -> ConnectorState:
        """Normalise every token in float32, then scale it."""
        return replace(state, tokens=[self._scale(tokens) for tokens in state.tokens])

    def _scale(self, tokens: Tensor) -> Tensor:
        wide = tokens.float()
        mean_square = wide.square().mean(dim=-1, keepdim=True)
        return (wide * torch.rsqrt(mean_square + self.config.eps) * self.gain).to(tokens)


class FreeTokens(ConnectorStage):
    """Append: learned tokens in front of every view's tokens, the same for every picture.

    The control for visual spatial tokens: equal count and place, no look at the picture.
    """

    config_class = FreeTokensConfig

    def __init__(self, config: FreeTokensConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.embeddings = nn.Parameter(
            torch.randn(config.count, context.width) * context.width**-0.5
        )

    def spatial_modules(self) -> list[nn.Module]:
        """The stage itself: its tokens are trained as the spatial tokens they stand in for are."""
        return [self]

    @classmethod
    def token_map(
        cls, config: FreeTokensConfig, context: StageContext, maps: list[ViewMap]
    ) -> list[ViewMap]:
        """Put ``count`` register tokens, without a place, in front."""
        return [m.with_tokens(torch.cat([_free_rows(m, config.count), m.tokens])) for m in maps]

    def forward(self, state: ConnectorState) -> ConnectorState:
        """Put the learned tokens in front of every view's."""
        tokens = [torch.cat([self.embeddings.to(t), t]) for t in state.tokens]
        return replace(state, tokens=tokens)


def resize_grid(features: Tensor, grid: Grid) -> Tensor:
    """Resize a feature map (R, C, width) to ``grid`` as :class:`ConcatGrid` documents it."""
    if (features.shape[0], features.shape[1]) == grid:
        return features
    maps = features.permute(2, 0, 1)[None].float()
    shrinks = grid[0] < features.shape[0] or grid[1] < features.shape[1]
    resized = F.interpolate(
        maps, size=grid, mode="bilinear", align_corners=False, antialias=shrinks
    )
    return resized[0].permute(1, 2, 0).to(features)


def split_prefix(tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Split tokens (B, P + R*C, width) into those in front of the grid and the grid's own."""
    cells = grid[0] * grid[1]
    if tokens.shape[1] < cells:
        raise UsageError(
            f"a view has {tokens.shape[1]} tokens, too few for its grid of {grid[0]}x{grid[1]}; "
            "put this stage before the one that takes the grid apart"
        )
    prefix = tokens.shape[1] - cells
    return tokens[:, :prefix], tokens[:, prefix:]


def _check_coarser(stage: str, target: Grid, grid: Grid) -> None:
    if target[0] > grid[0] or target[1] > grid[1]:
        raise UsageError(
            f"{stage} cannot enlarge a grid of {grid[0]}x{grid[1]} to {target[0]}x{target[1]}; "
            "choose a smaller grid"
        )


def _coarser_map(stage: str, view_map: ViewMap, target: Grid) -> ViewMap:
    _check_coarser(stage, target, view_map.grid)
    prefix, cells = split_prefix(view_map.tokens[None], view_map.grid)
    cells = cells[0]
    if bool((TOKEN.get(cells, "row") < 0).any()):
        raise UsageError(
            f"{stage} needs the grid's tokens last; put it before the stage that appends"
        )
    first, last = _windows(view_map.grid, target)
    boxes = rectangles(cells)
    pooled = set_rectangles(
        cells[first],
        torch.cat([boxes[first, :2], boxes[last, 2:]], dim=1),
    )
    # A view's first cell tells where its own grid starts on the stitched one.
    tile_row = TOKEN.get(cells[0], "row") // view_map.grid[0]
    tile_col = TOKEN.get(cells[0], "col") // view_map.grid[1]
    row = torch.arange(target[0]).repeat_interleave(target[1])
    col = torch.arange(target[1]).repeat(target[0])
    pooled = TOKEN.set(pooled, row=row + tile_row * target[0], col=col + tile_col * target[1])
    return replace(view_map, grid=target, tokens=torch.cat([prefix[0], pooled]))


def _windows(grid: Grid, target: Grid) -> tuple[Tensor, Tensor]:
    """First and last cell (flat index) of every adaptive pooling window, row-major."""
    first, last = [], []
    for side, count in zip(grid, target, strict=True):
        number = torch.arange(count)
        first.append(number * side // count)
        last.append(((number + 1) * side + count - 1) // count - 1)
    cols = grid[1]
    return (
        (first[0][:, None] * cols + first[1]).flatten(),
        (last[0][:, None] * cols + last[1]).flatten(),
    )


def _free_rows(view_map: ViewMap, count: int) -> Tensor:
    cell = view_map.tokens[-1]
    return TOKEN.make(
        count,
        kind=TokenKind.REGISTER,
        learned=torch.arange(count),
        **{name: TOKEN.get(cell, name) for name in ("view", "group", "frame0", "frame1")},
        **{name: TOKEN.get(cell, name) for name in ("t0", "t1")},
    )
