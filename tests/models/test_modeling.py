"""The model against its contract: equal to Llava, batches, generation, checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    pipeline,
)
from transformers.generation import utils as generation

from vistoken.core.errors import DataError, UsageError, WeightsError
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models import VistokenConfig, VistokenForConditionalGeneration
from vistoken.models.build import build
from vistoken.models.checkpoint import save_full
from vistoken.models.images import open_image
from vistoken.models.pipeline import TokenPlan
from vistoken.models.recipe import load_recipe, parse_recipe


def pico_values() -> dict:
    values = load_recipe("pico").model_dump(exclude_none=True)
    return copy.deepcopy(values)


def variant(**changes) -> dict:
    return {**pico_values(), **changes}


def prompts(processor, *image_counts: int) -> list[str]:
    return [
        processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}] * count
                    + [{"type": "text", "text": "What?" * (count + 1)}],
                }
            ],
            add_generation_prompt=True,
        )
        for count in image_counts
    ]


def inputs_for(processor, picture, *image_counts: int, side: str = "left"):
    pictures = [picture(40 + 8 * i, 56 - 4 * i, i) for i in range(sum(image_counts))]
    return processor(
        text=prompts(processor, *image_counts),
        images=pictures or None,
        return_tensors="pt",
        padding=True,
        padding_side=side,
    )


def test_equals_transformers_llava_with_the_same_weights():
    """spec/llava-sp.md acceptance 4: without spatial tokens the model is LLaVA-1.5."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=99,
    )  # fmt: skip
    torch.manual_seed(0)
    reference = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=98)
    ).eval()
    config = VistokenConfig(
        vision_config={
            "towers": [
                {"name": "clip", "config": vision.to_dict(), "feature_layer": -2,
                 "size": [32, 32], "stride": 8, "width": 32, "prefix": 1}
            ]
        },
        connector_config=["mlp"],
        text_config=text.to_dict(),
        image_token_id=98,
    )  # fmt: skip
    for chain in (["mlp"], [{"part": "llava-sp", "options": {"spatial_tokens": "none"}}]):
        config.connector_config = chain
        model = VistokenForConditionalGeneration(config).eval()
        state = dict(reference.state_dict())
        if chain != ["mlp"]:
            old, new = (
                "model.multi_modal_projector.",
                "model.multi_modal_projector.llava-sp.patch_projector.",
            )
            state = {k.replace(old, new): v for k, v in state.items()}
        model.load_state_dict(state)
        ids = torch.randint(0, 90, (2, 24))
        ids[0, 3:19] = ids[1, 5:21] = 98
        pixels = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            ours = model(input_ids=ids, pixel_values=pixels).logits
            theirs = reference(input_ids=ids, pixel_values=pixels).logits
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_of_mixed_prompts_equals_singles(pico, picture, side):
    model, processor = pico
    batch = inputs_for(processor, picture, 0, 1, 2, side=side)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        together = model(**batch, position_ids=positions).logits
    pictures = [picture(40 + 8 * i, 56 - 4 * i, i) for i in range(3)]
    for row, (count, images) in enumerate([(0, []), (1, pictures[:1]), (2, pictures[1:])]):
        single = processor(
            text=prompts(processor, count), images=images or None, return_tensors="pt"
        )
        with torch.no_grad():
            alone = model(**single).logits[0]
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(together[row][real], alone, atol=2e-5, rtol=1e-4)


