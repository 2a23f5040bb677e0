"""What a model costs, counted on the meta device: parameters, FLOPs, bytes of cache per token.

One multiply-add counts as two FLOPs, attention over the full square, and what is not a matrix
product or convolution as nothing, which is how :mod:`torch.utils.flop_counter` counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vistoken.core.errors import UsageError
from vistoken.core.tables import VIEW
from vistoken.models.configuration import VistokenConfig
from vistoken.models.cost_passes import (
    count_encoding,
    count_language,
    count_planned,
    explicit_attention,
)
from vistoken.models.modeling import VistokenForConditionalGeneration
from vistoken.models.pipeline import PipelineSpec

_PROJECTOR = "model.multi_modal_projector"


@dataclass(frozen=True)
class ModuleCost:
    """One module.

    Args:
        name: Its place in the model.
        kind: Its class.
        parameters: Parameters in it, those of its children included.
        flops: Of one picture, where this module works on pictures; None elsewhere.
        spatial: Whether it makes tokens of its own in a connector stage.
    """

    name: str
    kind: str
    parameters: int
    flops: int | None
    spatial: bool


@dataclass(frozen=True)
class ModelCost:
    """Counts of one model for one picture and some text.

    Args:
        image_size: (height, width) of the picture in pixels.
        views: Encoder inputs the picture becomes.
        visual_tokens: Tokens the picture becomes.
        text_tokens: Tokens of text beside it.
        parameters: By part: each tower, each connector stage, layout, language model, head. Tied
            weights count where they come first.
        encode_flops: Of the towers.
        connect_flops: Of connector and layout.
        prefill_flops: Of the language model over all tokens, logits of the last one; under its
            mechanisms, counted from their plans.
        decode_flops: Of one further token behind them.
        cache_values: Numbers that the key-value cache holds per token of text.
        prompt_cache_values: Numbers that it holds behind the prompt.
        stock: Prefill and decode FLOPs and ``prompt_cache_values`` of the same model without its
            mechanisms; None where it has none.
        modules: Every module down to a depth.
    """

    image_size: tuple[int, int]
    views: int
    visual_tokens: int
    text_tokens: int
    parameters: dict[str, int]
    encode_flops: dict[str, int]
    connect_flops: int
    prefill_flops: int
    decode_flops: int
    cache_values: int
    prompt_cache_values: int
    stock: tuple[int, int, int] | None
    modules: tuple[ModuleCost, ...]

    @property
    def total_parameters(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    def cache_bytes(self, dtype: torch.dtype = torch.bfloat16) -> int:
        """Bytes of key-value cache per token."""
        return self.cache_values * dtype.itemsize


def empty_model(config: VistokenConfig) -> VistokenForConditionalGeneration:
    """A configuration's model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return VistokenForConditionalGeneration(config).eval()


def measure_cost(
    model: VistokenForConditionalGeneration,
    spec: PipelineSpec,
    image_size: tuple[int, int] | None = None,
    text_tokens: int = 64,
    depth: int = 4,
) -> ModelCost:
    """Count a model's parameters and FLOPs.

    Args:
        model: The model, on the meta device.
        spec: Its pipeline with the processor's views.
        image_size: (height, width) of the picture; the first tower's nominal size when None.
        text_tokens: Tokens of text beside the picture, at least 1.
        depth: Modules are listed down to this many dots in their names.

    Raises:
        UsageError: No text token, or an empty picture.
    """
    size = image_size or spec.towers[0].size
    if text_tokens < 1 or min(size) < 1:
        raise UsageError(f"costs need a text token and a picture, got {text_tokens} and {size}")
    table = spec.view_function().view_table(*size)
    pixels = [
        torch.empty(3, int(height), int(width), device="meta")
        for height, width in zip(VIEW.get(table, "height"), VIEW.get(table, "width"), strict=True)
    ]
    with explicit_attention(model), torch.no_grad():
        encode_flops = count_encoding(model, table, pixels)
        features, _ = model.model.encode(pixels, table)
        with FlopCounterMode(display=False) as connect:
            image = model.get_image_features(tower_features=features, view_table=table)
        visual_tokens = len(image.pooler_output[0])
        language = count_language(model, visual_tokens + text_tokens)
        stock, prompt_values = None, language[2] * (visual_tokens + text_tokens)
        if len(model.model.stack):
            stock = (language[0], language[1], prompt_values)
            language, prompt_values = count_planned(model, image, text_tokens)
    return ModelCost(
        image_size=(size[0], size[1]),
        views=len(table),
        visual_tokens=visual_tokens,
        text_tokens=text_tokens,
        parameters=part_parameters(model),
        encode_flops=encode_flops,
        connect_flops=connect.get_total_flops(),
        prefill_flops=language[0],
        decode_flops=language[1],
        cache_values=language[2],
        prompt_cache_values=prompt_values,
        stock=stock,
        modules=tuple(_modules(model, depth, _by_name(connect), encode_flops)),
    )


def part_parameters(model: VistokenForConditionalGeneration) -> dict[str, int]:
    """Parameters of each part; a tied tensor counts in the first part that has it."""
    inner = model.model
    names = [tower.name for tower in inner.plan.spec.towers]
    parts: dict[str, nn.Module] = {
        f"vision_tower.{name}": tower for name, tower in zip(names, inner.towers(), strict=True)
    }
    for resolved, stage in zip(inner.plan.chain, inner.multi_modal_projector.stages, strict=True):
        parts[f"connector.{resolved.name}"] = stage
    parts |= {"layout": inner.layout, "language_model": inner.language_model}
    parts["lm_head"] = model.lm_head
    seen: set[int] = set()
    counts: dict[str, int] = {}
    for name, module in parts.items():
        new = {id(p): p.numel() for p in module.parameters() if id(p) not in seen}
        seen |= set(new)
        counts[name] = sum(new.values())
    others = sum(p.numel() for p in model.parameters() if id(p) not in seen)
    return {**counts, "mechanisms": others} if others else counts


def _by_name(counter: FlopCounterMode) -> dict[str, int]:
    """FLOPs by place in the model; the counter knows the connector by its class alone."""
    counts: dict[str, Any] = counter.get_flop_counts()
    places = {
        _PROJECTOR + place.removeprefix("Connector"): sum(operations.values())
        for place, operations in counts.items()
        if place.startswith("Connector")
    }
    return places


def _modules(
    model: VistokenForConditionalGeneration,
    depth: int,
    connect: dict[str, int],
    encode: dict[str, int],
) -> Iterator[ModuleCost]:
    towers = {id(t): n for n, t in zip(encode, model.model.towers(), strict=True)}
    stages = model.model.multi_modal_projector.stages
    spatial = {id(module) for stage in stages for module in stage.spatial_modules()}
    for name, module in model.named_modules():
        count = sum(parameter.numel() for parameter in module.parameters())
        if not name or name.count(".") > depth or count == 0:
            continue
        flops = encode[towers[id(module)]] if id(module) in towers else connect.get(name)
        yield ModuleCost(name, type(module).__name__, count, flops, id(module) in spatial)
