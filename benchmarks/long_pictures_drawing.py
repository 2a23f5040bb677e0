"""Pictures of four digits in a row or a column, one to six times as long as wide."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vistoken.core.parts import TowerInput

SIDE, PATCH = 24, 4
TOWER = TowerInput("tiny", (SIDE, SIDE), (0.5,) * 3, (0.25,) * 3, "stretch", PATCH)
AREA = 5 * SIDE**2
"""Pixels of every picture: its digits have one size, whatever its shape."""

DIGITS, KINDS = 4, 10
LONGEST = 6.0
_FONT_SIZE = 16
_BACKGROUND = KINDS

Levels = NDArray[np.float64]


@dataclass
class Pictures:
    """Pictures with what they show.

    Args:
        images: RGB, of any shape.
        digits (Tensor): (n, DIGITS) int64, from the left or from the top.
        aspects (Tensor): (n,) float32, longer side over shorter side.
        quarters (Tensor): (n, DIGITS, 4) float32, where each digit is: top, left, bottom and right
            of a quarter of the picture, over its longer side.
    """

    images: list[Image.Image]
    digits: Tensor
    aspects: Tensor
    quarters: Tensor


class Artist:
    """Draws digits on noisy paper.

    Args:
        seed: Of everything that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.chooser, self.noise = random.Random(seed), np.random.default_rng(seed)

    def pictures(self, count: int) -> Pictures:
        """Long pictures of :data:`AREA` pixels, every second one tall."""
        images, digits, aspects, quarters = [], [], [], []
        for number in range(count):
            is_tall = number % 2 == 1
            short = round((AREA / LONGEST ** self.chooser.random()) ** 0.5)
            sides = (round(AREA / short), short)
            size = sides if is_tall else sides[::-1]
            shown = [self.chooser.randrange(KINDS) for _ in range(DIGITS)]
            levels = self._paper(size)
            for place, digit in enumerate(shown):
                self._draw_in(levels, _GLYPHS[digit], place, is_tall)
            images.append(_image(levels))
            digits.append(shown)
            aspects.append(sides[0] / sides[1])
            ends = [(n / DIGITS, (n + 1) / DIGITS) for n in range(DIGITS)]
            width = sides[1] / sides[0]
            quarters.append([(a, 0, b, width) if is_tall else (0, a, width, b) for a, b in ends])
        return Pictures(
            images, torch.tensor(digits), torch.tensor(aspects), torch.tensor(quarters).float()
        )

    def patches(self, count: int) -> tuple[Tensor, Tensor]:
        """Squares with digits of many sizes and shapes, and what each patch shows.

        Returns:
            Pixels (count, 3, SIDE, SIDE) float32, and (count, patches) int64: the digit whose box
            the patch's middle lies in, or the number behind the last digit.
        """
        pixels, labels = [], []
        for _ in range(count):
            levels = self._paper((SIDE, SIDE))
            owner = np.full((SIDE, SIDE), _BACKGROUND)
            for _ in range(self.chooser.randint(1, 3)):
                digit = self.chooser.randrange(KINDS)
                self._drop_in(levels, owner, digit)
            middle = slice(PATCH // 2, None, PATCH)
            pixels.append(levels.clip(0, 255))
            labels.append(owner[middle, middle].ravel())
        drawn = torch.from_numpy(np.stack(pixels)).float().div_(255).sub_(0.5).div_(0.25)
        return drawn[:, None].expand(-1, 3, -1, -1), torch.from_numpy(np.stack(labels))

    def _paper(self, size: tuple[int, int]) -> Levels:
        return self.chooser.uniform(150, 230) + self.noise.normal(0, 8, size)

    def _draw_in(self, levels: Levels, glyph: Levels, place: int, tall: bool) -> None:
        """Put a glyph somewhere in its quarter of the longer side."""
        length = levels.shape[0 if tall else 1]
        across = levels.shape[1 if tall else 0]
        along_glyph, across_glyph = glyph.shape if tall else glyph.shape[::-1]
        first, last = place * length // DIGITS, (place + 1) * length // DIGITS - along_glyph
        along = self.chooser.randint(first, max(first, last))
        beside = self.chooser.randint(0, across - across_glyph)
        _ink(levels, glyph, (along, beside) if tall else (beside, along))

    def _drop_in(self, levels: Levels, owner: NDArray[np.int64], digit: int) -> None:
        """Put a stretched digit where no other one is, or none if the first try fails."""
        mask = _GLYPHS[digit]
        rows, cols = (max(round(n * 2 ** self.chooser.uniform(-1.0, 0.5)), 3) for n in mask.shape)
        small = Image.fromarray(mask.astype(np.float32))
        glyph = np.asarray(small.resize((cols, rows), Image.Resampling.BICUBIC)).clip(0, 1)
        top, left = self.chooser.randint(0, SIDE - rows), self.chooser.randint(0, SIDE - cols)
        box = (slice(top, top + rows), slice(left, left + cols))
        if (owner[box] == _BACKGROUND).all():
            owner[box] = digit
            _ink(levels, glyph, (top, left))


def _ink(levels: Levels, glyph: NDArray[np.floating], corner: tuple[int, int]) -> None:
    (top, left), (rows, cols) = corner, glyph.shape
    levels[top : top + rows, left : left + cols] -= 130 * glyph


def _image(levels: Levels) -> Image.Image:
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")


def _glyph(digit: int) -> Levels:
    """Ink of a digit, cut to its box, from 0 to 1."""
    canvas = Image.new("L", (2 * _FONT_SIZE, 2 * _FONT_SIZE))
    font = ImageFont.load_default(_FONT_SIZE)
    ImageDraw.Draw(canvas).text((_FONT_SIZE // 2, _FONT_SIZE // 2), str(digit), 255, font)
    return np.asarray(canvas.crop(canvas.getbbox()), np.float64) / 255


_GLYPHS = [_glyph(digit) for digit in range(KINDS)]
