"""Views uhd-slices: grids and sizes as released, tables that say where the pixels come from."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vistoken.core.errors import DataError, UsageError
from vistoken.core.registry import make_config
from vistoken.core.tables import VIEW, ViewKind
from vistoken.systems.llava_uhd.config import UhdSlicesConfig
from vistoken.systems.llava_uhd.slicing import plan_slices
from vistoken.systems.llava_uhd.views import UhdSlices

SIDES = st.integers(1, 900)
R = {"side": 336, "patch": 14, "max_slices": 7}


def views_of(kit, *towers, **options):
    return UhdSlices(UhdSlicesConfig(**options), towers or (kit.tower((56, 56)),))


def test_grids_and_sizes_equal_the_released_code(case):
    cases = case("slicing_table")[0]["cases"]
    assert sum(len(c["rows"]) for c in cases) > 30
    for group in cases:
        for row in group["rows"]:
            width, height = row["size"]
            plan = plan_slices(
                height,
                width,
                side=group["scale_resolution"],
                patch=group["patch_size"],
                max_slices=group["max_slice_nums"],
            )
            assert list(plan.overview[::-1]) == row["source"], row
            if row["grid"] is None:
                assert plan.grid is None
                continue
            assert plan.grid is not None
            assert list(plan.grid[::-1]) == row["grid"], row
            assert plan.grid[0] * plan.grid[1] == row["n_slices"]
            assert list(plan.slice_size[::-1]) == row["slice"], row


def test_pixels_equal_the_released_code(case, kit):
    meta, tensors = case("slicing_pixels_3x2")
    options = {
        "scale_resolution": meta["scale_resolution"],
        "max_slices": meta["max_slice_nums"],
    }
    views = views_of(kit, **options).pixels(Image.fromarray(tensors["in.image"].numpy()))
    expected = [tensors["out.source"], *tensors["out.slices"]]
    mean, std = (torch.tensor(v)[:, None, None] for v in (kit.mean, kit.std))
    for view, levels in zip(views, expected, strict=True):
        grey = ((view * std + mean) * 255).permute(1, 2, 0)
        assert (grey - levels).abs().max() < 1.01  # one grey level between versions of PIL


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    most=st.integers(1, 16),
    patch=st.sampled_from([14, 16]),
)
def test_sides_are_whole_patches_and_transposed_pictures_have_transposed_grids(
    height, width, most, patch
):
    assume(max(height, width) <= 100 * min(height, width))
    plan = plan_slices(height, width, side=336, patch=patch, max_slices=most)
    for size in (plan.overview, plan.slice_size):
        assert size[0] % patch == size[1] % patch == 0
    if plan.grid is None:
        assert most == 1 or height * width <= 336**2
        return
    assert 2 <= plan.grid[0] * plan.grid[1] <= most
    if height != width:
        turned = plan_slices(width, height, side=336, patch=patch, max_slices=most).grid
        assert turned == plan.grid[::-1]


def test_grids_of_four_thousand_sizes_turn_with_the_picture():
    sizes = random.Random(7)
    sliced = 0
    for _ in range(4000):
        height, width = sizes.randint(100, 3000), sizes.randint(100, 3000)
        if height == width:
            continue  # a tie, decided by rounding
        grid, turned = plan_slices(height, width, **R).grid, plan_slices(width, height, **R).grid
        assert (grid is None) == (turned is None)
        if grid is not None and turned is not None:
            assert turned == grid[::-1], (height, width)
            sliced += 1
    assert sliced > 3500


def test_equal_scores_are_told_apart_by_rounding_as_released():
    assert plan_slices(1008, 1008, **R).grid == (2, 3)
    assert plan_slices(337, 336, **R).grid == (2, 1)
    wide = plan_slices(1000, 1000, **R, encoder_aspect=6.0)
    assert wide.grid is not None
    assert wide.grid[0] > wide.grid[1]  # wide slices lie one above the other


@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES, towers=st.sampled_from([1, 2]), most=st.sampled_from([1, 3, 7]))
def test_table_predicts_pixels(kit, height, width, towers, most):
    assume(1 < max(height, width) <= 100 * min(height, width))
    inputs = [kit.tower((56, 56)), kit.tower((35, 40), stride=5, fit="stretch", name="b")][:towers]
    views = views_of(kit, *inputs, max_slices=most)
    table = views.view_table(height, width)
    VIEW.check(table)
    pixels = views.pixels(Image.new("RGB", (width, height), (200, 100, 50)))
    sizes = torch.stack([VIEW.get(table, "height"), VIEW.get(table, "width")], -1).tolist()
    assert [list(p.shape) for p in pixels] == [[3, *size] for size in sizes]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in pixels)
    count = torch.arange(len(table))
    assert torch.equal(VIEW.get(table, "index"), count)
    assert torch.equal(VIEW.get(table, "tower"), count % towers)
    slices = table[(VIEW.get(table, "kind") == ViewKind.SLICE) & (VIEW.get(table, "tower") == 0)]
    assert len(slices) <= most
    if len(slices):
        rows, cols = int(VIEW.get(slices, "rows")[0]), int(VIEW.get(slices, "cols")[0])
        places = torch.stack([VIEW.get(slices, c) for c in ("row", "col")], -1).tolist()
        assert places == [[row, col] for row in range(rows) for col in range(cols)]
        assert len({tuple(s) for s in sizes[towers::towers]}) == 1
    for first, second in zip(table[::towers], table[towers - 1 :: towers], strict=True):
        grids = [
            i.grid_of(int(VIEW.get(v, "height")), int(VIEW.get(v, "width")))
            for i, v in ((inputs[0], first), (inputs[-1], second))
        ]
        assert grids[0] == grids[1]


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(60, 500), width=st.integers(60, 500), longest=st.sampled_from([None, 300])
)
def test_pixels_come_from_where_the_table_says(kit, height, width, longest):
    """Colours that encode positions: each patch's mean colour is its place in the original."""
    y = np.broadcast_to((np.arange(height)[:, None] + 0.5) / height, (height, width))
    x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    levels = np.round(np.stack([y, x, np.full((height, width), 0.5)], -1) * 255)
    views = views_of(kit, longest_side=longest)
    mean, std = torch.tensor(kit.mean), torch.tensor(kit.std)
    table = views.view_table(height, width)
    for row, pixels in zip(
        table, views.pixels(Image.fromarray(levels.astype(np.uint8))), strict=True
    ):
        v = {name: VIEW.get(row, name).item() for name in VIEW.columns}
        colour = (pixels.permute(1, 2, 0) * std + mean)[..., :2]
        seen = colour.unfold(0, 14, 14).unfold(1, 14, 14).mean((-1, -2))
        grid = seen.shape[:2]
        top = v["scale_y"] * (torch.arange(grid[0]) + 0.5) * 14 + v["shift_y"]
        left = v["scale_x"] * (torch.arange(grid[1]) + 0.5) * 14 + v["shift_x"]
        place = torch.stack(
            [(top / height)[:, None].expand(grid), (left / width)[None].expand(grid)], -1
        )
        assert (seen - place).abs().max() < 0.04  # bicubic filters bend gradients at an edge
        assert v["orig_height"] == height


