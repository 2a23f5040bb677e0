"""Prefill time on a GPU, at the sizes of the 7B model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from vistoken.core.parts import FEATURES
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import MechanismContext, MechanismStack, run_decoder
from vistoken.models.plan_cost import prompt_map
from vistoken.systems.saisa.config import SaisaConfig
from vistoken.systems.saisa.mechanism import Saisa

SLOTS, BEFORE, AFTER, FEATURE_WIDTH = 576, 20, 44, 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prefill_of_576_visual_tokens() -> None:
    """At most 0.55 of the dense prefill, with 64 tokens of text, projectors included."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=8,
    )
    place: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # 7B in float32 would be 27 GB
    try:
        with torch.device("cuda"):
            model = LlamaModel(config).eval()
            saisa = Saisa(SaisaConfig("independent"), MechanismContext(config, FEATURE_WIDTH))
    finally:
        torch.set_default_dtype(before)
    table = prompt_map([TOKEN.make(SLOTS, kind=TokenKind.VISUAL, media=0, view=0)], BEFORE, AFTER)
    embeds = torch.randn(1, table.shape[1], config.hidden_size, **place)
    side = {FEATURES: [torch.randn(SLOTS, FEATURE_WIDTH, **place)]}
    stack, on_gpu = MechanismStack([saisa.eval()]), table.cuda()

    def ours() -> None:
        run_decoder(
            model, stack=stack, inputs_embeds=embeds, token_map=on_gpu, side=side, use_cache=True
        )

    def dense() -> None:
        model(inputs_embeds=embeds, use_cache=True)

    def seconds(call: Callable[[], None]) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        pairs = [(seconds(dense), seconds(ours)) for _ in range(16)][6:]
    assert statistics.median(mine / stock for stock, mine in pairs) < 0.55
