"""Cropping: exact inverses, every pixel used once, tables that say where each pixel lies."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vistoken.core.errors import UsageError
from vistoken.core.registry import make_config
from vistoken.core.tables import VIEW, ViewKind
from vistoken.systems.inf_llava.config import InfDcmConfig, live_phases
from vistoken.systems.inf_llava.cutting import cut_views
from vistoken.systems.inf_llava.grids import (
    combine_global,
    combine_local,
    split_global,
    split_local,
)
from vistoken.systems.inf_llava.views import InfDcm

CONFIGS = [
    InfDcmConfig(n=1),
    InfDcmConfig(n=2),
    InfDcmConfig(n=3, fit="square"),
    InfDcmConfig(n=3, global_views="live"),
    InfDcmConfig(n=4, global_views="live"),
    InfDcmConfig(n=2, compat="official"),
]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_splitting_and_combining_are_inverse(n):
    parts = torch.randn(2, n * n, 3, 5, 4)
    assert torch.equal(split_local(combine_local(parts, n), n), parts)
    assert torch.equal(split_global(combine_global(parts, n), n), parts)
    whole = torch.arange(3 * n * 5 * n).view(1, 3 * n, 5 * n, 1)
    assert torch.equal(combine_local(split_local(whole, n), n), whole)
    assert torch.equal(split_global(whole, n).flatten().sort().values, whole.flatten())
    assert torch.equal(split_global(whole, n)[0, n * n - 1], whole[0, n - 1 :: n, n - 1 :: n])
    assert torch.equal(split_local(whole, n)[0, n - 1], whole[0, :3, 5 * (n - 1) :])


@pytest.mark.parametrize("split", [split_local, split_global])
def test_sides_that_do_not_divide_are_refused(split):
    with pytest.raises(ValueError, match=r"side of 10 cannot be divided by n = 3"):
        split(torch.zeros(1, 9, 10, 1), 3)
    with pytest.raises(ValueError, match="n must be at least 1"):
        split(torch.zeros(1, 9, 9, 1), 0)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_views_are_the_two_splits_and_a_resized_whole(n):
    pixels = torch.randn(2, 3, n * 28, n * 21)
    views = cut_views(pixels, n, (28, 21))
    last = pixels.permute(0, 2, 3, 1)
    assert torch.equal(views[:, : n * n], split_local(last, n).permute(0, 1, 4, 2, 3))
    assert torch.equal(views[:, n * n : -1], split_global(last, n).permute(0, 1, 4, 2, 3))
    # an odd n takes pixels where bicubic resizing would give the very same
    assert torch.equal(views[:, -1], F.interpolate(pixels, (28, 21), mode="bicubic"))


def test_pixels_of_any_size_are_resized_first(caplog, monkeypatch):
    monkeypatch.setattr("vistoken.systems.inf_llava.cutting._told", set())
    with caplog.at_level(logging.WARNING):
        small = cut_views(torch.randn(1, 3, 28, 28), 3, (28, 28))
        cut_views(torch.randn(1, 3, 28, 28), 3, (28, 28))
    assert small.shape == (1, 19, 3, 28, 28)
    assert [r.message.split(",")[0] for r in caplog.records] == [
        "inf-dcm: pixels of 28x28 are enlarged to 84x84"
    ]
    caplog.clear()
    odd = torch.randn(1, 3, 100, 91)
    assert cut_views(odd, 3, (28, 21)).shape == (1, 19, 3, 28, 21)
    assert not caplog.records
    # whatever the size, the central strided view of an odd n is the undivided one
    views = cut_views(torch.randn(1, 3, 84, 84), 3, (28, 28))
    torch.testing.assert_close(views[:, 9 + 4], views[:, -1])


def test_full_size_shapes_without_memory():
    views = cut_views(torch.empty(2, 3, 1008, 1008, device="meta"), 3, (336, 336))
    assert views.shape == (2, 19, 3, 336, 336)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), towers=st.sampled_from([1, 2]))
def test_table_predicts_pixels(kit, config, height, width, towers):
    inputs = [kit.tower((28, 28)), kit.tower((42, 35), stride=7, fit="stretch", name="b")][:towers]
    views = InfDcm(config, inputs)
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
    kinds = [VIEW.get(table, "kind").tolist().count(k) // towers for k in (1, 3, 0)]
    strided = {"all": config.n**2, "live": 0 if config.n % 2 else 4}[config.global_views]
    assert kinds == [config.n**2, strided, 1]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("size", [(170, 230), (260, 140)])
def test_pixels_come_from_where_the_table_says(kit, config, size):
    """Colours that encode positions: each cell's mean colour is its place in the original."""
    height, width = size
    y = np.broadcast_to((np.arange(height)[:, None] + 0.5) / height, size)
    x = np.broadcast_to((np.arange(width) + 0.5) / width, size)
    picture = np.round(np.stack([y, x, np.full(size, 0.5)], -1) * 255).astype(np.uint8)
    views = InfDcm(config, [kit.tower((56, 56)), kit.tower((42, 70), stride=7, name="b")])
    mean, std = torch.tensor(kit.mean), torch.tensor(kit.std)
    checked: set[int] = set()
    table = views.view_table(*size)
    for row, pixels in zip(table, views.pixels(Image.fromarray(picture)), strict=True):
        v = {name: VIEW.get(row, name).item() for name in VIEW.columns}
        colour = pixels.permute(1, 2, 0) * std + mean
        cell = (int(v["height"]) // 7, int(v["width"]) // 7)
        margin = 12 / min(v["scale_y"], v["scale_x"], 1)
        for i in range(7):
            for j in range(7):
                top, left = i * cell[0], j * cell[1]
                bottom, right = top + cell[0], left + cell[1]
                middle_y = v["scale_y"] * (top + bottom) / 2 + v["shift_y"]
                middle_x = v["scale_x"] * (left + right) / 2 + v["shift_x"]
                reach_y, reach_x = (v[f"scale_{a}"] * c for a, c in zip("yx", cell, strict=True))
                inside = (
                    reach_y < middle_y < height - reach_y and reach_x < middle_x < width - reach_x
                )
                if not inside or top < v["top"] or bottom > v["bottom"]:
                    continue
                if left < v["left"] or right > v["right"] or margin < 0:
                    continue
                seen = colour[top:bottom, left:right].mean((0, 1))
                assert abs(seen[0] * height - middle_y) < 0.012 * height
                assert abs(seen[1] * width - middle_x) < 0.012 * width
                checked.add(int(v["kind"]))
    wanted = {int(ViewKind.TILE), int(ViewKind.GLOBAL)}
    if config.global_views == "all" or config.n % 2 == 0:
        wanted.add(int(ViewKind.STRIDED))
    assert checked == wanted


@pytest.mark.parametrize("fit", ["pad", "square"])
@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000), (3000, 2500)])
def test_needles_and_huge_pictures(kit, fit, size):
    views = InfDcm(InfDcmConfig(n=2, fit=fit), [kit.tower((28, 28))])
    pixels = views.pixels(Image.new("RGB", size[::-1], (255, 0, 0)))
    assert len(pixels) == len(views.view_table(*size)) == 9
    assert all(p.isfinite().all() for p in pixels)


