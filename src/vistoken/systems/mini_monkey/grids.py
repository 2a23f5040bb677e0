"""Which two tile grids a picture is cut by, in the arithmetic that released checkpoints saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vistoken.core.errors import DataError
from vistoken.core.parts import Grid
from vistoken.systems.mini_monkey.config import Adaptive, MsacConfig

WHOLE, DETAILED, ADAPTIVE = 0, 1, 2
"""Numbers of the groups in the view table."""


@dataclass(frozen=True)
class Tiling:
    """How one picture is cut.

    Args:
        detailed: (rows, cols) of the finer grid.
        adaptive: (rows, cols) of the coarser grid; None without a second tiling.
        whole: Whether the undivided picture is shown too.
        no_grid_left: Whether no adaptive grid passed the filter, and (1, 1) stands in.
    """

    detailed: Grid
    adaptive: Grid | None
    whole: bool
    no_grid_left: bool = False

    @property
    def spans(self) -> dict[int, int]:
        """Tiles of each group."""
        adaptive = 0 if self.adaptive is None else self.adaptive[0] * self.adaptive[1]
        return {
            DETAILED: self.detailed[0] * self.detailed[1],
            ADAPTIVE: adaptive,
            WHOLE: int(self.whole),
        }


def plan_tiles(height: int, width: int, tile: Grid, config: MsacConfig) -> Tiling:
    """Choose both grids for a picture.

    A detailed grid of one tile shows the undivided picture itself, which is then not repeated.

    Args:
        height: Height of the picture.
        width: Width of the picture.
        tile: (height, width) of a tile.
        config: The budgets.

    Raises:
        DataError: The picture is empty.

    Source: arXiv 2408.02034 section 3.1; Yuliang-Liu/Monkey:project/mini_monkey.
    """
    if height < 1 or width < 1:
        raise DataError(
            f"a picture of {height}x{width} pixels shows nothing; leave it out of the data"
        )

    def choose(least: int, most: int, keep: Callable[[Grid], bool]) -> Grid | None:
        grids = candidates(least, most)
        if config.no_upscale:
            filled = (-(-height // tile[0]), -(-width // tile[1]))
            grids = candidates(min(least, filled[0] * filled[1]), most)
            grids = [g for g in grids if g[0] <= filled[0] and g[1] <= filled[1]]
        return closest(height, width, tile, filter(keep, grids))

    detailed = choose(config.min_detailed, config.max_detailed, lambda grid: True) or (1, 1)
    whole = detailed != (1, 1)
    if config.adaptive == "none":
        return Tiling(detailed, None, whole)
    adaptive = choose(
        config.min_adaptive,
        config.max_adaptive,
        lambda grid: cuts_elsewhere(grid, detailed, config.adaptive),
    )
    return Tiling(detailed, adaptive or (1, 1), whole, adaptive is None)


def candidates(least: int, most: int) -> list[Grid]:
    """Grids (rows, cols) of ``least`` to ``most`` tiles, by their number, then by columns.

    Among grids of equal number the released code has the order of a hash table; this one picks
    the same grids for every released budget.
    """
    grids = [(rows, cols) for cols in range(1, most + 1) for rows in range(1, most // cols + 1)]
    grids = [grid for grid in grids if grid[0] * grid[1] >= least]
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[1]))


def closest(height: int, width: int, tile: Grid, grids: Iterable[Grid]) -> Grid | None:
    """The grid of tiles whose shape is nearest to the picture's; None if there is none.

    Of two equally near ones the later counts if the picture has more than half of its pixels.
    """
    aspect = width / height
    best: Grid | None = None
    least = float("inf")
    for rows, cols in grids:
        distance = abs(aspect - (cols * tile[1]) / (rows * tile[0]))
        area = rows * tile[0] * cols * tile[1]
        if distance < least or (distance == least and height * width > 0.5 * area):
            best, least = (rows, cols), distance
    return best


def cuts_elsewhere(grid: Grid, detailed: Grid, rule: Adaptive) -> bool:
    """Whether a grid's cut lines are not all among those of the detailed grid."""
    rows_differ, cols_differ = (d % g != 0 for g, d in zip(grid, detailed, strict=True))
    return (rows_differ and cols_differ) if rule == "all" else (rows_differ or cols_differ)
