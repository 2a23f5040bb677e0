"""Layouts plain and anyres-unpad: order, newlines, and places of tokens on the original."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from vistoken.core.errors import UsageError
from vistoken.core.parts import ConnectorState, StageContext
from vistoken.core.tables import TOKEN, VIEW, TokenKind, rectangles
from vistoken.systems.llava.config import (
    AnyResConfig,
    AnyResUnpadConfig,
    ConcatGridConfig,
    FreeTokensConfig,
    MlpConfig,
    PadConfig,
    PlainConfig,
    PoolConfig,
    SquareConfig,
)
from vistoken.systems.llava.layouts import AnyResUnpad, Plain, unpadded_range
from vistoken.systems.llava.stages import ConcatGrid, FreeTokens, Mlp, Pool
from vistoken.systems.llava.views import AnyRes, Pad, Square

LAYOUTS = {"plain": (Plain, PlainConfig()), "anyres-unpad": (AnyResUnpad, AnyResUnpadConfig())}
VIEWS = {
    "pad": (Pad, PadConfig()),
    "square": (Square, SquareConfig()),
    "anyres": (AnyRes, AnyResConfig()),
}


def test_unpadded_grids_equal_the_released_code(golden, kit):
    cases = json.loads((golden / "llava-training/anyres_sizing.json").read_text())["unpad"]
    tower = kit.tower((336, 336))
    for case in cases:
        width, height = case["size"]
        top, left, bottom, right = unpadded_range((height, width), case["feature_hw_before"])
        assert [bottom - top, right - left] == case["after"]
        table = AnyRes(AnyResConfig(), [tower]).view_table(height, width)
        _, maps = kit.start(table, [tower])
        order, token_map = AnyResUnpad.arrange(AnyResUnpadConfig(), table, maps)
        assert len(order) == len(token_map) == case["tokens_with_newline"]


def test_tokens_equal_the_released_splice(golden, kit):
    """Toy tower, projector and newline of the reference case, through our parts."""
    tensors = load_file(golden / "llava-training/splice.safetensors")
    cases = json.loads((golden / "llava-training/splice.json").read_text())["cases"]
    case = next(c for c in cases if c["name"] == "anyres_unpad")
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    tower = kit.tower((16, 16), stride=4)
    grids = [[h // 16, w // 16] for w, h in case["config"]["image_grid_pinpoints"]]
    views = AnyRes(AnyResConfig(grids), [tower])
    context = StageContext((10,), 10, (4, 4), 12)
    mlp = Mlp(MlpConfig(), context)
    mlp.load_state_dict(
        {
            f"linear_{ours}.{kind}": weights[f"mm_projector.{theirs}.{kind}"]
            for ours, theirs in ((1, 0), (2, 2))
            for kind in ("weight", "bias")
        }
    )
    layout = AnyResUnpad(AnyResUnpadConfig(), 12)
    layout.load_state_dict({"image_newline": weights["image_newline"]})
    for number, (width, height) in enumerate(case["image_sizes_wh"]):
        tiles = tensors[f"anyres_unpad.image{number}"]
        table = views.view_table(height, width)
        assert len(table) == len(tiles)
        patches = nn.functional.unfold(tiles, 4, stride=4).transpose(1, 2)
        features = patches @ weights["tower.w.weight"].T + weights["tower.w.bias"]
        _, maps = kit.start(table, [tower])
        state = ConnectorState(table, list(range(len(table))), [])
        state.tokens, state.grids = list(features), [(4, 4)] * len(table)
        order, _ = AnyResUnpad.arrange(
            layout.config, table, Mlp.token_map(mlp.config, context, maps)
        )
        rows = layout(order, mlp(state).tokens)
        ids = tensors["anyres_unpad.input_ids"][number]
        start = int((ids == -200).nonzero())
        expected = tensors["anyres_unpad.out.inputs_embeds"][number][start : start + len(rows)]
        torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5)
        total = int(tensors["anyres_unpad.out.attention_mask"][number].sum())
        assert total == len(rows) + int((ids != 0).sum()) - 1


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 900)] * 2),
    grid=st.tuples(*[st.integers(1, 6)] * 2),
    pool=st.none() | st.tuples(*[st.integers(1, 6)] * 2),
    free=st.booleans(),
    towers=st.sampled_from([1, 2]),
)
def test_rows_come_out_where_the_map_says(kit, views, layout, size, grid, pool, free, towers):
    """Predicted rows = produced rows, and each row's own coordinates match its map row."""
    tower = kit.tower((grid[0] * 14, grid[1] * 14))
    inputs = [tower, kit.tower((grid[0] * 7, grid[1] * 7), stride=7, name="b")][:towers]
    view_part, view_config = VIEWS[views]
    table = view_part(view_config, inputs).view_table(*size)
    state, maps = kit.start(table, inputs)
    context = StageContext((4,) * towers, 4, grid, 4)
    chain = [(ConcatGrid, ConcatGridConfig())] if towers > 1 else []
    chain.append((Mlp, MlpConfig(4)))
    if pool:
        target = (min(pool[0], grid[0]), min(pool[1], grid[1]))
        chain.append((Pool, PoolConfig(target)))
    if free:
        chain.append((FreeTokens, FreeTokensConfig(3)))
    for part, config in chain:
        maps = part.token_map(config, context, maps)
        stage = part(config, context).double()
        if part is Mlp:
            _make_transparent(stage)
        context = part.context_after(config, context)
        state = stage(state)
    layout_part, layout_config = LAYOUTS[layout]
    module = layout_part(layout_config, 4).double()
    order, token_map = layout_part.arrange(layout_config, table, maps)
    TOKEN.check(token_map)
    rows = module(order, state.tokens)
    assert len(rows) == len(token_map) == len(order)

    kind = TOKEN.get(token_map, "kind")
    seen = kind == TokenKind.VISUAL
    boxes = rectangles(token_map)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    torch.testing.assert_close(rows[seen, :2] - kit.offset, centre[seen], rtol=0, atol=0.05)
    if not pool:
        place = torch.stack([TOKEN.get(token_map, c) for c in ("row", "col")], -1).double()
        torch.testing.assert_close(rows[seen, 2:] - kit.offset, place[seen], rtol=0, atol=1e-6)
    newline = kind == TokenKind.NEWLINE
    assert (order < 0).equal(newline)
    assert int((kind == TokenKind.REGISTER).sum()) == (3 * len(maps) if free else 0)
    # every token at most once, and a first token of each view before its second
    used = order[order >= 0]
    assert len(used.unique()) == len(used)
    if layout == "plain":
        assert torch.equal(order, torch.arange(sum(len(m.tokens) for m in maps)))
        return
    assert torch.equal(rows[newline], module.image_newline.expand(int(newline.sum()), -1))
    _check_unpadded(kit, table, token_map, size, views == "anyres")


