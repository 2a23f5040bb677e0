"""The released decoder's numbers: prefill, cache of the first and last layer, decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from vistoken.core.parts import FEATURES
from vistoken.core.tables import TOKEN, TokenKind
from vistoken.models.decoder import MechanismContext, MechanismStack, run_decoder
from vistoken.systems.saisa.config import SaisaConfig
from vistoken.systems.saisa.mechanism import Saisa
from vistoken.systems.saisa.release_keys import SaisaKeys

CLOSE = {"rtol": 0, "atol": 2e-4}


def load(golden: Path, name: str) -> tuple[Any, Saisa, dict[str, Any], dict[str, torch.Tensor]]:
    """Language model, mechanism, sizes and tensors of a golden case."""
    case = json.loads((golden / f"saisa/{name}.json").read_text())["config"]
    tensors = load_file(golden / f"saisa/{name}.safetensors")
    sizes = {k: v for k, v in case.items() if k not in ("image_start", "n_visual", "vision_dim")}
    rope = {"rope_type": "default", "rope_theta": sizes.pop("rope_theta")}
    model = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope)).eval()
    saisa = Saisa(SaisaConfig("independent"), MechanismContext(model.config, case["vision_dim"]))
    weights = {k.removeprefix("w."): v for k, v in tensors.items() if k.startswith("w.")}
    inside = {k: v for k, v in weights.items() if "mm_projector" in k}
    model.load_state_dict({k: v for k, v in weights.items() if k not in inside})
    names = SaisaKeys.mechanism_names(saisa.state_dict())
    saisa.load_state_dict({ours: inside[f"model.{theirs}"] for ours, theirs in names.items()})
    assert len(names) == len(inside)
    return model, saisa, case, tensors


@pytest.mark.parametrize("name", ["model_a", "model_b"])
@torch.no_grad()
def test_equals_the_release(golden: Path, name: str) -> None:
    model, saisa, case, tensors = load(golden, name)
    start, slots, ids = case["image_start"], case["n_visual"], tensors["text_ids"]
    batch, text = ids.shape
    embeds = model.model.embed_tokens(ids)
    hole = torch.full((batch, slots, embeds.shape[-1]), 7.0)
    table = TOKEN.make(batch * (text + slots)).unflatten(0, (batch, -1))
    for row in range(batch):
        table[row, start : start + slots] = TOKEN.make(
            slots, kind=TokenKind.VISUAL, media=row, view=0
        )
    cache = DynamicCache(config=model.config)
    stack = MechanismStack([saisa])
    hidden = run_decoder(
        model.model,
        stack=stack,
        inputs_embeds=torch.cat([embeds[:, :start], hole, embeds[:, start:]], dim=1),
        token_map=table,
        side={FEATURES: list(tensors["clip_features"])},
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    logits = model.lm_head(torch.cat([hidden[:, :start], hidden[:, start + slots :]], dim=1))
    torch.testing.assert_close(logits, tensors["prefill_text_logits"], **CLOSE)
    for place, layer in (("0", cache.layers[0]), ("last", cache.layers[-1])):
        torch.testing.assert_close(layer.keys, tensors[f"cache_k_{place}"], **CLOSE)
        torch.testing.assert_close(layer.values, tensors[f"cache_v_{place}"], **CLOSE)
    for step, token in enumerate(tensors["decode_ids"].unbind(1)):
        hidden = run_decoder(
            model.model,
            stack=stack,
            input_ids=token[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        decoded = model.lm_head(hidden)[:, 0]
        torch.testing.assert_close(decoded, tensors["decode_logits"][:, step], **CLOSE)
