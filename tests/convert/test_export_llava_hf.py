"""To plain Hugging Face Llava: the same prompts, pixels, logits and answers, without vistoken."""

import pytest
import torch
import yaml
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

import vistoken
from vistoken.convert.export_llava_hf import export_llava_hf
from vistoken.convert.llava_hf import convert_llava_hf
from vistoken.core.errors import UsageError
from vistoken.models.build import build, references_of
from vistoken.models.checkpoint import save_full, save_light
from vistoken.models.recipe import load_recipe, parse_recipe

from .test_llava_hf import GOLDEN, MODELS, make_checkpoint

SIGLIP = {
    "name": "siglip",
    "source": "random",
    "config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "size": [32, 32],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "fit": "stretch",
}


def recipe_with(**changes):
    values = load_recipe("pico").model_dump(exclude_none=True)
    return parse_recipe(yaml.safe_load(yaml.safe_dump({**values, **changes})), "changed")


def compare(ours_at, theirs_at, picture):
    ours, processor = vistoken.load(ours_at, device="cpu", dtype="float32")
    theirs = AutoModelForImageTextToText.from_pretrained(theirs_at, dtype=torch.float32).eval()
    assert type(theirs) is LlavaForConditionalGeneration
    other = AutoProcessor.from_pretrained(theirs_at)
    question = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": question}]
    for size in ((60, 90), (80, 50)):
        image = picture(*size)
        inputs = processor(
            text=processor.apply_chat_template(messages, add_generation_prompt=True),
            images=image,
            return_tensors="pt",
        )
        wanted = other(
            text=other.apply_chat_template(messages, add_generation_prompt=True),
            images=image,
            return_tensors="pt",
        )
        assert torch.equal(inputs["input_ids"], wanted["input_ids"])
        # theirs resizes an array, ours a picture: the last bit of a colour may differ
        assert (inputs["pixel_values"] - wanted["pixel_values"]).abs().max() < 0.02
        shared = {k: inputs[k] for k in ("input_ids", "attention_mask", "pixel_values")}
        with torch.inference_mode():
            expected = ours(**shared, view_table=inputs["view_table"]).logits
            assert (theirs(**shared).logits - expected).abs().max() < 1e-5
            limits = {"max_new_tokens": 8, "do_sample": False}
            answers = ours.generate(**shared, view_table=inputs["view_table"], **limits)
            assert torch.equal(theirs.generate(**shared, **limits), answers)


@pytest.mark.parametrize("views", ["pad", "square"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_a_trained_light_checkpoint_becomes_llava(tmp_path, picture, views, tower) -> None:
    changes = {"towers": [SIGLIP]} if tower == "siglip" else {}
    recipe = recipe_with(connector=["mlp"], views=views, template="vicuna-v1", **changes)
    model, processor = build(recipe)
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=r".*language_model.*q_proj"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    save_light(model, processor, tmp_path / "ours", references_of(recipe), torch.float32)
    report = export_llava_hf(tmp_path / "ours", tmp_path / "out")
    assert report.written
    compare(tmp_path / "ours", tmp_path / "out", picture)


@pytest.mark.parametrize("name", ["qwen2", "several-layers", "cls"])
def test_there_and_back_keeps_every_tensor(tmp_path, name) -> None:
    theirs = make_checkpoint(tmp_path / "llava", name)
    convert_llava_hf(tmp_path / "llava", tmp_path / "ours")
    export_llava_hf(tmp_path / "ours", tmp_path / "again")
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "again")
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert MODELS[name][1].items() <= again.config.to_dict().items()


def test_a_tokenizer_that_needs_a_gap_gets_it_from_the_template(tmp_path, picture) -> None:
    language = load_recipe("pico").language_model
    text = {**language.config, "vocab_size": 600}
    base = str(GOLDEN / "tiny-vicuna")
    recipe = recipe_with(
        connector=["mlp"],
        template="vicuna-v1",
        language_model={"source": "random", "tokenizer": base, "config": text},
    )
    model, processor = build(recipe)
    assert processor.image_gap == " "
    save_full(model, processor, tmp_path / "ours")
    export_llava_hf(tmp_path / "ours", tmp_path / "out")
    compare(tmp_path / "ours", tmp_path / "out", picture)


REFUSED = {
    "llava-sp": ({}, "connector is llava-sp"),
    "chain": ({"connector": ["mlp", {"part": "pool", "options": {"grid": [2, 2]}}]}, "mlp -> pool"),
    "width": ({"connector": [{"part": "mlp", "options": {"hidden_width": 8}}]}, "8 wide"),
    "views": ({"connector": ["mlp"], "views": "anyres"}, "anyres"),
    "layout": ({"connector": ["mlp"], "views": "anyres", "layout": "anyres-unpad"}, "layout"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llava_has_no_place_for_is_refused_with_the_reason(tmp_path, name) -> None:
    changes, words = REFUSED[name]
    model, processor = build(recipe_with(**changes))
    save_full(model, processor, tmp_path / "ours")
    with pytest.raises(UsageError, match=words) as caught:
        export_llava_hf(tmp_path / "ours", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_dry_run_and_occupied_output(tmp_path) -> None:
    model, processor = build(recipe_with(connector=["mlp"]))
    save_full(model, processor, tmp_path / "ours")
    report = export_llava_hf(tmp_path / "ours", tmp_path / "out", dry_run=True)
    assert not report.written
    assert not (tmp_path / "out").exists()
    assert {row.target for row in report.rows} == set(model.state_dict())
    with pytest.raises(UsageError, match="not empty"):
        export_llava_hf(tmp_path / "ours", tmp_path / "ours")
