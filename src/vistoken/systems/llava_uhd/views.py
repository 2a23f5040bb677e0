"""Views ``uhd-slices``: an overview, then slices of the picture at their own shape."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vistoken.core.parts import Grid, TowerInput, ViewFunction
from vistoken.core.tables import ViewKind
from vistoken.models.tiling import normalise_tiles, number_views, tile_rows
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
        tilings = _tilings(self.plan(height, width))

        def rows(tiling: Tiling, tower: TowerInput) -> Tensor:
            size = self._scaled(tiling.size, tower)
            group = int(tiling.kind == ViewKind.SLICE)
            return tile_rows(tiling.grid, size, (height, width), kind=tiling.kind, group=group)

        return number_views(
            [torch.cat([rows(tiling, tower) for tiling in tilings]) for tower in self.towers]
        )

    def pixels(self, image: Any) -> list[Tensor]:
        """The overview, then every slice, cut from one resized picture."""
        tilings = _tilings(self.plan(image.height, image.width))
        image = _resize(image, self._start_size(image.height, image.width))

        def views(tiling: Tiling, tower: TowerInput) -> list[Tensor]:
            (rows, cols), (height, width) = tiling.grid, self._scaled(tiling.size, tower)
            canvas = _resize(image, (rows * height, cols * width))
            return list(normalise_tiles(canvas, tiling.grid, tower))

        towers = [
            [view for tiling in tilings for view in views(tiling, tower)] for tower in self.towers
        ]
        return [view for views in zip(*towers, strict=True) for view in views]

    def _start_size(self, height: int, width: int) -> Size:
        longest = self.config.longest_side
        return (height, width) if longest is None else size_for_longest(height, width, longest)

    def _scaled(self, size: Size, tower: TowerInput) -> Size:
        """A size in the first tower's pixels, in those of another: the feature grid is kept."""
        rows, cols = self.towers[0].grid_of(*size)
        return rows * tower.stride, cols * tower.stride


class Tiling(NamedTuple):
    """Views of one kind: the whole picture as a grid of them, each of ``size`` pixels."""

    kind: ViewKind
    grid: Grid
    size: Size


def _tilings(plan: SlicePlan) -> list[Tiling]:
    """The overview, then the slices if there are any."""
    overview = Tiling(ViewKind.GLOBAL, (1, 1), plan.overview)
    if plan.grid is None:
        return [overview]
    return [overview, Tiling(ViewKind.SLICE, plan.grid, plan.slice_size)]


def _resize(image: Image.Image, size: Size) -> Image.Image:
    if (image.height, image.width) == size:
        return image
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
