"""Pixels on their way through vLLM, and the image that makes the most of them."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from vistoken.core.errors import VistokenError
from vistoken.core.tables import split_media
from vistoken.models.image_processing import VistokenImageProcessor

_LONG_SIDES = (336, 672, 1344, 2688, 5376)
_SHAPES = ((1, 1), (2, 3), (3, 2), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1), (1, 6), (6, 1))
"""Heights and widths as parts of the long side."""


def views_by_image(
    pixel_values: Tensor | list[Tensor], view_table: Tensor
) -> list[Tensor | list[Tensor]]:
    """Pixels of each image: (V_i, 3, H, W), or a list of V_i where sizes differ.

    Args:
        pixel_values: (V, 3, H, W) or V tensors (3, H, W), as the processor gives them.
        view_table (Tensor): (V, K).
    """
    bounds = [0, *accumulate(len(table) for table in split_media(view_table))]
    return [stacked(list(pixel_values[a:b])) for a, b in pairwise(bounds)]


def stacked(images: Any) -> Tensor | list[Tensor]:
    """All views in order: (V, 3, H, W), or a list where sizes differ.

    Args:
        images: Tensors (3, H, W), (V, 3, H, W) or (B, V, 3, H, W), in lists nested as they come.
    """
    views = list(_flat(images))
    same = all(view.shape == views[0].shape for view in views)
    return torch.stack(views) if same else views


def _flat(images: Any) -> Any:
    if isinstance(images, Tensor) and images.ndim == 3:
        yield images
        return
    for item in images:
        yield from _flat(item)


def largest_size(image_processor: VistokenImageProcessor) -> tuple[int, int]:
    """(height, width) of an image with the most visual tokens, the smallest one of several.

    Tried are shapes from 1:6 to 6:1 up to a long side of 5,376 pixels: between them lie the tile
    grids of every view function here, and each grid is full at its own shape.
    """
    found: dict[tuple[int, int], int] = {}
    for side in _LONG_SIDES:
        for rows, cols in _SHAPES:
            long = max(rows, cols)
            size = (side * rows // long, side * cols // long)
            try:
                table = image_processor.view_table(*size)
                found[size] = len(image_processor.plan.arrange(table).order)
            except VistokenError:  # a shape that the view function refuses
                continue
    most = max(found.values())
    return min((s for s, count in found.items() if count == most), key=lambda s: s[0] * s[1])
