"""The two tables that say what everything is: ViewTable and TokenMap.

Both are int64 tensors with named columns, so that they batch, slice, cache and serialise like any
other input, and so that casting float inputs to a model's dtype cannot damage them. Real numbers
are stored scaled: pixels x 256, seconds x 10^6, affine coefficients x 2^20. This module is the
only place that knows a column's number or scale:

    rows, cols = VIEW.get(view_table, "rows"), VIEW.get(view_table, "cols")
    token_map = TOKEN.make(6, kind=TokenKind.SPATIAL, level=torch.arange(6))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from itertools import pairwise

import torch
from torch import Tensor

PIXEL_SCALE = 256
TIME_SCALE = 1_000_000
AFFINE_SCALE = 1 << 20


class ViewKind(IntEnum):
    """What an encoder input shows."""

    GLOBAL = 0
    TILE = 1
    SLICE = 2
    STRIDED = 3
    FRAME = 4
    CELL = 5
    OBJECT = 6
    CROP = 7


class TokenKind(IntEnum):
    """What a decoder position holds."""

    TEXT = 0
    PAD = 1
    VISUAL = 2
    SPATIAL = 3
    SEPARATOR = 4
    NEWLINE = 5
    THUMBNAIL = 6
    OBJECT = 7
    REGISTER = 8


class TextRole(IntEnum):
    """Who wrote a text position; ASSISTANT marks exactly the supervised ones."""

    TEMPLATE = 0
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3


class Schema:
    """Named, scaled columns of an int64 table.

    Args:
        name: What the table is called in error messages.
        columns: Column name -> (default value, scale). A scale of 1 is an integer column.
    """

    def __init__(self, name: str, columns: Mapping[str, tuple[float, int]]) -> None:
        self.name = name
        self._index = {column: number for number, column in enumerate(columns)}
        self._scale = {column: scale for column, (_, scale) in columns.items()}
        self._defaults = torch.tensor(
            [round(default * scale) for default, scale in columns.values()], dtype=torch.int64
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(self._index)

    @property
    def width(self) -> int:
        """Number of columns, K."""
        return len(self._index)

    def make(self, count: int, **values: float | Tensor | Sequence[float]) -> Tensor:
        """Build a table.

        Args:
            count: Number of rows N.
            **values: Column values, a scalar or N of them, in natural units (pixels, seconds).

        Returns:
            int64 table, (N, K); columns not given hold their defaults.
        """
        table = self._defaults.repeat(count, 1)
        return self.set(table, **values)

    def set(self, table: Tensor, **values: float | Tensor | Sequence[float]) -> Tensor:
        """Return a copy of ``table`` (..., K) with some columns replaced (natural units)."""
        table = table.clone()
        for column, value in values.items():
            table[..., self._index[column]] = self._encode(column, value, table.device)
        return table

    def get(self, table: Tensor, column: str) -> Tensor:
        """Read one column of ``table`` (..., K) in natural units: int64, or float64 if scaled."""
        raw = table[..., self._index[column]]
        scale = self._scale[column]
        return raw if scale == 1 else raw.to(torch.float64) / scale

    def rows(self, table: Tensor) -> list[dict[str, float]]:
        """Read a table (N, K) as dictionaries, for printing and JSON."""
        read = {column: self.get(table, column).tolist() for column in self._index}
        return [{column: read[column][i] for column in self._index} for i in range(len(table))]

    def check(self, table: Tensor) -> None:
        """Raise ValueError unless ``table`` is an int64 (N, K) tensor of this schema."""
        if table.dtype != torch.int64 or table.dim() != 2 or table.shape[1] != self.width:
            raise ValueError(
                f"{self.name} must be int64 of shape (rows, {self.width}), "
                f"got {str(table.dtype).removeprefix('torch.')} of shape {tuple(table.shape)}"
            )

    def _encode(
        self, column: str, value: float | Tensor | Sequence[float], device: torch.device
    ) -> Tensor:
        scale = self._scale[column]
        if scale == 1:
            return torch.as_tensor(value, device=device).to(torch.int64)
        exact = torch.as_tensor(value, dtype=torch.float64, device=device)
        return torch.round(exact * scale).to(torch.int64)


_PX, _S, _AFFINE = PIXEL_SCALE, TIME_SCALE, AFFINE_SCALE

VIEW = Schema(
    "view_table",
    {
        "index": (0, 1),  # number of the view in its medium; 0 opens each medium
        "tower": (0, 1),  # which encoder reads it
        "kind": (ViewKind.GLOBAL, 1),
        "group": (0, 1),  # one tiling
        "row": (0, 1),
        "col": (0, 1),
        "rows": (1, 1),
        "cols": (1, 1),
        "height": (0, 1),  # pixels given to the encoder
        "width": (0, 1),
        "frame": (0, 1),  # ordinal among the sampled frames
        "frame_number": (0, 1),  # number in the file
        "time": (-1, _S),
        "source": (0, 1),  # index (in the medium) of the row whose features this row reads
        # original = scale * view + shift, in pixels
        "scale_y": (1, _AFFINE),
        "shift_y": (0, _AFFINE),
        "scale_x": (1, _AFFINE),
        "shift_x": (0, _AFFINE),
        # un-padded area (object rows: the box), in source pixels
        "top": (0, _PX),
        "left": (0, _PX),
        "bottom": (0, _PX),
        "right": (0, _PX),
        "orig_height": (0, 1),
        "orig_width": (0, 1),
    },
)
"""ViewTable [V, K]: one row per view of one medium (architecture, section 1)."""

TOKEN = Schema(
    "token_map",
    {
        "kind": (TokenKind.TEXT, 1),
        "learned": (-1, 1),  # index of a learned or looked-up embedding, -1 for features
        "media": (-1, 1),  # number of the medium in the batch
        "view": (-1, 1),  # anchor view in the medium
        "group": (-1, 1),
        "frame0": (0, 1),
        "frame1": (0, 1),
        "t0": (-1, _S),
        "t1": (-1, _S),
        "row": (-1, 1),  # position on the group's stitched grid
        "col": (-1, 1),
        "level": (-1, 1),  # scale number, matryoshka level
        # source rectangle in original pixels; may reach into padding
        "top": (0, _PX),
        "left": (0, _PX),
        "bottom": (0, _PX),
        "right": (0, _PX),
        # text and packing
        "turn": (-1, 1),
        "role": (TextRole.TEMPLATE, 1),
        "sample": (0, 1),
        "branch": (-1, 1),
    },
)
"""TokenMap [N, K]: one row per token that the decoder gets (architecture, section 1)."""


TEXT_COLUMNS = ("turn", "role", "sample", "branch")
"""Columns of a TokenMap that say where a token stands in a conversation and a packed batch."""


def split_media(view_table: Tensor) -> list[Tensor]:
    """Cut a batch's view table (V, K) into one table per medium: a row with index 0 opens one."""
    if len(view_table) == 0:
        return []
    starts = torch.nonzero(VIEW.get(view_table, "index") == 0).flatten().tolist()
    if not starts or starts[0] != 0:
        raise ValueError("view_table must open with a row of index 0")
    bounds = [*starts, len(view_table)]
    return [view_table[a:b] for a, b in pairwise(bounds)]


