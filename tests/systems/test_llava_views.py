"""Views pad, square and anyres: pixels as released, tables that say where the pixels come from."""

from __future__ import annotations

import json

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vistoken.core.errors import UsageError
from vistoken.core.registry import load_part, make_config
from vistoken.core.tables import VIEW, ViewKind
from vistoken.systems.llava.config import AnyResConfig, PadConfig, SquareConfig
from vistoken.systems.llava.views import AnyRes, Pad, Square

VIEWS = [(Pad, PadConfig()), (Square, SquareConfig()), (AnyRes, AnyResConfig())]
SIDES = st.integers(1, 700)
# Recorded with Pillow 13. Before it, resizing rounds some pixels otherwise, most of all where the
# second picture is enlarged eightfold.
LEVELS = 0 if int(PIL.__version__.partition(".")[0]) >= 13 else 5


def gradient(height, width):
    """A picture whose red is its own row and whose green is its own column, scaled to 0..255."""
    y = np.broadcast_to((np.arange(height)[:, None] + 0.5) / height, (height, width))
    x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    channels = np.stack([y, x, np.full((height, width), 0.5)], -1)
    return Image.fromarray(np.round(channels * 255).astype(np.uint8))


@pytest.mark.parametrize("name", ["pad", "square", "anyres"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_pixels_equal_the_released_code(golden, kit, name, number):
    tensors = load_file(golden / "llava-training/image_prep.safetensors")
    image = Image.fromarray(tensors[f"image{number}.uint8_hwc"].numpy())
    part = load_part("views", name)
    views = part(make_config(part.config_class, {}, name), [kit.tower((14, 14))])
    expected = tensors[f"image{number}.{name}"]
    produced = torch.stack(views.pixels(image))
    expected = expected if expected.dim() == 4 else expected[None]
    if LEVELS == 0:
        assert torch.equal(produced, expected)
    grey = (produced - expected).abs() * torch.tensor(kit.std)[:, None, None] * 255
    assert grey.max() < LEVELS + 0.01
    assert grey.mean() < 0.1


def test_anyres_sizes_equal_the_released_code(golden, kit):
    cases = json.loads((golden / "llava-training/anyres_sizing.json").read_text())["sizing"]
    views = AnyRes(AnyResConfig(), [kit.tower((336, 336))])
    for case in cases:
        width, height = case["size"]
        plan = views.plan(height, width)
        assert plan.canvas[::-1] == tuple(case["best"])
        assert plan.grid[::-1] == tuple(case["grid_wh"])
        assert plan.resized[::-1] == tuple(case["resized"])
        assert plan.offset[::-1] == tuple(case["paste"])
        assert len(views.view_table(height, width)) == 1 + plan.grid[0] * plan.grid[1]


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 99))
def test_square_equals_the_towers_own_processor(kit, height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    if max(height, width) <= 16 * min(height, width):  # beyond it we bound memory instead
        theirs = CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        )(image, return_tensors="pt")["pixel_values"][0]
        ours = Square(SquareConfig(), [kit.tower((28, 28))]).pixels(image)[0]
        assert torch.equal(ours, theirs)
    theirs = SiglipImageProcessorPil(size={"height": 28, "width": 28})(
        image, return_tensors="pt", image_mean=kit.mean, image_std=kit.std
    )["pixel_values"][0]
    ours = Square(SquareConfig(), [kit.tower((28, 28), fit="stretch")]).pixels(image)[0]
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("part", "config"), VIEWS)
@settings(max_examples=25, deadline=None)
@given(height=SIDES, width=SIDES, towers=st.sampled_from([1, 2]))
def test_table_predicts_pixels(kit, part, config, height, width, towers):
    inputs = [kit.tower((28, 28)), kit.tower((42, 35), stride=7, fit="stretch", name="b")][:towers]
    views = part(config, inputs)
    table = views.view_table(height, width)
    VIEW.check(table)
    pixels = views.pixels(Image.new("RGB", (width, height), (200, 100, 50)))
    sizes = torch.stack([VIEW.get(table, "height"), VIEW.get(table, "width")], -1).tolist()
    assert [list(p.shape) for p in pixels] == [[3, *size] for size in sizes]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in pixels)
    # Every row in order, reading its own features; towers alternate within a view.
    count = torch.arange(len(table))
    assert torch.equal(VIEW.get(table, "index"), count)
    assert torch.equal(VIEW.get(table, "source"), count)
    assert torch.equal(VIEW.get(table, "tower"), count % towers)
    for column in ("group", "row", "col", "rows", "cols", "kind"):
        values = VIEW.get(table, column).view(-1, towers)
        assert (values == values[:, :1]).all()
    tiles = VIEW.get(table, "kind") == ViewKind.TILE
    cells = int(VIEW.get(table, "rows")[-1] * VIEW.get(table, "cols")[-1])
    assert int(tiles.sum()) == (cells * towers if part is AnyRes else 0)


