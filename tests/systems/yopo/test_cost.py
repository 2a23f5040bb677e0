"""What YOPO's plans save: the published ratios, and what the layers really multiply."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, LlamaConfig

from vistoken.models.decoder import MechanismStack, run_decoder
from vistoken.models.plan_cost import count_plans

from .reference import prompt_table

SIZES = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}


def empty_model(size):
    width, channels, layers, heads = SIZES[size]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=channels,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=8,
    )
    with torch.device("meta"):
        return AutoModel.from_config(config)


@pytest.mark.parametrize(
    ("size", "cut", "heads", "ratio", "published"),
    [
        ("13b", 20, 20, 2, 0.254),
        ("13b", 20, 5, 4, 0.117),
        ("13b", 16, 10, 4, 0.111),
        ("7b", 16, 16, 2, 0.255),
        ("7b", 12, 8, 4, 0.107),
        ("7b", 16, 8, 4, 0.138),
    ],
)
def test_visual_flops_of_the_paper(yopo, size, cut, heads, ratio, published):
    """25 and 12 % classes: 576 visual tokens, window 5, kept heads from layer 2 on."""
    model = empty_model(size)
    layers, total = model.config.num_hidden_layers, model.config.num_attention_heads
    keep = ["1" * total] * 2 + ["1" * heads + "0" * (total - heads)] * (layers - 2)
    options = {"layer_cut": cut, "head_keep": keep, "mlp_ratio": ratio, "window": 5}
    table = prompt_table((24, 24), 1)[None]
    pruned = count_plans(model, MechanismStack([yopo(model, **options)]), table)
    dense = count_plans(model, MechanismStack([]), table)
    # the paper's rule: the full square of visual pairs against a full window for every row
    share = pruned.prefill.visual_flops(25) / dense.prefill.visual_flops(576)
    assert share == pytest.approx(published, abs=1e-3)


def small_model():
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=8,
        attn_implementation="eager",
    )
    return AutoModel.from_config(config).eval()


def test_counted_flops_are_multiplied(yopo):
    """Drop mode: prefill and a decoding step, by plans and by watching the products."""
    model = small_model()
    keep = ["1111", "1111", "0110", "0001"]
    mechanism = yopo(model, window=3, layer_cut=3, head_keep=keep, mlp_ratio=4)
    table = prompt_table(3, (4, 4), 2, (3, 2), 5)[None]
    counted = count_plans(model, MechanismStack([mechanism]), table)
    embeds = torch.randn(1, table.shape[1], 64)
    call = {"stack": MechanismStack([mechanism]), "use_cache": True}
    with torch.no_grad():
        with FlopCounterMode(display=False) as prefill:
            out = run_decoder(model, inputs_embeds=embeds, token_map=table, **call)
        with FlopCounterMode(display=False) as decode:
            run_decoder(
                model, inputs_embeds=embeds[:, :1], past_key_values=out.past_key_values, **call
            )
    rotary = 2 * table.shape[1] * (model.config.head_dim // 2)
    assert prefill.get_total_flops() - counted.prefill.flops <= 4 * rotary
    assert decode.get_total_flops() - counted.decode.flops <= 4 * rotary
    assert counted.prefill.flops <= prefill.get_total_flops()
    layers = out.past_key_values.layers
    stored = sum(layer.keys.numel() + layer.values.numel() for layer in layers)
    # one token was decoded since
    assert counted.decode.cache_values == stored


def test_text_costs_what_it_did(yopo):
    """A prompt without a picture costs the same, and so does every row behind the layer cut."""
    model = small_model()
    stack = MechanismStack([yopo(model, window=3, layer_cut=2, mlp_ratio=4)])
    table = prompt_table(12)[None]
    dense = count_plans(model, MechanismStack([]), table)
    assert count_plans(model, stack, table).prefill.flops == dense.prefill.flops
    mixed = count_plans(model, stack, prompt_table(3, (4, 4), 9)[None]).prefill
    assert [layer.flops for layer in mixed.layers[2:]] == [
        layer.flops for layer in dense.prefill.layers[2:]
    ]
    assert sum(layer.visual_rows for layer in mixed.layers) == 2 * 16
