"""Baseline views: ``pad``, ``square`` and ``anyres``.

Rows come view by view and, within a view, tower by tower; the rows of tower 0 are the anchors
that yield tokens. ``index`` counts all rows of the medium, and all towers' rows of one view share
group, row and col.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.parts import Grid, TowerInput, ViewFunction
from vistoken.core.tables import VIEW, ViewKind
from vistoken.systems.llava.config import AnyResConfig, PadConfig, SquareConfig
from vistoken.systems.llava.pixels import (
    LONGEST_SIDE,
    fit_to_tower,
    paste_centred,
    stretch_to_tower,
    to_tower,
)

Size = tuple[int, int]
"""Height, width."""


@dataclass(frozen=True)
class Placement:
    """Where one tower's view lies in the original: original = scale * view + shift.

    Args:
        scale: (y, x) original pixels per view pixel.
        shift: (y, x) original position of the view's top left corner.
    """

    scale: tuple[float, float]
    shift: tuple[float, float]

    def row(self, tower: TowerInput, original: Size, /, **columns: int) -> Tensor:
        """The view's row (1, K) of the ViewTable; its region is what the original covers."""
        height, width = tower.size
        (scale_y, scale_x), (shift_y, shift_x) = self.scale, self.shift

        def inside(edge: float, scale: float, shift: float, side: int) -> float:
            return min(max((edge - shift) / scale, 0.0), float(side))

        return VIEW.make(
            1,
            height=height,
            width=width,
            scale_y=scale_y,
            shift_y=shift_y,
            scale_x=scale_x,
            shift_x=shift_x,
            top=inside(0, scale_y, shift_y, height),
            left=inside(0, scale_x, shift_x, width),
            bottom=inside(original[0], scale_y, shift_y, height),
            right=inside(original[1], scale_x, shift_x, width),
            orig_height=original[0],
            orig_width=original[1],
            **columns,
        )


class _OneView(ViewFunction):
    """A view function that gives one global view per tower."""

    def view_table(self, height: int, width: int) -> Tensor:
        check_size(height, width)
        rows = [
            self.placement(height, width, tower).row(
                tower, (height, width), index=number, source=number, tower=number
            )
            for number, tower in enumerate(self.towers)
        ]
        return torch.cat(rows)

    def pixels(self, image: Any) -> list[Tensor]:
        return [self.prepare(image, tower) for tower in self.towers]

    @abstractmethod
    def placement(self, height: int, width: int, tower: TowerInput) -> Placement:
        """Where the tower's view of a picture of this size lies."""

    @abstractmethod
    def prepare(self, image: Image.Image, tower: TowerInput) -> Tensor:
        """Pixels of the tower's view."""


class Pad(_OneView):
    """The whole picture centred on a canvas of the tower's mean colour.

    A canvas with a side beyond :data:`LONGEST_SIDE` is never built: such a picture is made
    smaller first.

    Source: haotian-liu/LLaVA:llava/mm_utils.py (``expand2square``).
    """

    config_class = PadConfig

    def placement(self, height: int, width: int, tower: TowerInput) -> Placement:
        """The canvas reaches past the picture on its short axis."""
        canvas = padded_size(height, width, tower.size)
        offset = _offset(canvas, (height, width))
        scale = (canvas[0] / tower.size[0], canvas[1] / tower.size[1])
        return Placement(scale, (float(-offset[0]), float(-offset[1])))

    def prepare(self, image: Image.Image, tower: TowerInput) -> Tensor:
        """Paste on the canvas, resize to the tower's size, normalise."""
        longest = max(padded_size(image.height, image.width, tower.size))
        if longest > LONGEST_SIDE:
            shrink = LONGEST_SIDE / longest
            size = (max(round(image.width * shrink), 1), max(round(image.height * shrink), 1))
            image = image.resize(size, Image.Resampling.BICUBIC)
        size = (image.height, image.width)
        canvas = padded_size(*size, tower.size)
        colour = [int(255 * channel) for channel in tower.mean]
        padded = paste_centred(image, canvas, _offset(canvas, size), colour)
        return stretch_to_tower(padded, tower)


class Square(_OneView):
    """The tower's own processor alone: CLIP cuts the centre, SigLIP stretches."""

    config_class = SquareConfig

    def placement(self, height: int, width: int, tower: TowerInput) -> Placement:
        """Where the part that survives the cut lies."""
        fit = fit_to_tower(height, width, tower)
        scale = (height / fit.height, width / fit.width)
        return Placement(scale, (fit.top * scale[0], fit.left * scale[1]))

    def prepare(self, image: Image.Image, tower: TowerInput) -> Tensor:
        """What the tower's own processor gives."""
        return to_tower(image, tower)


