"""The ``llava-sp`` connector stage: spatial tokens first, then the projected patch tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistoken.core.errors import UsageError
from vistoken.core.parts import ConnectorStage, ConnectorState, Grid, StageContext, ViewMap
from vistoken.core.tables import TOKEN, VIEW, TokenKind, to_original
from vistoken.systems.llava_sp.config import LlavaSPConfig
from vistoken.systems.llava_sp.modules import (
    DetailFeatureIntegrator,
    PatchProjector,
    SpatialFeatureExtractor,
)

ATTENTION = "llava-sp.detail_attention"
"""Key in the side outputs: per view, the attention (S, L) of spatial over detail tokens."""


class LlavaSP(ConnectorStage):
    """Project: S spatial tokens by convolutions over the patch grid, in front of the patch tokens.

    The spatial projector has a bias for cropping and none for pooling, as released. With
    ``spatial_tokens: none`` only the patch projector remains, which is LLaVA-1.5.

    Source: arXiv 2507.00505; CnFaker/LLaVA-SP.
    """

    config_class = LlavaSPConfig

    def __init__(self, config: LlavaSPConfig, context: StageContext) -> None:
        super().__init__(config, context)
        hidden = config.mlp_hidden or context.text_width
        self.patch_projector = PatchProjector(context.width, hidden, context.text_width)
        if config.spatial_tokens == "none":
            return
        self.spatial_extractor = SpatialFeatureExtractor(context.width, config, context.grid)
        inner = config.width
        if config.has_detail:
            self.detail_integrator = DetailFeatureIntegrator(context.width, config, context.grid)
            inner *= 2
        self.spatial_projector = nn.Linear(
            inner, context.text_width, bias=config.variant == "cropping"
        )

    def spatial_modules(self) -> list[nn.Module]:
        """Everything but the patch projector."""
        return [module for module in self.children() if module is not self.patch_projector]

    @classmethod
    def context_after(cls, config: LlavaSPConfig, context: StageContext) -> StageContext:
        """Channels become the decoder's; scales are checked against the grid."""
        if config.spatial_tokens == "all":
            try:
                config.scales_for(context.grid)
                if config.has_detail:
                    config.detail_kernel_for(context.grid)
            except ValueError as error:
                raise UsageError(f"llava-sp: {error}") from error
        return replace(context, width=context.text_width)

    @classmethod
    def token_map(
        cls, config: LlavaSPConfig, context: StageContext, maps: list[ViewMap]
    ) -> list[ViewMap]:
        """One row per scale, smallest first, then the rows that were there."""
        if config.spatial_tokens == "none":
            return maps
        for view_map in maps:
            _check_grid(view_map.grid, context.grid)
        return [
            m.with_tokens(torch.cat([_spatial_rows(config, context.grid, m), m.tokens]))
            for m in maps
        ]

    def forward(self, state: ConnectorState) -> ConnectorState:
        """Compute spatial tokens and put them in front of the projected patches."""
        if self.config.spatial_tokens == "none":
            return replace(state, tokens=state.map_tokens(lambda t, _: self.patch_projector(t)))
        for grid in set(state.grids):
            _check_grid(grid, self.context.grid)
        if not state.tokens:
            return state
        patches = torch.stack(state.tokens)  # one grid, hence one count
        spatial, attention = self._spatial(patches)
        tokens = torch.cat([spatial, self.patch_projector(patches)], dim=1)
        side = state.side
        if attention is not None:
            side = {**side, ATTENTION: list(attention.unbind(0))}
        return replace(state, tokens=list(tokens.unbind(0)), side=side)

    def _spatial(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """Project tokens (B, P + R*W, C) to spatial tokens (B, S, D); detail attention if any."""
        rows, cols = self.context.grid
        features = patches[:, -rows * cols :].transpose(1, 2).unflatten(2, (rows, cols))
        spatial = self.spatial_extractor(features)
        attention = None
        if self.config.has_detail:
            spatial, attention = self.detail_integrator(features, spatial)
        return self.spatial_projector(F.gelu(spatial)), attention


def _spatial_rows(config: LlavaSPConfig, grid: Grid, view_map: ViewMap) -> Tensor:
    """Map rows of one view's spatial tokens; the rectangle is the area each of them looks at."""
    view = view_map.view
    scales = config.scales_for(grid)
    size = [VIEW.get(view, "height").item(), VIEW.get(view, "width").item()]
    boxes = []
    for scale in scales:
        seen = scale if config.variant == "cropping" else grid
        margin = [(g - s) / (2 * g) * side for g, s, side in zip(grid, seen, size, strict=True)]
        boxes.append([*margin, *(side - m for side, m in zip(size, margin, strict=True))])
    rectangle = to_original(view.expand(len(scales), -1), torch.tensor(boxes, dtype=torch.float64))
    top, left, bottom, right = rectangle.unbind(-1)
    frame, time = VIEW.get(view, "frame"), VIEW.get(view, "time")
    return TOKEN.make(
        len(scales),
        kind=TokenKind.SPATIAL,
        view=VIEW.get(view, "index"),
        group=VIEW.get(view, "group"),
        frame0=frame,
        frame1=frame,
        t0=time,
        t1=time,
        level=torch.arange(len(scales)),
        top=top,
        left=left,
        bottom=bottom,
        right=right,
    )


def _check_grid(grid: Grid, expected: Grid) -> None:
    if tuple(grid) != tuple(expected):
        raise UsageError(
            f"llava-sp was built for a feature grid of {expected[0]}x{expected[1]} and got a view "
            f"of {grid[0]}x{grid[1]}; use a view function that gives views of the tower's nominal "
            "size (pad, square, anyres), or build the connector for this grid"
        )
