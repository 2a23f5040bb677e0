"""Grids of the released code, cut lines that differ, tiles that cover the picture exactly."""

from __future__ import annotations

import itertools
import json
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vistoken.core.errors import DataError, UsageError
from vistoken.core.parts import grid_token_map
from vistoken.core.registry import make_config
from vistoken.core.tables import TOKEN, VIEW, ViewKind
from vistoken.models.build import build
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.systems.mini_monkey.config import MsacConfig
from vistoken.systems.mini_monkey.grids import (
    ADAPTIVE,
    DETAILED,
    WHOLE,
    candidates,
    plan_tiles,
)
from vistoken.systems.mini_monkey.views import Msac

SIDE = (448, 448)
BUDGETS = [(4, 12, 3, 7), (1, 8, 1, 4), (14, 23, 5, 15), (5, 12, 2, 6)]
SIZES = st.integers(1, 3000)


def config_of(budget=(4, 12, 3, 7), **options):
    names = ("min_detailed", "max_detailed", "min_adaptive", "max_adaptive")
    return MsacConfig(**dict(zip(names, budget, strict=True)), **options)


def tiles_with_thumbnail(grid):
    """As the released code counts: a thumbnail behind every grid but one tile."""
    count = grid[0] * grid[1]
    return count + (count != 1)


def test_grids_of_the_release(golden):
    reference = json.loads((golden / "mini-monkey" / "msac_grids.json").read_text())
    tile = (reference["image_size"],) * 2
    checked = 0
    for case in reference["cases"]:
        budget = [case[name] for name in ("min1", "max1", "min2", "max2")]
        for row, rule in itertools.product(case["rows"], ("any", "all")):
            width, height = row["size"]
            plan = plan_tiles(height, width, tile, config_of(budget, adaptive=rule))
            assert plan.adaptive is not None
            wanted = row[f"adaptive_{rule}"]
            assert list(plan.detailed[::-1]) == row["detailed"]["grid"]
            assert list(plan.adaptive[::-1]) == wanted["grid"]
            assert tiles_with_thumbnail(plan.detailed) == row["detailed"]["tiles"]
            assert tiles_with_thumbnail(plan.adaptive) == wanted["tiles_incl_thumb"]
            checked += 1
    assert checked == 2 * sum(len(case["rows"]) for case in reference["cases"])


def test_grids_of_equal_area_go_by_columns():
    """Sizes of spec pitfall 1, which no reference table covers."""
    assert plan_tiles(800, 500, SIDE, config_of()).adaptive == (4, 1)
    assert plan_tiles(1280, 800, SIDE, config_of()).adaptive == (2, 2)
    assert candidates(3, 4) == [(3, 1), (1, 3), (4, 1), (2, 2), (1, 4)]


def test_cut_lines_differ_on_a_thousand_sizes():
    sizes = random.Random(5)
    for _ in range(1000):
        height, width = sizes.randint(1, 4000), sizes.randint(1, 4000)
        config = config_of(sizes.choice(BUDGETS))
        plan = plan_tiles(height, width, SIDE, config)
        assert plan.adaptive is not None
        if plan.no_grid_left:
            assert plan.adaptive == (1, 1)
            continue
        assert any(d % a for d, a in zip(plan.detailed, plan.adaptive, strict=True))
        cuts = [
            {Fraction(cut, side) for cut in range(1, side)}
            for side in (*plan.detailed, *plan.adaptive)
        ]
        assert not (cuts[2] <= cuts[0] and cuts[3] <= cuts[1])


def test_no_grid_left_is_one_tile_and_said():
    plan = plan_tiles(100, 100, SIDE, config_of((1, 1, 1, 1)))
    assert plan.adaptive == (1, 1)
    assert plan.no_grid_left
    plan = plan_tiles(448, 448, SIDE, config_of(adaptive="all"))
    assert plan.adaptive == (1, 1)
    assert plan.no_grid_left
    assert not plan_tiles(448, 448, SIDE, config_of()).no_grid_left


@settings(max_examples=30, deadline=None)
@given(
    height=SIZES,
    width=SIZES,
    budget=st.sampled_from(BUDGETS),
    rule=st.sampled_from(["any", "all", "none"]),
    order=st.sampled_from(["detailed", "adaptive"]),
)
def test_spans_add_up_and_orders_differ_by_a_permutation(kit, height, width, budget, rule, order):
    def tiles_in(order):
        config = config_of(budget, adaptive=rule, order=order)
        table = Msac(config, [kit.tower(SIDE)]).view_table(height, width)
        columns = [VIEW.get(table, name).tolist() for name in ("group", "rows", "row", "col")]
        return list(zip(*columns, strict=True))

    plan = plan_tiles(height, width, SIDE, config_of(budget, adaptive=rule))
    tiles = tiles_in(order)
    groups = [tile[0] for tile in tiles]
    assert {group: groups.count(group) for group in (DETAILED, ADAPTIVE, WHOLE)} == plan.spans
    assert sum(plan.spans.values()) == len(tiles)
    wanted = [DETAILED, ADAPTIVE, WHOLE] if order == "detailed" else [ADAPTIVE, DETAILED, WHOLE]
    assert [key for key, _ in itertools.groupby(groups)] == [g for g in wanted if plan.spans[g]]
    other = tiles_in("adaptive" if order == "detailed" else "detailed")
    there = [other.index(tile) for tile in tiles]
    assert [other[place] for place in there] == tiles  # exact, and no tile twice
    assert sorted(there) == list(range(len(tiles)))
    assert (plan.spans[WHOLE] == 0) == (plan.detailed == (1, 1))


