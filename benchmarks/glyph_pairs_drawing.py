"""Scenes of glyphs for four tiles: pairs in two different tiles, and up to four to be counted."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vistoken.core.parts import TowerInput

SIDE, PATCH, N = 16, 4, 2
TOWER = TowerInput("tiny", (SIDE, SIDE), (0.5,) * 3, (0.25,) * 3, "stretch", PATCH)
LARGE = N * SIDE
"""Side of a scene: n times the tower's, so that `inf-dcm` need not resize it."""

MOST = 4
"""Glyphs to be counted."""

_GLYPHS = (
    ("0011100", "0111110", "1110111", "1100011", "1110111", "0111110", "0011100"),  # ring
    ("0011100", "0011100", "1111111", "1111111", "1111111", "0011100", "0011100"),  # plus
    ("1100011", "1110111", "0111110", "0011100", "0111110", "1110111", "1100011"),  # cross
)
KINDS = len(_GLYPHS)
_DOTS = len(_GLYPHS[0])
_CROWD_SIZES = (7, 14)
_TRIES = 40

Levels = NDArray[np.float64]


@dataclass
class Scenes:
    """Scenes with their answers.

    Args:
        levels: Levels (LARGE, LARGE) each.
        answers (Tensor): (n,) int64.
        cut (Tensor): (n,) int64, glyphs through which a tile's border runs.
    """

    levels: list[NDArray[np.uint8]]
    answers: Tensor
    cut: Tensor


class Artist:
    """Draws glyphs on noisy paper.

    Args:
        seed: Of everything that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.chooser, self.noise = random.Random(seed), np.random.default_rng(seed)

    def pairs(self, count: int) -> Scenes:
        """Two whole glyphs in two tiles; the answer is 1 where they are equal, in every second."""
        levels = []
        answers = torch.arange(count) % 2
        for equal in answers.tolist():
            first, second = self.chooser.sample(range(KINDS), 2)
            scene = self._paper(LARGE)
            tiles = self.chooser.sample(range(N * N), 2)
            for tile, kind in zip(tiles, (first, first if equal else second), strict=True):
                size = 2 * _DOTS
                corner = [
                    place * SIDE + self.chooser.randint(0, SIDE - size) for place in divmod(tile, N)
                ]
                _ink(scene, kind, corner[0], corner[1], size)
            levels.append(_rounded(scene))
        return Scenes(levels, answers, torch.zeros_like(answers))

    def crowds(self, count: int) -> Scenes:
        """One to :data:`MOST` glyphs anywhere; the answer is their number less one."""
        levels, cut = [], []
        answers = torch.arange(count) % MOST
        for number in (answers + 1).tolist():
            scene, _, boxes = self._crowd(number)
            levels.append(_rounded(scene))
            cut.append(sum(_is_cut(*box) for box in boxes))
        return Scenes(levels, answers, torch.tensor(cut))

    def views(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tiles and strided views of crowds, as many of each, to learn from.

        Returns:
            Pixels (count, 3, SIDE, SIDE) float32; (count, patches) int64, the glyph whose box the
            patch's middle lies in or :data:`KINDS`; (count,) int64, how many glyphs are seen.
        """
        pixels, kinds, numbers = [], [], []
        for number in range(count):
            scene, owner, boxes = self._crowd(self.chooser.randint(1, MOST))
            row, col = self.chooser.randrange(N), self.chooser.randrange(N)
            window = (
                (slice(row, None, N), slice(col, None, N))
                if number % 2
                else tuple(slice(place * SIDE, (place + 1) * SIDE) for place in (row, col))
            )
            middle = slice(PATCH // 2, None, PATCH)
            seen = owner[window]
            pixels.append(scene[window].clip(0, 255))
            shown = np.unique(seen[seen >= 0])
            names = np.array([*(kind for *_, kind in boxes), KINDS])
            kinds.append(names[seen[middle, middle]].ravel())
            numbers.append(len(shown))
        drawn = torch.from_numpy(np.stack(pixels)).float().div_(255).sub_(0.5).div_(0.25)
        return (
            drawn[:, None].expand(-1, 3, -1, -1),
            torch.from_numpy(np.stack(kinds)),
            torch.tensor(numbers),
        )

    def _crowd(self, number: int) -> tuple[Levels, NDArray[np.int64], list[tuple[int, ...]]]:
        """A scene, the number of the glyph at each pixel (-1: none), and their boxes and kinds."""
        scene, owner = self._paper(LARGE), np.full((LARGE, LARGE), -1)
        boxes: list[tuple[int, ...]] = []
        for _ in range(_TRIES):
            size = self.chooser.randint(*_CROWD_SIZES)
            top, left = (self.chooser.randint(0, LARGE - size) for _ in range(2))
            box = (slice(top, top + size), slice(left, left + size))
            if (owner[box] >= 0).any():
                continue
            kind = self.chooser.randrange(KINDS)
            owner[box] = len(boxes)
            _ink(scene, kind, top, left, size)
            boxes.append((top, left, size, kind))
            if len(boxes) == number:
                return scene, owner, boxes
        return self._crowd(number)  # there is no room for a further one

    def _paper(self, side: int) -> Levels:
        return self.chooser.uniform(150, 230) + self.noise.normal(0, 8, (side, side))


def _ink(scene: Levels, kind: int, top: int, left: int, size: int) -> None:
    """Draw a glyph of this side in pixels."""
    dots = np.arange(size) * _DOTS // size
    rows = np.array([[int(dot) for dot in row] for row in _GLYPHS[kind]])
    scene[top : top + size, left : left + size] -= 130 * rows[np.ix_(dots, dots)]


def _is_cut(top: int, left: int, size: int, _: int) -> bool:
    """Whether the border of a tile runs through a glyph."""
    return any(start // SIDE != (start + size - 1) // SIDE for start in (top, left))


def _rounded(scene: Levels) -> NDArray[np.uint8]:
    return scene.clip(0, 255).astype(np.uint8)