def test_normalised_levels_are_those_of_the_towers_own_processor(kit):
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    image = Image.fromarray(levels).resize((56, 56), Image.Resampling.NEAREST)
    ours = views_of(kit).pixels(image)[0]
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(ours, theirs)


def test_overview_only_keeps_the_overview_of_the_full_set(kit):
    whole = views_of(kit).view_table(150, 90)
    alone = views_of(kit, overview_only=True).view_table(150, 90)
    assert len(whole) > len(alone) == 1
    assert torch.equal(whole[:1], alone)
    assert len(views_of(kit, max_slices=1).view_table(150, 90)) == 1


def test_the_longest_side_is_set_before_slicing(kit):
    tower = kit.tower((336, 336))
    small = views_of(kit, tower, longest_side=1024)
    assert len(small.view_table(48, 64)) == len(views_of(kit, tower).view_table(768, 1024)) == 7
    assert len(views_of(kit, tower).view_table(48, 64)) == 1
    table = small.view_table(48, 64)
    assert VIEW.get(table, "orig_width").tolist() == [64] * 7
    end = VIEW.get(table[-1], "scale_x") * VIEW.get(table[-1], "width") + VIEW.get(
        table[-1], "shift_x"
    )
    assert end.item() == pytest.approx(64, abs=0.01)


def test_a_tower_that_is_not_square_gives_the_area(kit):
    views = views_of(kit, kit.tower((28, 112)))  # the area of 56x56
    square = views_of(kit)
    for size in ((56, 56), (200, 90), (40, 300)):
        assert torch.equal(views.view_table(*size), square.view_table(*size))


def test_huge_pictures_stay_within_the_limit(kit):
    table = views_of(kit, kit.tower((336, 336))).view_table(30_000, 20_000)
    assert len(table) <= 8
    area = VIEW.get(table, "height") * VIEW.get(table, "width")
    assert int(area.max()) <= 336**2


@pytest.mark.parametrize("size", [(10, 20_000), (20_000, 10), (1, 101)])
def test_needles_are_refused_by_name(kit, size):
    with pytest.raises(DataError, match=r"max_aspect 100 of uhd-slices; cut it"):
        views_of(kit).view_table(*size)
    wider = views_of(kit, max_aspect=2000)
    assert len(wider.pixels(Image.new("RGB", size[::-1]))) == len(wider.view_table(*size))


@pytest.mark.parametrize("size", [(1, 1), (0, 10), (10, 0)])
def test_pictures_of_nothing_are_refused(kit, size):
    with pytest.raises(DataError, match="shows nothing"):
        views_of(kit).view_table(*size)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_slices": 0}, "max_slices must be"),
        ({"longest_side": 1.5}, "longest_side must be"),
        ({"encoder_aspect": 0}, "encoder_aspect must be"),
        ({"max_aspect": 0.5}, "max_aspect must be"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        make_config(UhdSlicesConfig, options, "views part 'uhd-slices'")
