"""How a picture is cut: sizes and grids, in the arithmetic that released checkpoints saw.

Every rounding below is part of the model: truncations, the order of the two sides, and the
logarithm of a quotient (equal scores are told apart by its last bit).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vistoken.core.errors import DataError
from vistoken.core.parts import Grid

Size = tuple[int, int]
"""Height, width."""


@dataclass(frozen=True)
class SlicePlan:
    """How one picture is cut.

    Args:
        overview: (height, width) of the whole picture in pixels of the first tower.
        grid: (rows, cols) of slices; None when the picture is shown whole only.
        slice_size: (height, width) of every slice.
    """

    overview: Size
    grid: Grid | None = None
    slice_size: Size = (0, 0)


def plan_slices(
    height: int,
    width: int,
    *,
    side: float,
    patch: int,
    max_slices: int,
    encoder_aspect: float = 1.0,
) -> SlicePlan:
    """Choose the grid of slices whose shape is nearest to the encoder's, and all sizes.

    Args:
        height: Height of the picture.
        width: Width of the picture.
        side: Side of the square whose area a slice has.
        patch: Sides are multiples of this.
        max_slices: Most slices.
        encoder_aspect: Width / height that slices should come near to.

    Source: arXiv 2403.11703 section 3.1; thunlp/LLaVA-UHD, branch LLaVA-UHD-v1.
    """
    wanted = min(math.ceil(width * height / (side * side)), max_slices)
    if wanted <= 1:
        return SlicePlan(best_size(height, width, side, patch, upscale=True))
    rows, cols = best_grid(height, width, wanted, max_slices, encoder_aspect)
    cell_w = _floor_to(width, cols) / cols
    cell_h = _floor_to(height, rows) / rows
    return SlicePlan(
        overview=best_size(height, width, side, patch, upscale=False),
        grid=(rows, cols),
        slice_size=best_size(cell_h, cell_w, side, patch, upscale=True),
    )


def best_grid(height: int, width: int, wanted: int, max_slices: int, encoder_aspect: float) -> Grid:
    """(rows, cols) among the factors of ``wanted`` and its neighbours; the first best one."""
    log_ratio = math.log(width / height)
    best, least = (1, 1), math.inf
    for count in (wanted - 1, wanted, wanted + 1):
        if count == 1 or count > max_slices:
            continue
        for cols in range(1, count + 1):
            if count % cols:
                continue
            rows = count // cols
            error = abs(log_ratio - math.log(cols / rows) - math.log(encoder_aspect))
            if error < least:
                best, least = (rows, cols), error
    return best


def best_size(height: float, width: float, side: float, patch: int, *, upscale: bool) -> Size:
    """Size of about the area ``side`` squared and the same shape, sides multiples of ``patch``.

    The height is truncated first and the width follows from it. A smaller picture keeps its size
    unless ``upscale`` is set.
    """
    if width * height > side * side or upscale:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    return _floor_to(height, patch), _floor_to(width, patch)


def size_for_longest(height: int, width: int, longest: int) -> Size:
    """Size of the same shape whose longer side is ``longest``; the other side is truncated."""
    if height > width:
        return longest, max(int(longest * width / height), 1)
    return max(int(longest * height / width), 1), longest


def check_picture(height: int, width: int, max_aspect: float) -> None:
    """Raise DataError for a picture that shows nothing, or is too thin to be read."""
    if height < 1 or width < 1 or height * width == 1:
        raise DataError(
            f"a picture of {height}x{width} pixels shows nothing; leave it out of the data"
        )
    aspect = max(height, width) / min(height, width)
    if aspect > max_aspect:
        raise DataError(
            f"a picture of {height}x{width} pixels is {aspect:.0f} times as long as it is wide, "
            f"more than max_aspect {max_aspect:g} of uhd-slices; cut it into shorter pictures"
        )


def _floor_to(length: float, step: int) -> int:
    return max(math.floor(length / step) * step, step)
