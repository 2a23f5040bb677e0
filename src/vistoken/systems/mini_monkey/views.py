"""Views ``msac``: two tilings of a picture with different cut lines, and the undivided picture."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vistoken.core.parts import Grid, TowerInput, ViewFunction
from vistoken.core.tables import ViewKind
from vistoken.models.tiling import normalise_tiles, number_views, tile_rows
from vistoken.systems.mini_monkey.config import MsacConfig
from vistoken.systems.mini_monkey.grids import (
    ADAPTIVE,
    DETAILED,
    WHOLE,
    Tiling,
    plan_tiles,
)


class Msac(ViewFunction):
    """Multi-scale adaptive cropping: what one tiling cuts in two is likely whole in the other.

    Detailed tiles, adaptive tiles, then the undivided picture, each tiling row by row and a
    ``group`` of its own in the view table. The picture is stretched to each grid. Further towers
    see the same tiles at their own size.

    Source: arXiv 2408.02034 section 3.1; Yuliang-Liu/Monkey:project/mini_monkey.
    """

    config_class = MsacConfig
    fewer_tokens = "lower max_detailed and max_adaptive of msac, or set its no_upscale"

    def plan(self, height: int, width: int) -> Tiling:
        """Both grids for a picture of this size in pixels."""
        return plan_tiles(height, width, self.towers[0].size, self.config)

    def view_table(self, height: int, width: int) -> Tensor:
        """One row per tile and tower; ``group`` is 1 for detailed, 2 for adaptive, 0 for whole."""
        groups = groups_of(self.plan(height, width), self.config)

        def rows(group: int, grid: Grid, tower: TowerInput) -> Tensor:
            kind = ViewKind.GLOBAL if group == WHOLE else ViewKind.TILE
            return tile_rows(grid, tower.size, (height, width), kind=kind, group=group)

        return number_views(
            [torch.cat([rows(*group, tower) for group in groups]) for tower in self.towers]
        )

    def pixels(self, image: Any) -> list[Tensor]:
        """Every tile, cut from the picture stretched to its grid."""
        groups = groups_of(self.plan(image.height, image.width), self.config)
        grids = [grid for _, grid in groups]
        towers = [_tiles(image, grids, tower) for tower in self.towers]
        return [view for views in zip(*towers, strict=True) for view in views]


def groups_of(plan: Tiling, config: MsacConfig) -> list[tuple[int, Grid]]:
    """Number and grid of every group of tiles of a picture, in order."""
    groups = [(DETAILED, plan.detailed)]
    if plan.adaptive is not None:
        groups.append((ADAPTIVE, plan.adaptive))
    if config.order == "adaptive":
        groups.reverse()
    return groups + ([(WHOLE, (1, 1))] if plan.whole else [])


def _tiles(image: Image.Image, grids: list[Grid], tower: TowerInput) -> Tensor:
    """Tiles (V, 3, height, width) of every grid for one tower; each size is made once."""
    out = torch.empty(sum(rows * cols for rows, cols in grids), 3, *tower.size)
    canvases = {grid: _stretched(image, grid, tower) for grid in set(grids)}
    start = 0
    for grid in grids:
        end = start + grid[0] * grid[1]
        normalise_tiles(canvases[grid], grid, tower, out[start:end])
        start = end
    return out


def _stretched(image: Image.Image, grid: Grid, tower: TowerInput) -> Image.Image:
    size = (grid[1] * tower.size[1], grid[0] * tower.size[0])
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
