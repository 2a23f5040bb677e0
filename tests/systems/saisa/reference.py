"""SAISA and NAAViT the slow way: stock layers over all rows, visual rows put right by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .prompts import Prompts


def additive(allowed: Tensor) -> Tensor:
    """(B, n, k) bool as an additive mask; a row that may see nothing sees itself."""
    rows, keys = allowed.shape[-2:]
    own = torch.eye(rows, keys, dtype=torch.bool)
    allowed = allowed | (own & ~allowed.any(-1, keepdim=True))
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]


def causal(prompts: Prompts) -> Tensor:
    """Who may see whom in a stock decoder, (B, n, n)."""
    n = prompts.ids.shape[1]
    return torch.ones(n, n, dtype=torch.bool).tril() & (prompts.mask == 1)[:, None, :]


def saisa_hidden(model: Any, saisa: Any, prompts: Prompts, embeds: Tensor | None = None) -> Tensor:
    """Last hidden states (B, n, D) of a dense decoder, visual rows overwritten in each layer."""
    hidden = model.embed_tokens(prompts.ids) if embeds is None else embeds
    rotary = model.rotary_emb(hidden, prompts.positions)
    mask = additive(causal(prompts))
    for number, layer in enumerate(model.layers):
        hidden = hidden.clone()
        if prompts.features:
            hidden[prompts.visual] = saisa.project(number, torch.cat(prompts.features)).to(hidden)
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
    return model.norm(hidden)


def naavit_hidden(model: Any, prompts: Prompts, embeds: Tensor, *, own: bool, text: bool) -> Tensor:
    """Last hidden states (B, n, D); attention of visual rows is cut down and put right by hand."""
    visual, n = prompts.visual, prompts.ids.shape[1]
    allowed = torch.zeros(*visual.shape, n, dtype=torch.bool)
    if text:
        allowed |= prompts.text[:, None, :]
    if own:
        allowed |= torch.eye(n, dtype=torch.bool)
    allowed = causal(prompts) & torch.where(visual[:, :, None], allowed, True)
    mask, blind = additive(allowed), visual & ~allowed.any(-1)
    hidden, rotary = embeds, model.rotary_emb(embeds, prompts.positions)
    for layer in model.layers:
        attended = layer.self_attn(
            layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=mask
        )[0]
        hidden = hidden + attended.masked_fill(blind.unsqueeze(-1), 0.0)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.norm(hidden)
