"""Output types of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput


@dataclass
class ImageFeatures(BaseModelOutputWithPooling):
    """What ``get_image_features`` returns, per image.

    Args:
        pooler_output: List of (N_i, D) visual tokens in layout order.
        token_map: List of (N_i, K) int64 token maps.
        side: Name -> per-image list of further tensors that mechanisms or pictures need.
    """

    pooler_output: Any = None
    token_map: list[Tensor] | None = None
    side: dict[str, list[Any]] | None = None


@dataclass
class VistokenModelOutput(BaseModelOutputWithPast):
    """Decoder output plus the batch's token map (B, n, K), when media were given."""

    token_map: Tensor | None = None


@dataclass
class VistokenCausalLMOutput(ModelOutput):
    """Logits, loss and caches, plus the batch's token map (B, n, K), when media were given."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    token_map: Tensor | None = None