def to_original(view_table: Tensor, boxes: Tensor) -> Tensor:
    """Map rectangles from view pixels to original pixels.

    Args:
        view_table (Tensor): (N, K) int64, the view of each rectangle.
        boxes (Tensor): (N, 4) float, top, left, bottom, right in view pixels.

    Returns:
        (N, 4) float64, the same rectangles in pixels of the original medium.
    """
    scale_y, shift_y = VIEW.get(view_table, "scale_y"), VIEW.get(view_table, "shift_y")
    scale_x, shift_x = VIEW.get(view_table, "scale_x"), VIEW.get(view_table, "shift_x")
    scale = torch.stack([scale_y, scale_x, scale_y, scale_x], dim=-1)
    shift = torch.stack([shift_y, shift_x, shift_y, shift_x], dim=-1)
    return boxes.to(torch.float64) * scale + shift


def rectangles(token_map: Tensor) -> Tensor:
    """Source rectangles (N, 4) float64 of a token map: top, left, bottom, right in pixels."""
    return torch.stack([TOKEN.get(token_map, c) for c in ("top", "left", "bottom", "right")], -1)


def set_rectangles(token_map: Tensor, boxes: Tensor) -> Tensor:
    """Return a token map (N, K) with its source rectangles replaced by ``boxes`` (N, 4)."""
    top, left, bottom, right = boxes.unbind(-1)
    return TOKEN.set(token_map, top=top, left=left, bottom=bottom, right=right)
