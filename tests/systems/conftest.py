"""Fixtures for part tests: towers as view functions see them, features that know their place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vistoken.core.parts import ConnectorState, TowerInput, ViewMap, grid_token_map
from vistoken.core.tables import VIEW

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
OFFSET = 4096.0  # keeps coordinates positive, where GELU in float64 is the identity


def make_tower(size=(56, 56), stride=14, fit="crop", name="clip"):
    """A tower as view functions see it."""
    return TowerInput(name, size, CLIP_MEAN, CLIP_STD, fit, stride)


def coordinate_map(view, grid):
    """Feature map (R, C, 4): original y and x of each cell's centre, then its stitched row, col.

    Written with plain Python numbers, independently of the token map.
    """
    v = {name: VIEW.get(view, name).item() for name in VIEW.columns}
    rows, cols = grid
    cells = [
        [
            (
                v["scale_y"] * (r + 0.5) * v["height"] / rows + v["shift_y"] + OFFSET,
                v["scale_x"] * (c + 0.5) * v["width"] / cols + v["shift_x"] + OFFSET,
                v["row"] * rows + r + OFFSET,
                v["col"] * cols + c + OFFSET,
            )
            for c in range(cols)
        ]
        for r in range(rows)
    ]
    return torch.tensor(cells, dtype=torch.float64)


def start(view_table, towers):
    """State and maps that enter a connector: one token per cell of the first tower's features."""
    tower = VIEW.get(view_table, "tower")
    anchors = torch.nonzero(tower == 0).flatten().tolist()
    features, maps = [], []
    for anchor in anchors:
        per_tower = [
            coordinate_map(view_table[anchor + number], input_.grid)
            for number, input_ in enumerate(towers)
        ]
        features.append(tuple(per_tower))
        view = view_table[anchor]
        maps.append(ViewMap(view, towers[0].grid, grid_token_map(view, towers[0].grid)))
    state = ConnectorState(view_table, anchors, features)
    state.tokens = [f[0].flatten(0, 1) for f in features]
    state.grids = [towers[0].grid] * len(anchors)
    return state, maps


@pytest.fixture(scope="session")
def golden():
    """Folder of the numeric reference files."""
    return Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def kit():
    """The helpers of this file, for tests that import nothing from each other."""

    class Kit:
        offset = OFFSET
        mean, std = CLIP_MEAN, CLIP_STD
        tower = staticmethod(make_tower)
        start = staticmethod(start)
        coordinate_map = staticmethod(coordinate_map)

    return Kit
