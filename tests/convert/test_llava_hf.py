"""Hugging Face Llava checkpoints: same logits, same answers, old and new tensor names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

import vistoken
from vistoken.convert.llava_hf import convert_llava_hf
from vistoken.core.errors import UsageError, WeightsError

GOLDEN = Path(__file__).parents[1] / "golden" / "llava-sp" / "release_pooling"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 620,  # more rows than tokens, as padded checkpoints have
    "max_position_embeddings": 512,
}
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
CROP = {"height": 56, "width": 56}
MODELS = {
    "llama": (LlamaConfig(**TEXT), {}),
    "mistral": (MistralConfig(**TEXT, sliding_window=None), {}),
    "qwen2": (Qwen2Config(**TEXT, tie_word_embeddings=True), {}),
    "several-layers": (LlamaConfig(**TEXT), {"vision_feature_layer": [-2, -3]}),
    "cls": (LlamaConfig(**TEXT), {"vision_feature_select_strategy": "full"}),
}


def make_checkpoint(folder: Path, name: str) -> LlavaForConditionalGeneration:
    """A random Llava with everything its directory needs."""
    text, options = MODELS[name]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=text,
        image_token_id=600,
        tie_word_embeddings=text.tie_word_embeddings,
        **options,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=CROP).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tiny-vicuna")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture
def checkpoint(tmp_path):
    """A Llama Llava checkpoint to break or rename."""
    make_checkpoint(tmp_path / "llava", "llama")
    return tmp_path / "llava"


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_answers_are_those_of_transformers(tmp_path, picture, name) -> None:
    theirs = make_checkpoint(tmp_path / "llava", name)
    report = convert_llava_hf(tmp_path / "llava", tmp_path / "out")
    assert report.written
    ours, processor = vistoken.load(tmp_path / "out", device="cpu", dtype="float32")
    images = [picture(60, 90), picture(80, 50, seed=1)]
    texts = ["<image>\nWhat is it?", "Look: <image> and tell"]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    wanted = CLIPImageProcessorPil.from_pretrained(tmp_path / "llava")(images, return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], wanted["pixel_values"])
    shared = {k: inputs[k] for k in ("input_ids", "attention_mask", "pixel_values")}
    real = inputs["attention_mask"].bool()
    with torch.inference_mode():
        reference = theirs(**shared).logits
        logits = ours(**shared, view_table=inputs["view_table"]).logits
        assert (logits - reference)[real].abs().max() < 1e-5
        limits = {"max_new_tokens": 12, "do_sample": False}
        answers = ours.generate(**shared, view_table=inputs["view_table"], **limits)
        assert torch.equal(answers, theirs.generate(**shared, **limits))


def test_every_tensor_is_carried_over_unchanged(checkpoint, tmp_path) -> None:
    report = convert_llava_hf(checkpoint, tmp_path / "out")
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert {row.key for row in report.rows} == set(before)
    assert {row.target for row in report.rows} == set(after)
    for row in report.rows:
        assert torch.equal(after[row.target], before[row.key])


def test_the_other_names_in_a_pickle(checkpoint, tmp_path) -> None:
    """Saved are the names of 2023; the model's own ones, and old rotary buffers, do as well."""
    saved = load_file(checkpoint / "model.safetensors")
    assert "language_model.model.norm.weight" in saved
    renamed = {}
    for key, value in saved.items():
        key = f"model.{key.replace('language_model.model.', 'language_model.')}"
        renamed["lm_head.weight" if key.endswith("lm_head.weight") else key] = value
    renamed["model.language_model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    convert_llava_hf(checkpoint, tmp_path / "out")
    (checkpoint / "model.safetensors").unlink()
    torch.save(renamed, checkpoint / "pytorch_model.bin")
    report = convert_llava_hf(checkpoint, tmp_path / "again")
    assert report.counts["unused"] == 1
    after = load_file(tmp_path / "again" / "model.safetensors")
    expected = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[key], expected[key]) for key in after)


PROMPTS = [
    "<image>\nWhat is it?",
    "<image>a",
    "Look: <image> and tell",
    "USER: <image>\nhi ASSISTANT: yes</s>USER: so? ASSISTANT:",
    "no image</s>a",
]


@pytest.mark.parametrize("legacy", [False, True])
def test_ids_are_those_of_the_checkpoints_own_processor(tmp_path, picture, legacy) -> None:
    source = tmp_path / "llava"
    make_checkpoint(source, "llama")
    tokenizer = LlamaTokenizer.from_pretrained(GOLDEN / "tiny-vicuna", legacy=legacy)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=CROP)
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(source)
    convert_llava_hf(source, tmp_path / "out")
    theirs = AutoProcessor.from_pretrained(source)
    ours = AutoProcessor.from_pretrained(tmp_path / "out")
    assert ours.image_gap == ""
    for prompt in PROMPTS:
        pictures = [picture(60, 90)] if "<image>" in prompt else None
        wanted = theirs(text=prompt, images=pictures)["input_ids"]
        assert ours(text=prompt, images=pictures)["input_ids"] == wanted


def test_batches_are_padded_on_the_left(checkpoint, tmp_path) -> None:
    convert_llava_hf(checkpoint, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    mask = processor(text=["a", "a b c d e"], padding=True)["attention_mask"]
    assert (mask[0][0], mask[0][-1]) == (0, 1)


def test_auto_classes_and_chat_template(checkpoint, tmp_path) -> None:
    convert_llava_hf(checkpoint, tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.config.image_token_id == 600
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    text = processor.apply_chat_template([{"role": "user", "content": "hi"}])
    assert text == "user: hi\n"
    # the whole vocabulary stays as it was: the image token had its row already
    assert model.lm_head.weight.shape[0] == TEXT["vocab_size"]


def test_dry_run_writes_nothing(checkpoint, tmp_path) -> None:
    before = sorted(tmp_path.rglob("*"))
    report = convert_llava_hf(checkpoint, tmp_path / "out", dry_run=True)
    assert not report.written
    assert sorted(tmp_path.rglob("*")) == before


def edit_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def lose_a_tensor(folder: Path) -> None:
    from safetensors.torch import save_file

    state = load_file(folder / "model.safetensors")
    state.pop("multi_modal_projector.linear_2.bias")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def use_another_activation(folder: Path) -> None:
    edit_config(folder, projector_hidden_act="silu")


def become_another_model(folder: Path) -> None:
    edit_config(folder, model_type="llava_next")


def use_another_filter(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resample": 2}))


def drop_a_token_that_siglip_has_not(folder: Path) -> None:
    vision = SiglipVisionConfig(**TOWER)
    edit_config(folder, vision_config=vision.to_dict())
    SiglipImageProcessorPil(size=CROP).save_pretrained(folder)


FAULTS = [
    (lose_a_tensor, ["model.safetensors", "linear_2.bias"]),
    (use_another_activation, ["config.json", "silu"]),
    (become_another_model, ["llava-sp"]),
    (use_another_filter, ["bicubic"]),
    (drop_a_token_that_siglip_has_not, ["vision_feature_select_strategy"]),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_what_cannot_be_converted_is_one_sentence(checkpoint, tmp_path, fault, words) -> None:
    fault(checkpoint)
    with pytest.raises(WeightsError) as caught:
        convert_llava_hf(checkpoint, tmp_path / "out")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_occupied_output_is_refused(checkpoint) -> None:
    with pytest.raises(UsageError, match="not empty"):
        convert_llava_hf(checkpoint, checkpoint)
