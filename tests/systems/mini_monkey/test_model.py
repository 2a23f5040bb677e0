"""The whole model: pictures to answers under scale compression, and what it composes with."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN
from vistoken.models.build import build
from vistoken.models.cost import empty_model
from vistoken.models.forecast import forecast
from vistoken.models.recipe import load_recipe, parse_recipe

MSAC = {"part": "msac", "options": {"max_detailed": 6, "max_adaptive": 4}}
GREEDY = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}


def picture(seed, size):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def make(**changes):
    values = load_recipe("pico").model_dump(exclude_none=True)
    values |= {"views": MSAC, "connector": ["pixel-shuffle"], "mechanisms": ["scm"], **changes}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model, processor = build(parse_recipe(values, "monkey"))
        for parameter in model.model.language_model.parameters():
            parameter.data *= 4  # large enough that attention patterns matter
    processor.tokenizer.padding_side = "left"
    return model.eval(), processor


@pytest.fixture(scope="module")
def monkey():
    return make()


PROMPTS = ["<image> what is it?", "Look: <image> and <image> differ?", "no picture here"]
PICTURES = [[(60, 90)], [(40, 40), (90, 30)], []]


def inputs_of(processor, numbers):
    images = [picture(n * 10 + k, size) for n in numbers for k, size in enumerate(PICTURES[n])]
    return processor(
        images=images or None,
        text=[PROMPTS[n] for n in numbers],
        return_tensors="pt",
        padding=True,
    )


@torch.no_grad()
def test_logits_of_a_batch_equal_singles(monkey):
    model, processor = monkey
    batch = model(**inputs_of(processor, [0, 1, 2]), use_cache=False)
    for number in range(3):
        single = model(**inputs_of(processor, [number]), use_cache=False)
        torch.testing.assert_close(
            batch.logits[number, -1], single.logits[0, -1], rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
def test_the_prompt_is_as_long_as_predicted(monkey):
    model, processor = monkey
    inputs = inputs_of(processor, [1])
    output = model(**inputs, use_cache=True)
    mechanism = next(iter(model.model.stack))
    wanted = mechanism.kept_length(output.token_map[0])
    detailed = sum(
        4 * int((TOKEN.get(processor.image_processor.token_map(*size), "group") == 1).sum()) // 4
        for size in PICTURES[1]
    )
    assert 0 < wanted < inputs["input_ids"].shape[1]
    assert wanted >= inputs["input_ids"].shape[1] - detailed
    assert output.logits.shape[1] == wanted
    assert {layer.stored for layer in output.past_key_values.sparse_layers} == {wanted}


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_generation_with_and_without_cache(monkey, options):
    model, processor = monkey
    inputs = inputs_of(processor, [0, 1])
    cached = model.generate(**inputs, **GREEDY, **options)
    uncached = model.generate(**inputs, **GREEDY, **options, use_cache=False)
    assert cached.tolist() == uncached.tolist()
    for number in range(2):
        own = inputs_of(processor, [number])
        single = model.generate(**own, **GREEDY, **options)
        assert single[0, -5:].tolist() == cached[number, -5:].tolist()


def test_generation_refusals(monkey):
    model, processor = monkey
    inputs = inputs_of(processor, [0])
    with pytest.raises(UsageError, match="'scm' chooses tokens by the whole prompt"):
        model.generate(**inputs, **GREEDY, prefill_chunk_size=8)
    with pytest.raises(UsageError, match="'scm' cannot run on a cache of the kind 'static'"):
        model.generate(**inputs, **GREEDY, cache_implementation="static")


def test_spatial_tokens_stay(monkey):
    """LLaVA-SP's tokens of the detailed tiles are none of those that are compressed."""
    connector = load_recipe("pico").model_dump(exclude_none=True)["connector"]
    model, processor = make(connector=connector)
    output = model(**inputs_of(processor, [0]), use_cache=False)
    table = output.token_map[0, output.rows[0]]
    tiles = len(processor.image_processor.view_table(60, 90))
    kinds = TOKEN.get(table, "kind").tolist()
    assert kinds.count(3) == 2 * tiles


@torch.no_grad()
@pytest.mark.parametrize(
    ("views", "connector"),
    [
        ({"part": "anyres", "options": {"grids": [[2, 1]]}}, ["pixel-shuffle"]),
        ("inf-dcm", ["pixel-shuffle"]),
        ("pad", ["pixel-shuffle"]),
    ],
    ids=["anyres", "inf-dcm", "pad"],
)
def test_tiles_of_other_views(views, connector):
    """Group 1 are the tiles there too; one undivided view has none to compress."""
    model, processor = make(views=views, connector=connector)
    inputs = inputs_of(processor, [0])
    output = model(**inputs, use_cache=False)
    assert (output.rows is None) == (views == "pad")
    assert output.logits.isfinite().all()


@torch.no_grad()
def test_the_demos_order_compresses_the_same_tiles():
    """Groups, not places, say which tokens are detailed: adaptive tiles come first here."""
    options = {**MSAC["options"], "order": "adaptive"}
    model, processor = make(views={"part": "msac", "options": options})
    output = model(**inputs_of(processor, [0]), use_cache=False)
    before, after = (
        torch.bincount(TOKEN.get(table, "group") + 1, minlength=4).tolist()
        for table in (output.token_map[0], output.token_map[0, output.rows[0]])
    )
    assert after == [before[0], before[1], before[2] // 2, before[3]]
    group = TOKEN.get(output.token_map[0], "group")
    assert int((group == 2).int().argmax()) < int((group == 1).int().argmax())


def test_more_tiles_than_the_context_holds():
    """The number of tokens and the options that give fewer are named, before and in a call."""
    values = load_recipe("pico").model_dump(exclude_none=True)
    values["language_model"]["config"]["max_position_embeddings"] = 40
    values |= {"views": "msac", "connector": ["pixel-shuffle"], "mechanisms": ["scm"]}
    recipe = parse_recipe(values, "monkey")
    config = recipe.model_config_for()
    predicted = forecast(empty_model(config), recipe.pipeline(config), (60, 90), 5)
    assert predicted.context.advice.startswith(
        "a picture of 60x90 pixels becomes 44 visual tokens in 11 views"
    )
    assert "lower max_detailed and max_adaptive of msac" in predicted.context.advice
    assert "give pixel-shuffle a larger factor" in predicted.context.advice
    model, processor = build(recipe)
    with pytest.raises(UsageError, match="44 visual tokens"):
        model(**inputs_of(processor, [0]))


def test_beside_yopo(monkey):
    model, processor = make(mechanisms=["scm", {"part": "yopo", "options": {"layer_cut": 1}}])
    inputs = inputs_of(processor, [0])
    cached = model.generate(**inputs, **GREEDY)
    assert cached.tolist() == model.generate(**inputs, **GREEDY, use_cache=False).tolist()


def test_beside_saisa_is_refused():
    with pytest.raises(UsageError, match="'saisa' needs all of them"):
        make(connector=["mlp"], mechanisms=["scm", "saisa"])
