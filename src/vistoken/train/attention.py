"""Which attention function the language model trains with; none is ever swapped for another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vistoken.core.errors import MachineError, UsageError
from vistoken.models._compat import FLEX, attention_backend
from vistoken.train.settings import Attention

if TYPE_CHECKING:
    from vistoken.models.modeling import VistokenForConditionalGeneration

_NAMES: dict[Attention, str] = {"sdpa": "sdpa", "flex": FLEX}
_SMALLEST_HEAD = 16
"""Least width of a head that flex attention's kernels take."""


def choose_attention(
    model: VistokenForConditionalGeneration, wanted: Attention | None, device: torch.device
) -> None:
    """Set the language model's attention function, or keep its own, and check that it can train.

    Args:
        model: Changed in place; towers keep their attention.
        wanted: None keeps what the model was loaded with.
        device: Where it will be trained.

    Raises:
        UsageError: Flex attention cannot compute this model.
        MachineError: Flex attention has no backward pass on this device.
    """
    language: Any = model.model.language_model
    if wanted is not None:
        language.set_attn_implementation(_NAMES[wanted])
    config = language.config  # a copy of the model's own text_config
    if not attention_backend(config).is_flex:
        return
    if device.type != "cuda":
        raise MachineError(
            f"flex attention cannot train on {device.type}: it has no backward pass there; "
            "set attention: sdpa, or train on a CUDA device"
        )
    if config.attention_dropout:
        raise UsageError(
            f"flex attention knows no dropout, and the language model's attention_dropout is "
            f"{config.attention_dropout}; set attention: sdpa"
        )
    width = language.layers[0].self_attn.head_dim
    if width < _SMALLEST_HEAD:
        raise UsageError(
            f"flex attention needs heads of at least {_SMALLEST_HEAD} channels, the language "
            f"model's have {width}; set attention: sdpa"
        )
