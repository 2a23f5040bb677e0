"""ViewTable and TokenMap: columns, scales, geometry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vistoken.core.tables import (
    PIXEL_SCALE,
    TOKEN,
    VIEW,
    TokenKind,
    rectangles,
    set_rectangles,
    split_media,
    to_original,
)


def test_defaults_and_given_columns():
    table = TOKEN.make(3, kind=TokenKind.SPATIAL, level=torch.arange(3))
    assert table.dtype == torch.int64
    assert table.shape == (3, TOKEN.width)
    assert TOKEN.get(table, "kind").tolist() == [TokenKind.SPATIAL] * 3
    assert TOKEN.get(table, "level").tolist() == [0, 1, 2]
    assert TOKEN.get(table, "t0").tolist() == [-1.0] * 3


@given(st.floats(-4000, 4000), st.floats(0.001, 60))
def test_scaled_columns_keep_a_fraction_of_a_pixel(shift, scale):
    table = VIEW.make(1, shift_y=shift, scale_y=scale)
    assert abs(VIEW.get(table, "shift_y").item() - shift) <= 2**-20
    assert abs(VIEW.get(table, "scale_y").item() - scale) <= 2**-20
    box = TOKEN.make(1, top=shift)
    assert abs(TOKEN.get(box, "top").item() - shift) <= 0.5 / PIXEL_SCALE


def test_setting_a_column_leaves_the_original_alone():
    table = VIEW.make(2)
    changed = VIEW.set(table, row=torch.tensor([4, 5]))
    assert VIEW.get(table, "row").tolist() == [0, 0]
    assert VIEW.get(changed, "row").tolist() == [4, 5]
    with pytest.raises(KeyError):
        VIEW.set(table, colour=1)


def test_media_are_cut_where_the_index_is_zero():
    table = torch.cat([VIEW.make(n, index=torch.arange(n)) for n in (1, 3, 2)])
    assert [len(medium) for medium in split_media(table)] == [1, 3, 2]
    assert split_media(VIEW.make(0)) == []
    with pytest.raises(ValueError, match="index 0"):
        split_media(VIEW.make(2, index=torch.tensor([1, 2])))


@given(st.floats(0.01, 30), st.floats(-500, 500), st.floats(0.01, 30), st.floats(-500, 500))
def test_rectangles_go_to_original_pixels(scale_y, shift_y, scale_x, shift_x):
    view = VIEW.make(1, scale_y=scale_y, shift_y=shift_y, scale_x=scale_x, shift_x=shift_x)
    box = to_original(view, torch.tensor([[1.0, 2.0, 30.0, 40.0]]))[0]
    expected = [
        scale_y + shift_y,
        2 * scale_x + shift_x,
        30 * scale_y + shift_y,
        40 * scale_x + shift_x,
    ]
    torch.testing.assert_close(
        box, torch.tensor(expected, dtype=torch.float64), atol=1e-3, rtol=1e-4
    )
    again = rectangles(set_rectangles(TOKEN.make(1), box[None]))[0]
    torch.testing.assert_close(again, box, atol=1 / PIXEL_SCALE, rtol=0)


def test_a_foreign_table_is_refused():
    with pytest.raises(ValueError, match="view_table must be int64"):
        VIEW.check(torch.zeros(2, VIEW.width))
    with pytest.raises(ValueError, match="view_table"):
        VIEW.check(TOKEN.make(2))


def test_rows_read_as_dictionaries():
    (row,) = TOKEN.rows(TOKEN.make(1, kind=TokenKind.VISUAL, top=1.5))
    assert row["kind"] == TokenKind.VISUAL
    assert row["top"] == 1.5
    assert set(row) == set(TOKEN.columns)
