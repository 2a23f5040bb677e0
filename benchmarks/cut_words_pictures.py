"""Pictures of one word each, across the cut lines of detailed tiles or inside one of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vistoken.core.parts import Grid, TowerInput

PATCH, TILES = 6, 3
TILE: Grid = (24, 48)
PICTURE: Grid = (TILE[0], TILES * TILE[1])
GRID: Grid = (TILE[0] // PATCH, TILE[1] // PATCH)
FIRST, LAST = ("LAX", "TOE", "EXL", "OAT"), ("TAX", "OLE", "XEL", "ATO")
"""Each first half stands before each last half: neither says what the word is."""

HALVES, GLYPHS = len(FIRST), 6
TOWER = TowerInput("tiny", TILE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "stretch", PATCH)
ADAPTIVE_SCALE = 2 / 3
"""A picture of three detailed tiles is this much narrower on two adaptive ones."""

_LETTERS = {
    "A": ("01110", "10001", "10001", "11111", "10001", "10001", "10001"),
    "E": ("11111", "10000", "10000", "11110", "10000", "10000", "11111"),
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "O": ("01110", "10001", "10001", "10001", "10001", "10001", "01110"),
    "T": ("11111", "00100", "00100", "00100", "00100", "00100", "00100"),
    "X": ("10001", "10001", "01010", "00100", "01010", "10001", "10001"),
}
_PITCH, _HEIGHT = 6, 7
WORD = GLYPHS * _PITCH - 1
"""Width of a word in pixels."""

Levels = NDArray[np.uint8]


@dataclass
class Scenes:
    """Pictures with what they show.

    Args:
        canvases: Levels (side, side).
        halves (Tensor): (n, 2) int64, numbers of the two halves of the word.
        cut (Tensor): (n,) bool, whether a detailed cut line runs through it.
        whole_in_adaptive: Share of the cut words through which no adaptive cut line runs.
    """

    canvases: list[Levels]
    halves: Tensor
    cut: Tensor
    whole_in_adaptive: float


class Pictures:
    """Draws pictures of words.

    Args:
        chooser: Draws words, places and papers.
        noise: Draws backgrounds.
    """

    def __init__(self, chooser: random.Random, noise: np.random.Generator) -> None:
        self.chooser, self.noise = chooser, noise

    def whole_words(self, count: int) -> tuple[Tensor, Tensor]:
        """Tiles (count, 3, tile, tile), and halves of their words.

        Every word is whole, and as wide as one of the tilings shows it.
        """
        tiles, names = [], []
        for _ in range(count):
            name = self._draw_name()
            scale = self.chooser.choice((1.0, ADAPTIVE_SCALE))
            width = round(TILE[1] / scale)
            top, left = self._top(), self.chooser.randint(0, width - WORD)
            levels = Image.fromarray(self._canvas((TILE[0], width), name, top, left))
            tiles.append(np.asarray(levels.resize(TILE[::-1], Image.Resampling.BICUBIC)))
            names.append(name)
        pixels = torch.from_numpy(np.stack(tiles)).float().div_(255).sub_(0.5).div_(0.25)
        return pixels[:, None].expand(-1, 3, -1, -1), torch.tensor(names)

    def scenes(self, count: int) -> Scenes:
        """Pictures, every second one with a word that is cut."""
        canvases, names, inside = [], [], []
        cut = torch.arange(count) % 2 == 0
        for is_cut in cut.tolist():
            name = self._draw_name()
            left = self._across() if is_cut else self._inside()
            canvases.append(self._canvas(PICTURE, name, self._top(), left))
            names.append(name)
            if is_cut:
                inside.append(not left < PICTURE[1] // 2 < left + WORD)
        return Scenes(canvases, torch.tensor(names), cut, sum(inside) / max(len(inside), 1))

    def _draw_name(self) -> tuple[int, int]:
        return self.chooser.randrange(HALVES), self.chooser.randrange(HALVES)

    def _top(self) -> int:
        return self.chooser.randint(0, TILE[0] - _HEIGHT)

    def _inside(self) -> int:
        """Left end of a word inside one detailed tile."""
        return self.chooser.randrange(TILES) * TILE[1] + self.chooser.randint(0, TILE[1] - WORD)

    def _across(self) -> int:
        """Left end of a word that a detailed cut line meets behind its first glyph or later."""
        line = TILE[1] * self.chooser.randint(1, TILES - 1)
        return line - self.chooser.randint(_PITCH, WORD - _PITCH)

    def _canvas(self, size: Grid, name: tuple[int, int], top: int, left: int) -> Levels:
        """Paper with noise, and a dark word on it."""
        paper = self.chooser.uniform(150, 230)
        levels = paper + self.noise.normal(0, 8, size)
        levels[top : top + _HEIGHT, left : left + WORD] -= 130 * _WORDS[name]
        return levels.clip(0, 255).astype(np.uint8)


def picture(levels: Levels) -> Image.Image:
    """Levels as an RGB picture."""
    return Image.fromarray(levels).convert("RGB")


def _drawn(word: str) -> NDArray[np.float64]:
    drawn = np.zeros((_HEIGHT, GLYPHS * _PITCH))
    for number, letter in enumerate(word):
        rows = [[int(dot) for dot in row] for row in _LETTERS[letter]]
        drawn[:, number * _PITCH : number * _PITCH + _PITCH - 1] = rows
    return drawn[:, :WORD]


_WORDS = {(i, j): _drawn(a + b) for i, a in enumerate(FIRST) for j, b in enumerate(LAST)}
