"""Photographs of surfaces as backgrounds."""

from __future__ import annotations

import random

from PIL import Image, ImageEnhance

from vistoken.data.scenes.archives import fetch_wheel_files
from vistoken.data.scenes.v1.packages import CREDITS, SCIKIT_IMAGE, SURFACES


class Surfaces:
    """Crops of photographed bricks, grass, gravel and stars.

    Raises:
        MachineError: The package with the photographs could not be fetched.
    """

    def __init__(self) -> None:
        self.credits = {"surfaces": CREDITS["surfaces"]}
        folder = fetch_wheel_files(SCIKIT_IMAGE)
        self._pictures: dict[str, Image.Image] = {}
        for word, path in SURFACES.items():
            with Image.open(folder / path) as picture:
                self._pictures[word] = picture.convert("RGB")

    def paint(self, size_px: int, rng: random.Random) -> tuple[str, Image.Image]:
        """Cut a square out of one of them.

        Args:
            size_px: Height and width.
            rng: Chooses the surface, the part of it and its brightness.

        Returns:
            The word for it and an RGB picture.
        """
        word = rng.choice(list(self._pictures))
        whole = self._pictures[word]
        side = rng.randint(min(whole.size) // 3, min(whole.size))
        left, top = rng.randint(0, whole.width - side), rng.randint(0, whole.height - side)
        part = whole.crop((left, top, left + side, top + side)).resize((size_px, size_px))
        return word, ImageEnhance.Brightness(part).enhance(rng.uniform(0.7, 1.3))
