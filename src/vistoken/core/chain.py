"""What goes along a connector's chain: features and tokens, and what is predicted of them.

Shapes: V views, (R, C) a grid, N tokens, D the decoder's width, K table columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vistoken.core.tables import TOKEN, VIEW, TokenKind, to_original

Grid = tuple[int, int]
"""Rows, columns."""


@dataclass(frozen=True)
class StageContext:
    """What a connector stage is built from, and what it passes to the next stage.

    Args:
        tower_widths: Feature width of each tower, in tower order.
        width: Channels of the current features or tokens.
        grid: Feature grid of a view of the nominal size.
        text_width: The decoder's hidden size D.
    """

    tower_widths: tuple[int, ...]
    width: int
    grid: Grid
    text_width: int


@dataclass
class ConnectorState:
    """Features and tokens of all anchor views of a call, passed from stage to stage.

    An anchor view is a view that may yield tokens: a row of the first tower.

    Args:
        view_table (Tensor): (V, K), every row of the call.
        anchors: Row numbers of the anchor views in ``view_table``.
        features: For each anchor, one feature map (R, C, width) per tower.
        tokens: For each anchor, (N, width); filled by ``fuse`` or by ``project``.
        grids: For each anchor, the grid of its feature map after ``fuse``.
        side: Further per-anchor tensors that later parts or pictures need.
    """

    view_table: Tensor
    anchors: list[int]
    features: list[tuple[Tensor, ...]]
    tokens: list[Tensor] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    side: dict[str, list[Tensor]] = field(default_factory=dict)

    def map_tokens(self, function: Callable[[Tensor, Grid], Tensor]) -> list[Tensor]:
        """Apply a batched function to all anchors' tokens, grouped by equal grid and count.

        Args:
            function: (B, N, width), grid -> (B, N', width').

        Returns:
            One (N', width') tensor per anchor, in order.
        """
        groups: dict[tuple[Grid, int], list[int]] = {}
        for number, (tokens, grid) in enumerate(zip(self.tokens, self.grids, strict=True)):
            groups.setdefault((grid, len(tokens)), []).append(number)
        results: list[Tensor] = [torch.empty(0)] * len(self.tokens)
        for (grid, _), members in groups.items():
            output = function(torch.stack([self.tokens[m] for m in members]), grid)
            for member, row in zip(members, output.unbind(0), strict=True):
                results[member] = row
        return results


@dataclass(frozen=True)
class ViewMap:
    """Predicted tokens of one anchor view.

    Args:
        view (Tensor): (K,), the anchor's row of the ViewTable.
        grid: Grid of its feature map.
        tokens (Tensor): TokenMap (N, K) of what it yields so far.
    """

    view: Tensor
    grid: Grid
    tokens: Tensor

    def with_tokens(self, tokens: Tensor) -> ViewMap:
        """Copy with another token map."""
        return replace(self, tokens=tokens)


def grid_token_map(view: Tensor, grid: Grid, kind: TokenKind = TokenKind.VISUAL) -> Tensor:
    """TokenMap of one token per cell of a view's feature grid, row-major.

    Args:
        view (Tensor): (K,), the view's row of the ViewTable.
        grid: (R, C) of the feature map.
        kind: Kind of the tokens.

    Returns:
        (R*C, K). ``row`` and ``col`` count on the stitched grid of the view's group; the rectangle
        is the cell's area in pixels of the original (it may reach into padding).
    """
    rows, cols = grid
    row = torch.arange(rows).repeat_interleave(cols)
    col = torch.arange(cols).repeat(rows)
    height, width = VIEW.get(view, "height").item(), VIEW.get(view, "width").item()
    cell_h, cell_w = height / rows, width / cols
    boxes = torch.stack([row * cell_h, col * cell_w, (row + 1) * cell_h, (col + 1) * cell_w], -1)
    top, left, bottom, right = to_original(view.expand(len(row), -1), boxes).unbind(-1)
    frame, time = VIEW.get(view, "frame"), VIEW.get(view, "time")
    return TOKEN.make(
        rows * cols,
        kind=kind,
        view=VIEW.get(view, "index"),
        group=VIEW.get(view, "group"),
        frame0=frame,
        frame1=frame,
        t0=time,
        t1=time,
        row=row + VIEW.get(view, "row") * rows,
        col=col + VIEW.get(view, "col") * cols,
        top=top,
        left=left,
        bottom=bottom,
        right=right,
    )
