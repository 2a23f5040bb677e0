"""Views ``uhd-slices``: an overview, then slices of the picture at their own shape."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vistoken.core.parts import Grid, TowerInput, ViewFunction
from vistoken.core.tables import VIEW, ViewKind
from vistoken.models.pixels import normalise
from vistoken.systems.llava_uhd.config import UhdSlicesConfig
from vistoken.systems.llava_uhd.slicing import (
    Size,
    SlicePlan,
    check_picture,
    plan_slices,
    size_for_longest,
)


class UhdSlices(ViewFunction):
    """The whole picture at its own shape, then slices of it, row-major, all of one size.

    Sides are multiples of the first tower's stride, about the area that it was trained on; a
    tower reads them with its position embeddings interpolated. Further towers see the same views
    on the same feature grid, at their own stride.

    Source: arXiv 2403.11703 section 3.1; thunlp/LLaVA-UHD, branch LLaVA-UHD-v1.
    """

    config_class = UhdSlicesConfig
    fewer_tokens = "lower max_slices of uhd-slices, or set its longest_side or overview_only"

    def plan(self, height: int, width: int) -> SlicePlan:
        """Sizes and grid for a picture of this size in pixels."""
        config: UhdSlicesConfig = self.config
        check_picture(height, width, config.max_aspect)
        size = self._start_size(height, width)
        tower = self.towers[0]
        area_side = math.sqrt(tower.size[0] * tower.size[1])
        plan = plan_slices(
            *size,
            side=config.scale_resolution or area_side,
            patch=tower.stride,
            max_slices=config.max_slices,
            encoder_aspect=config.encoder_aspect,
        )
        return SlicePlan(plan.overview) if config.overview_only else plan

    def view_table(self, height: int, width: int) -> Tensor:
        """Row 0 is the overview, the others are slices; ``group`` 1 is their tiling."""
        plan = self.plan(height, width)
        rows: list[Tensor] = []
        for kind, place, grid, size in _views(plan):
            for number, tower in enumerate(self.towers):
                view = self._scaled(size, tower)
                scale = (height / (grid[0] * view[0]), width / (grid[1] * view[1]))
                rows.append(
                    VIEW.make(
                        1,
                        index=len(rows),
                        source=len(rows),
                        tower=number,
                        kind=kind,
                        group=int(kind == ViewKind.SLICE),
                        row=place[0],
                        col=place[1],
                        rows=grid[0],
                        cols=grid[1],
                        height=view[0],
                        width=view[1],
                        scale_y=scale[0],
                        shift_y=place[0] * view[0] * scale[0],
                        scale_x=scale[1],
                        shift_x=place[1] * view[1] * scale[1],
                        bottom=view[0],
                        right=view[1],
                        orig_height=height,
                        orig_width=width,
                    )
                )
        return torch.cat(rows)

    def pixels(self, image: Any) -> list[Tensor]:
        """The overview, then every slice, cut from one resized picture."""
        plan = self.plan(image.height, image.width)
        image = _resize(image, self._start_size(image.height, image.width))
        canvases: dict[tuple[Grid, int], Image.Image] = {}
        views: list[Tensor] = []
        for _, (row, col), grid, size in _views(plan):
            for number, tower in enumerate(self.towers):
                height, width = self._scaled(size, tower)
                if (grid, number) not in canvases:
                    whole = (grid[0] * height, grid[1] * width)
                    canvases[grid, number] = _resize(image, whole)
                box = (col * width, row * height, (col + 1) * width, (row + 1) * height)
                views.append(normalise(canvases[grid, number].crop(box), tower))
        return views

    def _start_size(self, height: int, width: int) -> Size:
        longest = self.config.longest_side
        return (height, width) if longest is None else size_for_longest(height, width, longest)

    def _scaled(self, size: Size, tower: TowerInput) -> Size:
        """A size in the first tower's pixels, in those of another: the feature grid is kept."""
        rows, cols = self.towers[0].grid_of(*size)
        return rows * tower.stride, cols * tower.stride


def _views(plan: SlicePlan) -> list[tuple[ViewKind, Grid, Grid, Size]]:
    """Kind, (row, col), grid and size of every view in order."""
    views: list[tuple[ViewKind, Grid, Grid, Size]] = [
        (ViewKind.GLOBAL, (0, 0), (1, 1), plan.overview)
    ]
    if plan.grid is not None:
        rows, cols = plan.grid
        views += [
            (ViewKind.SLICE, (row, col), plan.grid, plan.slice_size)
            for row in range(rows)
            for col in range(cols)
        ]
    return views


def _resize(image: Image.Image, size: Size) -> Image.Image:
    if (image.height, image.width) == size:
        return image
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
