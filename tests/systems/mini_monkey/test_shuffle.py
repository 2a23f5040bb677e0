"""Pixel shuffle: reference values, tokens where the map says, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vistoken.core.errors import UsageError
from vistoken.core.parts import StageContext
from vistoken.core.registry import make_config
from vistoken.core.tables import TOKEN, rectangles
from vistoken.models.build import build
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.systems.mini_monkey.config import MsacConfig, PixelShuffleConfig
from vistoken.systems.mini_monkey.shuffle import PixelShuffle, pixel_shuffle
from vistoken.systems.mini_monkey.views import Msac


def stage_of(grid=(4, 6), width=4, **options):
    config = make_config(PixelShuffleConfig, options, "pixel-shuffle")
    return PixelShuffle(config, StageContext((width,), width, grid, 20))


def by_views(features, scale, version):
    """The formula of the released code: reshapes and swaps of axes alone."""
    n, w, h, c = features.shape
    x = features.reshape(n, w, int(h * scale), int(c / scale)).permute(0, 2, 1, 3)
    x = x.reshape(n, int(h * scale), int(w * scale), int(c / scale**2))
    return x if version == "v1" else x.permute(0, 2, 1, 3)


def test_reference(golden):
    folder = golden / "mini-monkey"
    tensors = load_file(folder / "pixel_shuffle.safetensors")
    factor = round(1 / json.loads((folder / "pixel_shuffle.json").read_text())["scale"])
    one, two = (pixel_shuffle(tensors["in.x"], factor, version) for version in ("v1", "v2"))
    assert torch.equal(one, tensors["out.v1"])
    assert torch.equal(two, tensors["out.v2"])
    assert torch.equal(two, one.transpose(1, 2))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("shape", "factor"), [((2, 8, 4, 3), 2), ((1, 4, 8, 5), 4), ((1, 6, 9, 2), 3)]
)
def test_equals_the_released_reshapes(version, shape, factor):
    features = torch.randn(shape)
    wanted = by_views(features, 1 / factor, version)
    assert torch.equal(pixel_shuffle(features, factor, version), wanted)


def test_factor_one_changes_nothing():
    features = torch.randn(1, 3, 5, 4)
    assert torch.equal(pixel_shuffle(features, 1), features)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_tokens_lie_where_the_map_says(kit, version):
    """Features that hold their own coordinates: the mean of a token's four is its middle."""
    tower = kit.tower((56, 84))
    views = Msac(MsacConfig(max_detailed=6), [tower])
    state, maps = kit.start(views.view_table(170, 230), [tower])
    stage = stage_of(version=version)
    after = stage.token_map(stage.config, stage.context, maps)
    stage.norm = torch.nn.Identity()
    stage.linear_1 = stage.linear_2 = torch.nn.Identity()
    out = stage.double()(state)
    assert len(out.tokens) == len(after) == len(views.view_table(170, 230))
    for tokens, predicted, grid in zip(out.tokens, after, out.grids, strict=True):
        assert predicted.grid == grid
        assert len(tokens) == len(predicted.tokens) == 2 * 3
        places = (tokens.unflatten(1, (4, 4)) - kit.offset).mean(1)  # y, x, row, col
        boxes = rectangles(predicted.tokens)
        middle = torch.stack([boxes[:, ::2].mean(1), boxes[:, 1::2].mean(1)], 1)
        torch.testing.assert_close(places[:, :2], middle, atol=0.02, rtol=0)
        for column, name in ((2, "row"), (3, "col")):
            assert torch.equal(
                (places[:, column] / 2).floor().long(), TOKEN.get(predicted.tokens, name)
            )


def test_norm_and_two_layers_with_exact_gelu():
    stage = stage_of(hidden_width=7).double()
    features = torch.randn(1, 24, 4, dtype=torch.float64)
    shuffled = by_views(features.view(1, 4, 6, 4), 0.5, "v2").flatten(1, 2)
    normed = torch.nn.functional.layer_norm(
        shuffled, (16,), stage.norm.weight, stage.norm.bias, 1e-5
    )
    inner = normed @ stage.linear_1.weight.T + stage.linear_1.bias
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    wanted = inner @ stage.linear_2.weight.T + stage.linear_2.bias
    assert stage.linear_1.weight.shape == (7, 16)
    torch.testing.assert_close(stage._project(features, (4, 6)), wanted)
    # a token in front of the grid has no place in it
    with_prefix = torch.cat([torch.randn(1, 1, 4, dtype=torch.float64), features], 1)
    torch.testing.assert_close(stage._project(with_prefix, (4, 6)), wanted)


def test_size_of_the_release():
    with torch.device("meta"):
        stage = PixelShuffle(PixelShuffleConfig(), StageContext((1024,), 1024, (32, 32), 2048))
    shapes = {name: tuple(value.shape) for name, value in stage.named_parameters()}
    assert shapes["norm.weight"] == (4096,)
    assert shapes["linear_1.weight"] == (2048, 4096)
    assert shapes["linear_2.weight"] == (2048, 2048)
    context = stage.context_after(stage.config, stage.context)
    assert context.grid == (16, 16)
    assert context.width == 2048


def test_grids_that_do_not_divide_are_refused():
    message = "a feature grid of 5x6 cells cannot be divided by 2"
    with pytest.raises(UsageError, match=message):
        pixel_shuffle(torch.zeros(1, 5, 6, 3), 2)
    config = PixelShuffleConfig()
    with pytest.raises(UsageError, match=message):
        PixelShuffle.context_after(config, StageContext((4,), 4, (5, 6), 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0}, "factor must be a whole number of at least 1"),
        ({"version": "v3"}, "version must be one of v1, v2"),
        ({"hidden_width": -1}, "hidden_width must be a whole number"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UsageError, match=message):
        make_config(PixelShuffleConfig, options, "pixel-shuffle")


@pytest.mark.parametrize("views", ["pad", "msac", "uhd-slices"])
def test_predicted_tokens_are_those_made(views):
    values = load_recipe("pico").model_dump(exclude_none=True)
    options = {"part": views, "options": {"max_slices": 1}} if views == "uhd-slices" else views
    values |= {"views": options, "connector": ["pixel-shuffle", "rms-scale"]}
    model, processor = build(parse_recipe(values, "shuffled"))
    size = (60, 90) if views == "msac" else (64, 64)
    image = Image.new("RGB", size[::-1], (10, 200, 30))
    inputs = processor(images=[image], text="<image> what?", return_tensors="pt")
    predicted = processor.image_processor.token_map(*size)
    features = model.get_image_features(inputs["pixel_values"], inputs["view_table"])
    assert len(features.pooler_output[0]) == len(predicted) == 4 * len(inputs["view_table"])
    assert torch.equal(TOKEN.set(features.token_map[0], media=-1), TOKEN.set(predicted, media=-1))
