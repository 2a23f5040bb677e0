"""Stages concat-grid, mlp, pool, rms-scale, free-tokens: what comes out, and what the map says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlavaConfig
from transformers.models.clip import CLIPVisionConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vistoken.core.errors import UsageError
from vistoken.core.parts import ConnectorState, StageContext
from vistoken.core.registry import make_config
from vistoken.core.tables import TOKEN, VIEW, TokenKind, rectangles
from vistoken.systems.llava.config import (
    AnyResConfig,
    ConcatGridConfig,
    FreeTokensConfig,
    MlpConfig,
    PadConfig,
    PoolConfig,
    RmsScaleConfig,
)
from vistoken.systems.llava.stages import ConcatGrid, FreeTokens, Mlp, Pool, RmsScale, resize_grid
from vistoken.systems.llava.views import AnyRes, Pad


def state_of(tokens, grids):
    """A state that holds these tokens, one plain view each."""
    table = VIEW.make(len(tokens), index=torch.arange(len(tokens)))
    return ConnectorState(table, list(range(len(tokens))), [], list(tokens), list(grids))


def centres(token_map):
    """Centres (N, 2) of a map's rectangles."""
    boxes = rectangles(token_map)
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def test_mlp_is_hugging_faces_projector():
    text = LlamaConfig(hidden_size=12, num_attention_heads=2)
    vision = CLIPVisionConfig(hidden_size=8, num_attention_heads=2)
    theirs = LlavaMultiModalProjector(LlavaConfig(vision_config=vision, text_config=text))
    ours = Mlp(MlpConfig(), StageContext((8,), 8, (3, 4), 12))
    assert Mlp.flat_when_alone
    ours.load_state_dict(theirs.state_dict())  # the very same names
    tokens = torch.randn(2, 12, 8)
    assert torch.equal(torch.stack(ours(state_of(tokens, [(3, 4)] * 2)).tokens), theirs(tokens))
    wide = Mlp(MlpConfig(hidden_width=20), StageContext((8,), 8, (3, 4), 12))
    assert wide.linear_1.weight.shape == (20, 8)
    assert wide.linear_2.weight.shape == (12, 20)


def test_concat_grid_normalises_channels_and_saves_the_statistics():
    context = StageContext((2, 3), 2, (4, 4), 8)
    stage = ConcatGrid(ConcatGridConfig(), context)
    assert set(stage.state_dict()) == {"mean", "std"}
    assert ConcatGrid.context_after(stage.config, context).width == 5
    first, second = torch.randn(4, 4, 2), torch.randn(4, 4, 3)
    state = ConnectorState(VIEW.make(1), [0], [(first, second)])
    plain = stage(state)
    assert plain.grids == [(4, 4)]
    assert torch.equal(plain.tokens[0], torch.cat([first, second], -1).flatten(0, 1))
    stage.load_state_dict({"mean": torch.arange(5.0), "std": torch.arange(1.0, 6.0)})
    expected = (plain.tokens[0] - torch.arange(5.0)) / torch.arange(1.0, 6.0)
    torch.testing.assert_close(stage(state).tokens[0], expected)


@settings(max_examples=30, deadline=None)
@given(grid=st.tuples(*[st.integers(2, 12)] * 2), other=st.tuples(*[st.integers(2, 12)] * 2))
def test_concat_grid_keeps_places_when_grids_differ(kit, grid, other):
    """The second tower's coordinates, resized, equal the first's wherever it has neighbours."""
    view = VIEW.make(1, height=120, width=180, scale_y=2.0, scale_x=1.5)[0]
    coordinates = kit.coordinate_map(view, grid)[..., :2]
    resized = resize_grid(kit.coordinate_map(view, other)[..., :2], grid)
    inside = [
        torch.arange(side) * 0 == 0 if side == o else _interior(side, o)
        for side, o in zip(grid, other, strict=True)
    ]
    keep = inside[0][:, None] & inside[1]
    # Upsampling is exact; an antialiasing filter sampled on few cells is off by a part of a cell.
    shrinks = grid[0] < other[0] or grid[1] < other[1]
    cell = max(120 / other[0] * 2.0, 180 / other[1] * 1.5)
    atol = 0.15 * cell if shrinks else 1e-2
    torch.testing.assert_close(resized[keep], coordinates[keep], rtol=0, atol=atol)


@pytest.mark.parametrize("size", [(84, 84), (84, 168)])
def test_concat_grid_on_a_coarser_grid_puts_tokens_where_its_map_says(kit, size):
    tower = kit.tower((84, 84))
    grid, target = (6, 6), (3, 3)
    table = AnyRes(AnyResConfig(), [tower]).view_table(*size)
    state, maps = kit.start(table, [tower])
    context = StageContext((4,), 4, grid, 4)
    config = ConcatGridConfig(grid=[3, 3])
    after = ConcatGrid.context_after(config, context)
    assert (after.grid, after.width) == (target, 4)
    maps = ConcatGrid.token_map(config, context, maps)
    result = ConcatGrid(config, context)(state)
    assert result.grids == [m.grid for m in maps] == [target] * len(maps)
    middle = 4  # the one cell whose filter reaches over no edge
    for tokens, view_map in zip(result.tokens, maps, strict=True):
        assert (tokens.shape, len(view_map.tokens)) == ((9, 4), 9)
        place = centres(view_map.tokens)[middle]
        torch.testing.assert_close(tokens[middle, :2] - kit.offset, place, rtol=0, atol=0.05)
    with pytest.raises(UsageError, match=r"concat-grid cannot enlarge a grid of 6x6 to 7x6"):
        ConcatGrid.context_after(ConcatGridConfig(grid=(7, 6)), context)
    with pytest.raises(ValueError, match=r"grid must be \[rows, cols\]"):
        ConcatGridConfig(grid=(3,))


