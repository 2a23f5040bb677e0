"""The one module that touches names of transformers that are private or vary between versions.

Works from 5.19 to the newest 5.x: everything wrapped here exists, with the same meaning, in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar, cast

from torch import Tensor
from transformers import AttentionInterface, Cache, PretrainedConfig
from transformers.integrations.hub_kernels import is_kernel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    create_causal_mask,
    create_sliding_window_causal_mask,
    eager_mask,
    sdpa_mask,
)
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import _active_collector, capture_outputs

LayerPattern = Literal["full_attention", "sliding_attention"]
MaskForm = Literal["bool", "additive", "other", "none"]

FLEX = "flex_attention"
"""The library's name of flex attention, which takes a ``BlockMask``."""

_P = ParamSpec("_P")
_R = TypeVar("_R")

_MASK_BUILDERS: dict[LayerPattern, Callable[..., Any]] = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
}


@dataclass(frozen=True, slots=True)
class AttentionBackend:
    """The attention function that a model's layers look up, and what it can be told.

    Args:
        name: Name under which the function is registered, such as ``sdpa``.
        mask: What its mask builder yields: 4-D ``bool``, 4-D ``additive``, ``other`` (flash and
            flex attention, kernels from the hub), or ``none`` for a name without a registered mask
            builder.
    """

    name: str
    mask: MaskForm

    @property
    def takes_mask(self) -> bool:
        """Whether an arbitrary 4-D mask can be given."""
        return self.mask in ("bool", "additive")

    @property
    def is_flex(self) -> bool:
        """Whether it is flex attention."""
        return self.name == FLEX

    @property
    def takes_bias(self) -> bool:
        """Whether a 4-D mask of floats is added to the scores."""
        # a foreign function that asks for a boolean mask may treat it as one
        return self.name == "sdpa" or self.mask == "additive"


def attention_backend(config: PretrainedConfig) -> AttentionBackend:
    """Find out which attention function a text model's layers call and which mask it wants.

    Args:
        config: The text model's configuration.

    Returns:
        The backend. A name registered for attention only has the mask form ``none``: the mask
        builders return nothing for it, so padding would be attended.
    """
    name = cast(str, config._attn_implementation)
    if name not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        return AttentionBackend(name, "none")
    builder = ALL_MASK_ATTENTION_FUNCTIONS[name]
    if is_kernel(name):  # some are registered with sdpa's masks, and honour them in part
        return AttentionBackend(name, "other")
    if builder is sdpa_mask:
        return AttentionBackend(name, "bool")
    return AttentionBackend(name, "additive" if builder is eager_mask else "other")


def stock_mask(
    pattern: LayerPattern,
    *,
    layer: int,
    config: PretrainedConfig,
    hidden: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache | None,
    materialise: bool,
) -> Tensor | None:
    """Build the mask that a stock text model gives to its layers of one attention pattern.

    Args:
        pattern: Attention pattern of the layer.
        layer: The layer about to run; its part of the cache says how many keys there are (an
            earlier layer's part already holds the rows of this call).
        config: The text model's configuration.
        hidden (Tensor): (B, n, D), read for sizes, dtype and device only.
        attention_mask: (B, k) padding mask, a ready 4-D mask (returned as it is), or None.
        position_ids: (B, n). With neither mask nor cache, positions that do not count up by one
            are taken for packed sequences that must not see each other.
        cache: Keys and values of earlier calls.
        materialise: Never answer None where a plain causal mask would do.

    Returns:
        The mask in the backend's own form; None means causal.
    """
    mask = _MASK_BUILDERS[pattern](
        config=config,
        inputs_embeds=hidden,
        attention_mask=attention_mask,
        past_key_values=cache,
        position_ids=position_ids,
        layer_idx=layer,
        allow_is_causal_skip=not materialise,
    )
    return cast("Tensor | None", mask)


def as_model_forward(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Give a function whose first argument is a text model the trimmings of a stock forward.

    The library's own decorators fill ``use_cache`` from the configuration, switch it off under
    gradient checkpointing, and record hidden states and attentions when they are asked for.
    All other arguments must be passed by name.

    Args:
        function: ``function(model, **inputs) -> ModelOutput``.

    Returns:
        The wrapped function.
    """
    captured: Any = capture_outputs(function)
    return cast("Callable[_P, _R]", merge_with_config_defaults(captured))


class _AttentionFacts:
    """What an attention function reads of its module, with another sharing of key/value heads."""

    is_causal = True

    def __init__(self, module: Any, groups: int) -> None:
        self.num_key_value_groups = groups
        self.training: bool = module.training
        self.config: Any = module.config
        self.layer_idx: int = module.layer_idx
        self.scaling: float = module.scaling
        self.head_dim: int = module.head_dim


def attend(
    module: Any,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    *,
    groups: int,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Call the attention function that a layer's configuration names.

    Args:
        module: The stock attention module.
        query (Tensor): (B, H, q, E).
        keys (Tensor): (B, G, k, E).
        values (Tensor): (B, G, k, E).
        mask: In the backend's form; None means causal.
        groups: Query heads per key/value head, H / G.
        scaling: Factor on the products.
        **options: Go to the attention function.

    Returns:
        Outputs (B, q, H, E), and the weights where the backend has them.
    """
    name = cast(str, module.config._attn_implementation)
    function: Any = AttentionInterface().get_interface(name, eager_attention_forward)
    output, weights = function(
        _AttentionFacts(module, groups),
        query,
        keys,
        values,
        mask,
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=scaling,
        **options,
    )
    return output, weights


def checkpointed(
    layer: Any, function: Callable[[Tensor], tuple[Tensor | None, ...]], hidden: Tensor
) -> tuple[Tensor | None, ...]:
    """Run a stand-in for a layer's forward under the layer's own gradient checkpointing, if on.

    Args:
        layer: The stock layer, which knows whether and how it is checkpointed.
        function: Computes what the layer would, from the hidden states.
        hidden (Tensor): (B, n, D).
    """
    if layer.gradient_checkpointing and layer.training:
        return cast(
            "tuple[Tensor | None, ...]", layer._gradient_checkpointing_func(function, hidden)
        )
    return function(hidden)


def record_output(key: str, value: Tensor | None, *, before: Tensor | None = None) -> None:
    """Record what the stock layer's hooks would have, where the caller asked for it.

    Args:
        key: ``hidden_states`` or ``attentions``.
        value: What the layer gave; None is not recorded.
        before: The layer's input, which opens the list of hidden states.
    """
    collected: Any = _active_collector.get()
    if collected is None or key not in collected or value is None:
        return
    places = collected[key]
    chosen = collected.get("_hidden_states_layers") if key == "hidden_states" else None
    if key == "hidden_states" and not places:
        places.append(before if chosen is None or 0 in chosen else None)
    places.append(value if chosen is None or len(places) in chosen else None)
