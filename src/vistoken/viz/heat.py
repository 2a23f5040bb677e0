"""Weights of tokens as a heat map: each token's weight spread evenly over its rectangle.

Rectangles may overlap (an overview and its slices, scales, pooled tokens): where they do, their
weights add up, so that the map's sum is the weight of what is drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vistoken.core.tables import rectangles
from vistoken.viz.views import LONGEST

Pixels = NDArray[np.uint8]

RASTER = 112
"""Longest side of the map before it is drawn."""

STOPS = ((0.0, (38, 12, 81, 0)), (0.25, (110, 28, 110, 110)), (0.5, (204, 62, 74, 165)),
         (0.75, (248, 140, 24, 195)), (1.0, (252, 250, 150, 225)))  # fmt: skip
"""Colour scale: value, then red, green, blue and opacity; low weights let the picture through."""

EVEN = 4.0
"""The brightest colour is at least so many times the mean."""

_SMALLEST = 1e-12


def drawn_size(size: tuple[int, int], longest: int = LONGEST) -> tuple[int, int]:
    """(height, width) at which a picture of this (height, width) is drawn."""
    scale = longest / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def density(tokens: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Heat map of tokens.

    Args:
        tokens (Tensor): (N, K) int64, tokens with a rectangle.
        weights (Tensor): (A, N) float.
        size: (height, width) of the picture in pixels.

    Returns:
        (A, rows, cols) float64, weight in each cell of a raster over the picture; what a
        rectangle has outside of the picture (padding) goes to the part inside.
    """
    rows, cols = drawn_size(size, RASTER)
    top, left, bottom, right = rectangles(tokens).unbind(-1)
    down = _cover(top, bottom, size[0], rows)
    across = _cover(left, right, size[1], cols)
    return torch.einsum("an,ny,nx->ayx", weights.double(), down, across)


def _cover(first: Tensor, last: Tensor, length: int, cells: int) -> Tensor:
    """How intervals (N,) spread over cells: (N, cells), each row sums to 1, or 0 if outside."""
    edges = torch.linspace(0, length, cells + 1, dtype=torch.float64)
    low = torch.maximum(first[:, None], edges[None, :-1])
    high = torch.minimum(last[:, None], edges[None, 1:])
    covered = (high - low).clamp(min=0)
    total = covered.sum(1, keepdim=True)
    return covered / total.clamp(min=_SMALLEST)


def brightest(heat: Tensor) -> float:
    """Value of the brightest colour of a map: its largest, but never near its mean.

    An even map is then shown as one, in a dark colour, not as bright all over.
    """
    return max(float(heat.max()), EVEN * float(heat.mean()), _SMALLEST)


def colour(values: Tensor) -> Pixels:
    """Values (..., ) in 0 to 1 as red, green, blue, opacity (..., 4)."""
    places = [place for place, _ in STOPS]
    clipped = values.clamp(0, 1).numpy()
    channels = [np.interp(clipped, places, [rgba[c] for _, rgba in STOPS]) for c in range(4)]
    return np.stack(channels, -1).round().astype(np.uint8)


def overlay(picture: Image.Image, heat: Tensor, most: float) -> Image.Image:
    """A picture with a heat map over it.

    Args:
        picture: RGB, at the size wanted.
        heat (Tensor): (rows, cols).
        most: Value of the brightest colour.
    """
    shown = Image.fromarray(colour(heat / most), "RGBA")
    shown = shown.resize(picture.size, Image.Resampling.BILINEAR)
    grey = Image.blend(picture.convert("L").convert("RGB"), picture, 0.35)
    return Image.alpha_composite(grey.convert("RGBA"), shown).convert("RGB")
