"""Prefill time of drop mode on a GPU, at the 25 % setting of the 7B model."""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from vistoken.models.decoder import MechanismStack, run_decoder

from .reference import prompt_table

LAYERS = 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prefill_of_2880_visual_tokens(yopo):
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        vocab_size=8,
        dtype=torch.bfloat16,
    )
    with torch.device("cuda"):
        model = LlamaModel(config).to(torch.bfloat16).eval()
    keep = ["1" * 32] * 2 + ["1" * 16 + "0" * 16] * (LAYERS - 2)
    options = {"window": 5, "layer_cut": LAYERS // 2, "head_keep": keep, "mlp_ratio": 2}
    stack = MechanismStack([yopo(model, **options)])
    table = prompt_table(*[(24, 24)] * 5, 64)[None].cuda()
    embeds = torch.randn(1, table.shape[1], 4096, device="cuda", dtype=torch.bfloat16)

    def pruned():
        run_decoder(model, stack=stack, inputs_embeds=embeds, token_map=table, use_cache=True)

    def dense():
        model(inputs_embeds=embeds, use_cache=True)

    def seconds(call):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        pairs = [(seconds(dense), seconds(pruned)) for _ in range(12)][4:]
    assert statistics.median(slow / fast for slow, fast in pairs) > 1.8
