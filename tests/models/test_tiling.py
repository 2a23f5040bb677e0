"""Tiles of a stretched picture: the same pixels as crops, rows in the order of the views."""

import numpy as np
import pytest
import torch
from PIL import Image

from vistoken.core.parts import TowerInput
from vistoken.core.tables import VIEW
from vistoken.models.pixels import normalise
from vistoken.models.tiling import normalise_tiles, number_views, tile_rows

TOWER = TowerInput("t", (14, 21), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 1)])
def test_tiles_equal_crops_bit_for_bit(grid):
    rows, cols = grid
    levels = np.random.default_rng(1).integers(0, 256, (rows * 14, cols * 21, 3), np.uint8)
    image = Image.fromarray(levels)
    views = normalise_tiles(image, grid, TOWER)
    for number, view in enumerate(views):
        top, left = number // cols * 14, number % cols * 21
        crop = image.crop((left, top, left + 21, top + 14))
        assert torch.equal(view, normalise(crop, TOWER))
    room = torch.full((len(views) + 2, *views.shape[1:]), 9.0)
    normalise_tiles(image, grid, TOWER, room[1:-1])
    assert torch.equal(room[1:-1], views)
    assert (room[[0, -1]] == 9).all()


@pytest.mark.parametrize("size", [(29, 42), (28, 43)])
def test_sides_that_the_grid_does_not_divide(size):
    """No row or column of the picture is left out in silence."""
    said = rf"{size[0]}x{size[1]} pixels cannot be cut into 2x3 equal tiles"
    with pytest.raises(ValueError, match=said):
        normalise_tiles(Image.new("RGB", size[::-1]), (2, 3), TOWER)


def test_rows_come_view_by_view_and_tower_by_tower():
    tables = [tile_rows((2, 3), size, (100, 90), group=4) for size in ((14, 21), (7, 5))]
    table = number_views(tables)
    assert VIEW.get(table, "index").tolist() == list(range(12))
    assert VIEW.get(table, "tower").tolist() == [0, 1] * 6
    assert VIEW.get(table, "row").tolist() == [0] * 6 + [1] * 6
    assert VIEW.get(table, "col").tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert VIEW.get(table, "height").tolist() == [14, 7] * 6
    assert VIEW.get(table, "group").unique().tolist() == [4]
    for rows in (table[::2], table[1::2]):  # each tower's last tile ends where the picture does
        last = rows[-1]
        for axis, side, length in (("y", "height", 100), ("x", "width", 90)):
            end = VIEW.get(last, f"scale_{axis}") * VIEW.get(last, side)
            end = end + VIEW.get(last, f"shift_{axis}")
            assert end.item() == pytest.approx(length, abs=0.01)
