"""SAISA and YOPO in one decoder: what is left of YOPO, and that it is what was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from vistoken.core.parts import FEATURES
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import (
    STOCK_LAYER,
    BaseMechanism,
    LayerPlan,
    MechanismContext,
    MechanismStack,
    SequenceState,
    run_decoder,
)
from vistoken.models.plan_cost import count_plans
from vistoken.systems.saisa.config import SaisaConfig
from vistoken.systems.saisa.mechanism import Saisa
from vistoken.systems.yopo.config import YopoConfig
from vistoken.systems.yopo.mechanism import Yopo

WIDTH, LAYERS, CUT, VISUAL, ROWS = 20, 4, 3, 6, 12
KEEP = ("1111", "1111", "0100", "1111")


@pytest.fixture(scope="module", params=[2, 4], ids=["gqa", "mha"])
def model(request: pytest.FixtureRequest) -> Any:
    """A text model with shared heads, and one without."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=request.param,
        vocab_size=40,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return LlamaModel(config).eval()


@pytest.fixture(scope="module")
def saisa(model: Any) -> Saisa:
    """Random projectors for each layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return Saisa(SaisaConfig("independent"), MechanismContext(model.config, WIDTH))


def yopo(model: Any, **options: Any) -> Yopo:
    config = YopoConfig(mode="drop", **{"layer_cut": CUT, "head_keep": KEEP, **options})
    return Yopo(config, MechanismContext(model.config, WIDTH))


class Hide(BaseMechanism):
    """By masks alone: text sees visual keys in the kept heads of the layers before the cut."""

    name = "hide"

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        seen = state.keys().visual
        if not bool(seen.any()):
            return STOCK_LAYER
        digits = KEEP[layer] if layer < CUT else "0000"
        keep = torch.tensor([digit == "1" for digit in digits])
        mask = keep[None, :, None, None] | ~seen[:, None, None, :]
        return LayerPlan(mask=mask | state.visual[:, None, :, None])


def inputs() -> dict[str, Any]:
    """Two prompts of one picture and a text of the same length; positions of a picture differ."""
    generator = torch.Generator().manual_seed(1)
    picture = TOKEN.make(VISUAL, kind=TokenKind.VISUAL, view=0)
    tables = [
        torch.cat([TOKEN.make(before), TOKEN.set(picture, media=media), TOKEN.make(6 - before)])
        for media, before in enumerate((2, 0))
    ]
    return {
        "inputs_embeds": torch.randn(3, ROWS, 32, generator=generator),
        "token_map": torch.stack([*tables, TOKEN.make(ROWS)]),
        "side": {FEATURES: [torch.randn(VISUAL, WIDTH, generator=generator) for _ in range(2)]},
    }


def answers(model: Any, *mechanisms: Any, cached: bool = True) -> list[Tensor]:
    """Text rows of a prompt, and two decoding steps behind it where there is a cache."""
    call = inputs()
    text = TOKEN.get(call["token_map"], "media") < 0
    stack = MechanismStack(mechanisms)
    with torch.no_grad():
        out = run_decoder(model, stack=stack, use_cache=cached, **call)
        rows = out.last_hidden_state
        if out.rows is not None:  # rows were dropped: put the others back
            full = rows.new_zeros(3, ROWS, 32)
            for sample, place in enumerate(out.rows):
                full[sample, place[place >= 0]] = rows[sample, place >= 0]
            rows = full
        found = [rows[text]]
        for step in range(2 if cached else 0):
            embeds = call["inputs_embeds"][:, step : step + 1]
            cache = out.past_key_values
            out = run_decoder(
                model, stack=stack, use_cache=True, inputs_embeds=embeds, past_key_values=cache
            )
            found.append(out.last_hidden_state)
    return found


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("order", ["saisa first", "yopo first"])
def test_heads_and_layers_are_cut(model: Any, saisa: Saisa, order: str, cached: bool) -> None:
    """Visual keys and values of SAISA, in the heads and layers that YOPO leaves."""
    both = [saisa, yopo(model)]
    actual = answers(model, *(both if order == "saisa first" else both[::-1]), cached=cached)
    expected = answers(model, saisa, Hide(), cached=cached)
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    alone = answers(model, saisa, cached=cached)
    assert not torch.allclose(actual[0], alone[0], atol=1e-2)


def test_window_and_channels_have_nothing_left_to_cut(model: Any, saisa: Saisa) -> None:
    """They are about what visual rows ask and what their FFN does: SAISA's do neither."""
    expected = answers(model, saisa, yopo(model))
    actual = answers(model, saisa, yopo(model, mlp_ratio=4))
    for mine, theirs in zip(actual, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_both_save_what_each_leaves(model: Any, saisa: Saisa) -> None:
    call = inputs()
    table, side = call["token_map"][:1], {FEATURES: call["side"][FEATURES][:1]}

    def flops(*mechanisms: Any) -> list[int]:
        cost = count_plans(model, MechanismStack(mechanisms), table, side).prefill
        return [layer.flops for layer in cost.layers]

    alone, both = flops(saisa), flops(saisa, yopo(model))
    assert both[:2] == alone[:2]
    groups = model.config.num_key_value_heads
    assert alone[2] - both[2] == 2 * VISUAL * 2 * 32 * 8 * (groups - 1)  # K and V of the others
    assert both[3] < alone[3] - 2 * VISUAL * (WIDTH * 32 + 32 * 32)  # the projector rests too
