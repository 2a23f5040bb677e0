"""YOPO in a whole model: batches, generation, checkpoints, LoRA, packing, what it excludes."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig

from vistoken.core.errors import UsageError
from vistoken.core.tables import TOKEN
from vistoken.models import VistokenForConditionalGeneration
from vistoken.models.build import build as build_recipe
from vistoken.models.checkpoint import merge_adapter, save_full
from vistoken.models.decoder import FfnChannels, LayerPlan, NoOp
from vistoken.models.recipe import load_recipe, recipe_names
from vistoken.systems.yopo.config import YopoConfig

from .reference import prompt_table

DROP = {"window": 3, "layer_cut": 1, "head_keep": ["1111", "0110"], "mlp_ratio": 2}
EXACT = {**DROP, "mode": "exact", "head_keep": ["1011", "0110"]}
FREE = {"mode": "training_free", "layer_cut": 1, "head_keep": ["1011", "1111"]}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def with_yopo(pico, **options):
    """The tiny model and its processor, with the mechanism."""
    model, processor = pico
    model = copy.deepcopy(model)
    spec = {"part": "yopo", "options": options}
    model.config.decoder_config = {"mechanisms": [spec]}
    model.model.build_mechanisms()
    return model, processor


def prompts(processor, picture, counts):
    """Prompts with so many pictures each, as one batch and alone."""
    texts = ["<image>" * count + f" say {'x ' * count}please" for count in counts]
    pictures = [[picture(40, 50, 7 * i + j) for j in range(c)] for i, c in enumerate(counts)]
    flat = [p for group in pictures for p in group]
    batch = processor(text=texts, images=flat or None, padding=True, return_tensors="pt")
    singles = [
        processor(text=text, images=group or None, return_tensors="pt")
        for text, group in zip(texts, pictures, strict=True)
    ]
    return batch, singles


@pytest.mark.parametrize("options", [DROP, EXACT, FREE], ids=["drop", "exact", "free"])
def test_a_batch_of_mixed_prompts_equals_singles(pico, picture, options):
    model, processor = with_yopo(pico, **options)
    counts = [0, 1, 2, 1, 0, 2, 1, 1]
    batch, singles = prompts(processor, picture, counts)
    with torch.no_grad():
        together = model(**batch, logits_to_keep=1).logits[:, -1]
        alone = torch.cat([model(**single, logits_to_keep=1).logits[:, -1] for single in singles])
    torch.testing.assert_close(together, alone, **CLOSE)
    call = {"max_new_tokens": 4, "do_sample": False}
    tokens = model.generate(**batch, **call)[:, -4:]
    for number in (0, 2, 3):
        assert torch.equal(model.generate(**singles[number], **call)[0, -4:], tokens[number])


@pytest.mark.parametrize("options", [DROP, EXACT], ids=["drop", "exact"])
def test_generation_with_and_without_cache(pico, picture, options):
    model, processor = with_yopo(pico, **options)
    batch, _ = prompts(processor, picture, [1, 2])
    for search in ({"num_beams": 1}, {"num_beams": 2}):
        call = {"max_new_tokens": 4, "do_sample": False, **search}
        cached = model.generate(**batch, **call)
        assert torch.equal(cached, model.generate(**batch, **call, use_cache=False))


def test_checkpoints_keep_their_names_and_the_mechanism(pico, picture, tmp_path):
    model, processor = with_yopo(pico, **DROP)
    save_full(model, processor, tmp_path / "out")
    again = VistokenForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert sorted(again.state_dict()) == sorted(pico[0].state_dict())
    (mechanism,) = again.model.stack
    assert mechanism.config == YopoConfig(**DROP)
    batch, _ = prompts(processor, picture, [1, 0])
    with torch.no_grad():
        kept = again(**batch, logits_to_keep=1).logits
        torch.testing.assert_close(kept, model(**batch, logits_to_keep=1).logits, **CLOSE)


@pytest.mark.parametrize("options", [DROP, EXACT], ids=["drop", "exact"])
def test_lora_under_the_pruned_graph_equals_merged(pico, picture, options):
    model, processor = with_yopo(pico, **options)
    targets = r".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    model.add_adapter(LoraConfig(r=2, target_modules=targets))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    model.eval()
    batch, _ = prompts(processor, picture, [1, 2])
    with torch.no_grad():
        apart = model(**batch, logits_to_keep=1).logits
        merge_adapter(model)
        merged = model(**batch, logits_to_keep=1).logits
        bare = with_yopo(pico, **options)[0](**batch, logits_to_keep=1).logits
    torch.testing.assert_close(apart, merged, rtol=0, atol=1e-4)
    assert (apart - bare).abs().max() > 1e-3


@pytest.mark.parametrize("options", [DROP, EXACT, FREE], ids=["drop", "exact", "free"])
def test_packed_branches_equal_rows_of_their_own(build, yopo, run, options):
    """Two questions behind one picture under a ready mask: what training feeds the decoder."""
    model = build(num_hidden_layers=2)
    prefix, branch = prompt_table(2, (3, 3), 2), prompt_table(3)
    length = len(prefix)
    tables = [TOKEN.set(branch, branch=number) for number in range(2)]
    table = torch.cat([prefix, *tables])[None]
    embeds = torch.randn(1, table.shape[1], 32, generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length), *[length + torch.arange(3)] * 2])[None]
    owner = torch.cat([torch.full((length,), -1), torch.zeros(3), torch.ones(3)])
    allowed = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    allowed &= (owner[:, None] == owner[None]) | (owner[None] < 0)
    mechanism = yopo(model, **options)
    logits, _ = run(
        model,
        mechanism,
        inputs_embeds=embeds,
        attention_mask=allowed[None, None],
        position_ids=positions,
        token_map=table,
        use_cache=False,
    )
    for number in range(2):
        rows = torch.cat([torch.arange(length), length + 3 * number + torch.arange(3)])
        alone, _ = run(model, mechanism, inputs_embeds=embeds[:, rows], token_map=table[:, rows])
        assert logits.shape[1] == table.shape[1]
        torch.testing.assert_close(logits[0, rows[-3:]], alone[0, -3:], **CLOSE)


class OtherChannels(NoOp):
    """Another mechanism that cuts the FFN."""

    name = "other"

    def plan(self, layer, state):
        return LayerPlan(ffn_channels=(FfnChannels(state.visual, 8),))


def test_what_it_excludes(pico, picture, build, yopo, run):
    model, processor = with_yopo(pico, **DROP)
    batch, _ = prompts(processor, picture, [1])
    with pytest.raises(UsageError, match="static"):
        model.generate(**batch, max_new_tokens=2, cache_implementation="static")
    small = build()
    table = prompt_table(2, (3, 3), 2)[None]
    mechanism = yopo(small, mlp_ratio=2)
    with pytest.raises(UsageError, match="ffn_channels"):
        run(
            small, mechanism, OtherChannels(), inputs_embeds=torch.zeros(1, 13, 32), token_map=table
        )
    with pytest.raises(UsageError, match="2 times"):
        run(small, mechanism, mechanism, inputs_embeds=torch.zeros(1, 13, 32), token_map=table)
    spec = {"part": "yopo", "options": {**DROP, "layer_cut": 3}}
    model.config.decoder_config = {"mechanisms": [spec]}
    with pytest.raises(UsageError, match="layer_cut 3"):
        model.model.build_mechanisms()


@pytest.mark.parametrize("name", ["yopo-7b", "yopo-nano"])
def test_recipes(name):
    assert name in recipe_names()
    recipe = load_recipe(name)
    config = recipe.model_config_for()
    (spec,) = config.decoder_config["mechanisms"]
    assert spec["part"] == "yopo"
    assert config.text_config.intermediate_size % spec["options"]["mlp_ratio"] == 0
    assert spec["options"]["layer_cut"] == config.text_config.num_hidden_layers // 2
    assert recipe.train is not None


def test_a_recipe_builds_its_mechanism():
    values = load_recipe("pico").model_dump(mode="json", exclude_none=True)
    values["mechanisms"] = [{"part": "yopo", "options": DROP}]
    recipe = type(load_recipe("pico")).model_validate(values)
    model, _ = build_recipe(recipe)
    assert [m.name for m in model.model.stack] == ["yopo"]
