"""Counted costs of scale compression: equal to hooks, and what the specification computes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, LlamaConfig, LlamaModel

from vistoken.core.tables import TOKEN
from vistoken.models.cost import empty_model, measure_cost
from vistoken.models.decoder import MechanismStack, run_decoder
from vistoken.models.plan_cost import count_plans
from vistoken.models.recipe import load_recipe, parse_recipe

INTERNLM2_2B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 92553,
}


@pytest.mark.parametrize("detailed", [(12,), (9, 6)])
@pytest.mark.parametrize(
    "options", [{}, {"ratio": 0.0}, {"ratio": 1.0}, {"layer": 2}, {"compat": "official"}], ids=str
)
def test_counts_equal_what_hooks_see(scm, detailed, options):
    model = scm.causal(attention="eager")
    stack, table = scm.stack(model, **options), scm.prompt(*detailed)
    counted = count_plans(model.model, stack, table[None])
    hidden = torch.randn(1, len(table), 32)
    with torch.no_grad(), FlopCounterMode(display=False) as prefill:
        output = run_decoder(
            model.model, stack=stack, inputs_embeds=hidden, token_map=table[None], use_cache=True
        )
    assert counted.prefill.flops == prefill.get_total_flops()
    cache = output.past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert counted.prefill.cache_values == held
    with torch.no_grad(), FlopCounterMode(display=False) as decode:
        run_decoder(
            model.model,
            stack=stack,
            inputs_embeds=hidden[:, :1],
            past_key_values=cache,
            use_cache=True,
        )
    assert counted.decode.flops == decode.get_total_flops()


def test_prefill_of_the_release(scm):
    """5,120 rows to 3,584: 0.69 of the full prefill, with layer 1 cut down to the scores."""
    with torch.device("meta"):
        model = LlamaModel(LlamaConfig(**INTERNLM2_2B)).eval()
    table = scm.prompt(3072, before=0, after=1)
    table = torch.cat([table[:3072], TOKEN.make(2048)])[None]
    holder = type("Holder", (), {"config": model.config})
    compressed = count_plans(model, scm.stack(holder), table).prefill
    full = count_plans(model, MechanismStack(), table).prefill
    assert compressed.layers[0].rows == 3584
    ratio = compressed.flops / full.flops
    assert 0.69 <= ratio <= 0.78
    assert ratio == pytest.approx(0.69, abs=0.005)
    whole_layers = sum(layer.flops for layer in compressed.layers) + 2 * full.layers[0].flops
    assert whole_layers / full.flops == pytest.approx(0.73, abs=0.005)


def test_what_inspect_counts(scm):
    """A picture's cost before anything runs equals hooks on the running decoder, the head aside."""
    values = load_recipe("pico").model_dump(exclude_none=True)
    values |= {"views": "msac", "connector": ["pixel-shuffle"], "mechanisms": ["scm"]}
    recipe = parse_recipe(values, "monkey")
    config = recipe.model_config_for()
    model, spec = empty_model(config), recipe.pipeline(config)
    cost = measure_cost(model, spec, (60, 90), text_tokens=8)
    assert cost.stock is not None
    rows = cost.visual_tokens + 8
    detailed = int(
        (
            TOKEN.get(model.model.plan.token_map(spec.view_function().view_table(60, 90)), "group")
            == 1
        ).sum()
    )
    per_row = cost.prompt_cache_values / (rows - detailed + detailed // 2)
    assert per_row == cost.stock[2] / rows
    text = AutoModel.from_config(config.text_config, attn_implementation="eager").eval()
    table = torch.cat(
        [
            TOKEN.make(4),
            TOKEN.set(model.model.plan.token_map(spec.view_function().view_table(60, 90)), media=0),
            TOKEN.make(4),
        ]
    )[None]
    with torch.no_grad(), FlopCounterMode(display=False) as prefill:
        run_decoder(
            text,
            stack=model.model.stack,
            inputs_embeds=torch.randn(1, rows, text.config.hidden_size),
            token_map=table,
            use_cache=True,
        )
    head = 2 * text.config.hidden_size * text.config.vocab_size
    assert cost.prefill_flops == prefill.get_total_flops() + head
