"""The connector stage ``inf-dem``: all views of a picture become the tokens of one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vistoken.core.errors import UsageError
from vistoken.core.parts import (
    ConnectorStage,
    ConnectorState,
    Grid,
    StageContext,
    ViewMap,
    grid_token_map,
)
from vistoken.systems.inf_llava.config import InfDemConfig, live_phases
from vistoken.systems.inf_llava.cutting import warn_once
from vistoken.systems.inf_llava.enhancing import DualEnhancement, pool_average, pool_bilinear
from vistoken.systems.inf_llava.grids import combine_global, combine_local
from vistoken.systems.inf_llava.scenes import Scene, read_scene, read_scenes


class InfDem(ConnectorStage):
    """Fuse: tiles and strided views correct each other, are pooled, and join the undivided view.

    Only the undivided view keeps tokens; the other views have none of their own from here on.
    Tokens without a place on the grid (CLS, registers) are dropped.

    Source: arXiv 2407.16198 section 3.3; WeihuangLin/INF-LLaVA.
    """

    config_class = InfDemConfig
    fewer_tokens = "set another pool than none in inf-dem"

    def __init__(self, config: InfDemConfig, context: StageContext) -> None:
        super().__init__(config, context)
        if config.mode == "dual":
            self.enhancement = DualEnhancement(context.width, config.heads, config.share_attention)

    @classmethod
    def context_after(cls, config: InfDemConfig, context: StageContext) -> StageContext:
        """Channels double with ``fuse_base: concat``; their number is checked."""
        try:
            config.check_width(context.width)
        except ValueError as error:
            raise UsageError(f"inf-dem: {error}; choose other heads or another tower") from error
        factor = 2 if config.fuse_base == "concat" else 1
        return replace(context, width=factor * context.width)

    @classmethod
    def token_map(
        cls, config: InfDemConfig, context: StageContext, maps: list[ViewMap]
    ) -> list[ViewMap]:
        """One token per cell of the undivided view, or of n*n times as many; no other view's."""
        if not maps:
            return maps
        scene = read_scene(torch.stack([m.view for m in maps]), [m.grid for m in maps])
        _check_pool(config, scene)
        grid = _grid_after(config, scene)
        view = maps[scene.base].view
        return [ViewMap(view, grid, grid_token_map(view, grid))]

    def forward(self, state: ConnectorState) -> ConnectorState:
        """Fuse every picture's views; pictures of equal form together."""
        scenes = read_scenes(state.view_table, state.anchors, state.grids)
        tokens: list[Tensor] = [torch.empty(0)] * len(scenes)
        forms: dict[tuple[int, Grid, tuple[bool, ...]], list[int]] = {}
        for number, scene in enumerate(scenes):
            _check_pool(self.config, scene)
            forms.setdefault(scene.form, []).append(number)
        for members in forms.values():
            fused = self._fuse(state.tokens, [scenes[member] for member in members])
            for member, row in zip(members, fused, strict=True):
                tokens[member] = row
        bases = [scene.base for scene in scenes]
        return replace(
            state,
            anchors=[state.anchors[base] for base in bases],
            features=[state.features[base] for base in bases],
            tokens=tokens,
            grids=[_grid_after(self.config, scene) for scene in scenes],
            side={name: [values[b] for b in bases] for name, values in state.side.items()},
        )

    def _fuse(self, tokens: list[Tensor], scenes: list[Scene]) -> Tensor:
        """Tokens (B, N, C) of B pictures whose views are of one form."""
        n = scenes[0].n
        local = combine_local(torch.stack([_maps(tokens, s, s.local) for s in scenes]), n)
        strided = combine_global(torch.stack([_maps(tokens, s, s.strided) for s in scenes]), n)
        pooled = self._pool(self._join(local, strided, n), n).flatten(1, 2)
        base = torch.stack(
            [_cells(tokens[scene.base], scene.grid).flatten(0, 1) for scene in scenes]
        )
        if self.config.fuse_base == "mean":
            return (base + pooled) / 2
        if self.config.fuse_base == "concat":
            return torch.cat([base, pooled], dim=-1)
        return pooled

    def _join(self, local: Tensor, strided: Tensor, n: int) -> Tensor:
        """One large map (B, n*h, n*w, C) from the two perspectives'."""
        if self.config.mode == "dual":
            enhanced: Tensor = self.enhancement(local, strided, n)
            return enhanced
        if self.config.mode == "mean":
            return (local + strided) / 2
        return local if self.config.mode == "local" else strided

    def _pool(self, large: Tensor, n: int) -> Tensor:
        if self.config.pool == "bilinear":
            return pool_bilinear(large, n)
        return pool_average(large, n) if self.config.pool == "average" else large


def _maps(tokens: list[Tensor], scene: Scene, numbers: tuple[int | None, ...]) -> Tensor:
    """Feature maps (n*n, h, w, C) of views; zeros stand for one that was not made."""
    known = {m: _cells(tokens[m], scene.grid) for m in numbers if m is not None}
    missing = torch.zeros_like(next(iter(known.values())))
    return torch.stack([missing if m is None else known[m] for m in numbers])


def _cells(tokens: Tensor, grid: Grid) -> Tensor:
    """A view's tokens (P + h*w, C) as its feature map (h, w, C)."""
    return tokens[-grid[0] * grid[1] :].unflatten(0, grid)


def _grid_after(config: InfDemConfig, scene: Scene) -> Grid:
    factor = scene.n if config.pool == "none" else 1
    return factor * scene.grid[0], factor * scene.grid[1]


def _check_pool(config: InfDemConfig, scene: Scene) -> None:
    """Refuse views that were left out where they would count; say which ones do not."""
    live = live_phases(scene.n)
    if None in scene.strided and config.pool != "bilinear" and config.mode != "local":
        raise UsageError(
            f"inf-dem: pool: {config.pool} reads every strided view and only those that bilinear "
            "pooling reads were made; set global_views: all in the options of inf-dcm"
        )
    if config.pool == "bilinear" and None not in scene.strided and len(live) < scene.n**2:
        warn_once(
            f"dead views at {scene.n}",
            f"inf-dem: at n = {scene.n} bilinear pooling reads {len(live)} of the "
            f"{scene.n**2} strided views, the others cost time and change nothing; set "
            "global_views: live in inf-dcm to leave them out, or pool: average in inf-dem to use "
            "them all",
        )
