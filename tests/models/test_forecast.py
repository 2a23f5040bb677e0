"""What is predicted for a picture is what its model makes, multiplies and holds."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vistoken.core.errors import DataError, UsageError
from vistoken.core.tables import TOKEN
from vistoken.models.build import build
from vistoken.models.cost import empty_model
from vistoken.models.forecast import forecast
from vistoken.models.recipe import load_recipe, parse_recipe, recipe_names

TEXT = 5
SYSTEMS = {
    "pad": {},
    "wide tower": {"towers.0.size": [32, 48], "connector": ["mlp"]},
    "anyres": {"views": "anyres", "layout": "anyres-unpad"},
    "uhd": {
        "views": "uhd-slices",
        "connector": [{"part": "uhd-resampler", "options": {"grid": 3}}],
        "layout": "uhd-schema",
    },
    "inf": {"views": {"part": "inf-dcm", "options": {"n": 2}}, "connector": ["inf-dem", "mlp"]},
}


def recipe_of(system, **text):
    values = load_recipe("pico").model_dump(exclude_none=True)
    for path, value in SYSTEMS[system].items():
        if path == "towers.0.size":
            values["towers"][0]["size"] = value
        else:
            values[path] = value
    values["language_model"]["config"] |= text
    return parse_recipe(values, system)


def predict(recipe, size, **options):
    model = empty_model(recipe.model_config_for())
    return forecast(model, recipe.pipeline(model.config), size, TEXT, **options)


@pytest.fixture(scope="module")
def models():
    made = {}

    def make(system):
        if system not in made:
            made[system] = build(recipe_of(system))
        return made[system]

    return make


@pytest.mark.parametrize("size", [(60, 90), (1, 7), (150, 20)])
@pytest.mark.parametrize("system", SYSTEMS)
def test_forecast_is_what_happens(system, size, models):
    model, processor = models(system)
    found = predict(recipe_of(system), size, dtype=torch.float32)
    inputs = processor.image_processor([Image.new("RGB", size[::-1], (90, 10, 200))])
    for part in (model.model.language_model, *model.model.towers()):
        part.set_attn_implementation("eager")  # products that the counter sees
    image = model.get_image_features(**inputs)
    visual = len(image.pooler_output[0])
    ids = torch.full((1, visual + TEXT), 3)
    ids[0, :visual] = processor.image_token_id
    # the counter knows attention as two products, and not the CPU's fused kernel
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(input_ids=ids, **inputs, logits_to_keep=1, use_cache=True)
    assert found.cost.visual_tokens == len(found.token_map) == visual
    assert torch.equal(
        TOKEN.get(found.token_map, "top"), TOKEN.get(image.token_map[0].cpu(), "top")
    )
    placed = TOKEN.get(image.token_map[0], "view") >= 0
    assert sum(found.tokens_of_views) == int(placed.sum())
    cost = found.cost
    predicted = sum(cost.encode_flops.values()) + cost.connect_flops + cost.prefill_flops
    assert predicted == counter.get_total_flops()
    layers = output.past_key_values.layers
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert found.memory.cache == held == found.memory.cache_per_token * (visual + TEXT)
    tensors = [*model.parameters(), *model.buffers()]
    assert found.memory.weights == sum(tensor.nbytes for tensor in tensors)
    assert found.memory.peak > found.memory.weights + found.memory.cache


def test_working_memory_grows_with_the_picture_and_not_with_the_weights():
    recipe = recipe_of("uhd")
    small, large = predict(recipe, (20, 20)).memory, predict(recipe, (300, 300)).memory
    assert small.weights == large.weights
    for phase in ("encoding", "connecting", "prefill"):
        assert 0 < getattr(small, phase) < getattr(large, phase)
    wide = predict(recipe_of("uhd", vocab_size=4200, num_hidden_layers=6), (20, 20)).memory
    assert wide.weights > 2 * small.weights
    assert wide.encoding == small.encoding


def linear_flops(module, run):
    """A count of our own: hooks on linear layers and convolutions, on the meta device."""
    total = 0

    def hook(layer, inputs, output):
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += 2 * output.numel() * layer.in_features
        else:
            total += 2 * output.numel() * layer.weight[0].numel()

    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in recipe_names() if n not in ("pico",)])
def test_every_recipe_is_foreseen_without_weights(name):
    recipe = load_recipe(name)
    found = predict(recipe, (1344, 1008))
    model = empty_model(recipe.model_config_for())
    assert found.memory.weights >= 2 * found.cost.total_parameters
    assert found.context.fits
    rows = found.context.needed
    text = model.config.text_config
    prompt = torch.empty(1, rows, text.hidden_size, device="meta")
    products = linear_flops(
        model.model.language_model, lambda: model.model.language_model(inputs_embeds=prompt)
    )
    heads = text.num_attention_heads * (text.hidden_size // text.num_attention_heads)
    attention = 4 * text.num_hidden_layers * rows * rows * heads
    head = 2 * model.lm_head.weight.numel()
    dense = found.cost.stock[0] if found.cost.stock else found.cost.prefill_flops
    assert dense == pytest.approx(products + attention + head, rel=1e-4)


def test_more_tokens_than_positions():
    found = predict(recipe_of("uhd", max_position_embeddings=40), (300, 300))
    assert not found.context.fits
    assert found.context.positions == 40
    cost = found.cost
    counts = f"{cost.visual_tokens} visual tokens in {cost.views} views"
    for words in (counts, "40 positions", "max_slices", "smaller grid", "more positions"):
        assert words in found.context.advice
    assert predict(recipe_of("uhd"), (300, 300)).context.advice == ""


def test_a_picture_that_cannot_fit_is_refused_before_the_decoder():
    recipe = recipe_of("anyres", max_position_embeddings=50)
    model, processor = build(recipe)
    inputs = processor.image_processor([Image.new("RGB", (64, 64))])
    visual = predict(recipe, (64, 64)).cost.visual_tokens
    assert visual > 50
    ids = torch.full((1, visual + TEXT), processor.image_token_id)
    ids[0, visual:] = 3
    with pytest.raises(UsageError, match=rf"image 0 becomes {visual} .* 50 positions.*fewer"):
        model(input_ids=ids, **inputs)


def test_pictures_that_are_refused():
    with pytest.raises(DataError, match="20000x10"):
        predict(recipe_of("uhd"), (20000, 10))
    with pytest.raises(DataError, match="1x1"):
        predict(recipe_of("uhd"), (1, 1))
    for system in ("pad", "anyres", "inf"):
        with pytest.raises(UsageError, match="0x5"):
            predict(recipe_of(system), (0, 5))


@pytest.mark.parametrize("size", [(1, 1), (20000, 10), (10, 20000), (60000, 60000)])
@pytest.mark.parametrize("system", ["pad", "wide tower", "anyres", "inf"])
def test_sizes_at_the_edge(system, size):
    recipe = recipe_of(system)
    found = predict(recipe, size)
    assert found.cost.image_size == size
    assert 0 < found.cost.visual_tokens == len(found.token_map)
    assert found.memory.peak > found.memory.weights