def test_the_batch_token_map_says_what_every_position_holds(pico, picture):
    model, processor = pico
    batch = inputs_for(processor, picture, 0, 2)
    with torch.no_grad():
        table = model(**batch).token_map
    kind = TOKEN.get(table, "kind")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ((kind == TokenKind.PAD) == (mask == 0)).all()
    visual = (kind == TokenKind.VISUAL) | (kind == TokenKind.SPATIAL)
    assert (visual == (ids == processor.image_token_id)).all()
    media = TOKEN.get(table, "media")[1]
    assert media[visual[1]].unique().tolist() == [0, 1]
    predicted = torch.cat(
        [processor.image_processor.token_map(40 + 8 * i, 56 - 4 * i) for i in (0, 1)]
    )
    rows = table[1][visual[1]]
    assert torch.equal(TOKEN.set(rows, media=0), TOKEN.set(predicted, media=0))


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}],
    ids=["greedy", "uncached", "beam", "sampled"],
)
def test_generating_in_a_batch_equals_generating_alone(pico, picture, options):
    model, processor = pico
    batch = inputs_for(processor, picture, 1, 2)
    options = {"do_sample": False, "max_new_tokens": 6, **options}
    copies = options.get("num_return_sequences", 1)
    if options["do_sample"]:  # sampling differs by row order, so compare two equal calls instead
        torch.manual_seed(1)
        first = model.generate(**batch, **options)
        torch.manual_seed(1)
        assert torch.equal(first, model.generate(**batch, **options))
        assert len(first) == 2 * copies
        return
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    pictures = [picture(40 + 8 * i, 56 - 4 * i, i) for i in range(3)]
    for row, (count, images) in enumerate([(1, pictures[:1]), (2, pictures[1:])]):
        single = processor(text=prompts(processor, count), images=images, return_tensors="pt")
        alone = model.generate(**single, **options)[0, single["input_ids"].shape[1] :]
        assert together[row][: len(alone)].tolist() == alone.tolist()


def test_encoded_images_can_be_reused(pico, picture):
    model, processor = pico
    batch = inputs_for(processor, picture, 1, 1)
    features = model.get_image_features(batch["pixel_values"], batch["view_table"])
    text = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        direct = model(**batch).logits
        reused = model(**text, mm_encoder_outputs={"image": features}).logits
    assert torch.equal(direct, reused)
    with pytest.raises(ValueError, match="not both"):
        model(**batch, mm_encoder_outputs={"image": features})


def test_what_inference_left_in_the_cache_can_be_trained_on(pico):
    _, processor = pico
    plan = TokenPlan(processor.image_processor.plan.spec)
    table = processor.image_processor.view_table(64, 96)
    with torch.inference_mode():
        plan.arrange(table)
    assert not plan.arrange(table).order.is_inference()
    assert not plan.arrange(table).token_map.is_inference()


def test_cached_tower_features_replace_pixels(pico, picture):
    model, processor = pico
    batch = inputs_for(processor, picture, 2)
    with torch.no_grad():
        maps, _ = model.model.encode(batch["pixel_values"], batch["view_table"])
        text = {k: batch[k] for k in ("input_ids", "attention_mask", "view_table")}
        cached = model(**text, tower_features=maps).logits
        assert torch.equal(cached, model(**batch).logits)


def test_the_image_token_is_never_generated(pico, picture):
    model, processor = pico
    batch = inputs_for(processor, picture, 1)
    answer = model.generate(**batch, max_new_tokens=40, do_sample=True, temperature=20.0)
    new = answer[:, batch["input_ids"].shape[1] :]
    assert (new != processor.image_token_id).all()


def test_a_forced_loop_equals_the_stock_model(pico, picture):
    model, processor = pico
    forced = copy.deepcopy(model)
    config = copy.deepcopy(model.config)
    config.decoder_config = {"mechanisms": ["no-op"]}
    forced = VistokenForConditionalGeneration(config).eval()
    forced.load_state_dict(model.state_dict())
    assert len(forced.model.stack) == 1
    assert len(model.model.stack) == 0
    batch = inputs_for(processor, picture, 0, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            forced(**batch).logits, model(**batch).logits, atol=1e-6, rtol=1e-6
        )
    for options in ({}, {"num_beams": 3}):
        ours = forced.generate(**batch, max_new_tokens=5, do_sample=False, **options)
        assert torch.equal(
            ours, model.generate(**batch, max_new_tokens=5, do_sample=False, **options)
        )


def test_full_checkpoints_round_trip_through_the_auto_classes(pico, picture, tmp_path):
    model, processor = pico
    save_full(model, processor, tmp_path / "out")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor_again = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(again) is VistokenForConditionalGeneration
    state, state_again = model.state_dict(), again.state_dict()
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    batch = inputs_for(processor, picture, 1)
    batch_again = inputs_for(processor_again, picture, 1)
    assert all(torch.equal(batch[name], batch_again[name]) for name in batch)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch_again).logits)


