"""Measuring heads: equal to attention maps, dead heads found, whatever the prompt looks like."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import MechanismStack, run_decoder
from vistoken.systems.yopo.calibration import HeadActivity
from vistoken.systems.yopo.selection import choose_heads, threshold_for, vote

from .reference import prompt_table

KINDS = (TokenKind.VISUAL,)


def ratios_of(model, embeds, table, queries="all", mask=None):
    """Activity ratios (L, B, H) as calibration measures them."""
    aux = {}
    with torch.no_grad():
        run_decoder(
            model.model,
            stack=MechanismStack([HeadActivity(KINDS, queries)]),
            inputs_embeds=embeds,
            attention_mask=mask,
            token_map=table,
            use_cache=False,
            aux=aux,
        )
    return torch.stack([aux[f"yopo-activity/{i}"] for i in range(len(aux))])


@pytest.mark.parametrize("queries", ["all", "last"])
def test_ratios_equal_the_attention_maps(build, family, queries):
    model, eager = build(family), build(family, attention="eager")
    own = prompt_table(3, (2, 3), 2, (2, 2), 4)
    embeds = torch.randn(1, len(own), 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = eager(inputs_embeds=embeds, output_attentions=True).attentions
    visual = TOKEN.get(own, "kind") == TokenKind.VISUAL
    rows = slice(None) if queries == "all" else slice(-1, None)
    wanted = torch.stack(
        [m[:, :, rows][..., visual].sum((2, 3)) / m[:, :, rows][..., ~visual].sum((2, 3))
         for m in maps]
    )  # fmt: skip
    produced = ratios_of(model, embeds, own[None], queries)
    torch.testing.assert_close(produced.float(), wanted, rtol=1e-4, atol=1e-6)
    # padding on either side changes nothing
    for left in (True, False):
        pad, blank = torch.randn(1, 3, 32), TOKEN.make(3, kind=TokenKind.PAD)
        parts, tables = [pad, embeds], [blank, own]
        mask = torch.tensor([[0] * 3 + [1] * len(own)])
        if not left:
            parts, tables, mask = parts[::-1], tables[::-1], mask.flip(1)
        padded = ratios_of(model, torch.cat(parts, 1), torch.cat(tables)[None], queries, mask)
        torch.testing.assert_close(padded, produced, rtol=1e-4, atol=1e-6)


def model_with_a_dead_head(layer, head):
    """All heads attend uniformly, but one looks at text only, by a text mark in the embeddings."""
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=40,
        rope_theta=1e12,  # slow rotations: the mark is seen from everywhere
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for block in model.model.layers:
            attention = block.self_attn
            for weight in (attention.q_proj, attention.k_proj):
                weight.weight.zero_()
                weight.bias.zero_()
            attention.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        slow = head * 8 + 3  # the slowest rotation of the head
        attention = model.model.layers[layer].self_attn
        attention.q_proj.bias[slow] = 10.0
        attention.k_proj.weight[slow, 0] = 10.0
    return model


@pytest.mark.parametrize(("layer", "head"), [(2, 1), (3, 3)])
def test_a_dead_head_is_found_exactly(layer, head):
    model = model_with_a_dead_head(layer, head)
    generator = torch.Generator().manual_seed(2)
    measured = []
    for text in (4, 5, 7):
        own = prompt_table(2, (3, 3), text)
        embeds = torch.randn(1, len(own), 32, generator=generator)
        visual = TOKEN.get(own, "kind") == TokenKind.VISUAL
        embeds[0, :, 0] = torch.where(visual, -5.0, 5.0)
        measured.append(ratios_of(model, embeds, own[None])[:, 0])
    wanted = torch.ones(4, 4, dtype=torch.bool)
    wanted[layer, head] = False
    statistic = vote(torch.stack(measured), 0.5)
    assert torch.equal(choose_heads(statistic, 0.1), wanted)
    assert torch.equal(choose_heads(statistic, threshold_for(statistic, 3.5)), wanted)


def test_a_dead_head_in_the_first_layers_stays():
    model = model_with_a_dead_head(1, 2)
    own = prompt_table(2, (3, 3), 4)
    embeds = torch.randn(1, len(own), 32, generator=torch.Generator().manual_seed(3))
    visual = TOKEN.get(own, "kind") == TokenKind.VISUAL
    embeds[0, :, 0] = torch.where(visual, -5.0, 5.0)
    measured = ratios_of(model, embeds, own[None])[:, 0]
    assert measured[1, 2] < 0.1
    assert choose_heads(measured, 0.1).all()
