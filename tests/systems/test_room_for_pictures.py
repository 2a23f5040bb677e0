"""Pictures and text together against the language model's positions, for the systems of views."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from vistoken.core.errors import UsageError
from vistoken.models.build import build
from vistoken.models.recipe import load_recipe, parse_recipe

from .test_views_at_the_edge import SYSTEMS, WAYS_OUT

SYSTEMS = SYSTEMS | {"msac-alone": SYSTEMS["msac"] | {"mechanisms": []}}
WAYS_OUT = WAYS_OUT | {
    "msac-alone": WAYS_OUT["msac"],
    "uhd-slices": "give uhd-resampler a smaller grid",  # slices belong to the processor
}
SIZE = (96, 64)
LONG = "word " * 80
PROMPTS = {
    "two pictures": (2, "Look: <image> and <image> differ?"),
    "picture and text": (1, "<image> " + LONG),
}
GREEDY = {"do_sample": False, "max_new_tokens": 2, "min_new_tokens": 2}


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request):
    """Name of a system, its model of many positions and its processor."""
    values = load_recipe("pico").model_dump(exclude_none=True) | SYSTEMS[request.param]
    model, processor = build(parse_recipe(values, request.param))
    processor.tokenizer.padding_side = "left"
    return request.param, model.eval(), processor


@pytest.fixture
def limit(system, monkeypatch):
    """Gives the system's model another number of positions."""
    text = system[1].config.text_config
    return lambda positions: monkeypatch.setattr(text, "max_position_embeddings", positions)


def inputs_of(processor, kind, **options):
    count, text = PROMPTS[kind]
    images = [Image.new("RGB", SIZE[::-1], (200, 90, 10 * n)) for n in range(count)]
    return processor(images=images, text=[text], return_tensors="pt", **options)


def rows_left(model, inputs):
    """Rows of a prompt that the decoder keeps."""
    rows = model(**inputs).rows
    return inputs["input_ids"].shape[1] if rows is None else int((rows >= 0).sum())


@torch.no_grad()
@pytest.mark.parametrize("kind", PROMPTS)
def test_the_sum_of_a_prompt(system, limit, kind):
    """One position less than the prompt takes is refused in every call, with all numbers."""
    name, model, processor = system
    inputs = inputs_of(processor, kind)
    visual = int((inputs["input_ids"] == processor.image_token_id).sum())
    text = inputs["input_ids"].shape[1] - visual
    left = rows_left(model, inputs)
    assert (left < visual + text) == (name == "msac")
    logits, written = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    limit(left)  # just fits, and an answer may go on as the stock model's does
    assert torch.equal(model(**inputs).logits, logits)
    for use_cache in (True, False):
        assert torch.equal(model.generate(**inputs, **GREEDY, use_cache=use_cache), written)
    limit(left - 1)
    for call in (
        lambda: model(**inputs),
        lambda: model.generate(**inputs, **GREEDY),
        lambda: model.generate(**inputs, **GREEDY, use_cache=False),
    ):
        with pytest.raises(UsageError) as refused:
            call()
        said = str(refused.value)
        assert f"prompt 0 has {visual} visual tokens and {text} of text" in said
        assert f"take {left} positions" in said
        assert f"the language model has {left - 1} positions" in said
        assert "take a language model of more positions" in said
        assert WAYS_OUT[name] in said


@torch.no_grad()
def test_padding_does_not_count_and_each_prompt_does(system, limit):
    _, model, processor = system
    images = [Image.new("RGB", SIZE[::-1])] * 2
    texts = ["<image> what", "<image> what is it, what is it, what is it"]
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
    for side in ("left", "right"):
        processor.tokenizer.padding_side = side
        inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        rows = model(**inputs, position_ids=positions).rows
        length = inputs["input_ids"].shape[1]
        left = length if rows is None else int((rows >= 0).sum(1).max())
        limit(left)
        model(**inputs, position_ids=positions)
        limit(left - 1)
        with pytest.raises(UsageError, match="prompt 1 has"):
            model(**inputs, position_ids=positions)
        limit(4096)
    processor.tokenizer.padding_side = "left"


@torch.no_grad()
def test_text_alone_goes_where_the_stock_model_takes_it(system, limit):
    _, model, processor = system
    inputs = processor(text=[LONG], return_tensors="pt")
    logits = model(**inputs).logits
    limit(9)
    assert torch.equal(model(**inputs).logits, logits)


@torch.no_grad()
def test_what_is_cached_counts(system, limit):
    """A picture behind a cached beginning; steps behind the prompt are not looked at."""
    name, model, processor = system
    first = processor(text=["Here is what we talk about"], return_tensors="pt")["input_ids"]
    inputs = inputs_of(processor, "picture and text", add_special_tokens=False)
    del inputs["attention_mask"]
    seen, length = first.shape[1], inputs["input_ids"].shape[1]

    def begun():
        return model(first, use_cache=True, past_key_values=DynamicCache()).past_key_values

    if name == "msac":  # takes a prompt in one call, however short
        with pytest.raises(UsageError, match="'scm' chooses tokens by the whole prompt"):
            model(**inputs, past_key_values=begun())
        return
    limit(seen + length)
    cache = model(**inputs, past_key_values=begun()).past_key_values
    model(torch.tensor([[5]]), past_key_values=cache)
    limit(seen + length - 1)
    cache = begun()
    with pytest.raises(
        UsageError, match=f"behind {seen} cached tokens, which take {seen + length}"
    ):
        model(**inputs, past_key_values=cache)
    assert cache.get_seq_length() == seen  # nothing was written