def test_a_missing_or_unknown_tensor_is_an_error(pico, tmp_path):
    from safetensors.torch import load_file, save_file

    model, processor = pico
    save_full(model, processor, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    state = load_file(path)
    name = next(n for n in state if "multi_modal_projector" in n)
    tensor = state.pop(name)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        VistokenForConditionalGeneration.from_pretrained(tmp_path / "out")
    save_file({**state, name: tensor, "extra": tensor.clone()}, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="extra is unexpected"):
        VistokenForConditionalGeneration.from_pretrained(tmp_path / "out")
    save_file({**state, name: tensor[:1].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError):
        VistokenForConditionalGeneration.from_pretrained(tmp_path / "out")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError):
        VistokenForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_pipeline_answers(pico, picture):
    model, processor = pico
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture(40, 40)},
                {"type": "text", "text": "What?"},
            ],
        }
    ]
    answer = ask(text=messages, max_new_tokens=3, return_full_text=False)
    assert isinstance(answer[0]["generated_text"], str)


def test_push_to_hub_into_a_local_directory_is_a_plain_save(pico, tmp_path):
    model, processor = pico
    model.save_pretrained(tmp_path, push_to_hub=False)
    processor.save_pretrained(tmp_path, push_to_hub=False)
    assert {"config.json", "model.safetensors", "processor_config.json"} <= {
        p.name for p in tmp_path.iterdir()
    }


@pytest.mark.slow
def test_compiled_forward_equals_eager(pico, picture):
    model, processor = pico
    batch = inputs_for(processor, picture, 1)
    compiled = torch.compile(model.forward, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)


def test_a_prompt_with_the_wrong_number_of_placeholders_is_refused(pico, picture):
    model, processor = pico
    batch = inputs_for(processor, picture, 1)
    ids = batch["input_ids"].clone()
    ids[0, (ids[0] == processor.image_token_id).nonzero()[0]] = 5
    broken = {**batch, "input_ids": ids}
    with pytest.raises(ValueError, match="placeholders"):
        model(**broken)
    with pytest.raises(DataError, match="2 <image> marks for 1 images"):
        processor(text="<image><image>", images=picture(9, 9), return_tensors="pt")
    with pytest.raises(DataError, match="empty"):
        processor(text="  ", return_tensors="pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"connector": ["llava-spp"]}, "did you mean 'llava-sp'"),
        ({"connector": ["rms-scale", "mlp"]}, "fuse.*project"),
        ({"connector": [{"part": "mlp", "options": {"hiden": 3}}]}, "has no option 'hiden'"),
        ({"views": "padd"}, "did you mean 'pad'"),
        ({"layout": "plane"}, "did you mean 'plain'"),
        ({"template": "chatlm"}, "chatml"),
        ({"templat": "chatml"}, "did you mean 'template'"),
    ],
)
def test_wrong_recipes_are_explained(change, message):
    with pytest.raises(UsageError, match=message):
        build(parse_recipe(variant(**change), "test"))[1].image_processor.view_table(8, 8)


