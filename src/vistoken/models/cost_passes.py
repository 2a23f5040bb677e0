"""FLOPs of a model's passes, each counted by running it on the meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from vistoken.core.tables import VIEW
from vistoken.models.encoder import tower_features
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.outputs import ImageFeatures
from vistoken.models.plan_cost import count_plans, prompt_map


def count_encoding(
    model: VistokenForConditionalGeneration, table: Tensor, pixels: list[Tensor]
) -> dict[str, int]:
    """FLOPs of each tower.

    Args:
        model: The model, on the meta device.
        table (Tensor): (V, K), the views.
        pixels: Of each view, (3, height, width).
    """
    inner = model.model
    vision: Any = model.config.vision_config
    layers = vision.feature_layers()
    tower_of = VIEW.get(table, "tower").tolist()
    flops: dict[str, int] = {}
    for number, (spec, tower) in enumerate(
        zip(inner.plan.spec.towers, inner.towers(), strict=True)
    ):
        shapes = Counter(
            view.shape for view, owner in zip(pixels, tower_of, strict=True) if owner == number
        )
        total = 0
        for shape, views in shapes.items():
            with FlopCounterMode(display=False) as counter:
                view = torch.empty(1, *shape, device="meta")
                tower_features(tower, view, layers[number], spec.stride)
            total += views * counter.get_total_flops()
        flops[f"vision_tower.{spec.name}"] = total
    return flops


def count_language(model: VistokenForConditionalGeneration, tokens: int) -> tuple[int, int, int]:
    """FLOPs of the prompt and of one token behind it; numbers that the cache keeps per token.

    Of the stock language model: its mechanisms look at values, which the meta device has not.
    """
    text: Any = model.config.text_config
    language: Any = model.model.language_model
    prompt = torch.empty(1, tokens, text.hidden_size, device="meta")
    with FlopCounterMode(display=False) as prefill:
        outputs = language(inputs_embeds=prompt, use_cache=True)
        model.lm_head(outputs.last_hidden_state[:, -1:])
    layers = outputs.past_key_values.layers
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in layers)
    with FlopCounterMode(display=False) as decode:
        outputs = language(
            inputs_embeds=prompt[:, :1], past_key_values=outputs.past_key_values, use_cache=True
        )
        model.lm_head(outputs.last_hidden_state)
    return prefill.get_total_flops(), decode.get_total_flops(), kept // tokens


def count_planned(
    model: VistokenForConditionalGeneration, image: ImageFeatures, text_tokens: int
) -> tuple[tuple[int, int, int], int]:
    """As :func:`count_language` under the mechanisms; numbers in the cache behind the prompt."""
    before = text_tokens // 2
    table = prompt_map(list(image.token_map or []), before, text_tokens - before)
    counted = count_plans(model.model.language_model, model.model.stack, table, image.side)
    head = 2 * model.lm_head.weight.numel()
    prompt, later = counted.prefill.cache_values, counted.decode.cache_values
    flops = counted.prefill.flops + head, counted.decode.flops + head
    return (*flops, later - prompt), prompt


@contextmanager
def explicit_attention(model: VistokenForConditionalGeneration) -> Iterator[None]:
    """Attention as two matrix products, which the counter sees on every version of PyTorch."""
    parts = [*model.model.towers(), model.model.language_model]
    networks = [part for part in parts if isinstance(part, PreTrainedModel)]
    before = [network.config._attn_implementation for network in networks]
    for network, name in zip(networks, before, strict=True):
        if name is not None:
            network.set_attn_implementation("eager")
    try:
        yield
    finally:
        for network, name in zip(networks, before, strict=True):
            if name is not None:
                network.set_attn_implementation(name)
