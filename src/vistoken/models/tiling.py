"""A picture stretched to a grid of equal views: rows of the view table, and pixels.

table = number_views([tile_rows((2, 3), (336, 336), original=(900, 1300), group=1)])
views = normalise_tiles(stretched, (2, 3), tower)  # (6, 3, 336, 336)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistoken.core.parts import Grid, TowerInput
from vistoken.core.tables import VIEW
from vistoken.models.pixels import look_up


def tile_rows(
    grid: Grid, size: tuple[int, int], original: tuple[int, int], **columns: float
) -> Tensor:
    """Rows (rows * cols, K) of the view table, tile by tile, row-major; not yet numbered.

    Args:
        grid: (rows, cols) of tiles that the whole picture fills.
        size: (height, width) of a tile.
        original: (height, width) of the picture.
        **columns: Further columns, the same for every tile.
    """
    rows, cols = grid
    number = torch.arange(rows * cols)
    row, col = number // cols, number % cols
    scale_y, scale_x = original[0] / (rows * size[0]), original[1] / (cols * size[1])
    return VIEW.make(
        rows * cols,
        row=row,
        col=col,
        rows=rows,
        cols=cols,
        height=size[0],
        width=size[1],
        scale_y=scale_y,
        shift_y=(row * size[0]).to(torch.float64) * scale_y,
        scale_x=scale_x,
        shift_x=(col * size[1]).to(torch.float64) * scale_x,
        bottom=size[0],
        right=size[1],
        orig_height=original[0],
        orig_width=original[1],
        **columns,
    )


def number_views(per_tower: Sequence[Tensor]) -> Tensor:
    """One view table (V * towers, K) of every tower's rows (V, K): view by view, numbered."""
    table = torch.stack(
        [VIEW.set(rows, tower=number) for number, rows in enumerate(per_tower)], dim=1
    ).flatten(0, 1)
    index = torch.arange(len(table))
    return VIEW.set(table, index=index, source=index)


def normalise_tiles(image: Any, grid: Grid, tower: TowerInput, out: Tensor | None = None) -> Tensor:
    """Cut an RGB picture into equal tiles and standardise them, without a copy in between.

    Args:
        image: RGB picture whose sides are multiples of the grid's.
        grid: (rows, cols) of tiles.
        tower: Mean and standard deviation.
        out (Tensor): (rows * cols, 3, height, width) float32 to write to.

    Returns:
        (rows * cols, 3, height, width) float32, row-major.

    Raises:
        ValueError: The grid does not divide the picture's sides.
    """
    levels = np.asarray(image)
    if levels.shape[0] % grid[0] or levels.shape[1] % grid[1]:
        raise ValueError(
            f"a picture of {levels.shape[0]}x{levels.shape[1]} pixels cannot be cut into "
            f"{grid[0]}x{grid[1]} equal tiles; stretch it to multiples of the grid first"
        )
    height, width = levels.shape[0] // grid[0], levels.shape[1] // grid[1]
    if out is None:
        out = torch.empty(grid[0] * grid[1], 3, height, width)
    for number, view in enumerate(out.numpy()):
        top, left = number // grid[1] * height, number % grid[1] * width
        look_up(levels[top : top + height, left : left + width], tower, view)
    return out
