"""Stage row-col: every cell gets its own row and column, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistoken.core.errors import UsageError
from vistoken.core.parts import ConnectorState, StageContext
from vistoken.core.registry import load_part, make_config
from vistoken.core.tables import VIEW
from vistoken.models.build import build
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.systems.positions.config import RowColConfig
from vistoken.systems.positions.stage import RowCol
from vistoken.train.groups import apply_groups, part_parameters
from vistoken.train.settings import StageConfig


def state_of(tokens, grids):
    table = VIEW.make(len(tokens), index=torch.arange(len(tokens)))
    return ConnectorState(table, list(range(len(tokens))), [], list(tokens), list(grids))


def stage_of(grid, width=3, std=1.0):
    torch.manual_seed(0)
    return RowCol(RowColConfig(std), StageContext((width,), width, grid, width))


@settings(max_examples=30, deadline=None)
@given(grid=st.tuples(*[st.integers(1, 7)] * 2), prefix=st.integers(0, 6))
def test_every_cell_gets_its_row_and_column(grid, prefix):
    stage = stage_of(grid)
    tokens = torch.randn(prefix + grid[0] * grid[1], 3)
    (placed,) = stage(state_of([tokens], [grid])).tokens
    assert torch.equal(placed[:prefix], tokens[:prefix])
    for row in range(grid[0]):
        for col in range(grid[1]):
            cell = prefix + row * grid[1] + col
            torch.testing.assert_close(
                placed[cell], tokens[cell] + stage.rows[row] + stage.cols[col]
            )


def test_views_of_other_grids_share_the_picture():
    """A linear ramp over rows and columns stays that ramp on any grid, away from the border."""
    stage = stage_of((4, 8), width=2)
    with torch.no_grad():
        stage.rows.copy_(torch.stack([(torch.arange(4) + 0.5) / 4, torch.zeros(4)], 1))
        stage.cols.copy_(torch.stack([torch.zeros(8), (torch.arange(8) + 0.5) / 8], 1))
    grids = [(4, 8), (6, 3), (4, 8), (9, 9)]
    tokens = [torch.zeros(2 + rows * cols, 2) for rows, cols in grids]
    for placed, (rows, cols) in zip(stage(state_of(tokens, grids)).tokens, grids, strict=True):
        y, x = placed[2:].unflatten(0, (rows, cols)).unbind(-1)
        true_y, true_x = (torch.arange(rows) + 0.5) / rows, (torch.arange(cols) + 0.5) / cols
        torch.testing.assert_close(y, true_y.clamp(1 / 8, 7 / 8)[:, None].expand(rows, cols))
        torch.testing.assert_close(x, true_x.clamp(1 / 16, 15 / 16)[None].expand(rows, cols))


def test_at_zero_it_changes_nothing_and_still_learns():
    stage = stage_of((2, 3), std=0.0)
    tokens = [torch.randn(6, 3, dtype=torch.bfloat16), torch.randn(8, 3, dtype=torch.bfloat16)]
    placed = stage(state_of(tokens, [(2, 3), (2, 3)])).tokens
    for new, old in zip(placed, tokens, strict=True):
        assert new.dtype == old.dtype
        assert torch.equal(new, old)
    (placed[0].float() * torch.arange(6.0)[:, None]).sum().backward()
    assert torch.equal(stage.rows.grad[:, 0], torch.tensor([3.0, 12.0]))
    assert torch.equal(stage.cols.grad[:, 0], torch.tensor([3.0, 5.0, 7.0]))


def test_what_it_refuses():
    with pytest.raises(UsageError, match="std must be 0 or more"):
        make_config(RowColConfig, {"std": -1.0}, "row-col")
    with pytest.raises(UsageError, match="3 tokens for a grid of 2x2"):
        stage_of((2, 2))(state_of([torch.zeros(3, 3)], [(2, 2)]))


@pytest.mark.parametrize("part", ["row-col", "free-tokens"])
def test_it_is_trained_while_the_projection_is_frozen(part):
    assert load_part("reduce", "row-col") is RowCol
    chain = [
        {"part": "llava-sp", "options": {"spatial_tokens": "none"}},
        {"part": "pool", "options": {"grid": [3, 2]}},
        part,
    ]
    values = load_recipe("pico").model_dump(exclude_none=True) | {"connector": chain}
    model, _ = build(parse_recipe(values, "test"))
    groups = {"connector": {"train": "frozen"}, "spatial": {"train": "full"}}
    apply_groups(model, StageConfig.model_validate({"name": "a", "steps": 1, "groups": groups}))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(part_parameters(model)["spatial"])
    assert trained
    assert all(f".{part}." in name for name in trained)
    if part == "row-col":
        stage = model.model.multi_modal_projector.get_submodule("row-col")
        assert (len(stage.rows), len(stage.cols)) == (3, 2)  # the grid after pooling
