"""Views ``msac``: two tilings of a picture with different cut lines, and the undivided picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vistoken.core.parts import Grid, TowerInput, ViewFunction
from vistoken.core.tables import VIEW, ViewKind
from vistoken.systems.mini_monkey.config import MsacConfig
from vistoken.systems.mini_monkey.grids import (
    ADAPTIVE,
    DETAILED,
    WHOLE,
    Tiling,
    plan_tiles,
)


@dataclass(frozen=True)
class Tile:
    """One view of a picture.

    Args:
        group: Which tiling it belongs to.
        grid: (rows, cols) of that tiling.
        place: (row, col) in it.
    """

    group: int
    grid: Grid
    place: Grid


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
        rows: list[Tensor] = []
        for tile in tiles_of(self.plan(height, width), self.config):
            for number, tower in enumerate(self.towers):
                row = _row(tile, tower, (height, width))
                rows.append(VIEW.set(row, index=len(rows), source=len(rows), tower=number))
        return torch.cat(rows)

    def pixels(self, image: Any) -> list[Tensor]:
        """Every tile, cut from the picture stretched to its grid."""
        canvases: dict[tuple[Grid, int], Image.Image] = {}
        views: list[Tensor] = []
        for tile in tiles_of(self.plan(image.height, image.width), self.config):
            for number, tower in enumerate(self.towers):
                key = (tile.grid, number)
                if key not in canvases:
                    canvases[key] = _stretched(image, tile.grid, tower)
                height, width = tower.size
                row, col = tile.place
                box = (col * width, row * height, (col + 1) * width, (row + 1) * height)
                views.append(_normalise(canvases[key].crop(box), tower))
        return views


def tiles_of(plan: Tiling, config: MsacConfig) -> list[Tile]:
    """Every view of a picture, in order."""
    detailed, adaptive = _tiles(DETAILED, plan.detailed), _tiles(ADAPTIVE, plan.adaptive)
    tiles = detailed + adaptive if config.order == "detailed" else adaptive + detailed
    return tiles + (_tiles(WHOLE, (1, 1)) if plan.whole else [])


def _tiles(group: int, grid: Grid | None) -> list[Tile]:
    if grid is None:
        return []
    return [Tile(group, grid, (row, col)) for row in range(grid[0]) for col in range(grid[1])]


def _row(tile: Tile, tower: TowerInput, original: tuple[int, int]) -> Tensor:
    """Row (1, K) of the view table, without its numbers."""
    (height, width), (rows, cols) = tower.size, tile.grid
    scale = (original[0] / (rows * height), original[1] / (cols * width))
    return VIEW.make(
        1,
        kind=ViewKind.GLOBAL if tile.group == WHOLE else ViewKind.TILE,
        group=tile.group,
        row=tile.place[0],
        col=tile.place[1],
        rows=rows,
        cols=cols,
        height=height,
        width=width,
        scale_y=scale[0],
        shift_y=tile.place[0] * height * scale[0],
        scale_x=scale[1],
        shift_x=tile.place[1] * width * scale[1],
        bottom=height,
        right=width,
        orig_height=original[0],
        orig_width=original[1],
    )


def _stretched(image: Image.Image, grid: Grid, tower: TowerInput) -> Image.Image:
    size = (grid[1] * tower.size[1], grid[0] * tower.size[0])
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _normalise(image: Image.Image, tower: TowerInput) -> Tensor:
    """Pixels of an RGB picture in [0, 1], standardised: (3, height, width) float32."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
    mean = torch.tensor(tower.mean, dtype=torch.float32)[:, None, None]
    std = torch.tensor(tower.std, dtype=torch.float32)[:, None, None]
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)
