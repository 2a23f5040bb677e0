"""From the levels of a picture to a tower's normalised pixels, in one pass."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vistoken.core.parts import TowerInput

_LEVELS = 256
_BLOCK = 1 << 17  # pixels whose table indices stay in the processor's cache


def normalise(image: Any, tower: TowerInput) -> Tensor:
    """Scale an RGB picture to [0, 1] and standardise it.

    A picture has 256 levels, so every result stands in a table of 3 x 256 numbers. They are those
    of Hugging Face's processors bit for bit.

    Args:
        image: RGB picture with ``__array_interface__``, such as ``PIL.Image``.
        tower: Mean and standard deviation.

    Returns:
        (3, height, width) float32.
    """
    levels = np.asarray(image)
    height, width, channels = levels.shape
    normalised = np.empty((channels, height, width), np.float32)
    look_up(levels, tower, normalised)
    return torch.from_numpy(normalised)


def look_up(levels: NDArray[np.uint8], tower: TowerInput, out: NDArray[np.float32]) -> None:
    """Write what :func:`normalise` gives for levels (height, width, 3) to (3, height, width)."""
    table = _table(tower.mean, tower.std)
    height, width, channels = levels.shape
    step = max(_BLOCK // max(width, 1), 1)
    for top in range(0, height, step):
        rows = slice(top, top + step)
        for channel in range(channels):
            # levels lie inside the table; "clip" spares the check that they do
            np.take(table[channel], levels[rows, :, channel], out=out[channel, rows], mode="clip")


@lru_cache(maxsize=32)
def _table(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Result of every level of every channel, (3, 256)."""
    scaled = (np.arange(_LEVELS, dtype=np.float64) * (1 / 255)).astype(np.float32)
    centred = scaled[None] - np.asarray(mean, np.float32)[:, None]
    table: NDArray[np.float32] = centred / np.asarray(std, np.float32)[:, None]
    table.setflags(write=False)
    return table