def _interior(side, other):
    """Cells whose whole filter lies inside the other grid."""
    centre = (torch.arange(side) + 0.5) * other / side
    reach = max(other / side, 1.0)
    return (centre - reach >= 0) & (centre + reach <= other)


@pytest.mark.parametrize("prefix", [0, 6])
@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(*[st.integers(1, 9)] * 2),
    target=st.tuples(*[st.integers(1, 9)] * 2),
    size=st.tuples(*[st.integers(20, 600)] * 2),
)
def test_pool_puts_tokens_where_its_map_says(kit, prefix, grid, target, size):
    target = (min(target[0], grid[0]), min(target[1], grid[1]))
    tower = kit.tower((grid[0] * 14, grid[1] * 14))
    table = AnyRes(AnyResConfig(), [tower]).view_table(*size)
    state, maps = kit.start(table, [tower])
    context = StageContext((4,), 4, grid, 4)
    if prefix:
        free = FreeTokens(FreeTokensConfig(prefix), context).double()
        maps = FreeTokens.token_map(free.config, context, maps)
        state = free(state)
    config = PoolConfig(target)
    assert Pool.context_after(config, context).grid == target
    before = state.tokens
    state = Pool(config, context)(state)
    maps = Pool.token_map(config, context, maps)
    for tokens, old, view_map, grid_after in zip(
        state.tokens, before, maps, state.grids, strict=True
    ):
        assert grid_after == view_map.grid == target
        assert len(tokens) == len(view_map.tokens) == prefix + target[0] * target[1]
        assert torch.equal(tokens[:prefix], old[:prefix])
        assert (TOKEN.get(view_map.tokens[:prefix], "kind") == TokenKind.REGISTER).all()
        cells, values = view_map.tokens[prefix:], tokens[prefix:] - kit.offset
        torch.testing.assert_close(values[:, :2], centres(cells), rtol=0, atol=0.02)
        # stitched position: the window's mean fine position, rounded on the coarse grid
        for axis, name in enumerate(("row", "col")):
            coarse = (values[:, 2 + axis] + 0.5) * target[axis] / grid[axis] - 0.5
            assert ((coarse - TOKEN.get(cells, name)).abs() < 0.5).all()


def test_pool_equals_pytorch_and_batches_views_of_one_grid():
    tokens = [torch.randn(6 + 12, 5), torch.randn(6 + 12, 5), torch.randn(6 + 20, 5)]
    grids = [(3, 4), (3, 4), (4, 5)]
    pooled = Pool(PoolConfig((2, 2)), StageContext((5,), 5, (3, 4), 5))(state_of(tokens, grids))
    for new, old, grid in zip(pooled.tokens, tokens, grids, strict=True):
        maps = old[6:].T.reshape(1, 5, *grid)
        expected = nn.functional.adaptive_avg_pool2d(maps, (2, 2)).flatten(2)[0].T
        torch.testing.assert_close(new, torch.cat([old[:6], expected]))


def test_pool_refuses_what_it_cannot_do(kit):
    context = StageContext((4,), 4, (3, 3), 4)
    with pytest.raises(UsageError, match="cannot enlarge a grid of 3x3 to 4x3"):
        Pool.context_after(PoolConfig((4, 3)), context)
    with pytest.raises(UsageError, match="grid must be"):
        make_config(PoolConfig, {"grid": [0, 3]}, "pool")
    tower = kit.tower((42, 42))
    _, maps = kit.start(Pad(PadConfig(), [tower]).view_table(9, 9), [tower])
    shorter = [m.with_tokens(m.tokens[:5]) for m in maps]
    with pytest.raises(UsageError, match="5 tokens, too few"):
        Pool.token_map(PoolConfig((2, 2)), context, shorter)
    behind = [m.with_tokens(torch.cat([m.tokens, TOKEN.make(2)])) for m in maps]
    with pytest.raises(UsageError, match="before the stage that appends"):
        Pool.token_map(PoolConfig((2, 2)), context, behind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_scale_sets_the_magnitude_and_learns_it(dtype):
    stage = RmsScale(RmsScaleConfig(gain=0.136), StageContext((8,), 8, (2, 2), 8)).to(dtype)
    tokens = [(torch.randn(4, 8) * 37).to(dtype), (torch.randn(4, 8) * 0.01).to(dtype)]
    scaled = stage(state_of(tokens, [(2, 2)] * 2)).tokens
    for new, old in zip(scaled, tokens, strict=True):
        assert new.dtype == dtype
        rms = new.float().square().mean(-1).sqrt()
        torch.testing.assert_close(rms, torch.full((4,), 0.136), rtol=3e-2, atol=0)
        cosine = nn.functional.cosine_similarity(new.float(), old.float())
        assert (cosine > 0.999).all()
    torch.cat(scaled).float().square().sum().backward()
    assert stage.gain.grad.abs().item() > 0
    with pytest.raises(UsageError, match="must be positive"):
        make_config(RmsScaleConfig, {"gain": 0.0}, "rms-scale")


def test_free_tokens_are_the_same_for_every_picture():
    context = StageContext((8,), 8, (2, 2), 8)
    stage = FreeTokens(FreeTokensConfig(), context)
    tokens = [torch.randn(4, 8), torch.randn(4, 8)]
    first, second = stage(state_of(tokens, [(2, 2)] * 2)).tokens
    assert torch.equal(first[:6], second[:6])
    assert torch.equal(first[6:], tokens[0])
    (first + second).sum().backward()
    assert torch.equal(stage.embeddings.grad, torch.full((6, 8), 2.0))
