"""Dual-perspective cropping of prepared pixels: local tiles, strided global views, the base view.

views = cut_views(pixels, n=3, size=(336, 336))  # (B, 19, 3, 336, 336)
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from vistoken.core.parts import Grid

_logger = logging.getLogger(__name__)


_told: set[str] = set()


def warn_once(topic: str, message: str) -> None:
    """Log a warning unless this process has warned of the same topic already."""
    if topic not in _told:
        _told.add(topic)
        _logger.warning(message)


def cut_views(pixels: Tensor, n: int, size: Grid) -> Tensor:
    """:func:`list_views` as one tensor (B, 2*n*n + 1, 3, height, width), copied."""
    return torch.stack(list_views(pixels, n, size), dim=1)


def list_views(pixels: Tensor, n: int, size: Grid) -> list[Tensor]:
    """Cut normalised pixels into the 2*n*n + 1 views of one picture.

    Resizing runs in float32, bicubic without antialiasing, corners not aligned.

    Args:
        pixels (Tensor): (B, 3, H, W) float, of any size; best n times ``size``.
        n: Side of both grids of views.
        size: (height, width) of a view.

    Returns:
        2*n*n + 1 tensors (B, 3, height, width): local tiles row by row, strided views by their
        offset (row by row), then the undivided picture. Nothing is copied: they share memory.

    Source: arXiv 2407.16198 section 3.2.
    """
    large = (n * size[0], n * size[1])
    if pixels.shape[-2] < large[0] or pixels.shape[-1] < large[1]:
        warn_once(
            f"pixels below {large}",
            f"inf-dcm: pixels of {pixels.shape[-2]}x{pixels.shape[-1]} are enlarged to "
            f"{large[0]}x{large[1]}, which adds no detail; prepare pictures at that size "
            "(compat: fixed)",
        )
    whole = _resize(pixels, large)
    places = [(row, col) for row in range(n) for col in range(n)]
    local = [
        whole[:, :, row * size[0] : (row + 1) * size[0], col * size[1] : (col + 1) * size[1]]
        for row, col in places
    ]
    strided = [whole[:, :, row::n, col::n] for row, col in places]
    if whole is pixels and n % 2:
        # corners not aligned and n odd: every sampling point is a pixel of the middle offset's
        base = strided[n * n // 2]
    else:
        base = _resize(pixels, size)
    return [*local, *strided, base]


def _resize(pixels: Tensor, size: Grid) -> Tensor:
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    resized = F.interpolate(pixels.float(), size=size, mode="bicubic", align_corners=False)
    return resized.to(pixels)
