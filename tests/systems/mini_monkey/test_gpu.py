"""Time to the first token under scale compression on a GPU, at InternVL2-2B's sizes."""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from vistoken.core.tables import TOKEN
from vistoken.models.decoder import run_decoder


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_first_token_behind_5120_rows(scm):
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=8,
    )
    with torch.device("cuda"):
        model = LlamaModel(config).to(torch.bfloat16).eval()
    stack = scm.stack(type("Holder", (), {"config": config}))
    picture = scm.prompt(3072, before=0, after=1)[:3072]
    table = torch.cat([picture, TOKEN.make(2048)])[None].cuda()
    embeds = torch.randn(1, table.shape[1], 2048, device="cuda", dtype=torch.bfloat16)

    def compressed():
        run_decoder(model, stack=stack, inputs_embeds=embeds, token_map=table, use_cache=True)

    def whole():
        model(inputs_embeds=embeds, use_cache=True)

    def seconds(call):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        pairs = [(seconds(whole), seconds(compressed)) for _ in range(12)][4:]
    assert statistics.median(slow / fast for slow, fast in pairs) > 1.0
