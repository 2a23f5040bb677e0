"""Weights: those of stock eager attention, whatever the family, the batch and the mechanism."""

from __future__ import annotations

import copy

import pytest
import torch

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN
from vistoken.models.build import build
from vistoken.models.decoder import asym
from vistoken.models.recipe import load_recipe, parse_recipe
from vistoken.viz.attention import Choice, read_attention
from vistoken.viz.rollout import Rollout

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FAMILIES = {
    "llama": {},
    "mistral-sliding": {"model_type": "mistral", "sliding_window": 6},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
}


def make(*mechanisms, **language):
    values = copy.deepcopy(load_recipe("pico").model_dump(exclude_none=True))
    values["connector"] = ["mlp"]
    values["mechanisms"] = list(mechanisms)
    values["language_model"]["config"] |= {
        "initializer_range": 0.3, "num_hidden_layers": 3, **language
    }  # fmt: skip
    return build(parse_recipe(values, "viz"))


def batch_of(processor, picture, *questions):
    texts = [f"<image>{question}" for question in questions]
    pictures = [picture(40, 60, n) for n in range(len(texts))]
    return processor(text=texts, images=pictures, return_tensors="pt", padding=True)


def read(model, inputs, last, **choice):
    features = model.get_image_features(inputs["pixel_values"], inputs["view_table"])
    asked = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    asked[:, -last:] = True
    return read_attention(
        model,
        inputs["input_ids"],
        asked,
        choice=Choice(**choice),
        attention_mask=inputs["attention_mask"],
        features=features,
    )


def eager_weights(model, inputs):
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        return eager(**inputs, output_attentions=True, use_cache=False).attentions


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_eager_attention(family, picture):
    model, processor = make(**FAMILIES[family])
    inputs = batch_of(processor, picture, "What is it?")
    expected = eager_weights(model, inputs)
    reading = read(model, inputs, 4)
    assert reading.layers == (0, 1, 2)
    for layer, weights in enumerate(expected):
        torch.testing.assert_close(reading.weights[layer], weights[:, :, -4:].mean(1), **CLOSE)
    single = read(model, inputs, 4, layers=(1,), head=2)
    torch.testing.assert_close(single.weights[0], expected[1][:, 2, -4:], **CLOSE)
    torch.testing.assert_close(reading.weights.sum(-1), torch.ones(3, 1, 4), **CLOSE)
    assert float(reading.unused.abs().max()) == 0


def test_a_padded_batch_equals_its_prompts(picture):
    model, processor = make()
    both = batch_of(processor, picture, "Is it a cup or a dog, and which colour is it?", "What?")
    assert int(both["attention_mask"][1, 0]) == 0  # padding on the left
    whole = read(model, both, 3)
    for number, question in enumerate(["Is it a cup or a dog, and which colour is it?", "What?"]):
        alone = processor(
            text=f"<image>{question}", images=[picture(40, 60, number)], return_tensors="pt"
        )
        single = read(model, alone, 3)
        length = alone["input_ids"].shape[1]
        torch.testing.assert_close(
            whole.weights[:, number, :, -length:], single.weights[:, 0], **CLOSE
        )
        assert float(whole.weights[:, number, :, :-length].abs().sum()) == 0


def test_other_layers_run_as_they_are(picture, monkeypatch):
    model, processor = make()
    inputs = batch_of(processor, picture, "What is it?")
    stock, scored, called = [], [], []
    layers = model.model.language_model.layers
    handles = [
        layer.register_forward_hook(lambda *_, n=n: stock.append(n))
        for n, layer in enumerate(layers)
    ]
    inner, attend = asym.read_scores, torch.nn.functional.scaled_dot_product_attention

    def spy(requests, *arguments):
        scored.append(len(requests))
        return inner(requests, *arguments)

    def sdpa(*arguments, **options):
        called.append(1)
        return attend(*arguments, **options)

    monkeypatch.setattr(asym, "read_scores", spy)
    features = model.get_image_features(inputs["pixel_values"], inputs["view_table"])
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa)
    asked = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    asked[:, -1] = True
    read_attention(model, inputs["input_ids"], asked, choice=Choice(layers=(1,)), features=features)
    for handle in handles:
        handle.remove()
    assert stock == [0, 2]  # the asked layer is put together from its modules
    assert scored == [1]
    assert len(called) == 3, "every layer's output comes from sdpa"
    assert model.config.text_config._attn_implementation == "sdpa"


