"""YOPO beside other mechanisms and layouts: what they compute together."""

from __future__ import annotations

import pytest
import torch

from vistoken.models.build import build as build_recipe
from vistoken.models.decoder import STOCK_LAYER, BaseMechanism, LayerPlan
from vistoken.models.recipe import load_recipe, parse_recipe

from .reference import prompt_table
from .test_model import prompts, with_yopo

CUT = 2
KEEP = ("1111", "0110", "1111", "1111")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class ByPlace(BaseMechanism):
    """Stands for soft masks: keys count less by where they stand, cached ones included."""

    name = "by-place"

    def plan(self, layer, state):
        bias = -0.7 * (state.keys().position_ids % 4).float()
        return LayerPlan(key_bias=bias[:, None, None])


class Hide(BaseMechanism):
    """Mode drop by masks alone: text sees visual keys in kept heads before the cut."""

    name = "hide"

    def plan(self, layer, state):
        seen = state.keys().visual
        if not bool(seen.any()):
            return STOCK_LAYER
        digits = KEEP[layer] if layer < CUT else "0000"
        keep = torch.tensor([digit == "1" for digit in digits])
        mask = keep[None, :, None, None] | ~seen[:, None, None, :] | state.visual[:, None, :, None]
        out = (keep[None, :, None] | ~state.visual[:, None, :]).float()
        return LayerPlan(mask=mask, head_out_keep=out)


def answers(build, run, *mechanisms):
    """Logits of the last row of a prompt with two pictures, and of two steps behind it."""
    model = build()
    table = prompt_table(2, (3, 3), 2, (2, 2), 4)[None]
    generator = torch.Generator().manual_seed(8)
    embeds = torch.randn(1, table.shape[1] + 2, 32, generator=generator)
    made = [make(model) if callable(make) else make for make in mechanisms]
    n = table.shape[1]
    logits, out = run(model, *made, inputs_embeds=embeds[:, :n], token_map=table, use_cache=True)
    found = [logits[:, -1]]
    for step in range(n, n + 2):
        logits, out = run(
            model,
            *made,
            inputs_embeds=embeds[:, step : step + 1],
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        found.append(logits[:, -1])
    return torch.cat(found)


@pytest.mark.parametrize("first", ["yopo", "other"])
def test_a_bias_of_another_acts_on_what_is_left(build, yopo, run, first):
    def drop(model):
        return yopo(model, mode="drop", layer_cut=CUT, head_keep=list(KEEP))

    both = (drop, ByPlace()) if first == "yopo" else (ByPlace(), drop)
    actual = answers(build, run, *both)
    expected = answers(build, run, Hide(), ByPlace())
    torch.testing.assert_close(actual, expected, **CLOSE)
    assert (answers(build, run, drop) - actual).abs().max() > 1e-2


@pytest.fixture(scope="module")
def pooled():
    """pico with fewer, nested tokens: what a layout like M3's hands the decoder."""
    values = load_recipe("pico").model_dump(exclude_none=True)
    values |= {"connector": ["mlp", {"part": "pool", "options": {"grid": [2, 2]}}]}
    values["language_model"]["config"]["initializer_range"] = 0.2
    return build_recipe(parse_recipe(values, "pico pooled"))


def test_fewer_tokens_of_a_layout_are_cut_on_their_own_grid(pooled, picture):
    plain, processor = pooled
    one, _ = prompts(processor, picture, [1, 0])
    batch, singles = prompts(processor, picture, [1, 2, 0])
    neutral = {"mode": "exact", "causal_local": True, "window": 3, "layer_cut": 2}
    with torch.no_grad():
        # on a grid of 2x2 a window of 3 holds all of its picture, one of 1 only the token itself
        dense = plain(**one, logits_to_keep=1).logits
        same = with_yopo(pooled, **neutral)[0](**one, logits_to_keep=1).logits
        torch.testing.assert_close(same, dense, **CLOSE)
        cut, _ = with_yopo(pooled, **{**neutral, "window": 1})
        together = cut(**batch, logits_to_keep=1).logits[:, -1]
        alone = torch.cat([cut(**single, logits_to_keep=1).logits[:, -1] for single in singles])
    torch.testing.assert_close(together, alone, **CLOSE)
    assert (together[0] - dense[0, -1]).abs().max() > 1e-3
    torch.testing.assert_close(together[2], dense[1, -1], **CLOSE)
