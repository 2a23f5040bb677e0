"""LoRA on any part with layers for it: scoped, continued, saved and merged as one adapter."""

import copy

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from vistoken.core.errors import UsageError
from vistoken.models.build import build, references_of
from vistoken.models.checkpoint import merge_adapter, save_light
from vistoken.models.recipe import load_recipe
from vistoken.train.config import StageConfig
from vistoken.train.groups import apply_groups, part_parameters
from vistoken.train.lora import is_lora
from vistoken.train.trained import read_trained, write_trained

PARTS = ("vision", "connector", "spatial", "language")


def stage(**groups):
    return StageConfig.model_validate({"name": "a", "steps": 1, "groups": groups})


def lora(r=2, alpha=4, **fields):
    return {"train": "lora", "lora": {"r": r, "alpha": alpha, **fields}}


def adapted(**groups):
    """A pico model whose adapters training has moved."""
    model, processor = build(load_recipe("pico"))
    apply_groups(model, stage(**(groups or {part: lora() for part in PARTS})))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_lora(name):
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model, processor


def logits(model, processor):
    picture = Image.effect_noise((40, 40), 80).convert("RGB")
    generator = torch.Generator().manual_seed(0)
    inputs = processor(text="<image>what?", images=picture, return_tensors="pt")
    inputs["pixel_values"] = torch.randn(inputs["pixel_values"].shape, generator=generator)
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("part", PARTS)
def test_adapters_are_where_they_are_asked_for(pico, part):
    model = copy.deepcopy(pico[0])
    apply_groups(model, stage(**{part: lora()}))
    parts = part_parameters(model)
    assert any(map(is_lora, parts[part]))
    others = [name for other in parts if other != part for name in parts[other]]
    assert not any(map(is_lora, others))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(map(is_lora, trained))


@pytest.mark.parametrize("part", PARTS)
def test_every_adapter_gets_a_gradient(part):
    model, processor = adapted(**{part: lora()})
    inputs = processor(text="<image>what?", images=Image.new("RGB", (40, 40)), return_tensors="pt")
    model(**inputs).logits.square().mean().backward()
    adapters = {n: p for n, p in model.named_parameters() if is_lora(n)}
    last = f".layers.{model.config.vision_config.tower_configs()[0].num_hidden_layers - 1}."
    unread = [n for n in adapters if part == "vision" and last in n]  # the tower's last layer
    assert [n for n, p in adapters.items() if p.grad is None] == unread
    assert len(unread) < len(adapters)


def test_parts_may_differ_in_rank(pico):
    model = copy.deepcopy(pico[0])
    apply_groups(model, stage(vision=lora(r=3, alpha=9), language=lora(r=2, alpha=4)))
    for part, rank, scale in (("vision", 3, 3.0), ("language", 2, 2.0)):
        names = [n for n in part_parameters(model)[part] if ".lora_A." in n]
        layers = [model.get_submodule(n.rpartition(".lora_A.")[0]) for n in names]
        assert {tuple(layer.r.values()) for layer in layers} == {(rank,)}
        assert {tuple(layer.scaling.values()) for layer in layers} == {(scale,)}


def test_a_checkpoint_holds_adapters_of_all_parts(tmp_path):
    model, processor = adapted(
        vision=lora(r=3), connector=lora(), spatial=lora(r=5), language=lora()
    )
    expected = logits(model, processor)
    save_light(model, processor, tmp_path / "m", references_of(load_recipe("pico")), torch.float32)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(logits(again, processor), expected, atol=1e-6, rtol=1e-6)
    merge_adapter(again)
    assert not any(map(is_lora, dict(again.named_parameters())))
    torch.testing.assert_close(logits(again, processor), expected, atol=1e-5, rtol=1e-5)


def test_stage_files_do_not_know_the_wrappers(tmp_path):
    plain, processor = build(load_recipe("pico"))
    write_trained(plain, tmp_path / "before")
    model, _ = adapted()
    read_trained(model, tmp_path / "before", others_allowed=True)  # a stage without LoRA before
    write_trained(model, tmp_path / "after")
    other, _ = build(load_recipe("pico"))
    apply_groups(other, stage(**{part: lora() for part in PARTS}))
    assert not torch.equal(logits(other, processor), logits(model, processor))
    read_trained(other, tmp_path / "after")
    assert torch.equal(logits(other, processor), logits(model, processor))


def test_what_does_not_fit_is_refused(pico):
    model = copy.deepcopy(pico[0])
    with pytest.raises(UsageError, match="all of them the same"):
        apply_groups(model, stage(vision=lora(dropout=0.1), language=lora()))
    with pytest.raises(UsageError, match=r"groups\.connector\.lora\.targets: the part 'connector'"):
        apply_groups(model, stage(connector=lora(targets=["q_proj"])))
    apply_groups(model, stage(language=lora()))
    with pytest.raises(UsageError, match="has none there"):
        apply_groups(model, stage(vision=lora(), language=lora()))
    with pytest.raises(UsageError, match=r"lora\.r is 3, but"):
        apply_groups(model, stage(language=lora(r=3)))
    with pytest.raises(UsageError, match="merge them first"):
        apply_groups(model, stage(language={"train": "full"}))