def _make_transparent(mlp):
    with torch.no_grad():
        for linear in (mlp.linear_1, mlp.linear_2):
            linear.weight.copy_(torch.eye(4, linear.in_features))
            linear.bias.zero_()


def _check_unpadded(kit, table, token_map, size, tiled):
    """Registers first, base grid next, then rows of equal length, each closed by a newline."""
    kind = TOKEN.get(token_map, "kind")
    registers = int((kind == TokenKind.REGISTER).sum())
    assert (kind[:registers] == TokenKind.REGISTER).all()
    newlines = torch.nonzero(kind == TokenKind.NEWLINE).flatten().tolist()
    assert newlines
    assert newlines[-1] == len(token_map) - 1
    if not tiled:
        assert len(newlines) == 1
        return
    group = TOKEN.get(token_map, "group")
    first = int(torch.nonzero((group == 1) & (kind == TokenKind.VISUAL))[0])
    assert (group[registers:first] == 0).all()
    lengths = torch.tensor(newlines).diff(prepend=torch.tensor([first - 1]))
    assert (lengths == lengths[0]).all()
    row, col = TOKEN.get(token_map, "row"), TOKEN.get(token_map, "col")
    for end in newlines:
        line = slice(end - int(lengths[0]) + 1, end)
        assert (row[line] == row[end]).all()
        assert (col[line].diff() == 1).all()
    assert (row[newlines].diff() == 1).all()


def test_unpadding_keeps_the_picture_and_cuts_the_padding(kit):
    """Cells in the picture stay; cells wholly in padding go (up to one row of rounding)."""
    tower = kit.tower((56, 56), stride=7)
    table = AnyRes(AnyResConfig(), [tower]).view_table(100, 240)
    _, maps = kit.start(table, [tower])
    _, token_map = AnyResUnpad.arrange(AnyResUnpadConfig(), table, maps)
    tiles = token_map[(TOKEN.get(token_map, "group") == 1) & (TOKEN.get(token_map, "row") >= 0)]
    tiles = tiles[TOKEN.get(tiles, "kind") == TokenKind.VISUAL]
    boxes = rectangles(tiles)
    cell = boxes[0, 2] - boxes[0, 0]
    assert boxes[:, 0].min() > -cell
    assert boxes[:, 2].max() < 100 + cell
    assert boxes[:, 0].min() <= 0
    assert boxes[:, 2].max() >= 100
    assert boxes[:, 1].min() <= 0
    assert boxes[:, 3].max() >= 240


@pytest.mark.parametrize("original", [(1, 5000), (5000, 1), (1, 1)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 4), (3, 2), (24, 72)])
def test_something_always_remains(original, grid):
    top, left, bottom, right = unpadded_range(original, grid)
    assert 0 <= top < bottom <= grid[0]
    assert 0 <= left < right <= grid[1]


def test_newline_is_learned_and_named(kit):
    layout = AnyResUnpad(AnyResUnpadConfig(), 4096)
    assert set(layout.state_dict()) == {"image_newline"}
    assert layout.image_newline.std().item() == pytest.approx(4096**-0.5, rel=0.1)
    tower = kit.tower((28, 28))
    table = Pad(PadConfig(), [tower]).view_table(10, 20)
    _, maps = kit.start(table, [tower])
    order, token_map = AnyResUnpad.arrange(layout.config, table, maps)
    assert order.tolist() == [0, 1, 2, 3, -1]
    assert TOKEN.get(token_map, "learned").tolist() == [-1, -1, -1, -1, 0]
    layout(order, [torch.zeros(4, 4096)]).sum().backward()
    assert torch.equal(layout.image_newline.grad, torch.ones(4096))


def test_a_connector_without_a_grid_is_refused(kit):
    tower = kit.tower((28, 28))
    table = AnyRes(AnyResConfig(), [tower]).view_table(100, 100)
    _, maps = kit.start(table, [tower])
    fewer = [m.with_tokens(m.tokens[:-1]) for m in maps]
    with pytest.raises(UsageError, match="one token per cell"):
        AnyResUnpad.arrange(AnyResUnpadConfig(), table, fewer)
    assert len(VIEW.rows(table)) == len(maps)
