"""The FFN of some rows, with some of its channels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistoken.core.errors import UsageError
from vistoken.models.decoder.families import LayerModules
from vistoken.models.decoder.plan import LayerPlan


def feed_forward(parts: LayerModules, plan: LayerPlan, hidden: Tensor) -> Tensor:
    """Add the FFN's output to the rows that have one.

    Args:
        parts: The layer's modules.
        plan: Says which rows, and which of them use only the first channels.
        hidden (Tensor): (B, n, D).

    Returns:
        (B, n, D).
    """
    rows = plan.query_rows if plan.ffn_rows is None else plan.ffn_rows
    if rows is None and not plan.ffn_channels:
        return hidden + parts.mlp(parts.post_norm(hidden))
    device = plan.ffn_channels[0].rows.device if rows is None else rows.device
    everything = torch.ones(hidden.shape[:2], dtype=torch.bool, device=device)
    full = everything if rows is None else rows.expand_as(everything)
    pieces: list[tuple[Tensor, int | None]] = []
    for cut in plan.ffn_channels:
        chosen = full & cut.rows
        pieces.append((chosen, cut.channels))
        full = full & ~cut.rows
    pieces.append((full, None))
    for chosen, channels in pieces:
        places = torch.nonzero(chosen.flatten()).flatten().to(hidden.device)
        picked = hidden.flatten(0, 1)[places]  # (N, D): only these rows are worked out
        if len(picked) == 0:
            continue
        normed = parts.post_norm(picked)
        if channels is None:
            # an FFN of experts wants sequences, not bare rows
            change = parts.mlp(normed[None])[0]
        else:
            change = _first_channels(parts, normed, channels)
        hidden = hidden.flatten(0, 1).index_add(0, places, change).view_as(hidden)
    return hidden


def _first_channels(parts: LayerModules, rows: Tensor, channels: int) -> Tensor:
    mlp = parts.mlp
    width = mlp.down_proj.in_features
    if not 1 <= channels <= width:
        raise UsageError(
            f"ffn_channels asks for {channels} channels of layer {parts.number}, which has {width}."
        )
    gate = _first_outputs(mlp.gate_proj, rows, channels, parts.number)
    up = _first_outputs(mlp.up_proj, rows, channels, parts.number)
    return _from_first_inputs(mlp.down_proj, mlp.act_fn(gate) * up, channels, parts.number)


def _first_outputs(linear: nn.Module, rows: Tensor, channels: int, number: int) -> Tensor:
    if type(linear) is nn.Linear:
        bias = None if linear.bias is None else linear.bias[:channels]
        return F.linear(rows, linear.weight[:channels], bias)
    adapted = _adapted(linear, number)
    output = _first_outputs(adapted.base, rows, channels, number)
    for down, up, scale, dropout in adapted.adapters:
        inner = F.linear(dropout(rows.to(down.dtype)), down)
        output = output + scale * F.linear(inner, up[:channels]).to(output.dtype)
    return output


def _from_first_inputs(linear: nn.Module, rows: Tensor, channels: int, number: int) -> Tensor:
    if type(linear) is nn.Linear:
        return F.linear(rows, linear.weight[:, :channels], linear.bias)
    adapted = _adapted(linear, number)
    output = _from_first_inputs(adapted.base, rows, channels, number)
    for down, up, scale, dropout in adapted.adapters:
        inner = F.linear(dropout(rows.to(down.dtype)), down[:, :channels])
        output = output + scale * F.linear(inner, up).to(output.dtype)
    return output


class _Adapted(NamedTuple):
    """A linear layer under LoRA: its base, and (down, up, factor, dropout) of each adapter."""

    base: nn.Module
    adapters: list[tuple[Tensor, Tensor, float, nn.Module]]


def _adapted(linear: nn.Module, number: int) -> _Adapted:
    # only models that carry adapters pay for loading their library
    from peft.tuners.lora import Linear as LoraLinear

    if not isinstance(linear, LoraLinear):
        raise UsageError(
            f"the FFN of layer {number} consists of {type(linear).__name__}, whose channels "
            "cannot be cut; load the language model without quantization."
        )
    lora: Any = linear  # its containers of matrices are typed as modules
    names = [] if lora.disable_adapters or lora.merged else lora.active_adapters
    adapters = [
        (
            lora.lora_A[name].weight,
            lora.lora_B[name].weight,
            lora.scaling[name],
            lora.lora_dropout[name],
        )
        for name in names
        if name in lora.lora_A
    ]
    return _Adapted(lora.base_layer, adapters)
