"""Stage uhd-resampler: the released numbers, regions that see their own place and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vistoken.core.errors import UsageError
from vistoken.core.parts import StageContext
from vistoken.core.registry import make_config
from vistoken.systems.llava_uhd.config import UhdResamplerConfig
from vistoken.systems.llava_uhd.regions import region_weights, sample_regions, sample_shape
from vistoken.systems.llava_uhd.resampler import UhdResampler, grid_positions

GRIDS = st.tuples(st.integers(1, 40), st.integers(1, 40))


def stage_of(grid=4, width=32, channels=24, **options):
    torch.manual_seed(0)
    context = StageContext((channels,), channels, (4, 4), width)
    return UhdResampler(UhdResamplerConfig(grid, **options), context)


@pytest.mark.parametrize("name", ["spatial_resampler_g4", "spatial_resampler_g12"])
def test_tokens_equal_the_released_code(case, name):
    meta, tensors = case(name)
    stage = stage_of(
        meta["grid_size"],
        meta["embed_dim"],
        meta["kv_dim"],
        heads=meta["num_heads"],
        compat="official",
    )
    weights = {k.removeprefix("w."): v for k, v in tensors.items() if k.startswith("w.")}
    assert torch.equal(stage.pos_embed, weights["pos_embed"])
    stage.load_state_dict(weights)
    for number, size in enumerate(meta["sizes"]):
        grid = (size["h"], size["w"])
        assert list(sample_shape(grid)) == size["pool_hw"]
        tokens = stage.compress(tensors[f"in.features_{number}"], grid)
        expected = tensors[f"out.tokens_{number}"]
        torch.testing.assert_close(tokens, expected, rtol=0, atol=meta["tolerance"])


def test_fixed_differs_from_official(case):
    _, tensors = case("spatial_resampler_g4")
    official, fixed = stage_of(compat="official"), stage_of(compat="fixed")
    x = tensors["in.features_0"]
    assert (official.compress(x, (8, 8)) - fixed.compress(x, (8, 8))).abs().max() > 1e-3


def bilinear(row, y):
    """One row of samples read at y, as the specification of RoI alignment says."""
    length = len(row)
    if y < -1 or y > length:
        return 0.0
    y = min(max(y, 0.0), length - 1.0)
    low = math.floor(y)
    high = min(low + 1, length - 1)
    return row[low] * (1 - (y - low)) + row[high] * (y - low)


@settings(max_examples=60, deadline=None)
@given(grid=GRIDS, queries=st.sampled_from([1, 3, 4, 12]))
def test_official_samples_follow_the_written_rule(grid, queries):
    """Plain loops over points, with regions under one patch raised to one."""
    shape = sample_shape(grid)
    height = math.sqrt((grid[0] * grid[1] / queries**2) / (grid[1] / grid[0]))
    by_row, _ = region_weights(grid, queries, shape, "official")
    row = [math.sin(3 * i + 1) for i in range(grid[0])]
    seen = (by_row.double() @ torch.tensor(row, dtype=torch.float64)).tolist()
    for region in range(queries):
        size = max(height, 1.0)
        step = size / shape[0]
        for sample in range(shape[0]):
            start = region * height + sample * step
            count = math.ceil(step - 1e-6)  # the kernels count in float32
            points = [start + (m + 0.5) * step / count for m in range(count)]
            # a point within rounding of the far border may fall on either side of it
            if any(abs(p - grid[0]) < 1e-4 for p in points):
                continue
            wanted = sum(bilinear(row, p) for p in points) / count
            if abs(step - round(step)) < 1e-5 and step > 0.5:
                continue  # rounding decides the number of points
            assert seen[region * shape[0] + sample] == pytest.approx(wanted, abs=1e-4)


def test_thin_maps_widen_their_regions():
    """9 patches under 12 queries: regions of 0.75 patches read a whole one."""
    shape = sample_shape((9, 58))
    official, _ = region_weights((9, 58), 12, shape, "official")
    fixed, _ = region_weights((9, 58), 12, shape, "fixed")
    assert shape == (2, 4)
    # region 0: points 0.25 and 0.75 instead of 0.1875 and 0.5625
    assert official[:2, :2].tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert fixed[0].tolist() == [1.0] + [0.0] * 8  # at -0.3125, held at the first patch
    stage = stage_of(12, 16, 8, compat="official")
    tokens = stage.compress(torch.randn(1, 9 * 58, 8), (9, 58))
    assert tokens.shape == (1, 144, 16)
    assert tokens.isfinite().all()


def test_points_beyond_the_border_count_as_zero():
    """One patch under 4 queries: region r is widened to [r / 4, r / 4 + 1], read at 3 points."""
    by_row, _ = region_weights((1, 1), 4, sample_shape((1, 1)), "official")
    assert by_row.shape == (12, 1)
    inside = by_row.view(4, 3).tolist()
    assert inside[0] == [1.0, 1.0, 1.0]
    assert inside[1] == [1.0, 1.0, 0.0]
    assert inside[2][::2] == [1.0, 0.0]  # the middle point is the border itself
    assert inside[3] == [1.0, 0.0, 0.0]


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS, compat=st.sampled_from(["official", "fixed"]))
def test_any_view_gives_the_same_number_of_tokens(grid, compat):
    stage = stage_of(3, 8, 4, compat=compat)
    tokens = stage.compress(torch.randn(2, grid[0] * grid[1], 4), grid)
    assert tokens.shape == (2, 9, 8)
    assert tokens.isfinite().all()


@pytest.mark.parametrize("compat", ["official", "fixed"])
@pytest.mark.parametrize("grid", [(16, 20), (13, 24)])
def test_a_query_sees_its_own_region_only(grid, compat):
    stage = stage_of(3, 8, 4, compat=compat)
    features = torch.randn(1, grid[0] * grid[1], 4)
    before = stage.compress(features, grid)
    shift = 0.0 if compat == "official" else 0.5
    for row in range(3):
        for col in range(3):
            changed = features.clone().view(1, *grid, 4)
            for axis_row in range(grid[0]):
                for axis_col in range(grid[1]):
                    if all(
                        number * side / 3 + 1 <= place + shift <= (number + 1) * side / 3 - 1
                        for number, side, place in (
                            (row, grid[0], axis_row),
                            (col, grid[1], axis_col),
                        )
                    ):
                        changed[0, axis_row, axis_col] += 5
            moved = (stage.compress(changed.flatten(1, 2), grid) - before).abs().amax(-1)[0]
            assert torch.nonzero(moved > 1e-5).flatten().tolist() == [row * 3 + col]


def test_with_attention_to_all_every_query_sees_everything():
    stage = stage_of(2, 8, 4, attention="all")
    features = torch.randn(1, 30, 4)
    before = stage.compress(features, (5, 6))
    features[0, 0] += 5
    assert (stage.compress(features, (5, 6)) - before).abs().amax(-1).min() > 1e-5


def test_levels_of_a_pyramid_are_sampled_one_behind_the_other():
    levels = [torch.randn(2, 6, 8, 5), torch.randn(2, 12, 16, 5)]
    both = sample_regions(levels, 3, "fixed")
    each = [sample_regions([level], 3, "fixed") for level in levels]
    assert torch.equal(both, torch.cat(each, dim=2))


def test_weights_begin_as_released():
    stage = stage_of(12, 256, 128)
    assert stage.query.std().item() == pytest.approx(0.02, rel=0.05)
    assert stage.proj.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert stage.kv_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert stage.kv_proj.bias is None
    assert not stage.attn.in_proj_bias.any()
    assert not stage.attn.out_proj.bias.any()
    assert {n for n, _ in stage.named_buffers()} == {"pos_embed"}  # saved, never trained
    assert stage.attn.heads == 2
    assert isinstance(stage_of(2, 8, 8).kv_proj, nn.Identity)
    first, second = grid_positions(12, 16)[:2]
    assert torch.equal(first[8:], second[8:])  # the second half says the row
    assert not torch.equal(first[:8], second[:8])


def test_half_precision_is_near_float32():
    stage = stage_of(3, 32, 16)
    features = torch.randn(2, 54, 16)
    exact = stage.compress(features, (6, 9))
    coarse = stage.bfloat16().compress(features.bfloat16(), (6, 9)).float()
    assert ((coarse - exact).norm() / exact.norm()).item() < 2e-2


def test_gradients_reach_every_parameter():
    stage = stage_of(3, 8, 4)
    stage.compress(torch.randn(1, 20, 4), (4, 5)).square().sum().backward()
    lost = [n for n, p in stage.named_parameters() if p.grad is None or not p.grad.any()]
    assert not lost


def test_bad_options_are_refused():
    for options, said in (
        ({"grid": 0}, "grid must be"),
        ({"attention": "some"}, "attention must be"),
        ({"compat": "old"}, "compat must be"),
    ):
        with pytest.raises(UsageError, match=said):
            make_config(UhdResamplerConfig, options, "x")
    with pytest.raises(UsageError, match="divisible by 4"):
        UhdResampler.context_after(UhdResamplerConfig(), StageContext((4,), 4, (2, 2), 6))
    with pytest.raises(UsageError, match="3 heads do not divide"):
        UhdResampler.context_after(UhdResamplerConfig(heads=3), StageContext((4,), 4, (2, 2), 8))
