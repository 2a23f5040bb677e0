"""Samples of a feature map inside each query's region: RoI alignment as two small matrices.

The regions form a regular grid, so averaging bilinear samples inside them splits into rows and
columns: one matrix from feature rows to sample rows and one for columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vistoken.core.parts import Grid
from vistoken.systems.llava_uhd.config import Compat

_SHAPES: tuple[Grid, ...] = ((2, 4), (2, 3), (3, 4), (3, 3), (4, 2), (3, 2), (4, 3))
"""Rows and columns of samples in a region, in the order in which ties are broken."""


def sample_shape(grid: Grid) -> Grid:
    """(rows, cols) of samples whose shape is nearest to that of a feature map (rows, cols)."""
    log_ratio = math.log(grid[1] / grid[0])
    return min(_SHAPES, key=lambda shape: abs(log_ratio - math.log(shape[1] / shape[0])))


def sample_regions(levels: Sequence[Tensor], queries: int, compat: Compat) -> Tensor:
    """Sample every level of a feature pyramid inside each region of a square grid.

    Args:
        levels: Feature maps of the same views, (B, H_l, W_l, E) float32 each; LLaVA-UHD has one.
        queries: Rows and columns of regions, g.
        compat: See :class:`~vistoken.systems.llava_uhd.config.UhdResamplerConfig`.

    Returns:
        (B, g * g, S, E), the levels' samples one behind the other, row-major.

    Source: arXiv 1703.06870 section 3 (RoIAlign); thunlp/LLaVA-UHD, branch LLaVA-UHD-v1.
    """
    sampled = []
    for level in levels:
        grid = (level.shape[1], level.shape[2])
        shape = sample_shape(grid)
        by_row, by_col = region_weights(grid, queries, shape, compat)
        rows = torch.einsum("ph,bhwe->bpwe", by_row.to(level), level)
        cells = torch.einsum("qw,bpwe->bpqe", by_col.to(level), rows)
        cells = cells.unflatten(2, (queries, shape[1])).unflatten(1, (queries, shape[0]))
        sampled.append(cells.transpose(2, 3).flatten(3, 4).flatten(1, 2))
    return torch.cat(sampled, dim=2)


@lru_cache(maxsize=512)
def region_weights(grid: Grid, queries: int, shape: Grid, compat: Compat) -> tuple[Tensor, Tensor]:
    """Matrices (g * samples, H) and (g * samples, W) float32; the result is shared, leave it so."""
    rows, cols = grid
    if compat == "fixed":
        height, width = rows / queries, cols / queries
    else:  # this detour decides the last bit of the width, and that the number of points
        height = math.sqrt((rows * cols / queries**2) / (cols / rows))
        width = height * cols / rows
    return (
        _axis_weights(rows, height, queries, shape[0], compat),
        _axis_weights(cols, width, queries, shape[1], compat),
    )


def _axis_weights(length: int, region: float, queries: int, samples: int, compat: Compat) -> Tensor:
    """Weight of each patch of one axis in each sample of each region; float32 as in kernels."""
    edges = torch.tensor([number * region for number in range(queries + 1)], dtype=torch.float32)
    starts, sizes = edges[:-1], edges[1:] - edges[:-1]
    if compat == "fixed":
        starts = starts - 0.5
    else:
        sizes = sizes.clamp(min=1.0)
    bins = sizes / samples
    points = torch.ceil(bins).long().tolist()
    weights = torch.zeros(queries * samples, length, dtype=torch.float32)
    for number in range(queries * samples):
        region_number, sample = divmod(number, samples)
        start, size = starts[region_number], bins[region_number]
        count = points[region_number]
        for point in range(count):
            place = float(start + sample * size + (point + 0.5) * size / count)
            for patch, weight in _neighbours(place, length):
                weights[number, patch] += weight / count
    return weights


def _neighbours(place: float, length: int) -> list[tuple[int, float]]:
    """Patches and weights of linear interpolation; none for a point beyond the border's patch."""
    if place < -1 or place > length:
        return []
    place = min(max(place, 0.0), length - 1)
    low = int(place)
    if low == length - 1:
        return [(low, 1.0)]
    return [(low, 1 - (place - low)), (low + 1, place - low)]
