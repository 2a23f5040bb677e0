"""Tiny random text models of every supported family, stock and driven by our loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from vistoken.models.decoder import Mechanism, MechanismStack, NoOp, run_decoder

Build = Callable[..., PreTrainedModel]
Loop = Callable[..., PreTrainedModel]

WINDOW = 4
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # large enough that attention patterns matter
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama-gqa": (LlamaConfig, {}),
    "llama-mha": (LlamaConfig, {"num_key_value_heads": 4}),
    "mistral-gqa": (MistralConfig, {"sliding_window": None}),
    "mistral-mha": (MistralConfig, {"sliding_window": None, "num_key_value_heads": 4}),
    "mistral-sliding": (MistralConfig, {"sliding_window": WINDOW}),
    "qwen2-gqa": (Qwen2Config, {}),
    "qwen2-mha": (Qwen2Config, {"num_key_value_heads": 4}),
    "qwen2-sliding": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3-gqa": (Qwen3Config, {"head_dim": 8}),
    "qwen3-mha": (Qwen3Config, {"head_dim": 16, "num_key_value_heads": 4}),
    "qwen3-sliding": (
        Qwen3Config,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family with grouped and full key/value heads, and with a sliding window."""
    return request.param


@pytest.fixture
def build() -> Build:
    """Make a stock causal language model of a family, in evaluation mode."""

    def make(family: str, attention: str = "sdpa", **changes: Any) -> PreTrainedModel:
        config_class, own = FAMILIES[family]
        config = config_class(**{**SIZES, **own, **changes})
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        return model.eval()

    return make


@pytest.fixture
def loop() -> Loop:
    """Copy a causal language model so that its text model runs through our loop."""

    def make(model: PreTrainedModel, *mechanisms: Mechanism, **options: Any) -> PreTrainedModel:
        looped = copy.deepcopy(model)
        stack = MechanismStack(mechanisms or [NoOp()])
        looped.model.forward = partial(run_decoder, looped.model, stack=stack, **options)
        return looped

    return make


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids (3, 11) without special tokens."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, SIZES["vocab_size"], (3, 11), generator=generator)


@pytest.fixture(params=["left", "right"])
def padding(request: pytest.FixtureRequest, ids: torch.Tensor) -> torch.Tensor:
    """Padding mask (3, 11): 0, 2 and 5 padded positions on one side."""
    count = torch.tensor([0, 2, 5])[:, None]
    mask = (torch.arange(ids.shape[1])[None] >= count).long()
    return mask if request.param == "left" else mask.flip(1)


@pytest.fixture
def left(ids: torch.Tensor) -> torch.Tensor:
    """Padding mask (3, 11) as generation wants it: 0, 2 and 5 positions on the left."""
    return (torch.arange(ids.shape[1])[None] >= torch.tensor([0, 2, 5])[:, None]).long()