def test_small_pictures_are_told_once(kit, caplog, monkeypatch):
    monkeypatch.setattr("vistoken.systems.inf_llava.cutting._told", set())
    views = InfDcm(InfDcmConfig(n=3), [kit.tower((336, 336))])
    for side in (336, 336, 335):
        views.pixels(Image.new("RGB", (side, side)))
    (record,) = caplog.records
    assert "336x336 pixels is enlarged to fill 1008x1008 (n = 3)" in record.message
    views.pixels(Image.new("RGB", (1200, 1008)))
    assert len(caplog.records) == 1


def test_options_are_checked():
    for options, message in (
        ({"n": 0}, "n must be a whole number from 1 to 4, got 0"),
        ({"n": 5}, "from 1 to 4, got 5"),
        ({"n": 2.0}, "n must be a whole number"),
        ({"fit": "anyres"}, "fit must be one of pad, square"),
        ({"global_views": "some"}, "global_views must be one of all, live"),
        ({"compat": "new"}, "compat must be one of official, fixed"),
    ):
        with pytest.raises(UsageError, match=message):
            make_config(InfDcmConfig, options, "inf-dcm")


def test_live_views():
    assert [live_phases(n) for n in (1, 2, 3, 4)] == [(0,), (0, 1, 2, 3), (4,), (5, 6, 9, 10)]