@pytest.mark.parametrize(("part", "config"), VIEWS)
@settings(max_examples=25, deadline=None)
@given(height=st.integers(60, 500), width=st.integers(60, 500))
def test_pixels_come_from_where_the_table_says(kit, part, config, height, width):
    """Colours that encode positions: each cell's mean colour is its place in the original."""
    towers = [kit.tower((56, 56)), kit.tower((84, 84), fit="stretch", name="b")]
    views = part(config, towers)
    table = views.view_table(height, width)
    mean, std = torch.tensor(kit.mean), torch.tensor(kit.std)
    checked = 0
    for row, pixels in zip(table, views.pixels(gradient(height, width)), strict=True):
        v = {name: VIEW.get(row, name).item() for name in VIEW.columns}
        colour = pixels.permute(1, 2, 0) * std + mean
        cell = v["height"] / 7
        for i in range(7):
            for j in range(7):
                top, left = i * cell, j * cell
                # inside the picture with a margin: bicubic filters bend gradients at an edge
                if (
                    top < v["top"] + 2
                    or left < v["left"] + 2
                    or top + cell > v["bottom"] - 2
                    or left + cell > v["right"] - 2
                ):
                    continue
                area = colour[int(top) : int(top + cell), int(left) : int(left + cell)]
                y = (v["scale_y"] * (top + cell / 2) + v["shift_y"]) / height
                x = (v["scale_x"] * (left + cell / 2) + v["shift_x"]) / width
                assert area[..., 0].mean().item() == pytest.approx(y, abs=0.015)
                assert area[..., 1].mean().item() == pytest.approx(x, abs=0.015)
                checked += 1
    assert checked > 0 or max(height, width) > 3 * min(height, width)  # a band thinner than a cell


@pytest.mark.parametrize(("part", "config"), VIEWS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 20000)])
def test_needles_need_no_huge_canvas(kit, part, config, size):
    views = part(config, [kit.tower((28, 28))])
    image = Image.new("RGB", size[::-1], (255, 0, 0))
    pixels = views.pixels(image)
    assert len(pixels) == len(views.view_table(*size))
    assert all(p.isfinite().all() for p in pixels)
    if part is Pad and max(size) > 1:
        return  # a line this thin averages away on its square
    red = max(float(p[0].max()) for p in pixels)
    assert red > (0.5 - kit.mean[0]) / kit.std[0]


def test_pad_region_is_the_picture(kit):
    table = Pad(PadConfig(), [kit.tower((56, 56))]).view_table(50, 100)
    region = [VIEW.get(table, c).item() for c in ("top", "left", "bottom", "right")]
    assert region == [14.0, 0.0, 42.0, 56.0]
    assert VIEW.get(table, "shift_y").item() == -25.0


def test_bad_sizes_and_options_are_refused(kit):
    with pytest.raises(UsageError, match="at least 1x1"):
        Pad(PadConfig(), [kit.tower()]).view_table(0, 10)
    for grids in ([], [[0, 1]], [[1, 2, 3]], ["ab"]):
        with pytest.raises(UsageError, match="grids must"):
            make_config(AnyResConfig, {"grids": grids}, "anyres")
    assert make_config(AnyResConfig, {"grids": [[1, 2]]}, "anyres").grids == ((1, 2),)