@settings(max_examples=15, deadline=None)
@given(height=SIZES, width=SIZES, order=st.sampled_from(["detailed", "adaptive"]))
def test_every_place_is_in_one_tile_of_each_tiling(kit, height, width, order):
    views = Msac(config_of(order=order), [kit.tower(SIDE)])
    table = views.view_table(height, width)
    VIEW.check(table)
    for group in (DETAILED, ADAPTIVE):
        rows = table[VIEW.get(table, "group") == group]
        edges = {"y": set(), "x": set()}
        area = 0.0
        for row in rows:
            v = {name: VIEW.get(row, name).item() for name in VIEW.columns}
            top, left = v["shift_y"], v["shift_x"]
            bottom = top + v["scale_y"] * v["height"]
            right = left + v["scale_x"] * v["width"]
            edges["y"] |= {round(top, 1), round(bottom, 1)}
            edges["x"] |= {round(left, 1), round(right, 1)}
            area += (bottom - top) * (right - left)
        grid = (int(VIEW.get(rows[0], "rows")), int(VIEW.get(rows[0], "cols")))
        assert len(rows) == grid[0] * grid[1]
        assert len({(int(VIEW.get(r, "row")), int(VIEW.get(r, "col"))) for r in rows}) == len(rows)
        assert max(edges["y"]) == pytest.approx(height, abs=0.11)
        assert max(edges["x"]) == pytest.approx(width, abs=0.11)
        assert area == pytest.approx(height * width, rel=0.01)


@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 200), width=st.integers(1, 200), budget=st.sampled_from(BUDGETS[:2]))
def test_tiles_reassemble_to_the_stretched_picture(kit, height, width, budget):
    """Pixels of the tiles, put together again, are those of the picture resized in one go."""
    noise = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    tower = kit.tower((28, 21), stride=7)
    views = Msac(config_of(budget), [tower])
    pixels, table = views.pixels(image), views.view_table(height, width)
    assert len(pixels) == len(table)
    mean, std = (torch.tensor(v)[:, None, None] for v in (kit.mean, kit.std))
    for group in (DETAILED, ADAPTIVE, WHOLE):
        members = torch.nonzero(VIEW.get(table, "group") == group).flatten().tolist()
        if not members:
            continue
        rows, cols = (int(VIEW.get(table[members[0]], name)) for name in ("rows", "cols"))
        size = (cols * 21, rows * 28)
        whole = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        expected = (torch.from_numpy(np.array(whole)).permute(2, 0, 1) / 255 - mean) / std
        joined = torch.cat(
            [
                torch.cat([pixels[members[r * cols + c]] for c in range(cols)], 2)
                for r in range(rows)
            ],
            1,
        )
        torch.testing.assert_close(joined, expected)


@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), towers=st.sampled_from([1, 2]))
def test_table_predicts_pixels(kit, height, width, towers):
    inputs = [kit.tower((28, 28)), kit.tower((42, 35), stride=7, fit="stretch", name="b")][:towers]
    views = Msac(config_of(), inputs)
    table = views.view_table(height, width)
    VIEW.check(table)
    pixels = views.pixels(Image.new("RGB", (width, height), (200, 100, 50)))
    sizes = torch.stack([VIEW.get(table, "height"), VIEW.get(table, "width")], -1).tolist()
    assert [list(p.shape) for p in pixels] == [[3, *size] for size in sizes]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in pixels)
    count = torch.arange(len(table))
    assert torch.equal(VIEW.get(table, "index"), count)
    assert torch.equal(VIEW.get(table, "source"), count)
    assert torch.equal(VIEW.get(table, "tower"), count % towers)
    whole = VIEW.get(table, "kind") == ViewKind.GLOBAL
    assert torch.equal(whole, VIEW.get(table, "group") == WHOLE)