class AnyRes(ViewFunction):
    """The whole picture stretched to the tower's size, then tiles of it on the best tile grid.

    The picture is resized with its aspect ratio kept, centred on black, and cut into tiles of the
    first tower's size; further towers read the same tiles at their own size.

    Source: haotian-liu/LLaVA:llava/mm_utils.py (``process_anyres_image``).
    """

    config_class = AnyResConfig
    fewer_tokens = "allow smaller grids in the option grids of anyres"

    def view_table(self, height: int, width: int) -> Tensor:
        """Row 0 shows the whole picture, the others its tiles, row-major."""
        check_size(height, width)
        plan = self.plan(height, width)
        rows: list[Tensor] = []

        def add(number: int, placement: Placement, **columns: int) -> None:
            index = len(rows)
            tower = self.towers[number]
            rows.append(
                placement.row(
                    tower, (height, width), index=index, source=index, tower=number, **columns
                )
            )

        for number, tower in enumerate(self.towers):
            whole = Placement((height / tower.size[0], width / tower.size[1]), (0.0, 0.0))
            add(number, whole, kind=ViewKind.GLOBAL)
        scale = (height / plan.resized[0], width / plan.resized[1])
        for row, col in plan.cells():
            shift = (
                (row * plan.tile[0] - plan.offset[0]) * scale[0],
                (col * plan.tile[1] - plan.offset[1]) * scale[1],
            )
            for number, tower in enumerate(self.towers):
                own = (
                    scale[0] * plan.tile[0] / tower.size[0],
                    scale[1] * plan.tile[1] / tower.size[1],
                )
                place = {"row": row, "col": col, "rows": plan.grid[0], "cols": plan.grid[1]}
                add(number, Placement(own, shift), kind=ViewKind.TILE, group=1, **place)
        return torch.cat(rows)

    def pixels(self, image: Any) -> list[Tensor]:
        """The stretched picture, then every tile of the padded one."""
        plan = self.plan(image.height, image.width)
        resized = image.resize(plan.resized[::-1], Image.Resampling.BICUBIC)
        canvas = paste_centred(resized, plan.canvas, plan.offset, (0, 0, 0))
        views = [stretch_to_tower(image, tower) for tower in self.towers]
        height, width = plan.tile
        for row, col in plan.cells():
            box = (col * width, row * height, (col + 1) * width, (row + 1) * height)
            tile = canvas.crop(box)
            views.extend(stretch_to_tower(tile, tower) for tower in self.towers)
        return views

    def plan(self, height: int, width: int) -> TilePlan:
        """Tile grid and placement of a picture of this size."""
        tile = self.towers[0].size
        grid = best_grid(height, width, tile, self.config.grids)
        canvas = (grid[0] * tile[0], grid[1] * tile[1])
        resized = contained_size(height, width, canvas)
        return TilePlan(tile, grid, resized, _offset(canvas, resized))


@dataclass(frozen=True)
class TilePlan:
    """How ``anyres`` cuts one picture.

    Args:
        tile: (height, width) of a tile in canvas pixels.
        grid: (rows, cols) of tiles.
        resized: (height, width) of the picture on the canvas.
        offset: (top, left) where it is pasted.
    """

    tile: Size
    grid: Grid
    resized: Size
    offset: Size

    @property
    def canvas(self) -> Size:
        """(height, width) of all tiles together."""
        return self.grid[0] * self.tile[0], self.grid[1] * self.tile[1]

    def cells(self) -> list[Grid]:
        """(row, col) of every tile, row-major."""
        return [(row, col) for row in range(self.grid[0]) for col in range(self.grid[1])]


def best_grid(height: int, width: int, tile: Size, grids: tuple[Grid, ...]) -> Grid:
    """Choose the tile grid that keeps most of the picture's resolution, then wastes least.

    Source: haotian-liu/LLaVA:llava/mm_utils.py (``select_best_resolution``).
    """

    def rank(grid: Grid) -> tuple[int, int]:
        canvas_h, canvas_w = grid[0] * tile[0], grid[1] * tile[1]
        scale = min(canvas_w / width, canvas_h / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - canvas_h * canvas_w

    return max(grids, key=rank)  # max keeps the first of equals


def contained_size(height: int, width: int, canvas: Size) -> Size:
    """Largest size inside ``canvas`` with the aspect ratio kept, the free side rounded up.

    Source: haotian-liu/LLaVA:llava/mm_utils.py (``resize_and_pad_image``).
    """
    scale_h, scale_w = canvas[0] / height, canvas[1] / width
    if scale_w < scale_h:
        return min(math.ceil(height * scale_w), canvas[0]), canvas[1]
    return canvas[0], min(math.ceil(width * scale_h), canvas[1])


def padded_size(height: int, width: int, tower_size: Size) -> Size:
    """Smallest canvas of the tower's aspect ratio around a picture; a square for square towers."""
    rows, cols = tower_size
    if width * rows >= height * cols:
        return max(-(-width * rows // cols), height), width
    return height, max(-(-height * cols // rows), width)


def check_size(height: int, width: int) -> None:
    """Raise UsageError unless both sides are at least one pixel."""
    if height < 1 or width < 1:
        raise UsageError(f"a picture needs at least 1x1 pixels, got {height}x{width}")


def _offset(canvas: Size, size: Size) -> Size:
    return (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2
