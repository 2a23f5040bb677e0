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
class DecoderOutput(BaseModelOutputWithPast):
    """What the decoder loop returns.

    Args:
        rows (Tensor | None): (B, m) int64, which of the call's n rows each row of
            ``last_hidden_state`` is, -1 on filling; None where no mechanism dropped any.
    """

    rows: Tensor | None = None


@dataclass
class VistokenModelOutput(BaseModelOutputWithPast):
    """Decoder output, plus what media and mechanisms left.

    Args:
        token_map (Tensor | None): (B, n, K) int64, when media were given.
        rows (Tensor | None): See :class:`DecoderOutput`.
        aux: Losses and statistics of the mechanisms, when there are mechanisms.
    """

    token_map: Tensor | None = None
    rows: Tensor | None = None
    aux: dict[str, Tensor] | None = None


@dataclass
class VistokenCausalLMOutput(ModelOutput):
    """Logits, loss and caches, plus what media and mechanisms left.

    Args:
        token_map (Tensor | None): (B, n, K) int64, when media were given.
        rows (Tensor | None): See :class:`DecoderOutput`; logits are those of these rows.
        aux: Losses (already in ``loss``) and statistics of the mechanisms.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    token_map: Tensor | None = None
    rows: Tensor | None = None
    aux: dict[str, Tensor] | None = None