@pytest.mark.parametrize("size", [(170, 230), (260, 140)])
def test_pixels_come_from_where_the_table_says(kit, size):
    """Colours that encode positions: each cell's colour is the middle of its map rectangle."""
    height, width = size
    y = np.broadcast_to((np.arange(height)[:, None] + 0.5) / height, size)
    x = np.broadcast_to((np.arange(width) + 0.5) / width, size)
    picture = np.round(np.stack([y, x, np.full(size, 0.5)], -1) * 255).astype(np.uint8)
    views = Msac(config_of(), [kit.tower((56, 42))])
    mean, std = torch.tensor(kit.mean), torch.tensor(kit.std)
    table = views.view_table(*size)
    seen = set()
    for row, pixels in zip(table, views.pixels(Image.fromarray(picture)), strict=True):
        colour = pixels.permute(1, 2, 0) * std + mean
        for token in grid_token_map(row, (8, 6)):
            t = {name: TOKEN.get(token, name).item() for name in TOKEN.columns}
            r, c = (
                t["row"] - VIEW.get(row, "row").item() * 8,
                t["col"] - VIEW.get(row, "col").item() * 6,
            )
            cell = colour[7 * r : 7 * r + 7, 7 * c : 7 * c + 7].mean((0, 1))
            assert abs(cell[0] * height - (t["top"] + t["bottom"]) / 2) < 0.012 * height
            assert abs(cell[1] * width - (t["left"] + t["right"]) / 2) < 0.012 * width
            seen.add(t["group"])
    assert seen == {DETAILED, ADAPTIVE, WHOLE}


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000), (3000, 2500)])
def test_needles_and_huge_pictures(kit, size):
    views = Msac(config_of(), [kit.tower((28, 28))])
    pixels = views.pixels(Image.new("RGB", size[::-1], (255, 0, 0)))
    assert len(pixels) == len(views.view_table(*size))
    assert all(p.isfinite().all() for p in pixels)


def test_tiles_of_other_shapes_follow_the_pictures_shape(kit):
    """Two tiles of 448 x 224 side by side are square."""
    assert plan_tiles(500, 500, (448, 224), config_of((2, 2, 1, 1))).detailed == (1, 2)
    assert plan_tiles(500, 500, (224, 448), config_of((2, 2, 1, 1))).detailed == (2, 1)
    views = Msac(config_of(), [kit.tower((56, 28))])
    for picture in (Image.new("RGB", (90, 300)), Image.new("RGB", (300, 90))):
        assert {tuple(p.shape) for p in views.pixels(picture)} == {(3, 56, 28)}


@settings(max_examples=30, deadline=None)
@given(height=SIZES, width=SIZES, budget=st.sampled_from(BUDGETS))
def test_no_upscale_makes_no_grid_larger_than_the_picture_fills(height, width, budget):
    config = config_of(budget, no_upscale=True)
    plan = plan_tiles(height, width, SIDE, config)
    assert plan.adaptive is not None
    for rows, cols in (plan.detailed, plan.adaptive):
        assert rows <= -(-height // 448)
        assert cols <= -(-width // 448)
    assert plan.spans[DETAILED] <= config.max_detailed


def test_small_pictures_stay_one_tile_without_upscale():
    assert plan_tiles(100, 100, SIDE, config_of(no_upscale=True)).spans == {1: 1, 2: 1, 0: 0}
    assert plan_tiles(100, 100, SIDE, config_of()).detailed == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_detailed": 13}, r"min_detailed 13 is more than max_detailed 12"),
        ({"max_adaptive": 0}, r"max_adaptive must be a whole number of at least 1, got 0"),
        ({"min_adaptive": 8}, r"min_adaptive 8 is more than max_adaptive 7"),
        ({"adaptive": "some"}, r"adaptive must be one of any, all, none, got 'some'"),
        ({"order": "demo"}, r"order must be one of detailed, adaptive, got 'demo'"),
        ({"max": 3}, r"has no option 'max'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UsageError, match=message):
        make_config(MsacConfig, options, "views part 'msac'")


def test_an_empty_picture_is_refused():
    with pytest.raises(DataError, match="a picture of 0x5 pixels shows nothing"):
        plan_tiles(0, 5, SIDE, config_of())


def test_spatial_tokens_on_every_tile():
    """LLaVA-SP composes with these views: its tokens stand in front of each tile's."""
    values = load_recipe("pico").model_dump(exclude_none=True)
    values |= {"views": {"part": "msac", "options": {"max_detailed": 4}}}
    model, processor = build(parse_recipe(values, "msac"))
    image = Image.new("RGB", (90, 60), (10, 200, 30))
    inputs = processor(images=[image], text="<image> what?", return_tensors="pt")
    predicted = processor.image_processor.token_map(60, 90)
    tiles = len(processor.image_processor.view_table(60, 90))
    assert len(predicted) == tiles * (2 + 16)
    features = model.get_image_features(inputs["pixel_values"], inputs["view_table"])
    assert features.pooler_output[0].shape == (len(predicted), 32)
    made = TOKEN.set(features.token_map[0], media=-1)
    assert torch.equal(made, TOKEN.set(predicted, media=-1))
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_two_projections_are_refused():
    values = load_recipe("pico").model_dump(exclude_none=True)
    values |= {"views": "msac", "connector": [*values["connector"], "pixel-shuffle"]}
    with pytest.raises(UsageError, match="with one project stage; got project -> project"):
        build(parse_recipe(values, "msac"))
