"""Baseline layouts: ``plain``, and the un-padded tile map of LLaVA-NeXT, ``anyres-unpad``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistoken.core.errors import UsageError
from vistoken.core.parts import Layout, ViewMap
from vistoken.core.tables import TOKEN, VIEW, TokenKind, ViewKind
from vistoken.systems.llava.config import AnyResUnpadConfig, PlainConfig

_NEWLINE = -1  # learned row 0 in the order that a layout returns


class Plain(Layout):
    """All tokens of view 0, then of view 1, and so on."""

    config_class = PlainConfig

    @classmethod
    def arrange(
        cls, config: PlainConfig, view_table: Tensor, maps: list[ViewMap]
    ) -> tuple[Tensor, Tensor]:
        """Keep the order of the anchors."""
        tokens = torch.cat([m.tokens for m in maps])
        return torch.arange(len(tokens)), tokens


class AnyResUnpad(Layout):
    """Tiles joined to one map, cut to the original's aspect ratio, one newline after each row.

    Order: tokens without a place on a grid (spatial tokens) of all views, view by view; the grids
    of views that are no tiles; then every tiling, row-major, its rows closed by the learned
    ``image_newline``. A medium of one view only ends with one newline.

    Source: haotian-liu/LLaVA:llava/model/llava_arch.py (``spatial_unpad``); arXiv 2507.00505.
    """

    config_class = AnyResUnpadConfig

    def __init__(self, config: AnyResUnpadConfig, text_width: int) -> None:
        super().__init__(config, text_width)
        self.image_newline = nn.Parameter(torch.randn(text_width) * text_width**-0.5)

    def learned_rows(self) -> Tensor:
        """The newline, as the only learned row (1, D)."""
        return self.image_newline[None]

    @classmethod
    def arrange(
        cls, config: AnyResUnpadConfig, view_table: Tensor, maps: list[ViewMap]
    ) -> tuple[Tensor, Tensor]:
        """Spatial tokens, untiled grids, then tile maps with newlines."""
        tokens = torch.cat([m.tokens for m in maps])
        placed = TOKEN.get(tokens, "row") >= 0
        number = torch.arange(len(tokens))
        owner = torch.repeat_interleave(torch.tensor([len(m.tokens) for m in maps]))
        kinds = torch.tensor([int(VIEW.get(m.view, "kind").item()) for m in maps])
        tile = (kinds == ViewKind.TILE)[owner]

        parts = [number[~placed], number[placed & ~tile]]
        for tiling in _tilings(maps, kinds):
            member = torch.isin(owner, torch.tensor(tiling))
            parts.extend(_tiling_order(tokens, number[member & placed], maps[tiling[0]]))
        if len(maps) == 1 and not bool(tile.any()):
            parts.append(torch.tensor([_NEWLINE]))
        order = torch.cat(parts)
        return order, _token_map(tokens, order)


def unpadded_range(original: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int, int, int]:
    """Part of a padded tile map that shows the picture.

    Args:
        original: (height, width) of the picture.
        grid: (rows, cols) of the stitched map.

    Returns:
        top, left, bottom, right in cells; at least one row and one column, where the upstream
        arithmetic would leave nothing of a very thin picture.

    Source: haotian-liu/LLaVA:llava/model/llava_arch.py (``unpad_image``).
    """
    height, width = original
    rows, cols = grid
    if width / height > cols / rows:
        kept = max(int(height * (cols / width)), 1)  # the quotient first: order decides rounding
        pad = (rows - kept) // 2
        return pad, 0, rows - pad, cols
    kept = max(int(width * (rows / height)), 1)
    pad = (cols - kept) // 2
    return 0, pad, rows, cols - pad


def _tilings(maps: list[ViewMap], kinds: Tensor) -> list[list[int]]:
    """Numbers of the anchors of each tiling (same group and frame), in order of appearance."""
    tilings: dict[tuple[int, int], list[int]] = {}
    for number, view_map in enumerate(maps):
        if kinds[number] == ViewKind.TILE:
            key = tuple(int(VIEW.get(view_map.view, c).item()) for c in ("group", "frame"))
            tilings.setdefault((key[0], key[1]), []).append(number)
    return list(tilings.values())


def _tiling_order(tokens: Tensor, members: Tensor, first: ViewMap) -> list[Tensor]:
    """Order of one tiling's kept cells, a newline after each row of them."""
    view = {c: int(VIEW.get(first.view, c).item()) for c in VIEW.columns}
    rows, cols = view["rows"] * first.grid[0], view["cols"] * first.grid[1]
    row, col = TOKEN.get(tokens[members], "row"), TOKEN.get(tokens[members], "col")
    if len(members) != rows * cols or int(row.max()) >= rows or int(col.max()) >= cols:
        raise UsageError(
            f"anyres-unpad needs one token per cell of its {rows}x{cols} tile map, got "
            f"{len(members)} from the connector; use the layout 'plain' with this connector"
        )
    stitched = members[torch.argsort(row * cols + col)]
    original = (view["orig_height"], view["orig_width"])
    top, left, bottom, right = unpadded_range(original, (rows, cols))
    kept = stitched.view(rows, cols)[top:bottom, left:right]
    newline = torch.full((len(kept), 1), _NEWLINE)
    return [torch.cat([kept, newline], dim=1).flatten()]


def _token_map(tokens: Tensor, order: Tensor) -> Tensor:
    """Rows of ``tokens`` by ``order``; a newline takes its place and time from the row before."""
    learned = order < 0
    before = order.clone()
    before[learned] = order[torch.nonzero(learned).flatten() - 1]
    placed = tokens[before]
    newlines = TOKEN.make(
        len(order),
        kind=TokenKind.NEWLINE,
        learned=0,
        **{c: TOKEN.get(placed, c) for c in ("group", "frame0", "frame1", "t0", "t1", "row")},
    )
    return torch.where(learned[:, None], newlines, placed)
