import copy

import pytest
import torch

from vistoken.core.errors import UsageError
from vistoken.train.config import StageConfig
from vistoken.train.groups import apply_groups, format_table, optimizer_groups, part_parameters


def stage(**groups):
    return StageConfig.model_validate({"name": "a", "steps": 1, "groups": groups})


@pytest.fixture
def model(pico):
    return copy.deepcopy(pico[0])


def test_every_tensor_is_in_exactly_one_part(model):
    parts = part_parameters(model)
    names = [name for parameters in parts.values() for name in parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all("spatial_" in n or "detail_" in n for n in parts["spatial"])
    assert all("patch_projector" in n for n in parts["connector"])
    assert "lm_head.weight" in parts["language"]


def test_frozen_full_and_lora(model):
    table = apply_groups(
        model,
        stage(
            spatial={"train": "full", "lr": 5e-4},
            language={"train": "lora", "lr": 1e-3, "lora": {"r": 2, "alpha": 4}},
        ),
    )
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name or "spatial" in name or "detail" in name for name in trained)
    rows = {row.name: row for row in table}
    assert rows["vision"].trainable == rows["connector"].trainable == 0
    assert rows["spatial"].trainable == rows["spatial"].total
    # q, k, v, o, gate, up, down of two layers, rank 2: r * (in + out) each
    widths = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    assert rows["language"].trainable == 2 * sum(2 * (a + b) for a, b in widths)
    assert "1.0e-03" in format_table(table)
    assert type(model).__name__ == "VistokenForConditionalGeneration"


def test_adapters_are_float32_and_frozen_weights_keep_their_type(model):
    model.model.language_model.to(torch.bfloat16)
    apply_groups(model, stage(language={"train": "lora"}))
    for name, parameter in model.model.language_model.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)


def test_towers_are_not_adapted(model):
    apply_groups(model, stage(language={"train": "lora"}))
    assert not [n for n, _ in model.model.vision_tower.named_parameters() if "lora_" in n]


def test_optimizer_groups_carry_rates_and_spare_vectors_from_decay(model):
    config = stage(
        spatial={"train": "full", "lr": 5e-4, "weight_decay": 0.1},
        connector={"train": "full", "lr": 2e-5},
    )
    apply_groups(model, config)
    groups = {group["name"]: group for group in optimizer_groups(model, config)}
    assert set(groups) == {"spatial", "spatial-no-decay", "connector", "connector-no-decay"}
    assert (groups["spatial"]["lr"], groups["spatial"]["weight_decay"]) == (5e-4, 0.1)
    assert groups["spatial-no-decay"]["weight_decay"] == 0
    assert all(p.dim() <= 1 for p in groups["spatial-no-decay"]["params"])


def test_a_trainable_tensor_of_a_frozen_part_is_noticed(model):
    config = stage(connector={"train": "full"})
    apply_groups(model, config)
    parameters = optimizer_groups(model, config)
    assert sum(len(group["params"]) for group in parameters) == 4
    model.lm_head = torch.nn.Linear(1, 1)  # a new tensor that no call to apply_groups froze
    groups = optimizer_groups(model, config)
    assert {group["name"] for group in groups} >= {"language"}


def test_unknown_target_and_missing_part_are_named(model):
    with pytest.raises(UsageError, match="no linear layer 'qq_proj'"):
        apply_groups(model, stage(language={"train": "lora", "lora": {"targets": ["qq_proj"]}}))
    without = model.model.multi_modal_projector.get_submodule("llava-sp")
    for name in [n for n, _ in without.named_children() if n != "patch_projector"]:
        delattr(without, name)
    with pytest.raises(UsageError, match="this model has none"):
        apply_groups(model, stage(spatial={"train": "full"}))


def test_full_tuning_after_lora_is_refused(model):
    apply_groups(model, stage(language={"train": "lora"}))
    with pytest.raises(UsageError, match="merge them first"):
        apply_groups(model, stage(language={"train": "full"}))


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_adapters_learn_over_quantised_weights(model, method):
    pytest.importorskip("torchao" if method == "int8" else "bitsandbytes")
    ids = torch.tensor([[3, 10, 11, 12]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
    apply_groups(model, stage(language={"train": "lora", "quantization": method, "lora": {"r": 2}}))
    logits = model(input_ids=ids).logits
    assert 0 < (logits - before).abs().max() < 0.2 * before.abs().max()  # rounded, not ruined
    logits.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in grads)
    assert all(grad is not None for grad in grads.values())
    assert any(grad.any() for name, grad in grads.items() if "lora_B" in name)


def test_a_carried_adapter_is_continued_or_refused(model):
    first = stage(language={"train": "lora", "lora": {"r": 2, "alpha": 4}})
    apply_groups(model, first)
    weights = {name: id(p) for name, p in model.named_parameters() if "lora_" in name}
    apply_groups(model, first)
    assert weights == {name: id(p) for name, p in model.named_parameters() if "lora_" in name}
    for other in ({"r": 4, "alpha": 4}, {"r": 2, "alpha": 8}):
        with pytest.raises(UsageError, match="carries LoRA with"):
            apply_groups(model, stage(language={"train": "lora", "lora": other}))
