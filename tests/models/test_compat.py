"""Every library name that the compatibility module wraps does what we rely on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from vistoken.models._compat import as_model_forward, attention_backend, stock_mask


@pytest.fixture
def config() -> LlamaConfig:
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=8,
    )
    config._attn_implementation = "sdpa"
    config.sliding_window = 2
    return config


@pytest.mark.parametrize(
    ("name", "mask", "takes_mask", "takes_bias"),
    [
        ("sdpa", "bool", True, True),
        ("eager", "additive", True, True),
        ("flash_attention_2", "other", False, False),
        ("flex_attention", "other", False, False),
        ("nowhere", "none", False, False),
    ],
)
def test_attention_backend(name: str, mask: str, takes_mask: bool, takes_bias: bool) -> None:
    backend = attention_backend(SimpleNamespace(_attn_implementation=name))  # type: ignore[arg-type]
    assert backend.name == name
    assert backend.mask == mask
    assert backend.takes_mask is takes_mask
    assert backend.takes_bias is takes_bias


def mask(config: LlamaConfig, rows: int = 4, pattern: Any = "full_attention", **given: Any) -> Any:
    arguments = {"layer": 0, "attention_mask": None, "position_ids": None, "cache": None}
    arguments |= {"materialise": True} | given
    return stock_mask(pattern, config=config, hidden=torch.zeros(1, rows, 16), **arguments)


def test_causal_mask(config: LlamaConfig) -> None:
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    assert torch.equal(mask(config)[0, 0], causal)
    assert mask(config, materialise=False) is None
    padding = torch.tensor([[0, 1, 1, 1]])
    assert torch.equal(mask(config, attention_mask=padding)[0, 0], causal & padding.bool())


def test_sliding_mask(config: LlamaConfig) -> None:
    band = torch.ones(4, 4, dtype=torch.bool).tril().triu(-1)
    assert torch.equal(mask(config, pattern="sliding_attention")[0, 0], band)


def test_ready_mask_goes_through(config: LlamaConfig) -> None:
    ready = torch.ones(1, 1, 4, 4)
    assert mask(config, attention_mask=ready) is ready


def test_gaps_in_positions_are_borders(config: LlamaConfig) -> None:
    built = mask(config, position_ids=torch.tensor([[0, 1, 5, 6]]))[0, 0]
    assert not built[2:, :2].any()
    assert built[3, 2]


def test_mask_is_sized_for_its_layer(config: LlamaConfig) -> None:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
    assert mask(config, rows=2, cache=cache, layer=0).shape == (1, 1, 2, 5)
    assert mask(config, rows=2, cache=cache, layer=1).shape == (1, 1, 2, 2)


def test_as_model_forward(config: LlamaConfig) -> None:
    seen: list[Any] = []

    @as_model_forward
    def forward(model: LlamaModel, *, hidden: torch.Tensor, use_cache: bool, **_: Any) -> Any:
        seen.append(use_cache)
        for layer in model.layers:
            rotary = model.rotary_emb(hidden, torch.arange(3)[None])
            hidden = layer(hidden, position_embeddings=rotary)
        return BaseModelOutputWithPast(last_hidden_state=model.norm(hidden))

    model, hidden = LlamaModel(config), torch.randn(1, 3, 16)
    output: Any = forward(model, hidden=hidden, use_cache=None, output_hidden_states=True)
    assert seen == [config.use_cache]
    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[0], hidden)
    assert output.hidden_states[-1] is output.last_hidden_state
    assert forward(model, hidden=hidden, use_cache=False).hidden_states is None
    assert seen[-1] is False
