"""The ``uhd-resampler`` connector stage: any view becomes the same number of tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistoken.core.errors import UsageError
from vistoken.core.parts import (
    ConnectorStage,
    ConnectorState,
    Grid,
    StageContext,
    ViewMap,
    grid_token_map,
)
from vistoken.systems.llava_uhd.config import UhdResamplerConfig
from vistoken.systems.llava_uhd.regions import sample_regions

_HEAD_WIDTH = 128
_EPS = 1e-6
_STD = 0.02


class UhdResampler(ConnectorStage):
    """Project: learned queries on a square grid over the view, each reading its own region.

    Queries attend to 6 to 12 samples of the projected features inside their cell, or with
    ``attention: all`` to every patch. Whatever the view's grid, ``grid`` squared tokens come out,
    row-major, so that later stages see a grid of that size.

    Source: LLaVA-UHD, ECCV 2024, section 3.2; thunlp/LLaVA-UHD, branch LLaVA-UHD-v1
    (``adapt_spatial_resampler``). ``attention: all``: arXiv 2403.11703 section 3.2.
    """

    config_class = UhdResamplerConfig
    fewer_tokens = "give uhd-resampler a smaller grid"
    pos_embed: Tensor

    def __init__(self, config: UhdResamplerConfig, context: StageContext) -> None:
        super().__init__(config, context)
        width = context.text_width
        count = config.grid**2
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(count, width), std=_STD))
        table = grid_positions(config.grid, width).to(self.query.device)
        self.register_buffer("pos_embed", table)
        self.kv_proj: nn.Module = nn.Identity()
        if context.width != width:
            self.kv_proj = _linear(context.width, width, bias=False)
        self.attn = PackedAttention(width, _heads(config, width))
        self.ln_q = nn.LayerNorm(width, eps=_EPS)
        self.ln_kv = nn.LayerNorm(width, eps=_EPS)
        self.ln_post = nn.LayerNorm(width, eps=_EPS)
        self.proj = nn.Parameter(torch.randn(width, width) * width**-0.5)

    @classmethod
    def context_after(cls, config: UhdResamplerConfig, context: StageContext) -> StageContext:
        """Channels become the decoder's, the grid that of the queries."""
        width = context.text_width
        if width % 4:
            raise UsageError(f"uhd-resampler needs a decoder width divisible by 4, got {width}")
        if width % _heads(config, width):
            raise UsageError(
                f"uhd-resampler: {_heads(config, width)} heads do not divide the decoder's width "
                f"{width}; set heads"
            )
        return replace(context, width=width, grid=(config.grid, config.grid))

    @classmethod
    def token_map(
        cls, config: UhdResamplerConfig, context: StageContext, maps: list[ViewMap]
    ) -> list[ViewMap]:
        """One token per query; its rectangle is the query's region."""
        grid = (config.grid, config.grid)
        for view_map in maps:
            _check_count(len(view_map.tokens), view_map.grid)
        return [ViewMap(m.view, grid, grid_token_map(m.view, grid)) for m in maps]

    def forward(self, state: ConnectorState) -> ConnectorState:
        """Compress every view, views of one grid in one batch."""
        for features, grid in zip(state.tokens, state.grids, strict=True):
            _check_count(len(features), grid)
        side = self.config.grid
        tokens = state.map_tokens(self.compress)
        return replace(state, tokens=tokens, grids=[(side, side)] * len(tokens))

    def compress(self, features: Tensor, grid: Grid) -> Tensor:
        """Features (B, H * W, C) of grid (H, W) -> tokens (B, g * g, D)."""
        values = self.ln_kv(self.kv_proj(features))
        keys = values + self._key_positions(grid).to(values)
        queries = self.ln_q(self.query) + self.pos_embed.to(self.query)
        batch = len(features)
        if self.config.attention == "all":
            seen = self.attn(queries.expand(batch, -1, -1), keys, values)
        else:
            own = queries.repeat(batch, 1).unsqueeze(1)  # (B * g * g, 1, D)
            seen = self.attn(own, self._samples(keys, grid), self._samples(values, grid))
            seen = seen.view(batch, -1, seen.shape[-1])
        return self.ln_post(seen) @ self.proj

    def _key_positions(self, grid: Grid) -> Tensor:
        """The queries' positions stretched over a view's grid, (H * W, D) float32."""
        side = self.config.grid
        table = self.pos_embed.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        spread = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        return spread[0].flatten(1).T

    def _samples(self, features: Tensor, grid: Grid) -> Tensor:
        """Samples (B * g * g, S, D) of features (B, H * W, D) in every query's region."""
        level = features.float().unflatten(1, grid)
        sampled = sample_regions([level], self.config.grid, self.config.compat)
        return sampled.flatten(0, 1).to(features)


class PackedAttention(nn.Module):
    """Multi-head attention with the parameter names of :class:`torch.nn.MultiheadAttention`.

    Args:
        width: Channels of queries, keys and values.
        heads: Heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = _linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend: queries (N, Q, D), keys and values (N, S, D) -> (N, Q, D)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(source, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for source, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
        )
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        seen = scores.softmax(dim=-1, dtype=torch.float32).to(value) @ value
        projected: Tensor = self.out_proj(seen.transpose(1, 2).flatten(2))
        return projected


def grid_positions(side: int, width: int) -> Tensor:
    """Fixed sine and cosine positions (side * side, width) float32 of a square grid, row-major.

    The first half of the channels says the column, the second the row; each half is the sines of
    all frequencies, then the cosines.
    """
    # numpy in float32 gives the very numbers that released checkpoints hold
    omega = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float32) / (width / 4.0))
    angles = np.arange(side, dtype=np.float32)[:, None] * omega.astype(np.float32)
    axis = torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
    rows, cols = axis.repeat_interleave(side, 0), axis.repeat(side, 1)
    return torch.cat([cols, rows], dim=1)


def _heads(config: UhdResamplerConfig, width: int) -> int:
    return config.heads or max(width // _HEAD_WIDTH, 1)


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.trunc_normal_(linear.weight, std=_STD)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def _check_count(tokens: int, grid: Grid) -> None:
    if tokens != grid[0] * grid[1]:
        raise UsageError(
            f"uhd-resampler needs one token per patch, got {tokens} for a grid of "
            f"{grid[0]}x{grid[1]}; use towers with select: default"
        )
