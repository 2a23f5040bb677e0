"""Which views of a call are one picture's tiles, strided views and undivided view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.parts import Grid
from vistoken.core.tables import VIEW, ViewKind
from vistoken.systems.inf_llava.config import live_phases


@dataclass(frozen=True)
class Scene:
    """One picture's views, as numbers of anchors.

    Args:
        n: The grid side.
        base: The undivided view.
        local: The tiles, row by row.
        strided: The strided view of each offset, row by row; None where it was not made.
        grid: Feature grid of every view.
    """

    n: int
    base: int
    local: tuple[int, ...]
    strided: tuple[int | None, ...]
    grid: Grid

    @property
    def form(self) -> tuple[int, Grid, tuple[bool, ...]]:
        """Scenes of equal form can be computed together."""
        return self.n, self.grid, tuple(view is None for view in self.strided)


def read_scene(views: Tensor, grids: Sequence[Grid], first: int = 0) -> Scene:
    """Sort the views of one picture.

    Args:
        views (Tensor): (A, K), the picture's anchor rows of the ViewTable.
        grids: Feature grid of each.
        first: Number of the first of them among the call's anchors.

    Raises:
        UsageError: They are not what ``inf-dcm`` makes.
    """
    kinds = VIEW.get(views, "kind").tolist()
    tiles = [number for number, kind in enumerate(kinds) if kind == ViewKind.TILE]
    phases = [number for number, kind in enumerate(kinds) if kind == ViewKind.STRIDED]
    whole = [number for number, kind in enumerate(kinds) if kind == ViewKind.GLOBAL]
    n = int(VIEW.get(views[tiles[0]], "rows").item()) if tiles else 0
    local = {_number(views[number], n): number + first for number in tiles}
    strided: dict[int, int] = {_number(views[number], n): number + first for number in phases}
    complete = len(strided) == n * n
    if not phases and n % 2 and whole:
        strided = {live_phases(n)[0]: whole[0] + first}  # the same pixels
    fits = (
        n > 0
        and len(whole) == 1
        and sorted(local) == list(range(n * n))
        and len(tiles) + len(phases) + 1 == len(views)
        and len(tiles) == n * n
        and (complete or tuple(sorted(strided)) == live_phases(n))
        and len(set(grids)) == 1
    )
    if not fits:
        raise UsageError(
            f"inf-dem needs 2*n*n + 1 views of one size for each picture (n*n tiles, n*n strided "
            f"views, one undivided view) and got {len(tiles)} tiles, {len(phases)} strided and "
            f"{len(whole)} undivided of {len(views)} views; set views: inf-dcm in the recipe"
        )
    return Scene(
        n,
        whole[0] + first,
        tuple(local[number] for number in range(n * n)),
        tuple(strided.get(number) for number in range(n * n)),
        grids[0],
    )


def read_scenes(view_table: Tensor, anchors: Sequence[int], grids: Sequence[Grid]) -> list[Scene]:
    """Sort the views of every picture of a call; see :func:`read_scene`."""
    medium = (VIEW.get(view_table, "index") == 0).long().cumsum(0)[list(anchors)].tolist()
    scenes: list[Scene] = []
    start = 0
    for stop in range(1, len(anchors) + 1):
        if stop == len(anchors) or medium[stop] != medium[start]:
            rows = view_table[list(anchors[start:stop])]
            scenes.append(read_scene(rows, grids[start:stop], start))
            start = stop
    return scenes


def _number(view: Tensor, n: int) -> int:
    return int(VIEW.get(view, "row").item()) * n + int(VIEW.get(view, "col").item())
