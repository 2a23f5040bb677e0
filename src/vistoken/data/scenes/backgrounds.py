"""Backgrounds: ten named colours, plain, shaded or textured."""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 50, 50),
    "orange": (240, 140, 45),
    "yellow": (246, 216, 80),
    "green": (80, 168, 90),
    "blue": (72, 122, 216),
    "purple": (140, 82, 180),
    "pink": (245, 160, 196),
    "brown": (132, 88, 54),
    "gray": (148, 148, 148),
    "white": (246, 246, 246),
}

_LIGHTER, _TINGED = 10, 4
# Beyond this a shaded white is called gray.
_MAX_SHADE = 0.13


def background(colour: str, size_px: int, rng: random.Random) -> Image.Image:
    """Paint a square in one named colour.

    Args:
        colour: A key of `COLOURS`.
        size_px: Height and width.
        rng: Chooses the texture and its parameters.

    Returns:
        RGB picture whose average stays near the named colour.
    """
    lighter = rng.randint(-_LIGHTER, _LIGHTER)
    tinged = [c + lighter + rng.randint(-_TINGED, _TINGED) for c in COLOURS[colour]]
    base = np.array(tinged, np.float32)
    texture = rng.choices(("plain", "linear", "radial", "clouds", "grain"), (30, 25, 10, 20, 15))[0]
    if texture == "plain":
        red, green, blue = (min(255, max(0, int(c))) for c in base)
        return Image.new("RGB", (size_px, size_px), (red, green, blue))
    shade = _FIELDS[texture](size_px, rng) * np.float32(rng.uniform(0.4, 1.0) * _MAX_SHADE)
    pixels = base * (1 + shade[:, :, None])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _linear(size_px: int, rng: random.Random) -> NDArray[np.float32]:
    angle = rng.uniform(0, 2 * math.pi)
    steps = np.linspace(-1, 1, size_px, dtype=np.float32)
    ramp = np.float32(math.sin(angle)) * steps[:, None] + np.float32(math.cos(angle)) * steps
    longest = np.float32(abs(math.sin(angle)) + abs(math.cos(angle)))
    return (ramp / longest).astype(np.float32)


def _radial(size_px: int, rng: random.Random) -> NDArray[np.float32]:
    row, col = rng.random(), rng.random()
    steps = np.linspace(0, 1, size_px, dtype=np.float32)
    distance = np.sqrt((steps[:, None] - np.float32(row)) ** 2 + (steps - np.float32(col)) ** 2)
    return np.float32(1) - np.float32(2) * distance / np.float32(distance.max())


def _clouds(size_px: int, rng: random.Random) -> NDArray[np.float32]:
    cells = rng.randint(3, 14)
    coarse = _numpy_rng(rng).integers(0, 256, (cells, cells), dtype=np.uint8)
    smooth = Image.fromarray(coarse, "L").resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / np.float32(127.5) - 1


def _grain(size_px: int, rng: random.Random) -> NDArray[np.float32]:
    grain = _numpy_rng(rng).integers(-128, 128, (size_px, size_px), dtype=np.int8)
    return grain.astype(np.float32) / np.float32(128)


def _numpy_rng(rng: random.Random) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(rng.getrandbits(64)))


_FIELDS = {"linear": _linear, "radial": _radial, "clouds": _clouds, "grain": _grain}