YOPO = {"part": "yopo", "options": {"mode": "drop", "window": 3, "layer_cut": 2,
                                    "head_keep": ["1111", "0110", "1111"]}}  # fmt: skip
FREE = {"part": "yopo", "options": {"mode": "training_free", "layer_cut": 2,
                                    "head_keep": ["1011", "1111", "1111"]}}  # fmt: skip


@pytest.mark.parametrize("mechanism", ["saisa", YOPO], ids=["saisa", "yopo"])
def test_weights_under_a_mechanism_are_those_it_computes_with(mechanism, picture):
    model, processor = make(mechanism)
    inputs = batch_of(processor, picture, "What is it?")
    expected = eager_weights(model, inputs)
    reading = read(model, inputs, 4)
    for layer, weights in enumerate(expected):
        torch.testing.assert_close(reading.weights[layer], weights[:, :, -4:].mean(1), **CLOSE)
    torch.testing.assert_close(reading.weights.sum(-1), torch.ones(3, 1, 4), **CLOSE)


def test_tokens_that_are_gone_get_nothing(picture):
    model, processor = make(YOPO)
    inputs = batch_of(processor, picture, "What is it?")
    reading = read(model, inputs, 2)
    visual = TOKEN.get(reading.token_map[0], "media") >= 0
    on_visual = reading.weights[..., visual].sum((1, 2, 3))
    assert on_visual[0] > 0.1
    assert on_visual[2] == 0


def test_weight_on_values_of_zero_is_told_apart(picture):
    model, processor = make(FREE)
    inputs = batch_of(processor, picture, "What is it?")
    reading = read(model, inputs, 2)
    total = reading.weights.sum(-1) + reading.unused
    torch.testing.assert_close(total, torch.ones(3, 1, 2), **CLOSE)
    assert float(reading.unused[0].min()) > 0  # one head of four
    if FREE["options"]["layer_cut"] < 3:
        assert reading.weights[2][..., TOKEN.get(reading.token_map[0], "media") >= 0].sum() == 0


def test_rollout_follows_the_weights_of_all_layers(picture):
    model, processor = make()
    inputs = batch_of(processor, picture, "What is it?")
    shares = torch.eye(inputs["input_ids"].shape[1])
    for weights in eager_weights(model, inputs):
        shares = 0.5 * weights[0].mean(0) @ shares + 0.5 * shares
    reading = read(model, inputs, 3, rollout=True)
    torch.testing.assert_close(reading.weights[0, 0], shares[-3:], **CLOSE)


def test_rollout_leaves_rows_alone_that_do_not_ask():
    rollout = Rollout(torch.Size((1, 3)))
    rollout.pass_layer(torch.tensor([[[0.5, 0.5]]]), [torch.tensor([1])], torch.tensor([[0, 2]]))
    asked = torch.ones(1, 3, dtype=torch.bool)
    expected = torch.tensor([[1, 0, 0], [0, 1, 0], [0.25, 0, 0.75]])
    torch.testing.assert_close(rollout.of(asked)[0], expected)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"layers": (3,)}, "no layer 3.*0 to 2"),
        ({"head": 4}, "no head 4.*0 to 3"),
        ({"rollout": True, "head": 1}, "all layers and heads"),
    ],
)
def test_what_there_is_not(choice, words, picture):
    model, processor = make()
    with pytest.raises(UsageError, match=words):
        read(model, batch_of(processor, picture, "What?"), 1, **choice)
    with pytest.raises(UsageError, match="no row is asked"):
        read_attention(model, torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, 3).bool())


def test_rollout_refuses_rows_with_some_heads_only(picture):
    model, processor = make(YOPO)
    with pytest.raises(UsageError, match="part of the heads"):
        read(model, batch_of(processor, picture, "What is it?"), 1, rollout=True)
