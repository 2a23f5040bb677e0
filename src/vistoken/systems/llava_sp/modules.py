"""The modules of LLaVA-SP as plain networks; they need no language model.

    extractor = SpatialFeatureExtractor(1024, LlavaSPConfig(variant="pooling"), grid=(24, 24))
    spatial = extractor(torch.randn(2, 1024, 24, 24))
    print(spatial.shape)  # (2, 6, 512)

B pictures, C feature channels, (R, W) the feature grid, S scales, M inner width, L detail tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistoken.core.parts import Grid
from vistoken.systems.llava_sp.config import LlavaSPConfig


def make_kernel(
    channels: int, size: Grid, config: LlavaSPConfig, stride: int = 1
) -> nn.Conv2d | nn.Sequential:
    """Build one bias-free convolution channels -> ``config.width`` of the configured kind.

    Args:
        channels: Input channels C.
        size: Kernel (rows, cols).
        config: Gives kind, rank and width.
        stride: Stride of the convolution.
    """
    width = config.width
    if config.kernel == "full":
        return nn.Conv2d(channels, width, size, stride, bias=False)
    inner = channels
    groups = channels
    if config.rank is not None:
        inner, groups = config.rank, 1
    return nn.Sequential(
        nn.Conv2d(channels, inner, size, stride, groups=groups, bias=False),
        nn.Conv2d(inner, width, 1, bias=False),
    )


class SpatialFeatureExtractor(nn.Module):
    """SFE: one convolution output per scale, over central windows or over poolings of the grid.

    Args:
        channels: Feature channels C.
        config: Variant, scales, width and kernel kind.
        grid: Feature grid (R, W) that the kernels are built for.

    Source: arXiv 2507.00505 section 3.2; CnFaker/LLaVA-SP:llava/model.
    """

    def __init__(self, channels: int, config: LlavaSPConfig, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.variant = config.variant
        self.scales = config.scales_for(grid)
        self.kernels = nn.ModuleList(make_kernel(channels, size, config) for size in self.scales)

    def forward(self, features: Tensor) -> Tensor:
        """Extract spatial tokens.

        Args:
            features (Tensor): (B, C, R, W).

        Returns:
            (B, S, M), in the order of the scales.
        """
        tokens = [
            kernel(self._area(features, size)).flatten(1)
            for kernel, size in zip(self.kernels, self.scales, strict=True)
        ]
        return torch.stack(tokens, dim=1)

    def _area(self, features: Tensor, size: Grid) -> Tensor:
        if size == self.grid:
            return features
        if self.variant == "pooling":
            return F.adaptive_avg_pool2d(features, size)
        top, left = (self.grid[0] - size[0]) // 2, (self.grid[1] - size[1]) // 2
        return features[:, :, top : top + size[0], left : left + size[1]]


class DetailFeatureIntegrator(nn.Module):
    """DFI: spatial tokens attend to convolved detail tokens; the result is appended to them.

    One head, logits scaled by 1 / sqrt(M). Query, key and value each have their own LayerNorm.

    Args:
        channels: Feature channels C.
        config: Gives width, kernel kind, detail kernel and stride.
        grid: Feature grid (R, W).

    Source: arXiv 2507.00505 section 3.3; CnFaker/LLaVA-SP:llava/model.
    """

    def __init__(self, channels: int, config: LlavaSPConfig, grid: Grid) -> None:
        super().__init__()
        size = config.detail_kernel_for(grid)
        self.detail = make_kernel(channels, size, config, config.detail_stride)
        self.query = _projection(config.width)
        self.key = _projection(config.width)
        self.value = _projection(config.width)

    def forward(self, features: Tensor, spatial: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse detail into spatial tokens.

        Args:
            features (Tensor): (B, C, R, W).
            spatial (Tensor): (B, S, M).

        Returns:
            (B, S, 2M): spatial tokens and what they attended to; and the attention (B, S, L).
        """
        detail = self.detail(features).flatten(2).transpose(1, 2)
        query, key = self.query(spatial), self.key(detail)
        logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        attention = logits.softmax(dim=-1)
        return torch.cat([spatial, attention @ self.value(detail)], dim=-1), attention


class PatchProjector(nn.Module):
    """LLaVA-1.5's projector of the patch tokens: Linear, exact GELU, Linear.

    Args:
        channels: Width of a patch token.
        hidden: Width between the layers.
        text_width: The decoder's hidden size D.
    """

    def __init__(self, channels: int, hidden: int, text_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, hidden)
        self.linear_2 = nn.Linear(hidden, text_width)

    def forward(self, patches: Tensor) -> Tensor:
        """Project tokens (..., channels) to (..., D)."""
        projected: Tensor = self.linear_2(F.gelu(self.linear_1(patches)))
        return projected


def _projection(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
