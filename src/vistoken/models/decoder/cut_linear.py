"""Some outputs or some inputs of a linear layer, worked out alone; plain or under LoRA."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from vistoken.core.errors import UsageError

Chosen = slice | Tensor
"""Channels of a linear layer: a slice, or their numbers (N,) int64."""


def some_outputs(linear: nn.Module, rows: Tensor, chosen: Chosen, where: str) -> Tensor:
    """Outputs of a linear layer, only the chosen ones.

    Args:
        linear: Plain, or with LoRA adapters.
        rows (Tensor): (N, in).
        chosen: Which outputs.
        where: What the layer belongs to, for the message.

    Returns:
        (N, chosen).

    Raises:
        UsageError: The layer is of a kind whose channels cannot be taken apart.
    """
    if type(linear) is nn.Linear:
        bias = None if linear.bias is None else linear.bias[chosen]
        return F.linear(rows, linear.weight[chosen], bias)
    adapted = _adapted(linear, where)
    output = some_outputs(adapted.base, rows, chosen, where)
    for down, up, scale, dropout in adapted.adapters:
        inner = F.linear(dropout(rows.to(down.dtype)), down)
        output = output + scale * F.linear(inner, up[chosen]).to(output.dtype)
    return output


def from_some_inputs(linear: nn.Module, rows: Tensor, chosen: Chosen, where: str) -> Tensor:
    """Output of a linear layer whose other inputs are 0.

    Args:
        linear: Plain, or with LoRA adapters.
        rows (Tensor): (N, chosen), the chosen inputs.
        chosen: Which inputs they are.
        where: What the layer belongs to, for the message.

    Returns:
        (N, out).

    Raises:
        UsageError: The layer is of a kind whose channels cannot be taken apart.
    """
    if type(linear) is nn.Linear:
        return F.linear(rows, linear.weight[:, chosen], linear.bias)
    adapted = _adapted(linear, where)
    output = from_some_inputs(adapted.base, rows, chosen, where)
    for down, up, scale, dropout in adapted.adapters:
        inner = F.linear(dropout(rows.to(down.dtype)), down[:, chosen])
        output = output + scale * F.linear(inner, up).to(output.dtype)
    return output


class _Adapted(NamedTuple):
    """A linear layer under LoRA: its base, and (down, up, factor, dropout) of each adapter."""

    base: nn.Module
    adapters: list[tuple[Tensor, Tensor, float, nn.Module]]


def _adapted(linear: nn.Module, where: str) -> _Adapted:
    # only models that carry adapters pay for loading their library
    from peft.tuners.lora import Linear as LoraLinear

    if not isinstance(linear, LoraLinear):
        raise UsageError(
            f"{where} consists of {type(linear).__name__}, whose channels cannot be cut; load the "
            "language model without quantization."
        )
    lora: Any = linear  # its containers of matrices are typed as modules
    names = [] if lora.disable_adapters or lora.merged else lora.active_adapters
    names = [name for name in names if name in lora.lora_A]
    for name in names:
        if name in lora.lora_variant or lora.lora_B[name].bias is not None:
            raise UsageError(
                f"{where} carries the adapter {name!r}, which is more than two matrices (DoRA, a "
                "bias); its channels cannot be cut: merge the adapter first, or use plain LoRA."
            )
    adapters = [
        (
            lora.lora_A[name].weight,
            lora.lora_B[name].weight,
            lora.scaling[name],
            lora.lora_dropout[name],
        )
        for name in names
    ]
    return _Adapted(lora.base_layer, adapters)
