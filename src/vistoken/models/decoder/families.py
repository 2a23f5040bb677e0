"""Which stock text models the loop can drive, and what kinds of layers they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from transformers import MistralConfig, PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from vistoken.core.errors import UsageError
from vistoken.models._compat import LayerPattern


def _all_full(config: PretrainedConfig) -> list[LayerPattern]:
    return ["full_attention"] * cast(int, config.num_hidden_layers)


def _mistral(config: PretrainedConfig) -> list[LayerPattern]:
    config = cast(MistralConfig, config)
    pattern: LayerPattern = (
        "full_attention" if config.sliding_window is None else "sliding_attention"
    )
    return [pattern] * config.num_hidden_layers


def _qwen(config: PretrainedConfig) -> list[LayerPattern]:
    return cast("list[LayerPattern]", cast("Qwen2Config | Qwen3Config", config).layer_types)


SUPPORTED_FAMILIES: dict[str, Callable[[PretrainedConfig], list[LayerPattern]]] = {
    "llama": _all_full,
    "mistral": _mistral,
    "qwen2": _qwen,
    "qwen3": _qwen,
}
"""Model type -> attention pattern of each layer."""


def layer_patterns(language_model: PreTrainedModel) -> list[LayerPattern]:
    """Attention pattern of each layer of a supported text model.

    Args:
        language_model: The headless text model.

    Returns:
        One pattern per layer.

    Raises:
        UsageError: If the family is not supported: a layer with fused projections, parallel
            blocks or further norms would run, and compute something else.
    """
    config = language_model.config
    if config.model_type not in SUPPORTED_FAMILIES:
        known = ", ".join(sorted(SUPPORTED_FAMILIES))
        raise UsageError(
            f"decoder mechanisms do not support the language model family {config.model_type!r}; "
            f"use one of {known}, or a configuration without mechanisms."
        )
    return SUPPORTED_FAMILIES[config.model_type](config)
