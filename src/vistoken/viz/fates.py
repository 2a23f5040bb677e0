"""What becomes of each encoder cell: kept as a token of its own, merged, dropped, or padding.

Pure geometry of the tables, so that it holds for every system; no weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from vistoken.core.parts import grid_token_map
from vistoken.core.tables import TOKEN, VIEW, TokenKind, rectangles
from vistoken.models.pipeline import TokenPlan, anchor_rows
from vistoken.viz.looking import placed_tokens

_NEAR = 0.5  # pixels of the original; tables store rounded places


class Fate(IntEnum):
    """What the connector and layout make of an encoder cell."""

    KEPT = 0
    MERGED = 1
    DROPPED = 2
    PADDING = 3


@dataclass(frozen=True, eq=False)
class TokenStory:
    """The tokens of one picture, and the encoder cells that they come from.

    Args:
        size: (height, width) of the picture.
        view_table (Tensor): (V, K) int64.
        cells (Tensor): (C, K) int64, one row per cell of every anchor view's grid.
        fates (Tensor): (C,) int64, each cell's :class:`Fate`.
        tokens (Tensor): (N, K) int64, what the language model gets.
        rows: For each decoder layer, what its visual rows do, when the model was run.
    """

    size: tuple[int, int]
    view_table: Tensor
    cells: Tensor
    fates: Tensor
    tokens: Tensor
    rows: tuple[LayerRows, ...] = ()

    def counts(self) -> dict[str, int]:
        """Cells by fate."""
        return {fate.name.lower(): int((self.fates == fate).sum()) for fate in Fate}

    def kinds(self) -> dict[str, int]:
        """Tokens by kind, those that there are."""
        kind = TOKEN.get(self.tokens, "kind")
        found = {one.name.lower(): int((kind == one).sum()) for one in TokenKind}
        return {name: count for name, count in found.items() if count}


@dataclass(frozen=True, eq=False)
class LayerRows:
    """What the visual tokens do in one decoder layer.

    Args:
        layer: Its number.
        states (Tensor): (N,) int64: 2 full rows, 1 only keys for others, 0 no longer there.
    """

    layer: int
    states: Tensor

    def counts(self) -> Mapping[str, int]:
        """Tokens by what they do."""
        names = {"full": 2, "keys only": 1, "gone": 0}
        return {name: int((self.states == value).sum()) for name, value in names.items()}


@dataclass(frozen=True)
class Panel:
    """The cells of one tiling, shown on one copy of the picture."""

    title: str
    cells: Tensor = field(compare=False)
    fates: Tensor = field(compare=False)
    tokens: Tensor = field(compare=False)


def tell_story(plan: TokenPlan, view_table: Tensor) -> TokenStory:
    """Follow each encoder cell of a picture to the language model.

    Args:
        plan: The model's token plan.
        view_table (Tensor): (V, K) int64, the picture's views.
    """
    anchors = view_table[anchor_rows(view_table)]
    tower = plan.spec.towers[0].input
    grids = [
        tower.grid_of(int(VIEW.get(view, "height")), int(VIEW.get(view, "width")))
        for view in anchors
    ]
    cells = torch.cat(
        [grid_token_map(view, grid) for view, grid in zip(anchors, grids, strict=True)]
    )
    tokens = plan.token_map(view_table)
    first = anchors[0]
    size = (int(VIEW.get(first, "orig_height")), int(VIEW.get(first, "orig_width")))
    return TokenStory(size, view_table, cells, _fates(cells, tokens, size), tokens)


def panels(story: TokenStory) -> list[Panel]:
    """Cells and tokens by tiling, in the order of the views."""
    groups = TOKEN.get(story.cells, "group")
    placed = placed_tokens(story.tokens, story.size)
    of_token = TOKEN.get(story.tokens, "group")
    found = []
    for group in dict.fromkeys(groups.tolist()):
        own = groups == group
        tokens = story.tokens[placed & (of_token == group)]
        views = len(torch.unique(TOKEN.get(story.cells[own], "view")))
        title = (
            f"{views} view{'s' if views > 1 else ''}: {int(own.sum())} cells, {len(tokens)} tokens"
        )
        found.append(Panel(title, story.cells[own], story.fates[own], tokens))
    return found


def _fates(cells: Tensor, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Fate (C,) of each cell; tokens of its own view decide, any tokens if that has none."""
    placed = tokens[placed_tokens(tokens, size)]
    boxes, of = rectangles(placed), TOKEN.get(placed, "view")
    places, views = rectangles(cells), TOKEN.get(cells, "view")
    fates = torch.full((len(cells),), int(Fate.DROPPED))
    for view in torch.unique(views).tolist():
        own = views == view
        near = boxes[of == view] if bool((of == view).any()) else boxes
        fates[own] = _by_boxes(places[own], near)
    top, left, bottom, right = places.unbind(-1)
    outside = (bottom <= 0) | (right <= 0) | (top >= size[0]) | (left >= size[1])
    fates[outside] = int(Fate.PADDING)
    return fates


def _by_boxes(cells: Tensor, boxes: Tensor) -> Tensor:
    """Fate of cells (c, 4) by tokens' rectangles (t, 4)."""
    same = (cells[:, None] - boxes[None]).abs().amax(-1) < _NEAR
    middle_y, middle_x = (cells[:, 0] + cells[:, 2]) / 2, (cells[:, 1] + cells[:, 3]) / 2
    inside = (
        (middle_y[:, None] >= boxes[None, :, 0])
        & (middle_x[:, None] >= boxes[None, :, 1])
        & (middle_y[:, None] < boxes[None, :, 2])
        & (middle_x[:, None] < boxes[None, :, 3])
    )
    fates = torch.full((len(cells),), int(Fate.DROPPED))
    fates[inside.any(1)] = int(Fate.MERGED)
    fates[same.any(1)] = int(Fate.KEPT)
    return fates
