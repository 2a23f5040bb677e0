"""Dual-perspective enhancement: local and global feature maps correct each other.

B pictures, n the grid side, (h, w) the grid of one view, C channels.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistoken.systems.inf_llava.config import BOTTLENECK
from vistoken.systems.inf_llava.grids import (
    combine_global,
    combine_local,
    split_global,
    split_local,
)


class CrossAttention(nn.Module):
    """Attention with a residual on the raw query, then LayerNorm; the four projections start equal.

    Args:
        width: Channels C.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = deepcopy(self.query)
        self.value = deepcopy(self.query)
        self.output = deepcopy(self.query)
        self.norm = nn.LayerNorm(width)

    def forward(self, query: Tensor, source: Tensor) -> Tensor:
        """Attend from ``query`` (N, T, C) to ``source`` (N, S, C); (N, T, C)."""
        q, k, v = (
            projection(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, tokens in (
                (self.query, query),
                (self.key, source),
                (self.value, source),
            )
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.norm(self.output(attended.transpose(1, 2).flatten(2)) + query)
        return result


class DualEnhancement(nn.Module):
    """DEM without its pooling: the two perspectives of a picture become one large map.

    Args:
        width: Channels C, a multiple of 16 and of ``heads``.
        heads: Attention heads.
        share_attention: One attention block for both directions, as released.

    Source: arXiv 2407.16198 section 3.3.
    """

    def __init__(self, width: int, heads: int = 8, share_attention: bool = True) -> None:
        super().__init__()
        self.attention = CrossAttention(width, heads)
        self.local_attention = None if share_attention else CrossAttention(width, heads)
        self.crop_ffn = _branch(width)
        self.stride_ffn = _branch(width)
        self.norm = nn.LayerNorm(width)

    def exchange(self, local: Tensor, strided: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Correct each map by the other.

        The global map asks the local one tile by tile; the local map asks the global one offset by
        offset, and so sees the whole scene.

        Args:
            local (Tensor): (B, n*h, n*w, C), features of the tiles, joined.
            strided (Tensor): (B, n*h, n*w, C), features of the strided views, interleaved.
            n: The grid side.

        Returns:
            The corrected global map and the corrected local map, each (B, n*h, n*w, C).
        """
        by_tile = _attend(self.attention, split_local(strided, n), split_local(local, n))
        asking = self.attention if self.local_attention is None else self.local_attention
        by_offset = _attend(asking, split_global(local, n), split_global(strided, n))
        return combine_local(by_tile, n), combine_global(by_offset, n)

    def forward(self, local: Tensor, strided: Tensor, n: int) -> Tensor:
        """Enhance joined maps as in :meth:`exchange`; (B, n*h, n*w, C)."""
        from_global, from_local = self.exchange(local, strided, n)
        refined = torch.cat([self.crop_ffn(from_local), self.stride_ffn(from_global)], dim=-1)
        result: Tensor = self.norm(refined + from_global + from_local)
        return result


def pool_bilinear(large: Tensor, n: int) -> Tensor:
    """Resize (B, n*h, n*w, C) to (B, h, w, C) in float32, no antialias, corners not aligned."""
    size = (large.shape[1] // n, large.shape[2] // n)
    maps = large.permute(0, 3, 1, 2).float()
    resized = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1).to(large)


def pool_average(large: Tensor, n: int) -> Tensor:
    """Average every n*n cells of (B, n*h, n*w, C) in float32; (B, h, w, C)."""
    return split_global(large, n).float().mean(dim=1).to(large)


def _attend(attention: CrossAttention, queries: Tensor, sources: Tensor) -> Tensor:
    """Attention within each part of (B, n*n, h, w, C)."""
    tokens = attention(queries.flatten(2, 3).flatten(0, 1), sources.flatten(2, 3).flatten(0, 1))
    return tokens.view(queries.shape)


def _branch(width: int) -> nn.Sequential:
    inner = width // BOTTLENECK
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width // 2))