TOWERS = {
    "siglip": {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64,
               "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
    "siglip2": {"model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 64,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_patches": 16,
                "patch_size": 8},
    "dinov2": {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2,
               "num_attention_heads": 4, "image_size": 48, "patch_size": 8},
    "registers": {"model_type": "dinov2_with_registers", "hidden_size": 32, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "image_size": 48, "patch_size": 8},
    "convnext": {"model_type": "convnext", "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    "lite0": {"model_type": "efficientnet-lite"},
}  # fmt: skip


@pytest.mark.parametrize("select", ["default", "full"])
@pytest.mark.parametrize("tower", TOWERS)
def test_any_tower_works_forward_and_backward(tower, select, picture):
    values = pico_values()
    values["towers"][0] |= {"config": TOWERS[tower], "select": select, "feature_layer": -1}
    values["towers"][0]["size"] = [64, 64] if tower in ("convnext", "lite0") else [32, 32]
    values["connector"] = ["mlp"]
    model, processor = build(parse_recipe(values, tower))
    batch = inputs_for(processor, picture, 1, 2)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


def test_two_towers_of_different_sizes_share_one_grid(picture):
    values = pico_values()
    lite = {**values["towers"][0], "name": "lite", "config": {"model_type": "efficientnet-lite"}}
    lite |= {"size": [64, 64], "feature_layer": [4, -1]}
    values["towers"].append(lite)
    values["connector"] = ["concat-grid", "mlp", {"part": "pool", "options": {"grid": [2, 2]}}]
    model, processor = build(parse_recipe(values, "two"))
    batch = inputs_for(processor, picture, 1, 2)
    assert isinstance(batch["pixel_values"], list)
    assert len(batch["pixel_values"]) == 6
    features = model.get_image_features(batch["pixel_values"], batch["view_table"])
    assert [len(tokens) for tokens in features.pooler_output] == [4, 4, 4]
    answer = model.generate(**batch, max_new_tokens=3, num_beams=2)
    assert answer.shape[0] == 2


def test_pictures_named_by_path_are_opened_like_any_other(pico, tmp_path):
    import numpy as np
    from PIL import Image

    _, processor = pico
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    deep = Image.fromarray(np.full((20, 20), 60_000, np.uint16))
    for name, image in {"clear.png": clear, "deep.png": deep}.items():
        image.save(tmp_path / name)
        expected = processor.image_processor(open_image(tmp_path / name))["pixel_values"]
        named = str(tmp_path / name)
        direct = processor(text="<image>?", images=named, return_tensors="pt")
        assert torch.equal(direct["pixel_values"], expected)
        messages = [{"role": "user", "content": [{"type": "image", "path": named}]}]
        templated = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert torch.equal(templated["pixel_values"], expected)
    with pytest.raises(DataError, match="nowhere"):
        processor(text="<image>?", images=str(tmp_path / "nowhere.png"))
    with pytest.raises(UsageError, match="takes no option 'do_resize'"):
        processor.image_processor(clear, do_resize=False)


def test_each_prompt_owns_its_pictures(pico, picture):
    _, processor = pico
    with pytest.raises(DataError, match="prompt 0 has 2 <image> marks for 1 images"):
        processor(text=["<image><image>a", "b"], images=[[picture(9, 9)], [picture(9, 9)]])


def test_batches_pad_on_the_left_by_themselves(pico, picture):
    _, processor = pico
    batch = processor(
        text=prompts(processor, 0, 1), images=[picture(40, 40)], return_tensors="pt", padding=True
    )
    assert batch["attention_mask"][0, 0] == 0
    assert (batch["attention_mask"][:, -1] == 1).all()


def test_placeholders_without_pictures_are_refused(pico):
    model, processor = pico
    with pytest.raises(ValueError, match="no images were given"):
        model(input_ids=torch.tensor([[1, processor.image_token_id, 5]]))


def test_chunked_prefill_gives_the_same_answer(pico, picture):
    model, processor = pico
    batch = inputs_for(processor, picture, 1)
    whole = model.generate(**batch, max_new_tokens=4, do_sample=False)
    options = {"max_new_tokens": 4, "do_sample": False, "prefill_chunk_size": 7}
    if not hasattr(generation, "_slice_mm_encoder_output"):  # 5.19 loses pictures between chunks
        with pytest.raises(ValueError, match="no images were given"):
            model.generate(**batch, **options)
        return
    assert torch.equal(whole, model.generate(**batch, **options))


def test_lora_on_a_lone_connector_acts(picture):
    from peft import LoraConfig

    values = pico_values()
    values["connector"] = ["mlp"]
    model, processor = build(parse_recipe(values, "lone"))
    batch = inputs_for(processor, picture, 1)
    with torch.no_grad():
        before = model(**batch).logits
        model.add_adapter(LoraConfig(r=2, target_modules=["linear_1"], init_lora_weights=False))
        assert not torch.allclose(model(**batch).logits, before)


def test_the_headless_class_loads_as_strictly(pico, tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel

    model, processor = pico
    save_full(model, processor, tmp_path / "out")
    headless = AutoModel.from_pretrained(tmp_path / "out")
    own = model.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in headless.state_dict().items())
    path = tmp_path / "out" / "model.safetensors"
    state = load_file(path)
    state.pop(next(name for name in state if "multi_modal_projector" in name))
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="is missing"):
        AutoModel.from_pretrained(tmp_path / "out")
