"""A recipe may take the first layers of a language model only."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vistoken.core.errors import UsageError, WeightsError
from vistoken.models.build import build, meta_model, references_of
from vistoken.models.checkpoint import save_light
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.recipe import load_recipe, parse_recipe


@pytest.fixture
def recipe(tmp_path):
    """pico on a language model of three layers from a directory; ``layers`` of it."""
    values = load_recipe("pico").model_dump(exclude_none=True)
    config = {**values["language_model"]["config"], "num_hidden_layers": 3}
    source = tmp_path / "source"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(source)

    def make(layers, source=str(source)):
        language = {**values["language_model"], "source": source, "config": config}
        return parse_recipe({**values, "language_model": {**language, "layers": layers}}, "test")

    return make


def language_layers(model):
    return model.model.language_model.layers


def test_the_first_layers_are_those_of_the_source(recipe, tmp_path):
    whole, _ = build(recipe(None))
    short, processor = build(recipe(2))
    assert [len(language_layers(m)) for m in (whole, short)] == [3, 2]
    assert short.config.text_config.num_hidden_layers == 2
    for mine, theirs in zip(language_layers(short), language_layers(whole), strict=False):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], tensor)
    out = tmp_path / "light"
    save_light(short, processor, out, references_of(recipe(2)))
    again = VistokenForConditionalGeneration.from_pretrained(out)
    ids = torch.tensor([[3, 10, 11, 12]])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, short(input_ids=ids).logits)
        assert not torch.equal(whole(input_ids=ids).logits, short(input_ids=ids).logits)


def test_shapes_alone_and_random_weights(recipe):
    assert len(language_layers(meta_model(recipe(1)))) == 1
    model, _ = build(recipe(1, source="random"))
    assert len(language_layers(model)) == 1


def test_more_layers_than_there_are(recipe):
    with pytest.raises(WeightsError, match="lack"):
        build(recipe(4))
    with pytest.raises(UsageError, match="layers"):
        recipe(0)
