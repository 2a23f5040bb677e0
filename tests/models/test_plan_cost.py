"""Costs counted from plans equal what is multiplied, and the conventions of the papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaModel

from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import (
    STOCK_LAYER,
    BaseMechanism,
    FfnChannels,
    Inject,
    LayerPlan,
    MechanismStack,
    NoOp,
    ReadyKV,
    SequenceState,
    drop_rows,
    run_decoder,
)
from vistoken.models.plan_cost import count_plans, prompt_map

VISUAL = 9


class Aligned(BaseMechanism):
    """Visual rows are injected by a projector of each layer; only text asks."""

    name, own_cache = "aligned", False

    def __init__(self, width: int, hidden: int, features: Tensor, ready: bool = False) -> None:
        self.projector = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        ).to(features.device)
        self.features, self.ready = features, ready

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        visual = state.visual
        if not bool(visual.any()):
            return STOCK_LAYER
        source: Any = lambda number: self.projector(self.features)  # noqa: E731
        if self.ready:
            source = ReadyKV(torch.zeros(VISUAL, 2, 8), torch.zeros(VISUAL, 2, 8))
        return LayerPlan(query_rows=~visual, inject=(Inject(visual, source),))


class Cut(BaseMechanism):
    """Fewer FFN channels for visual rows, no visual rows at all from layer 2 on."""

    name = "cut"

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        if layer != 2 or not bool(state.visual.any()):
            return state
        return drop_rows(state, ~state.visual)[0]

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        visual = state.visual
        if not bool(visual.any()):
            return STOCK_LAYER
        return LayerPlan(ffn_channels=(FfnChannels(visual, 12),))


def tiny(**changes: Any) -> LlamaModel:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "attn_implementation": "eager",  # two matrix products, which the counter sees
    }
    return LlamaModel(LlamaConfig(**{**sizes, **changes})).eval()


def prompt(before: int = 3, after: int = 5) -> Tensor:
    return prompt_map([TOKEN.make(VISUAL, kind=TokenKind.VISUAL)], before, after)


MECHANISMS: dict[str, Any] = {
    "none": NoOp,
    "aligned": lambda: Aligned(16, 32, torch.zeros(VISUAL, 16)),
    "ready": lambda: Aligned(16, 32, torch.zeros(VISUAL, 16), ready=True),
    "cut": Cut,
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_counts_equal_what_hooks_see(name: str) -> None:
    model, stack, table = tiny(), MechanismStack([MECHANISMS[name]()]), prompt()
    counted = count_plans(model, stack, table)
    rows = table.shape[1]
    hidden = torch.zeros(1, rows, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as prefill:
        output = run_decoder(
            model, stack=stack, inputs_embeds=hidden, token_map=table, use_cache=True
        )
    assert counted.prefill.flops == prefill.get_total_flops()
    cache = output.past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert counted.prefill.cache_values == held
    with torch.no_grad(), FlopCounterMode(display=False) as decode:
        run_decoder(
            model, stack=stack, inputs_embeds=hidden[:, :1], past_key_values=cache, use_cache=True
        )
    assert counted.decode.flops == decode.get_total_flops()
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert counted.decode.cache_values == held
    assert counted.decode.cache_bytes(torch.float16) == 2 * held


def test_dense_equals_hooks_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = tiny(hidden_size=256, intermediate_size=512, num_hidden_layers=2)
        hidden = torch.empty(1, 640, 256)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs_embeds=hidden)
    table = prompt_map([TOKEN.make(576, kind=TokenKind.VISUAL)], 32, 32)
    assert count_plans(model, MechanismStack(), table).prefill.flops == counter.get_total_flops()


def test_recomposed_layers_run_on_the_meta_device() -> None:
    """Tables on the CPU, weights nowhere: hooks can count a model of any size."""
    with torch.device("meta"):
        model, features = tiny(), torch.empty(VISUAL, 16)
        hidden = torch.empty(1, 17, 32)
    stack, table = MechanismStack([Aligned(16, 32, features), Cut()]), prompt()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run_decoder(
            model,
            stack=stack,
            inputs_embeds=hidden,
            token_map=table,
            position_ids=torch.arange(17)[None],
            attention_mask=torch.ones(1, 17, dtype=torch.int64),
            use_cache=False,
        )
    assert count_plans(model, stack, table).prefill.flops == counter.get_total_flops()


@pytest.mark.parametrize(("text", "ratio"), [(32, 0.302), (64, 0.336), (100, 0.371)])
def test_aligned_layers_at_7b(text: int, ratio: float) -> None:
    """Full rectangles, layers alone: saisa.md section 3."""
    with torch.device("meta"):
        model = LlamaModel(LlamaConfig(num_hidden_layers=1))  # every layer costs the same
        features = torch.empty(576, 1024)
    table = prompt_map([TOKEN.make(576, kind=TokenKind.VISUAL)], text // 2, text - text // 2)
    ours = count_plans(model, MechanismStack([Aligned(1024, 4096, features)]), table)
    dense = count_plans(model, MechanismStack(), table)
    assert ours.prefill.flops / dense.prefill.flops == pytest.approx(ratio, abs=6e-4)
    rows, width, inner = text + 576, 4096, 11008
    expected = (
        4 * text * width**2
        + 4 * rows * width**2
        + 4 * text * rows * width
        + 6 * text * width * inner
        + 2 * 576 * (1024 * width + width**2)
    )
    assert ours.prefill.flops == expected
    assert ours.prefill.cache_values == dense.prefill.cache_values


class Windowed(BaseMechanism):
    """Some heads, some channels, and a local window for visual rows of the first layers."""

    name = "windowed"

    def __init__(self, heads: list[float], cut: int, channels: int) -> None:
        self.heads, self.cut, self.channels = heads, cut, channels

    def before_layer(self, layer: int, state: SequenceState) -> SequenceState:
        if layer != self.cut or not bool(state.visual.any()):
            return state
        return drop_rows(state, ~state.visual)[0]

    def plan(self, layer: int, state: SequenceState) -> LayerPlan:
        visual = state.visual
        if not bool(visual.any()):
            return STOCK_LAYER
        keep = torch.ones(1, 40, visual.shape[1])
        keep[:, round(self.heads[layer] * 40) :] = 0
        keep[:, :, ~visual[0]] = 1
        cut = FfnChannels(visual, self.channels)
        return LayerPlan(head_out_keep=keep, ffn_channels=(cut,))


@pytest.mark.parametrize(
    ("cut", "heads", "ratio", "expected"),
    [(20, 20, 2, 0.254), (20, 5, 4, 0.117), (16, 10, 4, 0.111)],
)
def test_visual_rows_by_the_window_convention(
    cut: int, heads: int, ratio: int, expected: float
) -> None:
    """13B, window 5: yopo.md section 3, with averages that are not corrected for two layers."""
    layers, width, inner, visual = 40, 5120, 13824, 576
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=40,
        num_key_value_heads=40,
        num_hidden_layers=layers,
    )
    with torch.device("meta"):
        model = LlamaModel(config)
    shares = [1.0, 1.0, *[heads / 40] * (layers - 2)]
    stack = MechanismStack([Windowed(shares, cut, inner // ratio)])
    table = prompt_map([TOKEN.make(visual, kind=TokenKind.VISUAL)], 2, 2)
    ours = count_plans(model, stack, table).prefill.visual_flops(keys_per_row=25)
    dense = count_plans(model, MechanismStack(), table).prefill.visual_flops(keys_per_row=visual)
    assert ours / dense == pytest.approx(expected, abs=1e-3)
    assert dense == layers * (
        8 * visual * width**2 + 4 * visual**2 * width + 6 * visual * width * inner
    )
