"""What vLLM asks of a processor and what it gets handed; needs no vLLM."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from vistoken.api import load
from vistoken.models.build import build
from vistoken.models.processing import VistokenProcessor
from vistoken.models.templates import load_template, template_names
from vistoken.serve.vllm.images import largest_size, stacked, views_by_image
from vistoken.serve.vllm.template import template_for_vllm
from vistoken.serve.vllm.whole import whole_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden" / "llava-training"
SIZES = [(40, 40), (90, 50), (33, 130)]
NAMES = ["mlp", "llava-sp", "nano-like", "anyres", "llava-uhd", "inf-llava", "mini-monkey"]


@pytest.mark.parametrize("name", NAMES)
def test_sizes_alone_tell_what_pictures_give(name, recipes, picture):
    _, processor = build(recipes[name])
    pictures = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    asked = processor._get_num_multimodal_tokens(image_sizes=SIZES)
    text = "<image>" * len(SIZES)
    made = processor(text=text, images=pictures, return_text_replacement_offsets=True)
    table = made["view_table"]
    per_image = views_by_image(made["pixel_values"], table)
    assert [len(views) for views in per_image] == asked["num_image_patches"]
    replaced = [processor.replace_image_token(made, number) for number in range(len(SIZES))]
    assert replaced == ["<image>" * count for count in asked["num_image_tokens"]]
    offsets = made["text_replacement_offsets"][0]
    assert [entry["replacement"] for entry in offsets] == replaced
    assert {entry["type"] for entry in offsets} == {"image"}
    # one id alone: the most frequent one is the embeddings', and none of them is counted twice
    for text in replaced:
        ids = processor.tokenizer.encode(text, add_special_tokens=False)
        assert ids == [processor.image_token_id] * len(ids)


@pytest.mark.parametrize("name", NAMES)
def test_views_come_back_in_order_whatever_their_sizes(name, recipes, picture):
    model, processor = build(recipes[name])
    pictures = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    made = processor.image_processor(pictures)
    again = stacked(views_by_image(made["pixel_values"], made["view_table"]))
    with torch.no_grad():
        expected = model.get_image_features(**made).pooler_output
        given = model.get_image_features(again, made["view_table"]).pooler_output
    assert all(torch.equal(a, b) for a, b in zip(expected, given, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_picture_is_as_large_as_any(name, recipes):
    _, processor = build(recipes[name])
    images = processor.image_processor
    most = len(images.token_map(*largest_size(images)))
    for size in [*SIZES, (224, 224), (1000, 1500), (300, 1300), (2000, 2000), (64, 320)]:
        assert len(images.token_map(*size)) <= most


def tokenizers(folder):
    """Tokenizers that open a prompt in three ways."""
    shutil.copy(GOLDEN / "tiny_llama_sp.model", folder / "tokenizer.model")
    yield LlamaTokenizer.from_pretrained(folder, legacy=True)
    yield LlamaTokenizer.from_pretrained(folder, legacy=False)
    yield PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDEN / "tiny_bytebpe_tokenizer.json"), unk_token="<|unk|>"
    )


@pytest.mark.parametrize("template", template_names())
def test_vllm_tokenises_a_conversation_as_we_do(template, recipes, picture, tmp_path):
    """vLLM renders, tokenises without special tokens, and puts image tokens for each mark."""
    images = build(recipes["llava-sp"])[1].image_processor
    for tokenizer in tokenizers(tmp_path):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        processor = VistokenProcessor(images, tokenizer, chat_template=load_template(template))
        parts = [{"type": "image", "image": picture(40, 40)}] * 2
        for content in ([*parts, {"type": "text", "text": "what is this?"}], parts[:1]):
            messages = [{"role": "user", "content": content}]
            ours = processor.apply_chat_template(
                messages, tokenize=True, return_dict=True, add_generation_prompt=True
            )["input_ids"][0]
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=template_for_vllm(processor),
                tokenize=False,
                add_generation_prompt=True,
            )
            count = processor._get_num_multimodal_tokens(image_sizes=[(40, 40)])
            theirs = []
            for token in tokenizer.encode(text, add_special_tokens=False):
                is_image = token == processor.image_token_id
                theirs += [token] * (count["num_image_tokens"][0] if is_image else 1)
            assert theirs == list(ours)


def test_a_light_checkpoint_is_made_whole_once(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("VISTOKEN_HOME", str(tmp_path / "home"))
    light = tiny("llava-sp").light
    whole = whole_checkpoint(str(light), "float32", load)
    assert whole != light
    model, _ = load(whole, device="cpu", dtype="float32")
    expected, _ = load(light, device="cpu", dtype="float32")
    ours, theirs = expected.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def again(*_, **__):
        raise AssertionError("it was loaded again")

    assert whole_checkpoint(str(light), "float32", again) == whole
    assert whole_checkpoint(str(whole), "float32", again) == whole
    (light / "adapter" / "adapter_model.safetensors").touch()
    assert whole_checkpoint(str(light), "float32", load) != whole
