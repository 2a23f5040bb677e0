"""Mechanisms beside LoRA, experts, checkpointing, and each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vistoken.core.errors import UsageError
from vistoken.models.decoder import (
    BaseMechanism,
    FfnChannels,
    LayerPlan,
    NoOp,
    SequenceState,
    aux_loss,
)

from .mechanisms import BATCH, ROWS, DropThird, KeyBias, Tell, in_pieces, random_mask, run

Build = Callable[..., PreTrainedModel]
CUT = torch.zeros(BATCH, ROWS, dtype=torch.bool)
CUT[:, 2:7] = True


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def adapted(model: PreTrainedModel) -> tuple[Any, Any]:
    """The model with random adapters on every projection, and with them merged in."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    wrapped = get_peft_model(model, config)
    return wrapped, wrapped.base_model.model


@pytest.mark.parametrize(
    "plan",
    [
        LayerPlan(query_rows=~CUT),
        LayerPlan(ffn_channels=(FfnChannels(CUT, 20),)),
        LayerPlan(head_out_keep=torch.full((1, 4, 1), 0.5)),
    ],
    ids=["query-rows", "ffn-channels", "head-keep"],
)
def test_adapters_act_in_recomposed_layers(plan: LayerPlan, build: Build, ids: Tensor) -> None:
    plain = run(build("llama-gqa"), Tell(plan), input_ids=ids)
    wrapped, inner = adapted(build("llama-gqa"))
    with_adapters = run(inner, Tell(plan), input_ids=ids)
    assert not torch.allclose(plain, with_adapters, atol=1e-2)
    merged = wrapped.merge_and_unload()
    close(run(merged, Tell(plan), input_ids=ids), with_adapters)


class Experts(nn.Module):
    """Stands for a mixture of experts in place of an FFN; looks at whole sequences."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 2)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        batch, rows, width = hidden.shape
        weights = self.router(hidden).softmax(-1)
        outputs = torch.stack([expert(hidden) for expert in self.experts], -1)
        return (outputs * weights[:, :, None]).sum(-1).view(batch, rows, width)


def test_experts_are_called_as_they_are(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    torch.manual_seed(0)
    model.model.layers[1].mlp = Experts(32)
    expected = run(model, NoOp(), input_ids=ids)
    close(run(model, Tell(LayerPlan(head_out_keep=torch.ones(1, 1, 1))), input_ids=ids), expected)
    everything = torch.ones_like(CUT)
    close(run(model, Tell(LayerPlan(query_rows=everything)), input_ids=ids), expected)
    close(run(model, Tell(LayerPlan(ffn_rows=everything)), input_ids=ids), expected)
    cut = Tell(LayerPlan(ffn_channels=(FfnChannels(CUT, 4),)), start=1)
    with pytest.raises(UsageError, match="layer 1 has experts"):
        run(model, cut, input_ids=ids)
    # dropping and experts compose: the drop equals the masked run for the rows that are left
    keep = DropThird().kept(torch.arange(ROWS).expand(BATCH, -1))
    mask = Tell(LayerPlan(mask=keep[:, None, None]), start=1)
    masked = run(model, mask, input_ids=ids, use_cache=False)
    close(run(model, DropThird(1), input_ids=ids, use_cache=False), masked[:, keep[0]])


def test_quantised_channels_are_refused(build: Build, ids: Tensor) -> None:
    class Packed(nn.Linear):
        """Stands for a layer whose weight is no plain matrix."""

    model = build("llama-gqa")
    model.model.layers[0].mlp.gate_proj = Packed(32, 48)
    with pytest.raises(UsageError, match=r"layer 0 consists of Packed.*quantization"):
        run(model, Tell(LayerPlan(ffn_channels=(FfnChannels(CUT, 4),))), input_ids=ids)


def test_pruned_layers_have_sizes_of_their_own(build: Build, ids: Tensor) -> None:
    """Fewer heads and a narrower FFN in one layer: sizes come from modules, not from the config."""
    model = build("llama-gqa")
    attention, mlp = model.model.layers[2].self_attn, model.model.layers[2].mlp
    attention.q_proj, attention.o_proj = nn.Linear(32, 16, bias=False), nn.Linear(16, 32)
    attention.k_proj, attention.v_proj = nn.Linear(32, 8, bias=False), nn.Linear(32, 8, bias=False)
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = (
        nn.Linear(32, 20),
        nn.Linear(32, 20),
        nn.Linear(20, 32),
    )
    expected = run(model, NoOp(), input_ids=ids)
    close(run(model, Tell(LayerPlan(head_out_keep=torch.ones(1, 1, 1))), input_ids=ids), expected)
    cut = LayerPlan(ffn_channels=(FfnChannels(CUT, 20),))
    close(run(model, Tell(cut, start=2), input_ids=ids), expected)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_predictors_are_not_run_again(build: Build, ids: Tensor) -> None:
    """Noise drawn inside the checkpointed region would differ in the backward pass."""

    class Noisy(BaseMechanism):
        name, own_cache, draws = "noisy", False, 0

        def plan(self, layer: int, state: SequenceState) -> LayerPlan:
            self.draws += 1
            keep = torch.rand(1, 4, ROWS, requires_grad=True)
            self.keeps.append(keep)
            return LayerPlan(head_out_keep=keep)

    gradients = []
    for checkpointing in (False, True):
        model = build("llama-gqa").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        mechanism = Noisy()
        mechanism.keeps = []
        torch.manual_seed(3)
        run(model, mechanism, input_ids=ids).square().mean().backward()
        assert mechanism.draws == len(model.model.layers)
        gradients.append([keep.grad for keep in mechanism.keeps])
    for expected, actual in zip(*gradients, strict=True):
        assert expected.abs().sum() > 0
        close(actual, expected)


def test_two_mechanisms_equal_their_composition(build: Build, ids: Tensor) -> None:
    """Dropping with a bias == masking with the same bias, also on a cache."""
    model, ones = build("qwen3-gqa"), torch.ones_like(ids)
    keep = DropThird().kept(torch.arange(ROWS).expand(BATCH, -1))
    mask = Tell(LayerPlan(mask=keep[:, None, None]), start=1)
    expected = run(model, mask, KeyBias(), input_ids=ids, use_cache=False)[:, -1]
    close(run(model, DropThird(1), KeyBias(), input_ids=ids, use_cache=False)[:, -1], expected)

    class Both(DropThird):
        bias = KeyBias()

        def plan(self, layer: int, state: SequenceState) -> LayerPlan:
            return self.bias.plan(layer, state)

    close(in_pieces(model, Both(1), ids, ones, [10, 1])[0][:, -1], expected)


def test_plan_order_does_not_matter(build: Build, ids: Tensor) -> None:
    model = build("llama-gqa")
    plans = [LayerPlan(query_rows=~CUT), LayerPlan(mask=random_mask(4))]
    first = run(model, Tell(plans[0], "a"), Tell(plans[1], "b"), input_ids=ids)
    second = run(model, Tell(plans[1], "b"), Tell(plans[0], "a"), input_ids=ids)
    assert torch.equal(first, second)


def test_losses_are_told_by_their_names() -> None:
    aux = {
        "a/loss/size": torch.tensor(2.0),
        "a/rows": torch.tensor(100.0),
        "b/loss/ratio": torch.tensor(0.5),
        "loss/rows": torch.tensor(100.0),
    }
    assert aux_loss(aux) == 2.5
    assert aux_loss({"a/rows": torch.tensor(1.0)}) is None
