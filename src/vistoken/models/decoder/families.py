"""Which stock text models the loop can drive, and what kinds of layers they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
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


def check_family(config: PretrainedConfig) -> None:
    """Refuse a language model that the loop cannot drive.

    Raises:
        UsageError: If the family is not supported: a layer with fused projections, parallel
            blocks or further norms would run, and compute something else.
    """
    if config.model_type not in SUPPORTED_FAMILIES:
        known = ", ".join(sorted(SUPPORTED_FAMILIES))
        raise UsageError(
            f"decoder mechanisms do not support the language model family {config.model_type!r}; "
            f"use one of {known}, or a configuration without mechanisms."
        )


KERNELS_REFUSED = (
    "decoder mechanisms do not run with kernels from the hub, which replace modules that they take "
    "apart; load the model without use_kernels and kernel_config."
)
"""What to say of them."""


def check_own_modules(model: PreTrainedModel) -> None:
    """Refuse a model whose layers would not be run by their own modules.

    Kernels from the hub and tensor parallelism replace forwards. A mechanism's layer may be put
    together from its modules, past what was replaced and with sizes that are then another
    process's share. Whether it will be is known only by its plans, so any mechanism is refused.

    Args:
        model: The model that has the flags: the one that was loaded, or the text model.

    Raises:
        UsageError: Kernels from the hub or tensor parallelism are switched on.
    """
    if model.use_kernels:
        raise UsageError(KERNELS_REFUSED)
    split = vars(model.config).get("distributed_config")  # set while a model is being loaded
    size = model.tp_size if split is None else split.tp_size
    if (size or 1) > 1:
        raise UsageError(
            f"decoder mechanisms do not run with tensor parallelism (tp_size={size}); load the "
            "model without tp_plan, tp_size and distributed_config."
        )


def layer_patterns(language_model: PreTrainedModel) -> list[LayerPattern]:
    """Attention pattern of each layer of a supported text model.

    Args:
        language_model: The headless text model.

    Returns:
        One pattern per layer.

    Raises:
        UsageError: If the family is not supported, see :func:`check_family`.
    """
    config = language_model.config
    check_family(config)
    return SUPPORTED_FAMILIES[config.model_type](config)


_HEAD_NORMS = frozenset({"qwen3"})
"""Model types that normalise each query and key head."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerModules:
    """The modules of one decoder layer, under one set of names for every family.

    Sizes are those of the modules, not of the configuration: pruned layers differ.
    """

    layer: Any
    number: int
    attention: Any
    input_norm: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    post_norm: nn.Module
    mlp: Any
    head_dim: int
    scaling: float

    @classmethod
    def of(cls, layer: Any, family: str) -> LayerModules:
        """Take a decoder layer of a supported model type apart."""
        attention = layer.self_attn
        normed = family in _HEAD_NORMS
        return cls(
            layer=layer,
            number=attention.layer_idx,
            attention=attention,
            input_norm=layer.input_layernorm,
            q_proj=attention.q_proj,
            k_proj=attention.k_proj,
            v_proj=attention.v_proj,
            o_proj=attention.o_proj,
            q_norm=attention.q_norm if normed else None,
            k_norm=attention.k_norm if normed else None,
            post_norm=layer.post_attention_layernorm,
            mlp=layer.mlp,
            head_dim=attention.head_dim,
            scaling=attention.scaling,
        )

    @property
    def is_gated(self) -> bool:
        """Whether the FFN is the family's own: gate, up and down projection."""
        return {"gate_proj", "up_proj", "down_proj"} <= set(dict(self.mlp.named_children()))

    def heads(self, projected: Tensor, norm: nn.Module | None) -> Tensor:
        """Split (..., heads * E) into (..., heads, E), normalised where the family does so."""
        split = projected.unflatten(-1, (-1, self.head_dim))
        return split if norm is None else cast(Tensor, norm(split))
