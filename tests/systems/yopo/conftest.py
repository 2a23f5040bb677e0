"""Tiny language models with YOPO in their decoder loop."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from vistoken.core.registry import make_config
from vistoken.models.decoder import MechanismContext, MechanismStack, run_decoder
from vistoken.systems.yopo.config import YopoConfig
from vistoken.systems.yopo.mechanism import Yopo

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large enough that attention patterns matter
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama-mha": (LlamaConfig, {"num_key_value_heads": 4}),
    "llama-gqa": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 8}),
}
KEEP = ["1111", "0110", "1010", "0001"]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="session")
def build():
    """Make a stock causal language model of a family, in evaluation mode."""

    def make(family="llama-gqa", attention="sdpa", **changes):
        config_class, own = FAMILIES[family]
        config = config_class(**{**SIZES, **own, **changes})
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def yopo():
    """Make the mechanism for a model, from options as a configuration gives them."""

    def make(model, **options):
        context = MechanismContext(model.config, feature_width=8)
        return Yopo(make_config(YopoConfig, options, "mechanism 'yopo'"), context)

    return make


@pytest.fixture(scope="session")
def run():
    """Logits and cache of a model under some mechanisms."""

    def call(model, *mechanisms, **inputs):
        with torch.no_grad():
            out = run_decoder(model.model, stack=MechanismStack(mechanisms), **inputs)
            return model.lm_head(out.last_hidden_state), out

    return call
